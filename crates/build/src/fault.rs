//! What can be wrong with a Dockerfile, and where: one line for logs, a source excerpt for people.

use std::fmt;
use std::sync::Arc;

use berth_types::image::DockerfileFault;
use miette::{Diagnostic, LabeledSpan, SourceCode};

use crate::excerpt::Excerpt;
use crate::expand::ExpandError;
use crate::pattern::BadPattern;
use crate::source::{Source, Span};

/// Something wrong at one place of a Dockerfile.
///
/// Its `Display` is one line, `Dockerfile:3: …`; as a [`miette::Diagnostic`] it shows the place itself and, where
/// one is known, what to write instead.
#[derive(Debug)]
pub struct Fault {
    source: Arc<Source>,
    excerpt: Excerpt,
    span: Span,
    problem: Problem,
}

impl Fault {
    /// A problem at a place.
    pub fn new(source: &Arc<Source>, span: Span, problem: Problem) -> Box<Self> {
        let excerpt = Excerpt::new(source, span, &problem.label());
        Box::new(Self { source: source.clone(), excerpt, span, problem })
    }

    /// What is wrong.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Name of the file.
    pub fn file(&self) -> &str {
        &self.source.in_file(self.span).0.name
    }

    /// Line of the place, from 1; for a trigger that of the `FROM` that brought it.
    pub fn line(&self) -> u32 {
        self.source.file_and_line(self.span).1
    }

    /// The place as clients see it.
    pub fn to_api(&self) -> DockerfileFault {
        self.excerpt.to_api(self.hint())
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        self.problem.hint()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file(), self.line())?;
        if self.source.brought_by.is_some() {
            write!(f, "in `{}`: ", self.source.name)?;
        }
        write!(f, "{}", self.problem)
    }
}

impl std::error::Error for Fault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.problem)
    }
}

impl Diagnostic for Fault {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.hint().map(|hint| Box::new(hint) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.excerpt)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(std::iter::once(self.excerpt.labels())))
    }
}

/// What is wrong with a Dockerfile or with what it asks for.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// More than a file or a plan may have.
    #[error("{what} is more than the {limit} that are taken")]
    TooMuch {
        /// What there is too much of.
        what: &'static str,
        /// How much is taken, with its unit.
        limit: &'static str,
    },
    /// No instruction at all.
    #[error("the file has no instructions, expected `FROM` to begin a stage")]
    Empty,
    /// A parser directive that stands twice.
    #[error("parser directive `{name}` stands twice")]
    DirectiveRepeated {
        /// The directive.
        name: String,
    },
    /// `# escape=` with something else than its two values.
    #[error("`# escape={value}` is not valid, expected a backslash or a backtick")]
    BadEscape {
        /// What stands there.
        value: String,
    },
    /// A heredoc whose end is not in the file.
    #[error("heredoc `{name}` has no end, expected a line with `{name}` alone")]
    HeredocUnterminated {
        /// The word that ends it.
        name: String,
    },
    /// The first word of a line is no instruction.
    #[error("unknown instruction `{name}`")]
    UnknownInstruction {
        /// What stands there.
        name: String,
        /// The instruction that looks most like it.
        nearest: Option<String>,
    },
    /// A flag that the instruction does not have.
    #[error("`{instruction}` has no flag `--{flag}`")]
    UnknownFlag {
        /// The instruction.
        instruction: &'static str,
        /// The flag, without dashes.
        flag: String,
        /// The flag that looks most like it.
        nearest: Option<String>,
    },
    /// A flag given twice.
    #[error("flag `--{flag}` of `{instruction}` is given twice")]
    FlagRepeated {
        /// The instruction.
        instruction: &'static str,
        /// The flag, without dashes.
        flag: String,
    },
    /// Valid Dockerfile syntax that Berth does not build yet.
    #[error("{what} is not supported yet")]
    Unsupported {
        /// The thing, in the user's words.
        what: String,
    },
    /// Valid Dockerfile syntax that asks for what no build gets.
    #[error("{what} is refused")]
    Refused {
        /// The thing, in the user's words.
        what: String,
        /// Why, and what to do instead.
        instead: &'static str,
    },
    /// A key of `RUN --mount` that there is not.
    #[error("`--mount` has no option `{key}`")]
    UnknownMountKey {
        /// The key.
        key: String,
        /// The key that looks most like it.
        nearest: Option<String>,
    },
    /// An option of `RUN --mount` that does not go with its type.
    #[error("`{key}` does not go with `--mount=type={kind}`")]
    MountKey {
        /// The key.
        key: &'static str,
        /// The type.
        kind: &'static str,
    },
    /// Stages that need each other.
    #[error("stages need each other: {stages}")]
    Circular {
        /// The stages, with arrows between them.
        stages: String,
    },
    /// A check of BuildKit's that found something, where `# check=error=true` makes that fail.
    #[error("{check}: {message}{}", more_checks(*.more))]
    Check {
        /// The check.
        check: &'static str,
        /// What it says.
        message: String,
        /// How many others there are.
        more: usize,
    },
    /// Something else stands where something was expected.
    #[error("`{instruction}`: expected {expected}, found {found}")]
    Expected {
        /// The instruction.
        instruction: &'static str,
        /// What would be right.
        expected: &'static str,
        /// What stands there, quoted, or `nothing`.
        found: String,
    },
    /// An instruction other than `ARG` before any `FROM`.
    #[error("`{instruction}` stands before the first `FROM`, expected `FROM` or `ARG`")]
    BeforeFrom {
        /// The instruction.
        instruction: &'static str,
    },
    /// A stage is referred to that does not stand earlier in the file.
    #[error("no stage is called `{name}`")]
    UnknownStage {
        /// The name or number.
        name: String,
        /// The stage name that looks most like it.
        nearest: Option<String>,
    },
    /// A platform that is not this machine's.
    #[error("platform `{wanted}` is not this machine's, which is `{have}`")]
    Platform {
        /// What the Dockerfile asks for.
        wanted: String,
        /// What there is.
        have: String,
    },
    /// A variable cannot be expanded.
    #[error("cannot expand `{word}`")]
    Expand {
        /// The word with the variable.
        word: String,
        /// Why not.
        #[source]
        source: ExpandError,
    },
    /// A wildcard that is not well-formed.
    #[error("pattern `{pattern}` is malformed")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// Why.
        #[source]
        source: BadPattern,
    },
    /// A source of `COPY` or `ADD` that is not there.
    #[error("source `{path}` is not in {place}")]
    SourceMissing {
        /// The path as written, after expansion.
        path: String,
        /// `the build context`, or which stage or image.
        place: String,
        /// The ignore file and pattern that exclude it, when it is there but excluded.
        excluded_by: Option<String>,
    },
    /// A source that lies outside of the build context.
    #[error("source `{path}` leaves the build context")]
    SourceEscapes {
        /// The path or the symbolic link.
        path: String,
    },
    /// A file that cannot be copied.
    #[error("`{path}` in the build context is {kind}, which cannot be copied")]
    SpecialFile {
        /// Its path in the context.
        path: String,
        /// What it is.
        kind: &'static str,
    },
}

impl Problem {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownInstruction { nearest: Some(name), .. } => Some(format!("did you mean `{name}`?")),
            Self::UnknownFlag { nearest: Some(name), .. } => Some(format!("did you mean `--{name}`?")),
            Self::UnknownFlag { instruction, flag, .. } => other_instruction(instruction, flag),
            Self::UnknownStage { name, nearest: None } if name.parse::<usize>().is_ok() => {
                Some("stages are numbered from 0 in the order of the file".to_owned())
            }
            Self::UnknownStage { nearest: Some(name), .. } => Some(format!("did you mean `{name}`?")),
            Self::UnknownMountKey { nearest: Some(name), .. } => Some(format!("did you mean `{name}`?")),
            Self::Refused { instead, .. } => Some((*instead).to_owned()),
            Self::MountKey { key, kind } => mount_key_hint(key, kind),
            Self::Check { check, .. } => Some(format!(
                "mend it, or leave the check out with `# check=skip={check}` at the top of the file"
            )),
            Self::Circular { .. } => {
                Some("a stage can take files only from stages that need nothing of it".to_owned())
            }
            Self::SourceEscapes { .. } => Some(
                "the symbolic link leads out of the build context; copy what it points to into it".to_owned(),
            ),
            Self::HeredocUnterminated { .. } => {
                Some("the word that ends a heredoc stands alone on its line, without blanks".to_owned())
            }
            Self::Platform { .. } => {
                Some("only images of this machine's own platform can be built".to_owned())
            }
            Self::BeforeFrom { .. } => {
                Some("a Dockerfile begins with `FROM`, and only `ARG` may stand before it".to_owned())
            }
            Self::Empty => Some("begin with `FROM image`, for example `FROM debian:12`".to_owned()),
            Self::SourceMissing { excluded_by: Some(by), .. } => Some(format!("it is excluded by {by}")),
            _ => None,
        }
    }

    fn label(&self) -> String {
        match self {
            Self::Expected { expected, .. } => format!("expected {expected}"),
            Self::Unsupported { .. } => "not supported yet".to_owned(),
            Self::Refused { .. } => "refused".to_owned(),
            Self::UnknownMountKey { key, .. } => format!("`{key}` is no option of a mount"),
            Self::MountKey { key, .. } => format!("`{key}` has no meaning here"),
            Self::UnknownFlag { .. } => "no such flag".to_owned(),
            Self::UnknownStage { .. } => "no such stage".to_owned(),
            Self::UnknownInstruction { .. } => "no such instruction".to_owned(),
            Self::FlagRepeated { .. } | Self::DirectiveRepeated { .. } => "the second one".to_owned(),
            Self::HeredocUnterminated { name } => format!("no line `{name}` follows"),
            Self::Expand { .. } => "in this word".to_owned(),
            Self::Pattern { .. } => "in this pattern".to_owned(),
            Self::SpecialFile { kind, .. } => format!("copies {kind}"),
            Self::SourceEscapes { .. } => "leads out".to_owned(),
            Self::Platform { .. } => "another platform".to_owned(),
            Self::BeforeFrom { .. } => "no stage has begun".to_owned(),
            Self::Circular { .. } => "this stage needs itself".to_owned(),
            Self::SourceMissing { .. } => "not there".to_owned(),
            _ => "here".to_owned(),
        }
    }
}

fn more_checks(more: usize) -> String {
    if more == 0 { String::new() } else { format!(" (and {more} more warnings)") }
}

/// Which instruction a flag is meant for that this one does not have.
fn other_instruction(instruction: &str, flag: &str) -> Option<String> {
    let other = match (instruction, flag) {
        ("COPY", "checksum" | "keep-git-dir" | "unpack") => "ADD",
        ("ADD", "from" | "parents") => "COPY",
        ("COPY" | "ADD", "mount" | "network" | "security") => "RUN",
        _ => return None,
    };
    Some(format!("it is a flag of `{other}`"))
}

/// Which types a key goes with.
fn mount_key_hint(key: &str, kind: &str) -> Option<String> {
    let types = match key {
        "from" => "`bind` and `cache`",
        "sharing" => "`cache`",
        "size" => "`tmpfs`",
        "env" | "required" => "`secret`",
        "mode" | "uid" | "gid" => "`cache` and `secret`",
        "source" if kind == "secret" => return Some("name the secret by `id` or by `source`".to_owned()),
        "source" => "`bind` and `cache`",
        _ => return None,
    };
    Some(format!("it is for mounts of type {types}"))
}

/// The name of `names` that looks most like `name`, if any is close enough to be meant.
pub(crate) fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let name = name.to_lowercase();
    names
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&name, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate.to_owned())
}
