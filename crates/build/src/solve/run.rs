//! `RUN`, carried out: what it mounts, its secrets, its output.
//!
//! A secret's bytes go from the runner into the step's sandbox and nowhere else. They are no part of the plan, and what
//! a command prints of them is masked before anybody sees it.

use berth_types::image::BuildFailure;
use berth_types::progress::Progress;

use super::mask::Masker;
use super::output::{Decoder, Tail};
use super::stages::{Ready, Solver};
use super::tars::{self, Item};
use super::{digest, keys, user};
use crate::context::EntryKind;
use crate::error::Error;
use crate::excerpt::Excerpt;
use crate::graph::Root;
use crate::key::{Digest, Hasher};
use crate::plan::{CopyRoot, MountKind, PlannedMount, PlannedStep};
use crate::runner::{LayerId, Mount, MountSource, Owner, RunSpec, RunnerError, Setting, Step};

/// Where a layer that is made for a mount holds it.
const HELD: &str = "/held";

/// What a `RUN` finds of a `type=bind`, or a `type=cache` at first.
#[derive(Clone)]
pub(super) struct Lent {
    layers: Vec<LayerId>,
    path: String,
}

impl Solver<'_> {
    /// What a `RUN`'s sandbox has, and its variables that are secret.
    pub(super) async fn setting(
        &self,
        step: &PlannedStep,
        mounts: &[PlannedMount],
        no_network: bool,
    ) -> Result<Ready, Error> {
        let mut ready =
            Ready { setting: Setting { mounts: Vec::new(), no_network, runs: true }, ..Ready::default() };
        for mount in mounts {
            let source = match &mount.kind {
                MountKind::Bind { root, source } => {
                    let lent = self.lent(step, root, source).await?;
                    ready.lent.extend(matches!(root, CopyRoot::Root(_)).then(|| lent.clone()));
                    MountSource::Layers { layers: lent.layers, path: lent.path }
                }
                MountKind::Cache { id, sharing, seed, uid, gid, mode } => {
                    let seed = match seed {
                        None => None,
                        Some((root, source)) => {
                            let lent = self.lent(step, root, source).await?;
                            ready.lent.extend(matches!(root, CopyRoot::Root(_)).then(|| lent.clone()));
                            Some((lent.layers, lent.path))
                        }
                    };
                    let (id, sharing, uid, gid, mode) = (id.clone(), *sharing, *uid, *gid, *mode);
                    MountSource::Cache { id, sharing, seed, uid, gid, mode }
                }
                MountKind::Tmpfs { size } => MountSource::Tmpfs { size: *size },
                MountKind::Secret { .. } => match self.secret(step, mount, &mut ready.env)? {
                    Some(source) => source,
                    None => continue,
                },
            };
            let (target, read_only) = (mount.target.clone(), mount.read_only);
            ready.setting.mounts.push(Mount { target, read_only, source });
        }
        Ok(ready)
    }

    /// A secret: the file, where it is to be one, and the variable, which goes to `env`.
    fn secret(
        &self,
        step: &PlannedStep,
        mount: &PlannedMount,
        env: &mut Vec<(String, String)>,
    ) -> Result<Option<MountSource>, Error> {
        let MountKind::Secret { id, required, env: name, uid, gid, mode } = &mount.kind else {
            return Ok(None);
        };
        let cannot = |message: String| self.failed(step, "give the secret", user(message));
        let Some(bytes) = self.runner.secret(id) else {
            if *required {
                let message = format!(
                    "secret `{id}` is required and was not given (give it with `--secret id={id},src=FILE`)"
                );
                return Err(cannot(message));
            }
            let text = format!("step {} runs without secret `{id}`, which was not given", step.number);
            (self.progress)(Progress::Message { text });
            return Ok(None);
        };
        if let Some(name) = name {
            let text = std::str::from_utf8(&bytes).ok().filter(|text| !text.contains('\0'));
            let Some(text) = text else {
                let message = format!("secret `{id}` cannot be the variable `{name}`: it is not text");
                return Err(cannot(message));
            };
            env.push((name.clone(), text.to_owned()));
        }
        let file = || MountSource::Secret { bytes, uid: *uid, gid: *gid, mode: *mode };
        Ok((!mount.target.is_empty()).then(file))
    }

    /// Layers that hold what is mounted. What comes from the context, or is nothing at all, gets a layer of its own.
    async fn lent(&self, step: &PlannedStep, root: &CopyRoot, source: &str) -> Result<Lent, Error> {
        let layers = match root {
            CopyRoot::Context => return self.held(step, Some(source)).await,
            CopyRoot::Root(Root::Scratch) => Vec::new(),
            CopyRoot::Root(root) => self.root(root).await?.layers,
        };
        if layers.is_empty() {
            return match source {
                "/" | "" => self.held(step, None).await,
                path => Err(self.failed(step, "mount the files", user(format!("`{path}` is not there")))),
            };
        }
        Ok(Lent { layers, path: source.to_owned() })
    }

    /// Digest of what is mounted of a stage or image: of its content, but of a whole root only which layers that has, for to
    /// read all of it would take longer than most commands. `None` where it cannot be read: mounting it will tell why.
    pub(super) async fn lent_digest(&self, step: &PlannedStep, lent: &Lent) -> Result<Option<Digest>, Error> {
        let cannot = |source| self.failed(step, "read the files to mount", source);
        if lent.path == "/" {
            let layers: Vec<&str> = lent.layers.iter().map(|layer| layer.0.as_str()).collect();
            let mut key = Hasher::new("berth root 1");
            key.fields(&layers);
            return Ok(Some(key.finish()));
        }
        let mut from = self.runner.lend(&lent.layers).await.map_err(cannot)?;
        let tar = match from.pack(&lent.path).await {
            Ok(tar) => tar,
            Err(RunnerError::User { .. }) => return Ok(None),
            Err(source) => return Err(cannot(source)),
        };
        digest::of_tar(tar).await.map(Some).map_err(cannot)
    }

    /// A layer that holds one path of the context, or an empty directory: kept by its content like a step's.
    async fn held(&self, step: &PlannedStep, source: Option<&str>) -> Result<Lent, Error> {
        let context = &self.prepared.context;
        let resolved = source.map(|source| context.resolve(source.trim_start_matches('/'))).transpose();
        let path = resolved.map_err(|_| {
            let source = source.unwrap_or_default();
            self.failed(step, "mount the files", user(format!("`{source}` is not in the build context")))
        })?;
        let kind = path.as_ref().and_then(|path| context.entry(path)).map(|entry| entry.kind.clone());
        let (key, items) = match (path, kind) {
            (None, _) => ("empty".to_owned(), Vec::new()),
            (Some(path), None | Some(EntryKind::Dir)) => {
                (keys::held(context, &path)?, vec![Item::Tree { path, without: Vec::new() }])
            }
            (Some(path), Some(_)) => {
                let name = "file".to_owned();
                (keys::held(context, &path)?, vec![Item::File { path, name }])
            }
        };
        let is_file = matches!(items.as_slice(), [Item::File { .. }]);
        let key = format!("held-{key}");
        let layer = self.once(&key, || async {
            let _permit = self.permit().await;
            let sandbox = self.runner.open(&[], Setting::default()).await;
            let mut sandbox = sandbox.map_err(|source| self.failed(step, "open a sandbox", source))?;
            let made = sandbox.mkdir(HELD, None).await;
            made.map_err(|source| self.failed(step, "hold the files to mount", source))?;
            let stream = tars::context(context.clone(), items, None);
            let unpacked = stream.unpack(sandbox.as_mut(), HELD, Owner::Root, None).await;
            unpacked.map_err(|source| self.failed(step, "hold the files to mount", source))?;
            let layer = sandbox.commit().await;
            let layer = layer.map_err(|source| self.failed(step, "hold the files to mount", source))?;
            self.keep(&key, &layer).await?;
            Ok(layer)
        });
        let layers = layer.await?.into_iter().collect();
        Ok(Lent { layers, path: if is_file { format!("{HELD}/file") } else { HELD.to_owned() } })
    }

    pub(super) async fn put_script(
        &self,
        step: &PlannedStep,
        sandbox: &mut dyn Step,
        path: &str,
        text: &str,
    ) -> Result<(), Error> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("/", path));
        let made = sandbox.mkdir(dir, None).await;
        made.map_err(|source| self.failed(step, "make the script's directory", source))?;
        let stream = tars::inline(name.to_owned(), text.to_owned(), 0o755);
        stream
            .unpack(sandbox, dir, Owner::Root, None)
            .await
            .map_err(|source| self.failed(step, "put the script", source))
    }

    /// Name or number of a step's stage, where there are several.
    fn stage_name(&self, step: &PlannedStep) -> Option<String> {
        let stages = &self.prepared.graph.stages;
        let name = stages.get(step.stage)?.name.clone();
        (stages.len() > 1).then(|| name.unwrap_or_else(|| step.stage.to_string()))
    }

    pub(super) async fn run(
        &self,
        step: &PlannedStep,
        sandbox: &mut dyn Step,
        spec: RunSpec,
    ) -> Result<(), Error> {
        let (mut masker, mut decoder, mut tail) =
            (Masker::new(&self.masks), Decoder::default(), Tail::default());
        let mut tell = |text: String| {
            if !text.is_empty() {
                tail.push(&text);
                (self.progress)(Progress::Output { step: step.number, text });
            }
        };
        let mut output = |bytes: &[u8]| tell(decoder.push(&masker.push(bytes)));
        let code = sandbox.run(spec, &mut output).await;
        tell(decoder.push(&masker.finish()));
        tell(decoder.finish());
        let code = code.map_err(|source| self.failed(step, "run the command", source))?;
        if code == 0 {
            return Ok(());
        }
        let excerpt = Excerpt::new(&step.source, step.span, &format!("ended with exit code {code}"));
        let excerpt = excerpt.to_api(None);
        Err(Error::StepFailed(Box::new(BuildFailure {
            step: step.number,
            steps: self.prepared.plan.steps,
            instruction: step.text.clone(),
            file: excerpt.file,
            line: excerpt.line,
            exit_code: Some(code),
            output_tail: tail.lines(),
            stage: self.stage_name(step),
            excerpt: Some(excerpt.excerpt),
        })))
    }
}
