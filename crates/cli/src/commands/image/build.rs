//! `berth image build DIR`.

use std::path::{Path, PathBuf};

use berth_client::archive;
use berth_types::image::BuildImage;
use clap::Args;

use crate::Session;
use crate::arguments::key_value;
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
    /// The Dockerfile, inside the context; Dockerfile in it by default
    #[arg(long, short)]
    file: Option<PathBuf>,
    /// Stage to build; the last by default
    #[arg(long)]
    target: Option<String>,
    /// Value for an ARG; may be repeated
    #[arg(long = "build-arg", value_name = "KEY=VALUE", value_parser = key_value)]
    build_args: Vec<(String, String)>,
    /// Run every step again, whatever the cache holds
    #[arg(long)]
    no_cache: bool,
}

impl Build {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        if !self.context.is_dir() {
            return Err(Failure::ContextNotDir { path: self.context });
        }
        let dockerfile = match &self.file {
            Some(file) => Some(inside(file, &self.context)?),
            None => None,
        };
        let request = BuildImage {
            tags: self.tags,
            dockerfile,
            target: self.target,
            build_args: self.build_args.into_iter().collect(),
            no_cache: self.no_cache,
            ..BuildImage::default()
        };
        let client = session.client().await?;
        let mut view = ProgressView::new(&session.output, &format!("building {}", self.context.display()));
        let result =
            client.build_image(&request, archive::pack_dir(&self.context), |step| view.show(&step)).await;
        drop(view);
        let result = result?;
        session
            .output
            .note(&format!("{} steps, {} of them from the cache", result.steps, result.cached_steps));
        session.output.result(&result, |result| result.image.id.clone())
    }
}

/// The Dockerfile's path relative to the context. As in docker, `-f` is a path of this machine.
fn inside(file: &Path, context: &Path) -> Result<String, Failure> {
    let real =
        |path: &Path| path.canonicalize().map_err(|source| Failure::Read { path: path.to_owned(), source });
    let (real_file, real_context) = (real(file)?, real(context)?);
    let relative = real_file
        .strip_prefix(&real_context)
        .map_err(|_| Failure::DockerfileOutside { file: file.to_owned(), context: context.to_owned() })?;
    relative.to_str().map(str::to_owned).ok_or_else(|| Failure::NotUtf8 { path: file.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dockerfile_must_be_inside() {
        let dir = tempfile::tempdir().unwrap();
        let context = dir.path().join("context");
        std::fs::create_dir_all(context.join("docker")).unwrap();
        std::fs::write(context.join("docker/Dockerfile"), "").unwrap();
        std::fs::write(dir.path().join("Dockerfile"), "").unwrap();
        assert_eq!(inside(&context.join("docker/Dockerfile"), &context).unwrap(), "docker/Dockerfile");
        let outside = inside(&dir.path().join("Dockerfile"), &context);
        assert!(matches!(outside, Err(Failure::DockerfileOutside { .. })));
        assert!(matches!(inside(&context.join("none"), &context), Err(Failure::Read { .. })));
    }
}
