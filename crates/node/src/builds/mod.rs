//! Builds: the build crate's view of this machine, and equal builds asked for at once done once.

mod jobs;
mod runner;
mod step;
mod upload;

use std::path::Path;

use berth_build::{DockerfileSource, Request};
use berth_types::image::{BuildImage, BuildResult};

pub(crate) use jobs::Builds;
use runner::{Builder, Kept};
pub(crate) use upload::clear_contexts;
use upload::{CONTEXT_PREFIX, unpack_context};

use crate::images::{Body, Sink};
use crate::{Error, Node};

impl Node {
    /// Builds the Dockerfile of a context, a tar.
    ///
    /// # Errors
    /// [`Error::BadContext`] for a body that is no tar, [`Error::Build`] for everything that the build meets.
    pub async fn build_image(
        &self,
        options: BuildImage,
        context: Body,
        sink: Sink,
    ) -> Result<BuildResult, Error> {
        for tag in &options.tags {
            tag.parse::<berth_image::Reference>().map_err(berth_image::Error::from)?;
        }
        let dir = tempfile::Builder::new()
            .prefix(CONTEXT_PREFIX)
            .tempdir_in(&self.0.tmp)
            .map_err(Error::Context)?;
        let bytes = unpack_context(context, dir.path()).await?;
        // Trials of one task send the same bytes; the first builds, the others then find its result.
        let flight = (!options.no_cache).then(|| self.0.builds.flight(&bytes, &options));
        let _turn = match &flight {
            Some(flight) => Some(flight.turn(&sink).await),
            None => None,
        };
        // Alive until the image was looked up: it keeps it in the store.
        let machine = Builder { node: self.clone(), sink: sink.clone(), kept: Kept::default() };
        let outcome = self.build_context(&options, dir.path(), &sink, &machine).await?;
        let image = self.resolve_image(&outcome.image).await?;
        Ok(BuildResult {
            image: image.to_api(),
            content_key: outcome.content_key,
            steps: outcome.steps,
            cached_steps: outcome.cached_steps,
            warnings: Vec::new(),
            joined: false,
        })
    }

    async fn build_context(
        &self,
        options: &BuildImage,
        dir: &Path,
        sink: &Sink,
        machine: &Builder,
    ) -> Result<berth_build::Outcome, Error> {
        let name = options.dockerfile.clone().unwrap_or_else(|| "Dockerfile".to_owned());
        let request = Request {
            context: dir,
            dockerfile: DockerfileSource::InContext(name),
            target: options.target.clone(),
            build_args: options.build_args.clone(),
            no_cache: options.no_cache,
            tags: options.tags.clone(),
            platform: berth_image::Platform::host().to_string(),
            progress: &**sink,
        };
        Ok(berth_build::build(request, machine).await?)
    }
}
