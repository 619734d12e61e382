//! Stages and what they are made from.
//!
//! Global `ARG`s are evaluated here because `FROM` may use them; nothing else of a stage is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::expand::{Rules, expand_noting};
use crate::fault::{Fault, Problem, nearest};
use crate::instruction::{self, Arg, Copy, From, Instruction, Located};
use crate::lint::{self, Checks, Finding};
use crate::source::{Source, Span};
use crate::syntax::{self, Syntax, Word};
use crate::variables::{Environment, normal_platform, platform_args};

/// The build argument that takes the place of `# check=`.
const CHECK_ARG: &str = "BUILDKIT_DOCKERFILE_CHECK";

/// Longest Dockerfile, in bytes; people write some kilobytes, programs some hundred.
const MAX_FILE: usize = 4 << 20;
const MAX_INSTRUCTIONS: usize = 10_000;
/// Also what a chain of stages that begin with each other may come to.
const MAX_STAGES: usize = 500;

/// A Dockerfile as stages.
#[derive(Clone, Debug)]
pub struct Graph {
    /// The file.
    pub source: Arc<Source>,
    /// The stages in order.
    pub stages: Vec<Stage>,
    /// Global `ARG`s and the platform's, as a stage's `ARG NAME` takes them over.
    pub globals: Environment,
    /// Names of the global `ARG`s that the file declares.
    pub declared: BTreeSet<String>,
    /// What looks like a mistake so far.
    pub(crate) found: Vec<Finding>,
    /// What becomes of that.
    pub(crate) checks: Checks,
    /// Global `ARG`s as they would be without any build argument.
    defaults: Environment,
}

/// One `FROM` and what follows it.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Its number, from 0.
    pub index: usize,
    /// Its name, in lower case.
    pub name: Option<String>,
    /// What it begins with.
    pub root: Root,
    /// The platform that it asks for, where that is not this machine's; only what is built has to be of this one.
    pub(crate) other_platform: Option<String>,
    /// Its `FROM`.
    pub from: Located,
    /// The instructions after it.
    pub body: Vec<Located>,
}

/// Where files come from: what a stage begins with, or what `--from` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// Nothing at all.
    Scratch,
    /// A stage, by number.
    Stage(usize),
    /// An image, by reference.
    Image(String),
}

/// Which stages need which others beside what [`Graph::roots`] says: known only when variables have values.
pub(crate) type Edges = BTreeMap<usize, BTreeSet<usize>>;

impl Graph {
    /// Reads a Dockerfile, to build its last stage.
    pub fn read(
        source: &Arc<Source>,
        build_args: &BTreeMap<String, String>,
        platform: &str,
    ) -> Result<Self, Box<Fault>> {
        Self::read_for(source, build_args, platform, None)
    }

    /// Reads a Dockerfile, to build a stage of it; its name is the variable `TARGETSTAGE`.
    pub fn read_for(
        source: &Arc<Source>,
        build_args: &BTreeMap<String, String>,
        platform: &str,
        target: Option<&str>,
    ) -> Result<Self, Box<Fault>> {
        let begin = Span::new(0, source.text.len().min(1));
        if source.text.len() > MAX_FILE {
            let problem = Problem::TooMuch { what: "a file of this length", limit: "4 MiB" };
            return Err(Fault::new(source, begin, problem));
        }
        let syntax = syntax::parse(source)?;
        if let Some(first) = syntax.statements.get(MAX_INSTRUCTIONS) {
            let problem = Problem::TooMuch { what: "this instruction", limit: "10,000 instructions" };
            return Err(first.fault(first.keyword_span(), problem));
        }
        check_frontend(&syntax)?;
        let mut graph = Self {
            source: source.clone(),
            stages: Vec::new(),
            globals: platform_args(platform, build_args, target),
            declared: BTreeSet::new(),
            found: lint::syntax(&syntax),
            checks: checks(&syntax, build_args)?,
            defaults: platform_args(platform, &BTreeMap::new(), target),
        };
        for statement in syntax.statements {
            let located = instruction::instruction(statement)?;
            graph.found.extend(lint::instruction(&located));
            match &located.instruction {
                Instruction::From(_) if graph.stages.len() == MAX_STAGES => {
                    let problem = Problem::TooMuch { what: "this stage", limit: "500 stages" };
                    return Err(located.statement.fault(located.statement.keyword_span(), problem));
                }
                Instruction::From(from) => {
                    let stage = graph.stage(from, &located, platform)?;
                    graph.stages.push(stage);
                }
                Instruction::Arg(args) if graph.stages.is_empty() => {
                    graph.global_args(args, &located, build_args)?;
                }
                _ => graph.append(located)?,
            }
        }
        if graph.stages.is_empty() {
            return Err(Fault::new(source, Span::new(0, source.text.len().min(1)), Problem::Empty));
        }
        graph.check_sources()?;
        let stages: Vec<Finding> = graph.stages.iter().flat_map(|stage| lint::stage(&stage.body)).collect();
        graph.found.extend(stages);
        Ok(graph)
    }

    fn append(&mut self, located: Located) -> Result<(), Box<Fault>> {
        let Some(stage) = self.stages.last_mut() else {
            let name = instruction::NAMES.into_iter().find(|name| *name == located.statement.keyword);
            let problem = Problem::BeforeFrom { instruction: name.unwrap_or("ARG") };
            return Err(located.statement.fault(located.statement.keyword_span(), problem));
        };
        stage.body.push(located);
        Ok(())
    }

    /// Every stage that an instruction takes files from by a plain name is there.
    fn check_sources(&self) -> Result<(), Box<Fault>> {
        for stage in &self.stages {
            for located in &stage.body {
                for word in sources(&located.instruction) {
                    self.source_root(&located.instruction, &word.text, stage.index)
                        .map_err(|problem| located.statement.fault(word.span, problem))?;
                }
            }
        }
        Ok(())
    }

    fn global_args(
        &mut self,
        args: &[Arg],
        located: &Located,
        build_args: &BTreeMap<String, String>,
    ) -> Result<(), Box<Fault>> {
        for arg in args {
            self.declared.insert(arg.name.text.clone());
            if let Some(value) = build_args.get(&arg.name.text) {
                self.globals.set(&arg.name.text, value);
            } else if let Some(default) = &arg.default {
                let value = expand_in(&self.globals, default, located, &mut Vec::new())?;
                self.globals.set(&arg.name.text, &value);
            }
            // What cannot be expanded here is no default; where it matters it was told above.
            if let Some(default) = &arg.default
                && let Ok(value) = expand_in(&self.defaults, default, located, &mut Vec::new())
            {
                self.defaults.set(&arg.name.text, &value);
            }
        }
        Ok(())
    }

    fn stage(&mut self, from: &From, located: &Located, platform: &str) -> Result<Stage, Box<Fault>> {
        let other_platform = match &from.platform {
            Some(wanted) => self.other_platform(from, wanted, located, platform)?,
            None => None,
        };
        let mut unset = Vec::new();
        let image = expand_in(&self.globals, &from.image, located, &mut unset)?;
        self.undefined_in_from(&unset, &from.image, located);
        self.lint_defaults(from, located);
        if image.is_empty() {
            let found = format!("`{}`, which expands to nothing", from.image.text);
            let problem = Problem::Expected { instruction: "FROM", expected: "an image or a stage", found };
            return Err(located.statement.fault(from.image.span, problem));
        }
        let root = match self.named(&image) {
            Some(stage) => Root::Stage(stage),
            None if image == "scratch" => Root::Scratch,
            None => Root::Image(image),
        };
        let name = from.name.as_ref().map(|name| name.text.clone());
        if let Some(word) = &from.name
            && self.named(&word.text).is_some()
        {
            let message = format!("Duplicate stage name \"{}\", stage names should be unique", word.text);
            self.found.push(Finding::new("DuplicateStageName", &located.statement, word.span, message));
        }
        let (index, from, body) = (self.stages.len(), located.clone(), Vec::new());
        Ok(Stage { index, name, root, other_platform, from, body })
    }

    /// What `--platform` asks for, if it is another one than this machine's.
    fn other_platform(
        &mut self,
        from: &From,
        wanted: &Word,
        located: &Located,
        platform: &str,
    ) -> Result<Option<String>, Box<Fault>> {
        let mut unset = Vec::new();
        let value = expand_in(&self.globals, wanted, located, &mut unset)?;
        self.undefined_in_from(&unset, wanted, located);
        let mut add = |check, message| {
            self.found.push(Finding::new(check, &located.statement, wanted.span, message));
        };
        let variable = wanted.text.trim_start_matches(['$', '{']).trim_end_matches('}');
        if wanted.text.starts_with('$') && variable == "TARGETPLATFORM" {
            let message = format!(
                "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
                wanted.text
            );
            add("RedundantTargetPlatform", message);
        }
        // A stage that is named after a platform is meant to be of that one.
        let normal = normal_platform(&value);
        let name = from.name.as_ref().map_or("", |name| name.text.as_str());
        if !wanted.text.contains('$') && !normal.split('/').any(|part| name.contains(part)) {
            let message = format!("FROM --platform flag should not use constant value \"{}\"", wanted.text);
            add("FromPlatformFlagConstDisallowed", message);
        }
        Ok(Some(value).filter(|value| !value.is_empty() && normal != normal_platform(platform)))
    }

    fn undefined_in_from(&mut self, unset: &[String], word: &Word, located: &Located) {
        for name in unset.iter().filter(|name| !self.declared.contains(*name)) {
            let known =
                self.declared.iter().map(String::as_str).chain(self.globals.iter().map(|(name, _)| name));
            let mut message = format!("FROM argument '{name}' is not declared");
            if let Some(nearest) = nearest(name, known) {
                message.push_str(&format!(" (did you mean {nearest}?)"));
            }
            self.found.push(Finding::new("UndefinedArgInFrom", &located.statement, word.span, message));
        }
    }

    /// A file should build without any build argument.
    fn lint_defaults(&mut self, from: &From, located: &Located) {
        if !from.image.text.contains('$') {
            return;
        }
        let usable = expand_in(&self.defaults, &from.image, located, &mut Vec::new())
            .is_ok_and(|image| self.named(&image).is_some() || looks_like_image(&image));
        if !usable {
            let message = format!(
                "Default value for ARG {} results in empty or invalid base image name",
                from.image.text
            );
            self.found.push(Finding::new(
                "InvalidDefaultArgInFrom",
                &located.statement,
                from.image.span,
                message,
            ));
        }
    }

    /// The last stage so far of that name.
    fn named(&self, name: &str) -> Option<usize> {
        let name = name.to_lowercase();
        self.stages.iter().rposition(|stage| stage.name.as_ref() == Some(&name))
    }

    /// What a name or number that an instruction of stage `index` takes files from means, variables replaced.
    pub(crate) fn source_root(
        &self,
        instruction: &Instruction,
        name: &str,
        index: usize,
    ) -> Result<Root, Problem> {
        let copies = matches!(instruction, Instruction::Copy(_));
        match self.root_of(name, index)? {
            // Nothing can be copied from nothing; a mount of nothing is an empty directory.
            Root::Scratch if copies => Err(Problem::UnknownStage { name: name.to_owned(), nearest: None }),
            root => Ok(root),
        }
    }

    fn root_of(&self, name: &str, index: usize) -> Result<Root, Problem> {
        let found = match name.parse::<usize>() {
            Ok(number) if number < self.stages.len() => number,
            Ok(_) => return Err(Problem::UnknownStage { name: name.to_owned(), nearest: None }),
            Err(_) => match self.stage_named(name, index) {
                Some(found) => found,
                None if name.eq_ignore_ascii_case("scratch") => return Ok(Root::Scratch),
                None => return Ok(Root::Image(name.to_owned())),
            },
        };
        match found == index {
            true => Err(Problem::Circular { stages: self.way(&[index, index]) }),
            false => Ok(Root::Stage(found)),
        }
    }

    /// The nearest stage of a name before stage `index`, or else it itself or the first after it.
    fn stage_named(&self, name: &str, index: usize) -> Option<usize> {
        let name = name.to_lowercase();
        let fits = |stage: &&Stage| stage.name.as_ref() == Some(&name);
        let (before, after) = self.stages.split_at(index.min(self.stages.len()));
        let found = before.iter().rev().find(fits).or_else(|| after.iter().find(fits));
        found.map(|stage| stage.index)
    }

    /// The earlier stage whose name looks most like an image that was not found.
    pub fn nearest_stage(&self, name: &str) -> Option<String> {
        nearest(name, self.stages.iter().filter_map(|stage| stage.name.as_deref()))
    }

    /// The stage to build: by name or number, or the last.
    pub fn target(&self, target: Option<&str>) -> Option<usize> {
        let Some(target) = target.filter(|target| !target.is_empty()) else {
            return self.stages.len().checked_sub(1);
        };
        let number = || target.parse::<usize>().ok().filter(|number| *number < self.stages.len());
        self.named(target).or_else(number)
    }

    /// The stages that a target needs, itself included, as far as that is known before variables have values.
    pub fn needed(&self, target: usize) -> BTreeSet<usize> {
        self.needed_with(target, &Edges::new())
    }

    fn needed_with(&self, target: usize, edges: &Edges) -> BTreeSet<usize> {
        let mut needed = BTreeSet::new();
        let mut queue = vec![target];
        while let Some(index) = queue.pop() {
            if needed.insert(index) {
                queue.extend(self.before(index, edges));
            }
        }
        needed
    }

    /// The stages that one needs directly.
    fn before(&self, index: usize, edges: &Edges) -> BTreeSet<usize> {
        let mut before = edges.get(&index).cloned().unwrap_or_default();
        before.extend(self.roots(index).filter_map(|(root, _)| match root {
            Root::Stage(stage) => Some(stage),
            _ => None,
        }));
        before
    }

    /// The stages that a target needs, each after those it needs itself, otherwise in the order of the file.
    pub(crate) fn order(&self, target: usize, edges: &Edges) -> Result<Vec<usize>, Box<Fault>> {
        let needed = self.needed_with(target, edges);
        let before: BTreeMap<usize, BTreeSet<usize>> =
            needed.iter().map(|index| (*index, self.before(*index, edges))).collect();
        let mut waiting = needed;
        let mut order = Vec::new();
        while !waiting.is_empty() {
            let ready = waiting.iter().copied().find(|index| before[index].is_disjoint(&waiting));
            let Some(ready) = ready else { return Err(self.circular(&waiting, &before)) };
            waiting.remove(&ready);
            order.push(ready);
        }
        Ok(order)
    }

    /// The fault of stages that all wait for another of them.
    fn circular(&self, waiting: &BTreeSet<usize>, before: &BTreeMap<usize, BTreeSet<usize>>) -> Box<Fault> {
        let mut way: Vec<usize> = waiting.iter().next().copied().into_iter().collect();
        while let Some(last) = way.last().copied() {
            let Some(next) = before[&last].intersection(waiting).next().copied() else { break };
            let seen = way.iter().position(|stage| *stage == next);
            way.push(next);
            if let Some(seen) = seen {
                way.drain(..seen);
                break;
            }
        }
        let stage = &self.stages[way.first().copied().unwrap_or_default()];
        let problem = Problem::Circular { stages: self.way(&way) };
        stage.from.statement.fault(stage.from.statement.whole_span(), problem)
    }

    fn way(&self, stages: &[usize]) -> String {
        let name = |index: &usize| {
            self.stages.get(*index).and_then(|stage| stage.name.clone()).unwrap_or_else(|| index.to_string())
        };
        stages.iter().map(name).collect::<Vec<_>>().join(" → ")
    }

    /// Everything that a stage takes files from by a plain name, with the place that says so.
    pub fn roots(&self, index: usize) -> impl Iterator<Item = (Root, Span)> + '_ {
        let stage = &self.stages[index];
        let from = match &stage.from.instruction {
            Instruction::From(from) => from.image.span,
            _ => stage.from.statement.whole_span(),
        };
        let taken = stage.body.iter().flat_map(move |located| {
            let found = sources(&located.instruction).into_iter();
            found.filter_map(move |word| {
                let root = self.source_root(&located.instruction, &word.text, index).ok()?;
                Some((root, word.span))
            })
        });
        std::iter::once((stage.root.clone(), from)).chain(taken)
    }
}

/// The stages and images that an instruction takes files from, where that is known before variables have values.
fn sources(instruction: &Instruction) -> Vec<Word> {
    let words = match instruction {
        Instruction::Copy(Copy { from: Some(word), .. }) => vec![word.clone()],
        Instruction::Run(run) => run.mounts.iter().filter_map(instruction::Mount::from).collect(),
        _ => Vec::new(),
    };
    words.into_iter().filter(|word| !word.text.contains('$')).collect()
}

fn expand_in(
    variables: &Environment,
    word: &Word,
    located: &Located,
    unset: &mut Vec<String>,
) -> Result<String, Box<Fault>> {
    let rules = Rules { escape: located.statement.escape, quotes: true };
    expand_noting(&word.text, rules, &|name| variables.get(name).map(str::to_owned), unset).map_err(
        |source| located.statement.fault(word.span, Problem::Expand { word: word.text.clone(), source }),
    )
}

/// Whether a text could be an image's reference.
fn looks_like_image(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':' | '@');
    let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next().unwrap_or_default();
    let (last, tag) = last.split_once(':').map_or((last, None), |(last, tag)| (last, Some(tag)));
    let whole = text.chars().all(allowed)
        && !last.is_empty()
        && tag.is_none_or(|tag| !tag.is_empty())
        && digest.is_none_or(|digest| digest.contains(':'));
    let edges = |part: &str| part.ends_with(['-', '.']) || part.starts_with(['-', '.']);
    whole && !name.split('/').any(|part| part.is_empty()) && !edges(last)
}

/// What `# check=` says, or the build argument instead of it.
fn checks(syntax: &Syntax, build_args: &BTreeMap<String, String>) -> Result<Checks, Box<Fault>> {
    match (build_args.get(CHECK_ARG), &syntax.check) {
        (Some(text), _) => Checks::parse(text).map_err(|found| {
            let expected = "`skip=` or `error=` with a value in the build argument";
            let problem = Problem::Expected { instruction: CHECK_ARG, expected, found };
            Fault::new(&syntax.source, Span::default(), problem)
        }),
        (None, Some(word)) => Checks::read(word, &syntax.source),
        (None, None) => Ok(Checks::default()),
    }
}

/// `# syntax=` names the program that reads the file; Berth is that program, for Docker's own dialect only.
fn check_frontend(syntax: &Syntax) -> Result<(), Box<Fault>> {
    let Some(frontend) = &syntax.frontend else { return Ok(()) };
    let image = frontend.text.split([':', '@']).next().unwrap_or_default();
    let image = image.strip_prefix("docker.io/").unwrap_or(image);
    match image {
        "docker/dockerfile" | "docker/dockerfile-upstream" => Ok(()),
        _ => {
            let what = format!("the Dockerfile frontend `{}`", frontend.text);
            Err(Fault::new(&syntax.source, frontend.span, Problem::Unsupported { what }))
        }
    }
}
