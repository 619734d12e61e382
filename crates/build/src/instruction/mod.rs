//! Typed instructions: what each statement means, before any variable is expanded.

mod flags;
mod mount;
mod parse;

use crate::syntax::{Heredoc, Statement, Word};

pub use mount::Mount;
pub use parse::instruction;

/// Every instruction's name.
pub const NAMES: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// An instruction with the statement that it was read from.
#[derive(Clone, Debug)]
pub struct Located {
    /// What it means.
    pub instruction: Instruction,
    /// Where it stands.
    pub statement: Statement,
}

/// What one statement means. Words are as written: variables not expanded, quotes not removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// `FROM`.
    From(From),
    /// `ARG`.
    Arg(Vec<Arg>),
    /// `ENV`.
    Env(Vec<Pair>),
    /// `LABEL`.
    Label(Vec<Pair>),
    /// `WORKDIR`.
    Workdir(Word),
    /// `USER`.
    User(Word),
    /// `RUN`.
    Run(Run),
    /// `CMD`.
    Cmd(CommandLine),
    /// `ENTRYPOINT`.
    Entrypoint(CommandLine),
    /// `COPY` and `ADD`.
    Copy(Copy),
    /// `EXPOSE`.
    Expose(Vec<Word>),
    /// `VOLUME`.
    Volume(Vec<Word>),
    /// `STOPSIGNAL`.
    StopSignal(Word),
    /// `HEALTHCHECK`.
    Healthcheck(Healthcheck),
    /// `SHELL`.
    Shell(Vec<String>),
    /// `MAINTAINER`.
    Maintainer(String),
    /// `ONBUILD`, its trigger's text heredocs included.
    Onbuild(String),
}

/// `FROM image [AS name]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct From {
    /// Image, earlier stage, or `scratch`.
    pub image: Word,
    /// The stage's name, in lower case.
    pub name: Option<Word>,
    /// `AS`, as written.
    pub keyword: Option<Word>,
    /// `--platform`.
    pub platform: Option<Word>,
}

/// One variable of an `ARG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arg {
    /// Its name.
    pub name: Word,
    /// Its default.
    pub default: Option<Word>,
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The key.
    pub key: Word,
    /// The value.
    pub value: Word,
}

/// A command as `RUN`, `CMD`, `ENTRYPOINT` and `HEALTHCHECK` take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandLine {
    /// A line for the stage's shell.
    Shell(String),
    /// A program and its arguments.
    Exec(Vec<String>),
}

/// `RUN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The command.
    pub command: CommandLine,
    /// Its heredocs.
    pub heredocs: Vec<Heredoc>,
    /// `--mount`, in order.
    pub mounts: Vec<Mount>,
    /// `--network=none`.
    pub no_network: bool,
}

/// `COPY` or `ADD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Whether it is `ADD`, which unpacks local archives.
    pub add: bool,
    /// `--from`: stage by name or number, or image.
    pub from: Option<Word>,
    /// `--chown`.
    pub chown: Option<Word>,
    /// `--chmod`.
    pub chmod: Option<Word>,
    /// `--link`.
    pub link: bool,
    /// `--parents`.
    pub parents: bool,
    /// `--exclude`, in order.
    pub excludes: Vec<Word>,
    /// `--checksum`.
    pub checksum: Option<Word>,
    /// `--keep-git-dir`.
    pub keep_git_dir: Option<bool>,
    /// `--unpack`.
    pub unpack: Option<bool>,
    /// What to copy, in order.
    pub sources: Vec<CopySource>,
    /// Where to.
    pub dest: Word,
}

/// One source of a `COPY` or `ADD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopySource {
    /// A path or a wildcard pattern.
    Path(Word),
    /// A file that stands in the Dockerfile.
    Inline(Heredoc, Word),
}

/// `HEALTHCHECK`, times in nanoseconds as in Docker's config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Healthcheck {
    /// The command; `None` for `HEALTHCHECK NONE`.
    pub command: Option<CommandLine>,
    /// `--interval`.
    pub interval: Option<i64>,
    /// `--timeout`.
    pub timeout: Option<i64>,
    /// `--start-period`.
    pub start_period: Option<i64>,
    /// `--start-interval`.
    pub start_interval: Option<i64>,
    /// `--retries`.
    pub retries: Option<u32>,
}
