//! From stages to steps: every variable expanded, every source found, every key known, nothing run yet.
//!
//! Nothing in a Dockerfile depends on what a command prints, so all of this is known beforehand. A step's key covers
//! the file system it starts from and what it does to it; instructions that only edit the config have none, and a
//! changed `LABEL` runs nothing again. The content key of the whole covers the last file system and the config.

mod copy;
mod find;
mod mount;
mod ports;
mod remote;
mod run;
mod stage;
mod words;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use berth_types::image::BuildWarning;

use crate::config::{Config, canonical};
use crate::context::Context;
use crate::error::{Error, Needed, Needs};
use crate::fault::{Fault, Problem};
use crate::graph::{Edges, Graph, Root};
use crate::instruction::Instruction;
use crate::key::{Digest, Hasher};
use crate::lint::Finding;
use crate::runner::{Base, Remote, RunSpec, Sharing};
use crate::source::{Source, Span};
use crate::syntax::Statement;
use crate::variables::is_predefined;

/// The build argument that says which time the image is of.
const EPOCH_ARG: &str = "SOURCE_DATE_EPOCH";

pub(crate) use copy::is_left_out;
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
    /// Whether commands have no network but their own loopback, whatever they say.
    pub no_network: bool,
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
    /// `SOURCE_DATE_EPOCH`, in seconds: the time that the image and its history are of, instead of now.
    pub epoch: Option<i64>,
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
    /// Number of its stage, from 0.
    pub stage: usize,
    /// The instruction on one line, as written.
    pub text: String,
    /// The file it stands in.
    pub source: Arc<Source>,
    /// Where it stands there.
    pub span: Span,
    /// What it does.
    pub action: Action,
    /// Key of the file system after it, for steps that change it; of the layer alone for a linked `COPY`.
    pub key: Option<Digest>,
    /// Key of what it does, whatever it stands on and whatever stages and images lend to it.
    pub own: Option<Digest>,
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
    let epoch = epoch(inputs)?;
    let mut edges = Edges::new();
    loop {
        let order = inputs.graph.order(inputs.target, &edges)?;
        let mut planner = Planner::new(inputs, edges);
        let mut stages = BTreeMap::new();
        for index in order {
            if let Some(planned) = planner.stage(index)? {
                stages.insert(index, planned);
            }
        }
        if planner.again {
            // A name that has its value only now is that of a stage which was not planned before this one.
            edges = planner.edges;
            continue;
        }
        if !planner.needs.is_empty() {
            return Err(Error::Needs(Box::new(planner.needs)));
        }
        return planner.finish(stages, epoch);
    }
}

/// The time that the image is to be of.
fn epoch(inputs: &Inputs<'_>) -> Result<Option<i64>, Box<Fault>> {
    let Some(text) = inputs.build_args.get(EPOCH_ARG).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let seconds = text.parse().ok().filter(|seconds| jiff::Timestamp::from_second(*seconds).is_ok());
    seconds.map(Some).ok_or_else(|| {
        let (expected, found) = ("a time in whole seconds since 1970", format!("`{text}`"));
        let problem = Problem::Expected { instruction: EPOCH_ARG, expected, found };
        Fault::new(&inputs.graph.source, Span::default(), problem)
    })
}

/// A message for the build arguments that no `ARG` takes.
fn unused_args(inputs: &Inputs<'_>) -> Option<Finding> {
    let mut declared: BTreeSet<&str> = inputs.graph.declared.iter().map(String::as_str).collect();
    for located in inputs.graph.stages.iter().flat_map(|stage| &stage.body) {
        if let Instruction::Arg(args) = &located.instruction {
            declared.extend(args.iter().map(|arg| arg.name.text.as_str()));
        }
    }
    declared.extend(inputs.graph.globals.iter().map(|(name, _)| name));
    let names = inputs.build_args.keys().map(String::as_str);
    let unused: Vec<&str> = names.filter(|name| !declared.contains(name) && !is_predefined(name)).collect();
    (!unused.is_empty()).then(|| Finding {
        check: "UnusedBuildArg",
        message: format!("no ARG takes the build arguments {}", unused.join(", ")),
        source: inputs.graph.source.clone(),
        span: Span::default(),
    })
}

/// The keys of a step that changes the file system.
#[derive(Clone, Copy, Debug)]
struct Keys {
    own: Digest,
    whole: Digest,
}

impl Keys {
    /// `below` is the key of what the step stands on, `lent` what keys say of the roots that lend files to it.
    fn new(own: Digest, below: Option<Digest>, lent: &[String]) -> Self {
        let mut key = Hasher::new("berth step 1");
        key.field(below.map_or_else(|| "nothing".to_owned(), |below| below.to_string()));
        key.field(own.to_string()).fields(lent);
        Self { own, whole: key.finish() }
    }
}

struct Planner<'a> {
    inputs: &'a Inputs<'a>,
    done: HashMap<usize, stage::Finished>,
    steps: u32,
    /// Bytes of commands and their variables so far.
    planned_bytes: usize,
    found: Vec<Finding>,
    /// What `inputs` lacks.
    needs: Needs,
    /// Stages that were found to need others only when variables had values.
    edges: Edges,
    /// Whether such a stage was needed that was not planned.
    again: bool,
}

impl<'a> Planner<'a> {
    fn new(inputs: &'a Inputs<'a>, edges: Edges) -> Self {
        let found = inputs.graph.found.clone();
        let (done, needs) = (HashMap::new(), Needs::default());
        Self { inputs, done, steps: 0, planned_bytes: 0, found, needs, edges, again: false }
    }

    fn finish(self, stages: BTreeMap<usize, PlannedStage>, epoch: Option<i64>) -> Result<Plan, Error> {
        let Self { inputs, steps, mut found, .. } = self;
        found.extend(unused_args(inputs));
        let warnings = inputs.graph.checks.judge(found)?;
        let mut key = Hasher::new("berth image 1");
        if let Some(target) = stages.get(&inputs.target) {
            key.field(target.key.to_string()).field(canonical(&target.config.value()));
        }
        if let Some(epoch) = epoch {
            key.field(epoch.to_string());
        }
        let content_key = key.finish().to_string();
        Ok(Plan { stages, target: inputs.target, steps, content_key, epoch, warnings })
    }

    fn warn(&mut self, check: &'static str, statement: &Statement, span: Span, message: String) {
        self.found.push(Finding::new(check, statement, span, message));
    }

    /// Notes that an image is needed, unless it is there.
    fn need_base(&mut self, reference: &str, statement: &Statement, span: Span) -> bool {
        if self.inputs.bases.contains_key(reference) {
            return true;
        }
        if !self.needs.bases.iter().any(|needed| needed.what == reference) {
            let (what, source) = (reference.to_owned(), statement.source.clone());
            self.needs.bases.push(Needed { what, source, span });
        }
        false
    }

    /// Notes that something from elsewhere is needed, unless it is there.
    fn need_remote(&mut self, remote: &Remote, statement: &Statement, span: Span) {
        let known = self.inputs.remotes.contains_key(remote)
            || self.needs.remotes.iter().any(|needed| needed.what == *remote);
        if !known {
            let (what, source) = (remote.clone(), statement.source.clone());
            self.needs.remotes.push(Needed { what, source, span });
        }
    }

    /// What a name means that an instruction of a stage takes files from, and that it is there.
    fn taken_from(
        &mut self,
        stage: usize,
        instruction: &Instruction,
        name: &str,
        statement: &Statement,
        span: Span,
    ) -> Result<Root, Box<Fault>> {
        let root = self.inputs.graph.source_root(instruction, name, stage);
        let root = root.map_err(|problem| statement.fault(span, problem))?;
        match &root {
            Root::Image(reference) => drop(self.need_base(reference, statement, span)),
            // One that is done in time needs nothing; one that is known to be needed waits for a base itself.
            Root::Stage(index) if !self.done.contains_key(index) => {
                self.again |= self.edges.entry(stage).or_default().insert(*index);
            }
            _ => {}
        }
        Ok(root)
    }

    /// What a key says of a root.
    fn root_key(&self, root: &Root) -> String {
        match root {
            Root::Scratch => "scratch".to_owned(),
            Root::Stage(index) => {
                self.done.get(index).map_or_else(String::new, |stage| stage.key.to_string())
            }
            Root::Image(reference) => {
                self.inputs.bases.get(reference).map_or_else(|| reference.clone(), |base| base.id.clone())
            }
        }
    }
}
