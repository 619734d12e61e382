//! One stage: its instructions one after the other, on the variables and the config as they stand at each.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Action, Keys, PlannedStage, PlannedStep, Planner};
use crate::config::Config;
use crate::error::Error;
use crate::fault::{Fault, Problem};
use crate::graph::{Root, Stage};
use crate::instruction::{self, Arg, CommandLine, Instruction, Located, Pair};
use crate::key::{Digest, Hasher};
use crate::lint::Finding;
use crate::source::Source;
use crate::syntax::Statement;
use crate::variables::{Environment, normal_platform};

/// Most that the variables of a stage come to, in bytes; the kernel takes less for a command.
const MAX_VARS: usize = 4 << 20;

/// What a later stage takes over from a finished one.
#[derive(Clone)]
pub(super) struct Finished {
    config: Config,
    vars: Environment,
    args: Environment,
    declared: BTreeSet<String>,
    pub(super) key: Digest,
}

/// A stage under way.
pub(super) struct Current<'a> {
    pub(super) stage: &'a Stage,
    pub(super) config: Config,
    /// `ENV` and `ARG` together, as `RUN` sees them.
    pub(super) vars: Environment,
    /// `ARG`s only, for the history.
    pub(super) args: Environment,
    /// Names of `ARG`s, those without a value too.
    pub(super) declared: BTreeSet<String>,
    own_cmd: bool,
    /// Whether a `WORKDIR` of this stage says where relative ones begin.
    has_workdir: bool,
    pub(super) key: Digest,
    steps: Vec<PlannedStep>,
    /// What looks like a mistake.
    pub(super) found: RefCell<Vec<Finding>>,
}

impl Planner<'_> {
    /// Plans one stage; those it needs were planned before. `None` when it waits for an image.
    pub(super) fn stage(&mut self, index: usize) -> Result<Option<PlannedStage>, Error> {
        let stage = &self.inputs.graph.stages[index];
        self.check_platform(stage)?;
        let Some(mut current) = self.begin(stage) else { return Ok(None) };
        self.push(&mut current, &stage.from, Action::Config, None, None);
        for trigger in triggers(&mut current)? {
            self.instruction(&mut current, &trigger)?;
        }
        for located in &stage.body {
            self.instruction(&mut current, located)?;
        }
        let Current { config, vars, args, declared, key, steps, found, .. } = current;
        self.found.extend(found.into_inner());
        let planned = PlannedStage { root: stage.root.clone(), steps, key, config: config.clone() };
        self.done.insert(index, Finished { config, vars, args, declared, key });
        Ok(Some(planned))
    }

    fn check_platform(&self, stage: &Stage) -> Result<(), Box<Fault>> {
        let Some(wanted) = stage.other_platform.clone() else { return Ok(()) };
        let statement = &stage.from.statement;
        let span = match &stage.from.instruction {
            Instruction::From(instruction::From { platform: Some(word), .. }) => word.span,
            _ => statement.whole_span(),
        };
        let have = normal_platform(self.inputs.platform);
        Err(statement.fault(span, Problem::Platform { wanted, have }))
    }

    /// An image of another platform than its user is mostly a mistake.
    fn warn_of_platform(&mut self, reference: &str, config: &Value, stage: &Stage) {
        let text = |key| config.get(key).and_then(Value::as_str).filter(|text: &&str| !text.is_empty());
        let (Some(os), Some(arch)) = (text("os"), text("architecture")) else { return };
        let (have, want) = (normal_platform(&format!("{os}/{arch}")), normal_platform(self.inputs.platform));
        // Variants are told in so many ways that they say little.
        if !want.starts_with(&have) && !have.starts_with(&want) {
            let message = format!(
                "Base image {reference} was pulled with platform \"{have}\", expected \"{want}\" for current build"
            );
            let statement = &stage.from.statement;
            self.warn("InvalidBaseImagePlatform", statement, statement.keyword_span(), message);
        }
    }

    fn begin<'s>(&mut self, stage: &'s Stage) -> Option<Current<'s>> {
        let of_config = |config: Config, key| {
            let vars = config.environment();
            Finished { config, vars, args: Environment::default(), declared: BTreeSet::new(), key }
        };
        let platform = self.inputs.platform;
        let finished = match &stage.root {
            Root::Scratch => of_config(Config::scratch(platform), base_key("scratch")),
            Root::Stage(earlier) => self.done.get(earlier)?.clone(),
            Root::Image(reference) => {
                let statement = &stage.from.statement;
                let span = match &stage.from.instruction {
                    Instruction::From(from) => from.image.span,
                    _ => statement.whole_span(),
                };
                self.need_base(reference, statement, span);
                let base = self.inputs.bases.get(reference)?;
                self.warn_of_platform(reference, &base.config, stage);
                of_config(Config::of_base(&base.config), base_key(&base.id))
            }
        };
        let Finished { config, vars, args, declared, key } = finished;
        let (own_cmd, has_workdir) = (false, false);
        let (steps, found) = (Vec::new(), RefCell::default());
        Some(Current { stage, config, vars, args, declared, own_cmd, has_workdir, key, steps, found })
    }

    fn push(
        &mut self,
        current: &mut Current<'_>,
        located: &Located,
        action: Action,
        keys: Option<Keys>,
        history: Option<String>,
    ) {
        self.steps += 1;
        let (key, own) = (keys.map(|keys| keys.whole), keys.map(|keys| keys.own));
        current.key = match (&action, key) {
            // The key of a linked copy is that of its layer; the file system is what was there and that.
            (Action::Copy(copy), Some(linked)) if copy.link => {
                let mut key = Hasher::new("berth linked 1");
                key.field(current.key.to_string()).field(linked.to_string());
                key.finish()
            }
            (_, key) => key.unwrap_or(current.key),
        };
        let history = history.map(|created_by| {
            current.config.add_history(&created_by);
            current.config.history_len() - 1
        });
        let statement = &located.statement;
        current.steps.push(PlannedStep {
            number: self.steps,
            stage: current.stage.index,
            text: statement.one_line(),
            source: statement.source.clone(),
            span: statement.whole_span(),
            action,
            key,
            own,
            history,
        });
    }

    fn instruction(&mut self, current: &mut Current<'_>, located: &Located) -> Result<(), Error> {
        let statement = &located.statement;
        match &located.instruction {
            Instruction::Run(run) => {
                let (action, keys, history) = self.run(current, &located.instruction, run, statement)?;
                self.push(current, located, action, Some(keys), Some(history));
            }
            Instruction::Copy(copy) => {
                let (action, keys, history) = self.copy(current, &located.instruction, copy, statement)?;
                self.push(current, located, action, keys, Some(history));
            }
            Instruction::Workdir(word) => {
                let written = current.expand(word, statement)?;
                if !written.starts_with('/') && !current.has_workdir {
                    let message = format!(
                        "Relative workdir \"{written}\" can have unexpected results if the base image changes"
                    );
                    self.warn("WorkdirRelativePath", statement, word.span, message);
                }
                current.has_workdir = true;
                let path = absolute(&current.config.workdir(), &written);
                current.config.set("WorkingDir", path.as_str().into());
                let history = format!("WORKDIR {path}");
                let user = Some(current.config.user()).filter(|user| !user.is_empty()).map(owner);
                let (action, keys) = mkdir(current.key, path, user);
                self.push(current, located, action, keys, Some(history));
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
                self.recommend_json(current, "CMD", command, statement);
                let argv = current.config.argv(command);
                current.config.set_cmd(&argv);
                current.own_cmd = true;
                format!("CMD {}", json!(argv))
            }
            Instruction::Entrypoint(command) => {
                self.recommend_json(current, "ENTRYPOINT", command, statement);
                let argv = current.config.argv(command);
                current.config.set_entrypoint(&argv, current.own_cmd);
                format!("ENTRYPOINT {}", json!(argv))
            }
            Instruction::Expose(words) => {
                let ports = self.ports(current, words, statement)?;
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
            current.declared.insert(name.clone());
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
        current.check_vars(statement)?;
        Ok(format!("ARG {}", history.join(" ")))
    }

    /// A shell between the program and its signals is to be wanted: by `SHELL`.
    fn recommend_json(
        &mut self,
        current: &Current<'_>,
        name: &str,
        command: &CommandLine,
        statement: &Statement,
    ) {
        if matches!(command, CommandLine::Shell(_)) && !current.config.has_shell() {
            let message = format!(
                "JSON arguments recommended for {name} to prevent unintended behavior related to OS signals"
            );
            self.warn("JSONArgsRecommended", statement, statement.keyword_span(), message);
        }
    }
}

impl Current<'_> {
    /// All values of one `ENV` see the variables as they were before it.
    fn env(&mut self, pairs: &[Pair], statement: &Statement) -> Result<String, Box<Fault>> {
        let pairs = self.pairs(pairs, statement)?;
        let mut environment = self.config.environment();
        for (name, value) in &pairs {
            self.vars.set(name, value);
            environment.set(name, value);
        }
        self.config.set_environment(&environment);
        self.check_vars(statement)?;
        Ok(format!("ENV {}", joined(&pairs)))
    }

    /// Every step has them all.
    fn check_vars(&self, statement: &Statement) -> Result<(), Box<Fault>> {
        if self.vars.bytes() <= MAX_VARS {
            return Ok(());
        }
        let problem = Problem::TooMuch { what: "all variables of a stage together", limit: "4 MiB" };
        Err(statement.fault(statement.keyword_span(), problem))
    }
}

/// The triggers of the base, as instructions of this stage.
fn triggers(current: &mut Current<'_>) -> Result<Vec<Located>, Error> {
    let from = &current.stage.from.statement;
    let mut found = Vec::new();
    for text in current.config.take_triggers() {
        let name = format!("ONBUILD {}", text.lines().next().unwrap_or_default());
        let brought_by = Some((from.source.clone(), from.whole_span()));
        let source = Arc::new(Source { name, text, brought_by });
        found.push(instruction::instruction(Statement::detached(&source, '\\')?)?);
    }
    Ok(found)
}

fn base_key(id: &str) -> Digest {
    let mut key = Hasher::new("berth base 1");
    key.field(id);
    key.finish()
}

/// A working directory is made, but for the root, which is always there.
fn mkdir(parent: Digest, path: String, owner: Option<String>) -> (Action, Option<Keys>) {
    if path == "/" {
        return (Action::Config, None);
    }
    let mut key = Hasher::new("berth workdir 2");
    key.field(&path).field(owner.as_deref().unwrap_or(""));
    (Action::Mkdir { path, owner }, Some(Keys::new(key.finish(), Some(parent), &[])))
}

/// Who owns files by a specification: as in BuildKit, a user by number alone is a group by that number too, whatever
/// the lists of accounts say.
pub(super) fn owner(spec: String) -> String {
    match spec.parse::<u32>() {
        Ok(number) => format!("{number}:{number}"),
        Err(_) => spec,
    }
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
