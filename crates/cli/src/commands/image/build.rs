//! `berth image build DIR`.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use berth_client::secret;
use berth_types::image::{BasePull, BuildImage, Secret};
use berth_types::sandbox::Resources;
use clap::{Args, ValueEnum};

use crate::Session;
use crate::arguments::{Network, cpus, key_value};
use crate::failure::Failure;
use crate::progress::ProgressView;

/// Arguments of `berth image build`.
#[derive(Debug, Args)]
pub struct Build {
    /// Directory of the build context
    context: PathBuf,
    /// Reference to give the image; may be repeated
    #[arg(long = "tag", short, value_name = "REFERENCE")]
    tags: Vec<String>,
    /// The Dockerfile; Dockerfile in the context by default, - for stdin
    #[arg(long, short)]
    file: Option<PathBuf>,
    /// Stage to build; the last by default
    #[arg(long)]
    target: Option<String>,
    /// Value for an ARG, or the name of a variable that has it; may be repeated
    #[arg(long = "build-arg", value_name = "KEY[=VALUE]", value_parser = build_arg)]
    build_args: Vec<(String, String)>,
    /// Run every step again, whatever the cache holds
    #[arg(long)]
    no_cache: bool,
    /// When to ask the registries of base images
    #[arg(long, value_enum, default_value = "missing")]
    pull: Pull,
    /// What RUN reaches
    #[arg(long, value_enum, default_value = "public")]
    network: Network,
    /// A secret for RUN --mount=type=secret, by a file (src) or a variable (env); may be repeated
    #[arg(long = "secret", value_name = "id=ID[,src=FILE|,env=NAME]", value_parser = named_secret)]
    secrets: Vec<(String, SecretFrom)>,
    /// A package of the image's distribution to install on top; may be repeated
    #[arg(long = "package", value_name = "NAME")]
    packages: Vec<String>,
    /// Limit of processor time of each step, in cores
    #[arg(long, value_parser = cpus)]
    cpus: Option<f64>,
    /// Limit of memory of each step, in MB of 2^20 bytes
    #[arg(long, value_name = "MB")]
    memory_mb: Option<u64>,
    /// Limit of what each step writes, in MB of 2^20 bytes
    #[arg(long, value_name = "MB")]
    storage_mb: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pull {
    /// For those that the store lacks
    Missing,
    /// For all that came from one: tags are looked up anew
    Refresh,
    /// Never
    Never,
}

impl From<Pull> for BasePull {
    fn from(pull: Pull) -> Self {
        match pull {
            Pull::Missing => BasePull::Missing,
            Pull::Refresh => BasePull::Refresh,
            Pull::Never => BasePull::Never,
        }
    }
}

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SecretFrom {
    File(PathBuf),
    Variable(String),
}

/// `id=x`, and `src=FILE` or `env=NAME`; as in docker, a variable or else a file of the id's name without.
fn named_secret(text: &str) -> Result<(String, SecretFrom), String> {
    let (mut id, mut from) = (None, None);
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("id", value)) if !value.is_empty() => id = Some(value.to_owned()),
            Some(("src" | "source", value)) => from = Some(SecretFrom::File(value.into())),
            Some(("env", value)) => from = Some(SecretFrom::Variable(value.to_owned())),
            Some(("type", "file" | "env")) => {}
            _ => return Err(format!("{part:?} is none of id=ID, src=FILE and env=NAME")),
        }
    }
    let id = id.ok_or("id=ID is missing")?;
    let by_name = || match std::env::var_os(&id) {
        Some(_) => SecretFrom::Variable(id.clone()),
        None => SecretFrom::File(PathBuf::from(&id)),
    };
    let from = from.unwrap_or_else(by_name);
    Ok((id, from))
}

/// `KEY=VALUE`, or `KEY` for this program's own variable of that name.
fn build_arg(text: &str) -> Result<(String, String), String> {
    if text.contains('=') {
        return key_value(text);
    }
    let value = std::env::var(text).map_err(|_| format!("no variable {text} is set; give {text}=VALUE"))?;
    Ok((text.to_owned(), value))
}

impl Build {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        if !self.context.is_dir() {
            return Err(Failure::ContextNotDir { path: self.context });
        }
        let (dockerfile, dockerfile_text) = dockerfile(self.file.as_deref(), &self.context)?;
        let resources = Resources {
            cpus: self.cpus,
            memory_mb: self.memory_mb,
            storage_mb: self.storage_mb,
            ..Resources::default()
        };
        let request = BuildImage {
            tags: self.tags,
            dockerfile,
            dockerfile_text,
            target: self.target,
            build_args: self.build_args.into_iter().collect(),
            no_cache: self.no_cache,
            pull: self.pull.into(),
            network: self.network.into(),
            resources: (resources != Resources::default()).then_some(resources),
            secrets: read_secrets(self.secrets)?,
            packages: self.packages,
            ..BuildImage::default()
        };
        let client = session.client().await?;
        let mut view = ProgressView::new(&session.output, &format!("building {}", self.context.display()));
        let result = client.build_dir(&request, &self.context, |step| view.show(&step)).await;
        drop(view);
        let result = result?;
        let joined = if result.joined { ", in a build that was under way" } else { "" };
        session
            .output
            .note(&format!("{} steps, {} of them from the cache{joined}", result.steps, result.cached_steps));
        session.output.result(&result, |result| result.image.id.clone())
    }
}

fn read_secrets(secrets: Vec<(String, SecretFrom)>) -> Result<BTreeMap<String, Secret>, Failure> {
    let read = |from: SecretFrom| match from {
        SecretFrom::File(path) => std::fs::read(&path).map_err(|source| Failure::Read { path, source }),
        SecretFrom::Variable(name) => match std::env::var_os(&name) {
            Some(value) => Ok(value.into_encoded_bytes()),
            None => Err(Failure::NoVariable { name }),
        },
    };
    secrets.into_iter().map(|(id, from)| Ok((id, secret(&read(from)?)))).collect()
}

/// Path in the context, or name and text of a Dockerfile that lies elsewhere. As in docker, `-f` is a path of this machine.
fn dockerfile(file: Option<&Path>, context: &Path) -> Result<(Option<String>, Option<String>), Failure> {
    let Some(file) = file else { return Ok((None, None)) };
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(Failure::Stdin)?;
        return Ok((None, Some(text)));
    }
    let real =
        |path: &Path| path.canonicalize().map_err(|source| Failure::Read { path: path.to_owned(), source });
    let name = |path: &Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| Failure::NotUtf8 { path: file.to_owned() })
    };
    let (real_file, real_context) = (real(file)?, real(context)?);
    if let Ok(relative) = real_file.strip_prefix(&real_context) {
        return Ok((Some(name(relative)?), None));
    }
    let text =
        std::fs::read_to_string(file).map_err(|source| Failure::Read { path: file.to_owned(), source })?;
    let base = real_file.file_name().map(Path::new).unwrap_or(file);
    Ok((Some(name(base)?), Some(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_by_file_by_variable_and_by_name() {
        let file = |path: &str| SecretFrom::File(path.into());
        let variable = |name: &str| SecretFrom::Variable(name.to_owned());
        assert_eq!(named_secret("id=key,src=/a/b"), Ok(("key".to_owned(), file("/a/b"))));
        assert_eq!(named_secret("type=env,id=key,env=KEY"), Ok(("key".to_owned(), variable("KEY"))));
        assert_eq!(
            named_secret("id=no-such-variable"),
            Ok(("no-such-variable".to_owned(), file("no-such-variable")))
        );
        assert_eq!(named_secret("id=PATH"), Ok(("PATH".to_owned(), variable("PATH"))));
        for bad in ["", "id=", "key", "src=/a", "id=key,target=/x"] {
            assert!(named_secret(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_build_argument_without_value_is_a_variable() {
        assert_eq!(build_arg("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert_eq!(build_arg("PATH"), Ok(("PATH".to_owned(), std::env::var("PATH").unwrap())));
        assert!(build_arg("NO_SUCH_VARIABLE_HERE").unwrap_err().contains("NO_SUCH_VARIABLE_HERE=VALUE"));
    }

    #[test]
    fn a_dockerfile_beside_the_context_is_sent_along() {
        let dir = tempfile::tempdir().unwrap();
        let context = dir.path().join("context");
        std::fs::create_dir(&context).unwrap();
        std::fs::write(dir.path().join("Other"), "FROM x").unwrap();
        std::fs::write(context.join("Inside"), "FROM y").unwrap();
        let of = |file: &Path| dockerfile(Some(file), &context).unwrap();
        assert_eq!(of(&context.join("Inside")), (Some("Inside".to_owned()), None));
        assert_eq!(of(&context.join("../Other")), (Some("Other".to_owned()), Some("FROM x".to_owned())));
        assert!(matches!(dockerfile(Some(&context.join("None")), &context), Err(Failure::Read { .. })));
    }
}
