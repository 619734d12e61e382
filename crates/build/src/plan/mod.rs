//! From stages to steps: every variable expanded, every source found, every key known, nothing run yet.
//!
//! Nothing in a Dockerfile depends on what a command prints, so all of this is known beforehand. A step's key covers
//! the file system it starts from and what it does to it; instructions that only edit the config have none, and a
//! changed `LABEL` runs nothing again. The content key of the whole covers the last file system and the config.

mod copy;
mod stage;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use berth_types::image::BuildWarning;

use crate::config::{Config, canonical};
use crate::context::Context;
use crate::error::Error;
use crate::graph::{Graph, Root};
use crate::instruction::Instruction;
use crate::key::{Digest, Hasher};
use crate::runner::{Base, Remote, RunSpec, Sharing};
use crate::source::{Source, Span};
use crate::variables::{platform_args, proxies};

pub use copy::{Chmod, CopyPlan, CopyRoot, PlannedSource};

/// What a plan is made from.
pub struct Inputs<'a> {
    /// The Dockerfile.
    pub graph: &'a Graph,
    /// The stage to build.
    pub target: usize,
    /// The files.
    pub context: &'a Context,
    /// The images that the needed stages name, by reference.
    pub bases: &'a BTreeMap<String, Base>,
    /// What `ADD` brings from elsewhere, and the digest of each.
    pub remotes: &'a BTreeMap<Remote, String>,
    /// Values for `ARG`s.
    pub build_args: &'a BTreeMap<String, String>,
    /// This machine's platform.
    pub platform: &'a str,
}

/// Everything that a build does.
#[derive(Debug)]
pub struct Plan {
    /// The stages that the target needs, by number.
    pub stages: BTreeMap<usize, PlannedStage>,
    /// The stage to build.
    pub target: usize,
    /// Steps in all.
    pub steps: u32,
    /// Hash over everything that decides the image.
    pub content_key: String,
    /// What is not wrong but looks like a mistake, in the order of the file.
    pub warnings: Vec<BuildWarning>,
}

/// One stage's steps.
#[derive(Debug)]
pub struct PlannedStage {
    /// What it begins with.
    pub root: Root,
    /// Its steps in order; the first is its `FROM`.
    pub steps: Vec<PlannedStep>,
    /// Key of its file system.
    pub key: Digest,
    /// The image config at its end.
    pub(crate) config: Config,
}

/// One instruction, ready to be carried out.
#[derive(Debug)]
pub struct PlannedStep {
    /// Number over all stages, from 1.
    pub number: u32,
    /// The instruction on one line, as written.
    pub text: String,
    /// The file it stands in.
    pub source: Arc<Source>,
    /// Where it stands there.
    pub span: Span,
    /// What it does.
    pub action: Action,
    /// Key of the file system after it, for steps that change it.
    pub key: Option<Digest>,
    /// Its entry of the image's history.
    pub history: Option<usize>,
}

/// What a step does.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing to the file system.
    Config,
    /// Makes a working directory.
    Mkdir {
        /// The directory.
        path: String,
        /// Who owns what is made.
        owner: Option<String>,
    },
    /// Runs a command.
    Run {
        /// The command.
        spec: RunSpec,
        /// A heredoc that is a script with an interpreter of its own: where to put it, and its text.
        script: Option<(String, String)>,
        /// `--mount`, in order.
        mounts: Vec<PlannedMount>,
        /// `--network=none`.
        no_network: bool,
    },
    /// Copies files.
    Copy(CopyPlan),
}

/// A `RUN --mount`, its variables expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedMount {
    /// Absolute path inside; empty for a secret that is only a variable.
    pub target: String,
    /// Whether it can only be read.
    pub read_only: bool,
    /// What is mounted.
    pub kind: MountKind,
    /// Where it stands in the Dockerfile.
    pub span: Span,
}

/// What a `RUN --mount` mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// `type=bind`.
    Bind {
        /// Where from.
        root: CopyRoot,
        /// What there: an absolute path of a stage or image, or one in the context.
        source: String,
    },
    /// `type=cache`.
    Cache {
        /// Its name: `id`, or else the target.
        id: String,
        /// `sharing`.
        sharing: Sharing,
        /// `from` and `source`: what it holds at first.
        seed: Option<(CopyRoot, String)>,
        /// `uid`.
        uid: u32,
        /// `gid`.
        gid: u32,
        /// `mode`.
        mode: u32,
    },
    /// `type=tmpfs`.
    Tmpfs {
        /// `size`, in bytes.
        size: Option<u64>,
    },
    /// `type=secret`.
    Secret {
        /// `id`.
        id: String,
        /// Whether the build fails without it.
        required: bool,
        /// The variable that has it; then it is a file only where `target` is given.
        env: Option<String>,
        /// `uid`.
        uid: u32,
        /// `gid`.
        gid: u32,
        /// `mode`.
        mode: u32,
    },
}

/// Makes the plan. Reads the bytes of the files that are copied, and touches nothing else.
///
/// # Errors
///
/// [`Error::Needs`] lists images and remotes that `inputs` lacks; the plan is to be made again with them added.
/// [`Error::ContextNeeded`] when the context is a manifest and the bytes of a file decide.
pub fn plan(inputs: &Inputs<'_>) -> Result<Plan, Error> {
    let mut planner = Planner { inputs, done: HashMap::new(), steps: 0, warnings: Vec::new() };
    let mut stages = BTreeMap::new();
    for index in inputs.graph.needed(inputs.target) {
        let planned = planner.stage(index)?;
        stages.insert(index, planned);
    }
    let Planner { steps, mut warnings, .. } = planner;
    warnings.extend(unused_args(inputs));
    let mut key = Hasher::new("berth image 1");
    if let Some(target) = stages.get(&inputs.target) {
        key.field(target.key.to_string()).field(canonical(&target.config.value()));
    }
    let content_key = key.finish().to_string();
    Ok(Plan { stages, target: inputs.target, steps, content_key, warnings })
}

/// A message for each build argument that no `ARG` takes.
fn unused_args(inputs: &Inputs<'_>) -> Option<BuildWarning> {
    let mut declared: BTreeSet<String> = inputs.graph.declared.clone();
    for located in inputs.graph.stages.iter().flat_map(|stage| &stage.body) {
        if let Instruction::Arg(args) = &located.instruction {
            declared.extend(args.iter().map(|arg| arg.name.text.clone()));
        }
    }
    declared.extend(proxies(inputs.build_args).into_iter().map(|(name, _)| name));
    declared
        .extend(platform_args(inputs.platform, inputs.build_args).iter().map(|(name, _)| name.to_owned()));
    let unused: Vec<&str> =
        inputs.build_args.keys().filter(|name| !declared.contains(*name)).map(String::as_str).collect();
    (!unused.is_empty()).then(|| BuildWarning {
        check: "UnusedBuildArg".to_owned(),
        message: format!("no ARG takes the build arguments {}", unused.join(", ")),
        file: inputs.graph.source.name.clone(),
        line: 1,
    })
}

struct Planner<'a> {
    inputs: &'a Inputs<'a>,
    done: HashMap<usize, stage::Finished>,
    steps: u32,
    warnings: Vec<BuildWarning>,
}
