//! Harbor's task format: a directory with `task.toml`, `instruction.md`, `environment/`, `solution/` and `tests/`.
//!
//! Reading is strict where Harbor is lenient: a wrong type is an error that names the line, an unknown key is a
//! [`Warning`], and what the native runner cannot do is told by [`Task::check`] before anything starts.

mod config;
mod digest;
mod parse;
mod reader;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use berth_types::error::Kind;

pub use config::{
    AgentSection, Artifact, EnvEntry, EnvTable, EnvironmentSection, Healthcheck, Package, TaskConfig,
    Unsupported, VerifierSection,
};

/// Longest `task.toml` or `instruction.md` that is read.
const MAX_TEXT: u64 = 4 << 20;

/// Why a task cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory holds no `task.toml`.
    #[error("{path} is not a task: it holds no task.toml")]
    NotATask {
        /// The directory.
        path: PathBuf,
    },
    /// A file of the task cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A file is longer than any sensible one.
    #[error("{path} is longer than {limit} bytes")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// `task.toml` is no TOML.
    #[error("{file}:{line}:{column}: not valid TOML")]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// Cause.
        source: Box<toml::de::Error>,
    },
    /// A value of `task.toml` is of the wrong type or out of range.
    #[error("{file}:{line}: {key}: expected {expected}, found {found}")]
    Invalid {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The key, with its sections.
        key: String,
        /// What would be right.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// Neither `docker_image` nor a Dockerfile says what to run.
    #[error(
        "{path} defines no environment: set docker_image in [environment] of task.toml, or add \
         environment/Dockerfile"
    )]
    NoEnvironment {
        /// The `environment` directory that was looked into.
        path: PathBuf,
    },
    /// A file that the run needs is not there.
    #[error("{path} is missing: {needed_for}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// Why it is needed.
        needed_for: &'static str,
    },
    /// The task wants something that the native runner does not do.
    #[error("{place}: not supported by berth run yet: {what}")]
    Unsupported {
        /// File, and line where there is one.
        place: String,
        /// What it wants.
        what: String,
    },
    /// A symlink below `tests` or `solution` leads out of the task.
    #[error("{path} leads out of the task directory")]
    Escapes {
        /// The symlink.
        path: PathBuf,
    },
    /// A value refers to a host variable that is not set and gives no default.
    #[error("{file}:{line}: {name} needs the host's environment variable {variable}, which is not set")]
    HostVariable {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The variable that is defined so.
        name: String,
        /// The host's variable.
        variable: String,
    },
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        match self {
            Error::NotATask { .. } | Error::Missing { .. } | Error::NoEnvironment { .. } => Kind::NotFound,
            Error::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => Kind::NotFound,
            Error::Read { .. } => Kind::Config,
            _ => Kind::User,
        }
    }
}

/// Something in `task.toml` that does not stop the run but is probably not meant so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// What is odd.
    pub message: String,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.message)
    }
}

/// What the sandbox's root file system is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// A prebuilt image.
    Reference(String),
    /// `environment/Dockerfile`, with `environment` as the context.
    Dockerfile(PathBuf),
}

/// Who tries to solve the task, as far as a task has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Solver {
    /// The task's own solution.
    Oracle,
    /// Nobody.
    Nop,
    /// A foreign agent.
    Foreign,
}

/// A task on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// The directory, as it was given.
    pub path: PathBuf,
    /// The directory, absolute and without symlinks.
    pub dir: PathBuf,
    /// `[task].name`, or the directory's name.
    pub name: String,
    /// The directory's name: what trials are called after.
    pub dir_name: String,
    /// `instruction.md` without a leading canary.
    pub instruction: String,
    /// `task.toml`.
    pub config: TaskConfig,
    /// Harbor's hash of the task's files, `sha256:…` (what lock files record).
    pub digest: String,
    /// Harbor's older hash of the whole directory (what results record).
    pub checksum: String,
}

impl Task {
    /// Read the task in a directory.
    pub fn load(path: &Path) -> Result<(Task, Vec<Warning>), Error> {
        let file = path.join("task.toml");
        if !file.is_file() {
            return Err(Error::NotATask { path: path.to_owned() });
        }
        let (config, warnings) = parse::parse(&file, &read_text(&file)?)?;
        let dir = path.canonicalize().map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let dir_name =
            dir.file_name().map_or_else(|| "task".into(), |name| name.to_string_lossy()).into_owned();
        let name = config.package.as_ref().map_or_else(|| dir_name.clone(), |package| package.name.clone());
        let mut task = Task {
            path: path.to_owned(),
            dir,
            name,
            dir_name,
            instruction: String::new(),
            config,
            digest: String::new(),
            checksum: String::new(),
        };
        // A multi-step task has its instructions in its steps; `check` refuses it with its own words.
        let instruction = task.path.join("instruction.md");
        if instruction.is_file() {
            task.instruction = strip_canary(&read_text(&instruction)?);
        }
        task.digest = digest::content_digest(&task.dir)?;
        task.checksum = digest::directory_checksum(&task.dir)?;
        Ok((task, warnings))
    }

    /// Refuse what the native runner cannot do, and what is not there.
    pub fn check(&self, solver: Solver) -> Result<(), Error> {
        if let Some(unsupported) = self.config.unsupported.first() {
            let place = format!("{}:{}", self.path.join("task.toml").display(), unsupported.line);
            return Err(Error::Unsupported { place, what: unsupported.what.clone() });
        }
        self.refuse_file("environment/docker-compose.yaml", "docker-compose environments")?;
        if solver == Solver::Foreign {
            self.refuse_file("trajectory.json", "a prior trajectory for the agent")?;
            if self.config.environment.skills_dir.is_some() {
                let place = self.path.join("task.toml").display().to_string();
                let what = "environment.skills_dir with --agent-cmd".to_owned();
                return Err(Error::Unsupported { place, what });
            }
        }
        self.image_source(false)?;
        self.require("instruction.md", "every task has an instruction")?;
        self.require("tests/test.sh", "the verifier runs it")?;
        if solver == Solver::Oracle {
            self.require("solution/solve.sh", "the oracle agent runs it")?;
            self.check_tree("solution")?;
        }
        self.check_tree("tests")
    }

    /// What to make the sandbox of.
    pub fn image_source(&self, force_build: bool) -> Result<ImageSource, Error> {
        let environment = self.dir.join("environment");
        let has_dockerfile = environment.join("Dockerfile").exists();
        match &self.config.environment.docker_image {
            Some(image) if !force_build || !has_dockerfile => Ok(ImageSource::Reference(image.clone())),
            _ if has_dockerfile => Ok(ImageSource::Dockerfile(environment)),
            _ => Err(Error::NoEnvironment { path: self.path.join("environment") }),
        }
    }

    /// The directory whose files go into the working directory: for a prebuilt image without a Dockerfile.
    pub fn loose_environment_files(&self) -> Option<PathBuf> {
        let environment = self.dir.join("environment");
        let prebuilt = self.config.environment.docker_image.is_some();
        let holds_files =
            || std::fs::read_dir(&environment).is_ok_and(|mut entries| entries.next().is_some());
        (prebuilt && !environment.join("Dockerfile").exists() && holds_files()).then_some(environment)
    }

    /// An [`EnvTable`] with the host's values put in.
    pub fn resolve_env(
        &self,
        table: &EnvTable,
        host: impl Fn(&str) -> Option<String>,
    ) -> Result<BTreeMap<String, String>, Error> {
        let mut resolved = BTreeMap::new();
        for entry in &table.entries {
            let value = resolve(&entry.value, &host).map_err(|variable| Error::HostVariable {
                file: self.path.join("task.toml"),
                line: entry.line,
                name: entry.name.clone(),
                variable,
            })?;
            resolved.insert(entry.name.clone(), value);
        }
        Ok(resolved)
    }

    fn refuse_file(&self, relative: &str, what: &str) -> Result<(), Error> {
        if !self.dir.join(relative).exists() {
            return Ok(());
        }
        let place = self.path.join(relative).display().to_string();
        Err(Error::Unsupported { place, what: what.to_owned() })
    }

    fn require(&self, relative: &str, needed_for: &'static str) -> Result<(), Error> {
        if self.dir.join(relative).is_file() {
            return Ok(());
        }
        Err(Error::Missing { path: self.path.join(relative), needed_for })
    }

    /// Harbor refuses inputs that leave the task, so that a foreign task cannot carry host files into a sandbox.
    fn check_tree(&self, relative: &str) -> Result<(), Error> {
        let mut pending = vec![self.dir.join(relative)];
        while let Some(path) = pending.pop() {
            let read = |source| Error::Read { path: path.clone(), source };
            let facts = path.symlink_metadata().map_err(read)?;
            if path.file_name().is_some_and(|name| name == ".harborignore") {
                let what = "ignore files (.harborignore)".to_owned();
                return Err(Error::Unsupported { place: path.display().to_string(), what });
            }
            if facts.is_symlink() {
                let inside = path.canonicalize().is_ok_and(|target| target.starts_with(&self.dir));
                if !inside {
                    return Err(Error::Escapes { path });
                }
            } else if facts.is_dir() {
                for entry in std::fs::read_dir(&path).map_err(read)? {
                    pending.push(entry.map_err(read)?.path());
                }
            }
        }
        Ok(())
    }
}

/// `${VAR}` and `${VAR:-default}`, when they are the whole value; anything else stays as it is. The error is the
/// variable that is not set.
fn resolve(value: &str, host: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let Some(inner) = value.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) else {
        return Ok(value.to_owned());
    };
    let (variable, default) = match inner.split_once(":-") {
        Some((variable, default)) => (variable, Some(default)),
        None => (inner, None),
    };
    // Harbor's pattern: a name is anything without a brace or a colon, a default is one line.
    let is_template =
        !variable.is_empty() && !variable.contains(['}', ':']) && !default.is_some_and(|d| d.contains('\n'));
    if !is_template {
        return Ok(value.to_owned());
    }
    host(variable).or_else(|| default.map(str::to_owned)).ok_or_else(|| variable.to_owned())
}

/// Benchmarks mark their texts against training with a "canary" line on top, which is not for the agent's eyes.
fn strip_canary(text: &str) -> String {
    let is_canary = |line: &str| {
        let line = line.trim();
        let comment = (line.starts_with("<!--") && line.ends_with("-->")) || line.starts_with('#');
        comment && line.to_lowercase().contains("canary")
    };
    let lines: Vec<&str> = text.split('\n').collect();
    let mut start = lines.iter().take_while(|line| is_canary(line)).count();
    start += lines[start..].iter().take_while(|line| line.trim().is_empty()).count();
    lines[start..].join("\n")
}

fn read_text(path: &Path) -> Result<String, Error> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    if path.metadata().map_err(read)?.len() > MAX_TEXT {
        return Err(Error::TooLong { path: path.to_owned(), limit: MAX_TEXT });
    }
    std::fs::read_to_string(path).map_err(read)
}
