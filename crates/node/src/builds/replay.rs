//! A Dockerfile's steps in a sandbox that runs: the boot mode that makes no image.
//!
//! The sandbox was made of the image that the target stage begins with ([`Node::base_of_build`]). Its steps run in it one
//! after the other, each on what the ones before left; nothing of it gets into a layer or the cache, and stages that only
//! lend files are built as always. Afterwards commands of the sandbox run with the environment, the working directory and
//! the user that the image would have, as long as it lives, be it under another daemon. What was asked for when the
//! sandbox was made goes before what the Dockerfile says.
//!
//! It begins only where no command runs: what a command saw half of would be nobody's result. A step that fails leaves the
//! sandbox running with what was done, and its configuration as it was.

mod inside;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_build::ContextSource;
use berth_build::runner::RunSpec;
use berth_types::image::{BuildFailure, BuildImage, ImageConfig, ReplayResult};
use berth_types::progress::Progress;
use berth_types::sandbox::{Sandbox, SandboxState};
use serde_json::Value;

use super::runner::Builder;
use super::upload::receive;
use super::{Asked, packages};
use crate::images::{Body, Sink};
use crate::recovery::resume_of;
use crate::registry::{Entry, Live};
use crate::{Error, Node};

use inside::Running;

/// The search path of a container whose image sets none, as everywhere.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Shells that lines run in, the first that is there.
const SHELLS: [&str; 3] = ["/bin/bash", "/usr/bin/bash", "/bin/sh"];

const REPLAYED: &str = "a Dockerfile is being replayed in it";

/// Sandboxes in which a Dockerfile is being replayed, and those in which commands are about to begin: never both.
#[derive(Clone, Default)]
pub(crate) struct Replays(Arc<Mutex<UnderWay>>);

#[derive(Default)]
struct UnderWay {
    replays: BTreeSet<String>,
    /// How many commands are being started, which their sandbox does not know of yet.
    starting: BTreeMap<String, usize>,
}

/// The right to replay in a sandbox; given back when it is dropped.
struct Turn {
    replays: Replays,
    id: String,
}

/// The right to start a command in one; given back when it is dropped.
pub(crate) struct Starting {
    replays: Replays,
    id: String,
}

impl Replays {
    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replay(&self, id: &str) -> Result<Turn, Error> {
        let mut under_way = self.lock();
        if under_way.starting.contains_key(id) {
            return Err(in_use(id, "a command is being started"));
        }
        if !under_way.replays.insert(id.to_owned()) {
            return Err(in_use(id, REPLAYED));
        }
        Ok(Turn { replays: self.clone(), id: id.to_owned() })
    }

    /// Lets a command be started, to be held until its sandbox knows of it.
    ///
    /// # Errors
    /// [`Error::SandboxInUse`] while a Dockerfile is being replayed: the command would see half of what it makes.
    pub(crate) fn start(&self, id: &str) -> Result<Starting, Error> {
        let mut under_way = self.lock();
        if under_way.replays.contains(id) {
            return Err(in_use(id, REPLAYED));
        }
        *under_way.starting.entry(id.to_owned()).or_default() += 1;
        Ok(Starting { replays: self.clone(), id: id.to_owned() })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.replays.lock().replays.remove(&self.id);
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let mut under_way = self.replays.lock();
        let Some(count) = under_way.starting.get_mut(&self.id) else { return };
        *count -= 1;
        if *count == 0 {
            under_way.starting.remove(&self.id);
        }
    }
}

fn in_use(id: &str, what: &str) -> Error {
    Error::SandboxInUse { id: id.to_owned(), what: what.to_owned() }
}

impl Node {
    /// Runs the target stage's steps of a context, a tar, in a sandbox that was made of that stage's base.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`], [`Error::SandboxNotRunning`], [`Error::SandboxInUse`] while commands run in it;
    /// [`Error::BadRequest`], [`Error::BadContext`]; [`Error::ReplayBase`] for a sandbox that was made of another image;
    /// [`Error::Replay`] for everything that the steps meet.
    pub async fn replay(
        &self,
        id: &str,
        options: BuildImage,
        context: Body,
        sink: Sink,
    ) -> Result<ReplayResult, Error> {
        refuse_what_has_no_meaning(&options)?;
        let asked = Asked::new(self, options)?;
        let (id, sandbox, live) = self.live(id)?;
        let _turn = self.0.replays.replay(&id)?;
        self.check_idle(&id, &live).await?;
        let came = receive(context, &self.0.tmp, &self.0.builds.room).await?;
        let outcome = self.steps(&asked, came.source(), &sandbox, &live, &sink).await;
        let outcome = outcome.map_err(|error| match error {
            Error::Build(source) => Error::Replay { id: id.clone(), source },
            other => other,
        })?;
        let config = self.take_on(&id, outcome.config).await?;
        Ok(ReplayResult {
            config,
            content_key: outcome.content_key,
            steps: outcome.steps,
            warnings: outcome.warnings,
        })
    }

    async fn steps(
        &self,
        asked: &Asked,
        context: ContextSource<'_>,
        sandbox: &Sandbox,
        live: &Live,
        sink: &Sink,
    ) -> Result<berth_build::ReplayOutcome, Error> {
        let own = self.resolve_image(&sandbox.image).await?.id;
        let builder = Builder { own: Some(own.clone()), ..self.builder(asked.settings.clone(), sink) };
        let request = self.request(asked, context, sink);
        let base = berth_build::base(&request, &builder).await?;
        if base.id != own.as_str() {
            let base = Some(base.id).filter(|id| !id.is_empty());
            return Err(Error::ReplayBase { id: sandbox.id.clone(), image: own.to_string(), base });
        }
        if live.no_new_privileges {
            let text = "programs with set-uid bits that these steps install have no effect in this sandbox"
                .to_owned();
            sink(Progress::Message { text });
        }
        let mut inside = Running::new(live.machine.clone(), &builder, sandbox);
        let mut outcome = berth_build::replay(&request, &builder, &mut inside).await?;
        if !asked.packages.is_empty() {
            install(asked, &outcome.config, &mut inside, sink).await?;
            outcome.steps += 1;
        }
        Ok(outcome)
    }

    /// Refuses a sandbox in which commands run.
    async fn check_idle(&self, id: &str, live: &Live) -> Result<(), Error> {
        let execs = live.guest().await.execs(None).await;
        let execs = match execs {
            Ok(execs) => execs,
            Err(source) => return Err(self.guest_error(id, source).await),
        };
        let running = execs.iter().filter(|exec| exec.status.is_none()).count();
        match running {
            0 => Ok(()),
            count => Err(Error::SandboxInUse { id: id.to_owned(), what: format!("{count} commands run") }),
        }
    }

    /// Has the sandbox's later commands run with a config.
    async fn take_on(&self, id: &str, config: Value) -> Result<ImageConfig, Error> {
        let config = config_of(&config);
        let (_, sandbox, live) = self.live(id)?;
        let before = self.resolve_image(&sandbox.image).await?.config;
        let shell = self.find_shell(&live).await;
        let trust = &self.0.trust.sandboxes;
        let mut changed = false;
        let entry = self.0.sandboxes.update(id, |entry| {
            let Entry { row, live: Some(live), .. } = entry else { return };
            if row.sandbox.state != SandboxState::Running {
                return;
            }
            let mut env = environment(&trust.without(&live.env), &before, &config);
            trust.add_to(&mut env);
            live.env = Arc::new(env);
            let (workdir, user) = (or_root(&config.working_dir), config.user.clone());
            if row.sandbox.workdir == or_root(&before.working_dir) {
                row.sandbox.workdir = workdir;
            }
            if row.sandbox.user == before.user {
                row.sandbox.user = user;
            }
            row.sandbox.shell = shell.or(row.sandbox.shell.take());
            row.resume = resume_of(live);
            changed = true;
        });
        let Some(Entry { row, .. }) = entry.filter(|_| changed) else {
            // It was ended meanwhile.
            return Err(self.live(id).err().unwrap_or(Error::Ending));
        };
        self.persist(row).await?;
        Ok(config)
    }

    async fn find_shell(&self, live: &Live) -> Option<String> {
        let guest = live.guest().await;
        for shell in SHELLS {
            if let Ok(Some(berth_build::runner::Stat::File)) = super::step::stat(&guest, shell).await {
                return Some(shell.to_owned());
            }
        }
        None
    }
}

/// What of a build has no meaning here is refused, not dropped.
fn refuse_what_has_no_meaning(options: &BuildImage) -> Result<(), Error> {
    let bad = |field, problem: &str| Err(Error::BadRequest { field, problem: problem.to_owned() });
    if !options.tags.is_empty() {
        return bad("tags", "a replay makes no image that could have one");
    }
    if options.manifest.is_some() {
        return bad("manifest", "a replay needs the context itself");
    }
    Ok(())
}

/// Installs packages as the last step.
async fn install(asked: &Asked, config: &Value, inside: &mut Running<'_>, sink: &Sink) -> Result<(), Error> {
    use berth_build::runner::Step as _;
    let argv = packages::argv(&asked.packages);
    let instruction = format!("install {}", asked.packages.join(" "));
    sink(Progress::Step { step: 1, steps: 1, instruction: instruction.clone(), cached: false });
    let mut env: BTreeMap<String, String> = pairs(&config_of(config).env).collect();
    env.entry("PATH".to_owned()).or_insert_with(|| DEFAULT_PATH.to_owned());
    let spec = RunSpec { argv, env: env.into_iter().collect(), cwd: "/".to_owned(), user: String::new() };
    let mut tail = Vec::new();
    let mut output = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        tail.extend(text.lines().map(str::to_owned));
        tail.drain(..tail.len().saturating_sub(50));
        sink(Progress::Output { step: 1, text });
    };
    let code = inside.run(spec, &mut output).await;
    let code = code.map_err(|source| berth_build::Error::Step {
        file: packages::FILE.into(),
        line: 1,
        step: 1,
        instruction: instruction.as_str().into(),
        operation: "run the command",
        place: None,
        source,
    })?;
    if code == 0 {
        return Ok(());
    }
    let failure = BuildFailure {
        step: 1,
        steps: 1,
        instruction,
        file: packages::FILE.to_owned(),
        line: 1,
        exit_code: Some(code),
        output_tail: tail,
        stage: None,
        excerpt: None,
    };
    Err(berth_build::Error::StepFailed(Box::new(failure)).into())
}

/// The part of an image config that commands run with.
fn config_of(config: &Value) -> ImageConfig {
    let config = config.get("config").unwrap_or(config);
    let text = |name: &str| config[name].as_str().unwrap_or_default().to_owned();
    let list = |name: &str| {
        let list = config[name].as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let labels = config["Labels"].as_object().into_iter().flatten();
    ImageConfig {
        env: list("Env"),
        working_dir: text("WorkingDir"),
        user: text("User"),
        entrypoint: list("Entrypoint"),
        cmd: list("Cmd"),
        labels: labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect(),
    }
}

/// What commands ran with, less what came of the image before, plus what the new one says: what the request set, stays.
fn environment(
    now: &BTreeMap<String, String>,
    before: &ImageConfig,
    after: &ImageConfig,
) -> BTreeMap<String, String> {
    let of_image: BTreeMap<String, String> = pairs(&before.env).collect();
    let of_request = now.iter().filter(|(name, value)| of_image.get(*name) != Some(value));
    let of_request = of_request.map(|(name, value)| (name.clone(), value.clone()));
    pairs(&after.env).chain(of_request).collect()
}

fn pairs(lines: &[String]) -> impl Iterator<Item = (String, String)> {
    lines
        .iter()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
}

fn or_root(workdir: &str) -> String {
    if workdir.is_empty() { "/".to_owned() } else { workdir.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(env: &[&str]) -> ImageConfig {
        ImageConfig { env: env.iter().map(|line| (*line).to_owned()).collect(), ..ImageConfig::default() }
    }

    #[test]
    fn commands_begin_before_a_replay_or_after_it() {
        let replays = Replays::default();
        let first = replays.start("a").unwrap();
        let second = replays.start("a").unwrap();
        drop(first);
        let refused = replays.replay("a").map(drop).unwrap_err().to_string();
        assert_eq!(refused, "sandbox a is in use: a command is being started");
        let other = replays.replay("b").unwrap();
        drop(second);
        let turn = replays.replay("a").unwrap();
        let refused = replays.start("a").map(drop).unwrap_err().to_string();
        assert_eq!(refused, "sandbox a is in use: a Dockerfile is being replayed in it");
        assert!(replays.replay("a").is_err());
        drop((turn, other));
        drop(replays.start("a").unwrap());
        assert!(replays.lock().starting.is_empty() && replays.lock().replays.is_empty());
    }

    #[test]
    fn the_new_image_s_variables_count_and_the_request_s_more() {
        let now = BTreeMap::from(
            [("PATH", "/bin"), ("OLD", "1"), ("OWN", "mine")].map(|(k, v)| (k.to_owned(), v.to_owned())),
        );
        let before = config(&["PATH=/bin", "OLD=1", "OWN=its"]);
        let after = config(&["PATH=/opt:/bin", "NEW=2", "OWN=new"]);
        let env = environment(&now, &before, &after);
        let lines: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(lines, ["NEW=2", "OWN=mine", "PATH=/opt:/bin"]);
    }

    #[test]
    fn a_config_is_read_with_and_without_what_is_around_it() {
        let inner =
            json!({"Env": ["A=1"], "WorkingDir": "/w", "User": "u", "Cmd": ["c"], "Labels": {"k": "v"}});
        let read = config_of(&json!({"config": inner, "architecture": "amd64"}));
        assert_eq!(read, config_of(&inner));
        assert_eq!((read.working_dir.as_str(), read.user.as_str(), read.env.len()), ("/w", "u", 1));
        assert_eq!(read.labels["k"], "v");
        assert_eq!(config_of(&json!({})), ImageConfig::default());
    }

    #[test]
    fn what_only_an_image_could_have_is_refused() {
        let tags = BuildImage { tags: vec!["a".into()], ..BuildImage::default() };
        let error = refuse_what_has_no_meaning(&tags).unwrap_err().to_string();
        assert!(error.starts_with("tags:"), "{error}");
        assert!(refuse_what_has_no_meaning(&BuildImage::default()).is_ok());
    }
}
