//! One stage: its instructions one after the other, on the variables and the config as they stand at each.

use serde_json::json;

use super::{Action, PlannedStage, PlannedStep, Planner};
use crate::config::Config;
use crate::error::Error;
use crate::expand::{ExpandError, Rules, expand, expand_words};
use crate::fault::{Fault, Problem};
use crate::graph::{Root, Stage};
use crate::instruction::{self, Arg, CommandLine, Instruction, Located, Pair};
use crate::key::{Digest, Hasher};
use crate::runner::RunSpec;
use crate::syntax::{Heredoc, Statement, Word};
use crate::variables::{Environment, proxies};

/// Where a script of a `RUN` heredoc stands: `/dev` is no part of a layer.
const SCRIPTS: &str = "/dev/pipes";

/// What a later stage takes over from a finished one.
#[derive(Clone)]
pub(super) struct Finished {
    config: Config,
    vars: Environment,
    args: Environment,
    pub(super) key: Digest,
}

/// Arguments of a `RUN`, and its script with where to put it.
type Command = (Vec<String>, Option<(String, String)>);

/// A stage under way.
pub(super) struct Current<'a> {
    pub(super) stage: &'a Stage,
    pub(super) config: Config,
    /// `ENV` and `ARG` together, as `RUN` sees them.
    vars: Environment,
    /// `ARG`s only, for the history.
    args: Environment,
    own_cmd: bool,
    pub(super) key: Digest,
    steps: Vec<PlannedStep>,
}

impl Planner<'_> {
    /// Plans one stage; those it needs were planned before.
    pub(super) fn stage(&mut self, index: usize) -> Result<PlannedStage, Error> {
        let stage = &self.inputs.graph.stages[index];
        let mut current = self.begin(stage);
        self.push(&mut current, &stage.from, Action::Config, None, None);
        for trigger in triggers(&mut current)? {
            self.instruction(&mut current, &trigger)?;
        }
        for located in &stage.body {
            self.instruction(&mut current, located)?;
        }
        let Current { config, vars, args, key, steps, .. } = current;
        let planned = PlannedStage { root: stage.root.clone(), steps, key, config: config.clone() };
        self.done.insert(index, Finished { config, vars, args, key });
        Ok(planned)
    }

    fn begin<'s>(&self, stage: &'s Stage) -> Current<'s> {
        let earlier = match &stage.root {
            Root::Stage(earlier) => self.done.get(earlier).cloned(),
            _ => None,
        };
        let finished = earlier.unwrap_or_else(|| {
            let (config, key) = match &stage.root {
                Root::Image(reference) => match self.inputs.bases.get(reference) {
                    Some(base) => (Config::of_base(&base.config), base_key(&base.id)),
                    None => (Config::scratch(self.inputs.platform), base_key(reference)),
                },
                _ => (Config::scratch(self.inputs.platform), base_key("scratch")),
            };
            let vars = config.environment();
            Finished { config, vars, args: Environment::default(), key }
        });
        let Finished { config, vars, args, key } = finished;
        Current { stage, config, vars, args, own_cmd: false, key, steps: Vec::new() }
    }

    fn push(
        &mut self,
        current: &mut Current<'_>,
        located: &Located,
        action: Action,
        key: Option<Digest>,
        history: Option<String>,
    ) {
        self.steps += 1;
        current.key = key.unwrap_or(current.key);
        let history = history.map(|created_by| {
            current.config.add_history(&created_by);
            current.config.history_len() - 1
        });
        let statement = &located.statement;
        current.steps.push(PlannedStep {
            number: self.steps,
            text: statement.one_line(),
            source: statement.source.clone(),
            span: statement.keyword_span(),
            action,
            key,
            history,
        });
    }

    fn instruction(&mut self, current: &mut Current<'_>, located: &Located) -> Result<(), Error> {
        let statement = &located.statement;
        match &located.instruction {
            Instruction::Run(command, heredocs) => {
                let (action, key, history) = self.run(current, command, heredocs, statement)?;
                self.push(current, located, action, Some(key), Some(history));
            }
            Instruction::Copy(copy) => {
                let (action, key, history) = self.copy(current, copy, statement)?;
                self.push(current, located, action, key, Some(history));
            }
            Instruction::Workdir(word) => {
                let path = absolute(&current.config.workdir(), &current.expand(word, statement)?);
                current.config.set("WorkingDir", path.as_str().into());
                let history = format!("WORKDIR {path}");
                let user = Some(current.config.user()).filter(|user| !user.is_empty()).map(owner);
                let (action, key) = mkdir(current.key, path, user);
                self.push(current, located, action, key, Some(history));
            }
            other => {
                let history = self.metadata(current, other, statement)?;
                self.push(current, located, Action::Config, None, history);
            }
        }
        Ok(())
    }

    /// An instruction that edits only the config or the variables. Gives its line for the history.
    fn metadata(
        &mut self,
        current: &mut Current<'_>,
        instruction: &Instruction,
        statement: &Statement,
    ) -> Result<Option<String>, Error> {
        Ok(Some(match instruction {
            Instruction::Arg(args) => self.args(current, args, statement)?,
            Instruction::Env(pairs) => current.env(pairs, statement)?,
            Instruction::Label(pairs) => {
                let labels = current.pairs(pairs, statement)?;
                current.config.add_labels(&labels);
                format!("LABEL {}", joined(&labels))
            }
            Instruction::User(word) => {
                let user = current.expand_some(word, statement, "USER", "a user")?;
                current.config.set("User", user.as_str().into());
                format!("USER {user}")
            }
            Instruction::Cmd(command) => {
                let argv = current.config.argv(command);
                current.config.set_cmd(&argv);
                current.own_cmd = true;
                format!("CMD {}", json!(argv))
            }
            Instruction::Entrypoint(command) => {
                let argv = current.config.argv(command);
                current.config.set_entrypoint(&argv, current.own_cmd);
                format!("ENTRYPOINT {}", json!(argv))
            }
            Instruction::Expose(words) => {
                let ports = current.ports(words, statement)?;
                current.config.add_to_set("ExposedPorts", &ports);
                format!("EXPOSE {}", ports.join(" "))
            }
            Instruction::Volume(words) => {
                let volumes: Vec<String> = words
                    .iter()
                    .map(|word| current.expand_some(word, statement, "VOLUME", "a path"))
                    .collect::<Result<_, _>>()?;
                current.config.add_to_set("Volumes", &volumes);
                format!("VOLUME {}", volumes.join(" "))
            }
            Instruction::StopSignal(word) => {
                let signal = current.signal(word, statement)?;
                current.config.set("StopSignal", signal.as_str().into());
                format!("STOPSIGNAL {signal}")
            }
            Instruction::Healthcheck(check) => {
                current.config.set_healthcheck(check);
                statement.one_line()
            }
            Instruction::Shell(argv) => {
                current.config.set("Shell", argv.as_slice().into());
                format!("SHELL {}", json!(argv))
            }
            Instruction::Maintainer(name) => {
                current.config.set_author(name);
                format!("MAINTAINER {name}")
            }
            Instruction::Onbuild(trigger) => {
                current.config.add_trigger(trigger);
                return Ok(None);
            }
            // Planned elsewhere.
            Instruction::From(_) | Instruction::Run(..) | Instruction::Copy(_) | Instruction::Workdir(_) => {
                return Ok(None);
            }
        }))
    }

    fn args(
        &self,
        current: &mut Current<'_>,
        args: &[Arg],
        statement: &Statement,
    ) -> Result<String, Box<Fault>> {
        let mut history = Vec::new();
        for arg in args {
            let name = current.expand(&arg.name, statement)?;
            let value = match (self.inputs.build_args.get(&name), &arg.default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(current.expand(default, statement)?),
                (None, None) => self.inputs.graph.globals.get(&name).map(str::to_owned),
            };
            match value {
                Some(value) => {
                    current.vars.set(&name, &value);
                    current.args.set(&name, &value);
                    history.push(format!("{name}={value}"));
                }
                None => history.push(name),
            }
        }
        Ok(format!("ARG {}", history.join(" ")))
    }

    fn run(
        &self,
        current: &Current<'_>,
        command: &CommandLine,
        heredocs: &[Heredoc],
        statement: &Statement,
    ) -> Result<(Action, Digest, String), Box<Fault>> {
        let (argv, script) = current.run_argv(command, heredocs, statement)?;
        let mut env: Vec<(String, String)> =
            current.vars.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let spec = RunSpec {
            argv: argv.clone(),
            env: env.clone(),
            cwd: current.config.workdir(),
            user: current.config.user(),
        };
        env.sort();
        let mut key = Hasher::new("berth run 1");
        key.field(current.key.to_string()).fields(&spec.argv).field(&spec.cwd).field(&spec.user);
        for (name, value) in &env {
            key.field(name).field(value);
        }
        key.field(script.as_ref().map_or("", |(_, text)| text));
        let history = run_history(&current.args, &argv);
        let spec = with_proxies(spec, proxies(self.inputs.build_args));
        Ok((Action::Run { spec, script, mounts: Vec::new(), no_network: false }, key.finish(), history))
    }
}

impl Current<'_> {
    pub(super) fn fault_expand(statement: &Statement, word: &Word, source: ExpandError) -> Box<Fault> {
        statement.fault(word.span, Problem::Expand { word: word.text.clone(), source })
    }

    fn lookup(&self, name: &str) -> Option<String> {
        self.vars.get(name).map(str::to_owned)
    }

    /// A word with its variables replaced and quotes removed.
    pub(super) fn expand(&self, word: &Word, statement: &Statement) -> Result<String, Box<Fault>> {
        let rules = Rules { escape: statement.escape, quotes: true };
        expand(&word.text, rules, &|name| self.lookup(name))
            .map_err(|source| Self::fault_expand(statement, word, source))
    }

    /// The same, and it must not be empty.
    fn expand_some(
        &self,
        word: &Word,
        statement: &Statement,
        instruction: &'static str,
        expected: &'static str,
    ) -> Result<String, Box<Fault>> {
        let value = self.expand(word, statement)?;
        if value.is_empty() {
            let found = format!("`{}`, which expands to nothing", word.text);
            return Err(statement.fault(word.span, Problem::Expected { instruction, expected, found }));
        }
        Ok(value)
    }

    /// A heredoc's lines, variables replaced unless its word was quoted.
    pub(super) fn heredoc(
        &self,
        heredoc: &Heredoc,
        word: &Word,
        statement: &Statement,
    ) -> Result<String, Box<Fault>> {
        if !heredoc.expand {
            return Ok(heredoc.body());
        }
        let rules = Rules { escape: '\\', quotes: false };
        expand(&heredoc.body(), rules, &|name| self.lookup(name))
            .map_err(|source| Self::fault_expand(statement, word, source))
    }

    fn pairs(&self, pairs: &[Pair], statement: &Statement) -> Result<Vec<(String, String)>, Box<Fault>> {
        pairs
            .iter()
            .map(|pair| Ok((self.expand(&pair.key, statement)?, self.expand(&pair.value, statement)?)))
            .collect()
    }

    /// All values of one `ENV` see the variables as they were before it.
    fn env(&mut self, pairs: &[Pair], statement: &Statement) -> Result<String, Box<Fault>> {
        let pairs = self.pairs(pairs, statement)?;
        let mut environment = self.config.environment();
        for (name, value) in &pairs {
            self.vars.set(name, value);
            environment.set(name, value);
        }
        self.config.set_environment(&environment);
        Ok(format!("ENV {}", joined(&pairs)))
    }

    fn ports(&self, words: &[Word], statement: &Statement) -> Result<Vec<String>, Box<Fault>> {
        let rules = Rules { escape: statement.escape, quotes: true };
        let mut ports = Vec::new();
        for word in words {
            let expanded = expand_words(&word.text, rules, &|name| self.lookup(name))
                .map_err(|source| Self::fault_expand(statement, word, source))?;
            for text in expanded {
                let Some(found) = port_range(&text) else {
                    let expected = "a port like `80`, `80/udp` or `8000-8010`";
                    let found = format!("`{text}`");
                    let problem = Problem::Expected { instruction: "EXPOSE", expected, found };
                    return Err(statement.fault(word.span, problem));
                };
                ports.extend(found);
            }
        }
        Ok(ports)
    }

    fn signal(&self, word: &Word, statement: &Statement) -> Result<String, Box<Fault>> {
        let signal = self.expand_some(word, statement, "STOPSIGNAL", "a signal")?;
        if is_signal(&signal) {
            return Ok(signal);
        }
        let expected = "a signal's name or number, for example `SIGTERM` or `9`";
        let problem = Problem::Expected { instruction: "STOPSIGNAL", expected, found: format!("`{signal}`") };
        Err(statement.fault(word.span, problem))
    }

    /// A `RUN`'s arguments, and the script that its heredoc is, if it begins with `#!`.
    fn run_argv(
        &self,
        command: &CommandLine,
        heredocs: &[Heredoc],
        statement: &Statement,
    ) -> Result<Command, Box<Fault>> {
        let (CommandLine::Shell(line), [first, ..]) = (command, heredocs) else {
            return Ok((self.config.argv(command), None));
        };
        if crate::syntax::heredoc(line).is_none() {
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

/// The triggers of the base, as instructions of this stage.
fn triggers(current: &mut Current<'_>) -> Result<Vec<Located>, Error> {
    let name = format!("ONBUILD of {}", current.stage.from.statement.one_line());
    let mut found = Vec::new();
    for text in current.config.take_triggers() {
        let located = instruction::instruction(Statement::detached(&name, &text, '\\')?)?;
        if let Instruction::Copy(copy) = &located.instruction
            && let Some(from) = &copy.from
        {
            let what = "`--from` in an ONBUILD trigger".to_owned();
            return Err(located.statement.fault(from.span, Problem::Unsupported { what }).into());
        }
        found.push(located);
    }
    Ok(found)
}

fn base_key(id: &str) -> Digest {
    let mut key = Hasher::new("berth base 1");
    key.field(id);
    key.finish()
}

/// A working directory is made, but for the root, which is always there.
fn mkdir(parent: Digest, path: String, owner: Option<String>) -> (Action, Option<Digest>) {
    if path == "/" {
        return (Action::Config, None);
    }
    let mut key = Hasher::new("berth workdir 1");
    key.field(parent.to_string()).field(&path).field(owner.as_deref().unwrap_or(""));
    (Action::Mkdir { path, owner }, Some(key.finish()))
}

/// Who owns files by a specification: as in BuildKit, a user by number alone is a group by that number too, whatever
/// the lists of accounts say.
pub(super) fn owner(spec: String) -> String {
    match spec.parse::<u32>() {
        Ok(number) => format!("{number}:{number}"),
        Err(_) => spec,
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

fn joined(pairs: &[(String, String)]) -> String {
    let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(" ")
}

/// `path` seen from `dir`, without `.`, `..` and doubled slashes.
pub(super) fn absolute(dir: &str, path: &str) -> String {
    let joined = if path.starts_with('/') { path.to_owned() } else { format!("{dir}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// `80`, `80/udp`, `8000-8010` as the config lists them.
fn port_range(text: &str) -> Option<Vec<String>> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_lowercase();
    let (low, high) = range.split_once('-').unwrap_or((range, range));
    let (low, high): (u16, u16) = (low.parse().ok()?, high.parse().ok()?);
    let known = matches!(protocol.as_str(), "tcp" | "udp" | "sctp");
    (known && low > 0 && low <= high).then(|| (low..=high).map(|port| format!("{port}/{protocol}")).collect())
}

fn is_signal(text: &str) -> bool {
    const NAMES: [&str; 35] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "IOT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "POLL", "PWR", "SYS", "UNUSED",
    ];
    let name = text.to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let real_time = |prefix: &str| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest[1..].parse::<u8>().is_ok_and(|n| n <= 15))
    };
    let numeric = text.parse::<u8>().is_ok_and(|number| (1..=64).contains(&number));
    numeric || NAMES.contains(&name) || real_time("RTMIN") || real_time("RTMAX")
}
