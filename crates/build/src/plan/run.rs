//! `RUN`: its command, its environment, its mounts, and the key of all that.

use super::stage::Current;
use super::{Action, Keys, Planner};
use crate::error::Error;
use crate::fault::{Fault, Problem};
use crate::instruction::{CommandLine, Instruction, Run};
use crate::key::Hasher;
use crate::runner::{RunSpec, SCRIPTS};
use crate::syntax::Statement;
use crate::syntax::words::split_quoted;
use crate::variables::{Environment, proxies};

/// Most that the commands of a plan and their variables come to, in bytes.
const MAX_PLANNED: usize = 256 << 20;

/// Arguments of a `RUN`, and its script with where to put it.
type Command = (Vec<String>, Option<(String, String)>);

impl Planner<'_> {
    /// Plans a `RUN`: what it does, its key, and its line for the history.
    pub(super) fn run(
        &mut self,
        current: &Current<'_>,
        instruction: &Instruction,
        run: &Run,
        statement: &Statement,
    ) -> Result<(Action, Keys, String), Error> {
        let (argv, script) = current.run_argv(run, statement)?;
        let mounts = self.mounts(current, instruction, run, statement)?;
        let mut env: Vec<(String, String)> =
            current.vars.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        self.planned_bytes += current.vars.bytes() + argv.iter().map(String::len).sum::<usize>();
        if self.planned_bytes > MAX_PLANNED {
            let problem =
                Problem::TooMuch { what: "what the commands are given, together,", limit: "256 MiB" };
            return Err(statement.fault(statement.keyword_span(), problem).into());
        }
        let spec = RunSpec {
            argv: argv.clone(),
            env: env.clone(),
            cwd: current.config.workdir(),
            user: current.config.user(),
        };
        env.sort();
        let mut key = Hasher::new("berth run 3");
        key.fields(&spec.argv).field(&spec.cwd).field(&spec.user);
        key.field(env.len().to_string());
        for (name, value) in &env {
            key.field(name).field(value);
        }
        key.field(script.as_ref().map_or("", |(_, text)| text));
        // What a command finds there decides what it makes.
        key.field(if run.no_network || self.inputs.no_network { "no network" } else { "" });
        let mut lent = Vec::new();
        for mount in &mounts {
            lent.extend(self.mount_key(&mut key, mount)?);
        }
        let history = run_history(&current.args, &argv);
        let spec = with_proxies(spec, proxies(self.inputs.build_args));
        let keys = Keys::new(key.finish(), Some(current.key), &lent);
        Ok((Action::Run { spec, script, mounts, no_network: run.no_network }, keys, history))
    }
}

impl Current<'_> {
    /// A `RUN`'s arguments, and the script that its heredoc is, if it begins with `#!`.
    fn run_argv(&self, run: &Run, statement: &Statement) -> Result<Command, Box<Fault>> {
        let heredocs = run.heredocs.as_slice();
        let (CommandLine::Shell(line), [first, ..]) = (&run.command, heredocs) else {
            return Ok((self.config.argv(&run.command), None));
        };
        // A heredoc and nothing else is the command itself.
        let alone = split_quoted(line, '\\').len() == 1 && crate::syntax::heredoc(line).is_some();
        if !alone {
            // The shell itself reads the heredocs, in the order in which it finds them.
            let bodies: String =
                heredocs.iter().map(|doc| format!("\n{}{}", doc.content, doc.name)).collect();
            return Ok((self.config.argv(&CommandLine::Shell(format!("{line}{bodies}"))), None));
        }
        let body = first.body();
        let Some(interpreter) = body.strip_prefix("#!") else {
            return Ok((self.config.argv(&CommandLine::Shell(body)), None));
        };
        // As the kernel reads the line: a program and at most one argument.
        let interpreter = interpreter.lines().next().unwrap_or_default().trim();
        let (program, argument) = interpreter.split_once([' ', '\t']).unwrap_or((interpreter, ""));
        if program.is_empty() || first.name.contains('/') {
            let (expected, found) = ("the path of an interpreter after `#!`", format!("`#!{interpreter}`"));
            let problem = Problem::Expected { instruction: "RUN", expected, found };
            return Err(statement.fault(statement.whole_span(), problem));
        }
        let argument = Some(argument.trim().to_owned()).filter(|argument| !argument.is_empty());
        let script = format!("{SCRIPTS}/{}", first.name);
        let argv = std::iter::once(program.to_owned()).chain(argument).chain([script.clone()]).collect();
        Ok((argv, Some((script, body))))
    }
}

/// The history of a `RUN` names the arguments it saw, as Docker's does.
fn run_history(args: &Environment, argv: &[String]) -> String {
    let args = args.lines();
    let count = if args.is_empty() { Vec::new() } else { vec![format!("|{}", args.len())] };
    format!("RUN {}", [count, args, argv.to_vec()].concat().join(" "))
}

/// Proxies are no part of a key: what is fetched through them is the same.
fn with_proxies(mut spec: RunSpec, proxies: Vec<(String, String)>) -> RunSpec {
    for (name, value) in proxies {
        if !spec.env.iter().any(|(known, _)| *known == name) {
            spec.env.push((name, value));
        }
    }
    spec
}
