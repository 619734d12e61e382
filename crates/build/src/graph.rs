//! Stages and what they are made from.
//!
//! Global `ARG`s are evaluated here because `FROM` may use them; nothing else of a stage is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::expand::{Rules, expand};
use crate::fault::{Fault, Problem, nearest};
use crate::instruction::{self, Arg, Copy, From, Instruction, Located};
use crate::source::{Source, Span};
use crate::syntax::{self, Syntax, Word};
use crate::variables::{Environment, normal_platform, platform_args};

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
    /// An earlier stage, by number.
    Stage(usize),
    /// An image, by reference.
    Image(String),
}

impl Graph {
    /// Reads a Dockerfile.
    pub fn read(
        source: &Arc<Source>,
        build_args: &BTreeMap<String, String>,
        platform: &str,
    ) -> Result<Self, Box<Fault>> {
        let syntax = syntax::parse(source)?;
        check_frontend(&syntax)?;
        let globals = platform_args(platform, build_args);
        let mut graph =
            Self { source: source.clone(), stages: Vec::new(), globals, declared: BTreeSet::new() };
        for statement in syntax.statements {
            let located = instruction::instruction(statement)?;
            match &located.instruction {
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
        match graph.stages.is_empty() {
            true => Err(Fault::new(source, Span::new(0, source.text.len().min(1)), Problem::Empty)),
            false => Ok(graph),
        }
    }

    fn append(&mut self, located: Located) -> Result<(), Box<Fault>> {
        let index = self.stages.len();
        if let Instruction::Copy(copy) = &located.instruction {
            self.check_copy_from(copy, &located, index)?;
        }
        let Some(stage) = self.stages.last_mut() else {
            let name = instruction::NAMES.into_iter().find(|name| *name == located.statement.keyword);
            let problem = Problem::BeforeFrom { instruction: name.unwrap_or("ARG") };
            return Err(located.statement.fault(located.statement.keyword_span(), problem));
        };
        stage.body.push(located);
        Ok(())
    }

    fn check_copy_from(&self, copy: &Copy, located: &Located, stages: usize) -> Result<(), Box<Fault>> {
        let Some(word) = copy.from.as_ref().filter(|_| stages > 0) else { return Ok(()) };
        self.copy_root(word, stages - 1)
            .map_err(|problem| located.statement.fault(word.span, problem))
            .map(drop)
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
                let value = self.expand_global(default, located)?;
                self.globals.set(&arg.name.text, &value);
            }
        }
        Ok(())
    }

    fn expand_global(&self, word: &Word, located: &Located) -> Result<String, Box<Fault>> {
        let rules = Rules { escape: located.statement.escape, quotes: true };
        expand(&word.text, rules, &|name| self.globals.get(name).map(str::to_owned)).map_err(|source| {
            located.statement.fault(word.span, Problem::Expand { word: word.text.clone(), source })
        })
    }

    fn stage(&self, from: &From, located: &Located, platform: &str) -> Result<Stage, Box<Fault>> {
        if let Some(wanted) = &from.platform {
            let value = self.expand_global(wanted, located)?;
            let have = normal_platform(platform);
            if !value.is_empty() && normal_platform(&value) != have {
                let problem = Problem::Platform { wanted: value, have };
                return Err(located.statement.fault(wanted.span, problem));
            }
        }
        let image = self.expand_global(&from.image, located)?;
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
        Ok(Stage { index: self.stages.len(), name, root, from: located.clone(), body: Vec::new() })
    }

    /// The last stage so far of that name.
    fn named(&self, name: &str) -> Option<usize> {
        let name = name.to_lowercase();
        self.stages.iter().rposition(|stage| stage.name.as_ref() == Some(&name))
    }

    /// What `--from` of an instruction in stage `index` means.
    pub fn copy_root(&self, word: &Word, index: usize) -> Result<Root, Problem> {
        let name = &word.text;
        if name.contains('$') {
            let what =
                format!("a variable in `--from={name}` (name the image by a `FROM … AS` stage instead)");
            return Err(Problem::Unsupported { what });
        }
        let earlier = &self.stages[..index.min(self.stages.len())];
        if let Ok(number) = name.parse::<usize>() {
            return match number < earlier.len() {
                true => Ok(Root::Stage(number)),
                false => Err(Problem::UnknownStage { name: name.clone(), nearest: None }),
            };
        }
        let lower = name.to_lowercase();
        if let Some(stage) = earlier.iter().rposition(|stage| stage.name.as_deref() == Some(&lower)) {
            return Ok(Root::Stage(stage));
        }
        let current = self.stages.get(index).and_then(|stage| stage.name.as_deref());
        if lower == "scratch" || current == Some(&lower) {
            return Err(Problem::UnknownStage { name: name.clone(), nearest: None });
        }
        Ok(Root::Image(name.clone()))
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

    /// The stages that a target needs, itself included, in the order in which they are built.
    pub fn needed(&self, target: usize) -> BTreeSet<usize> {
        let mut needed = BTreeSet::new();
        let mut queue = vec![target];
        while let Some(index) = queue.pop() {
            if needed.insert(index) {
                queue.extend(self.roots(index).filter_map(|(root, _)| match root {
                    Root::Stage(earlier) => Some(earlier),
                    _ => None,
                }));
            }
        }
        needed
    }

    /// Everything that a stage takes files from, with the place that says so.
    pub fn roots(&self, index: usize) -> impl Iterator<Item = (Root, Span)> + '_ {
        let stage = &self.stages[index];
        let from = match &stage.from.instruction {
            Instruction::From(from) => from.image.span,
            _ => stage.from.statement.whole_span(),
        };
        let copies = stage.body.iter().filter_map(move |located| match &located.instruction {
            Instruction::Copy(Copy { from: Some(word), .. }) => {
                self.copy_root(word, index).ok().map(|root| (root, word.span))
            }
            _ => None,
        });
        std::iter::once((stage.root.clone(), from)).chain(copies)
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
