//! Builds: the build crate's view of this machine, and equal builds asked for at once done once.
//!
//! Start reading at [`Node::build_image`], then `jobs.rs`.

mod caches;
mod jobs;
mod listing;
mod mounts;
mod notes;
mod packages;
mod remotes;
mod replay;
mod runner;
mod settings;
mod slots;
mod step;
#[cfg(test)]
mod tests;
mod turns;
mod unpack;
mod upload;

use std::sync::Arc;

use berth_build::context::Context;
use berth_build::ignore::Ignore;
use berth_build::{ContextSource, DockerfileSource, Outcome, Request};
use berth_image::Reference;
use berth_types::image::{BuildImage, BuildResult, ContextManifest};
use berth_types::progress::Progress;

#[cfg(test)]
pub(crate) use caches::want_cache;
pub(crate) use caches::{Caches, PruneCaches};
pub(crate) use jobs::Builds;
use jobs::Built;
use listing::Texts;
pub(crate) use notes::BUILDS_TASK;
pub(crate) use replay::Replays;
use runner::{Builder, Kept};
pub(crate) use runner::{IMAGE, STEP};
pub use settings::BuildPolicy;
use settings::{Settings, options_key};
use upload::Received;
pub(crate) use upload::clear_contexts;

use crate::images::{Body, Sink};
use crate::{Error, Node};

/// Name of the Dockerfile where nobody says.
const DOCKERFILE: &str = "Dockerfile";

/// A request that was looked through.
pub(crate) struct Asked {
    request: BuildImage,
    settings: Settings,
    /// Sorted, each once.
    packages: Vec<String>,
    /// Path of the Dockerfile in the context, or its name.
    dockerfile: String,
    /// Key of everything but the context.
    key: String,
}

impl Asked {
    /// Looks through a request.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for options that no build has, [`Error::Image`] for tags that are no references.
    pub(crate) fn new(node: &Node, request: BuildImage) -> Result<Asked, Error> {
        for tag in &request.tags {
            tag.parse::<Reference>().map_err(berth_image::Error::from)?;
        }
        let settings = Settings::new(&request, &node.0.build_policy, &node.0.limits, node.enforces())?;
        node.fits_at_all(settings.limits.memory_bytes, settings.limits.storage_bytes)?;
        let fits = node.0.admission.fits_ever(&settings.wants);
        fits.map_err(|shortage| Error::never_fits(&shortage))?;
        let packages = packages::checked(&request.packages)?;
        let key = options_key(&BuildImage { packages: packages.clone(), ..request.clone() });
        let dockerfile = request.dockerfile.clone().unwrap_or_else(|| DOCKERFILE.to_owned());
        Ok(Asked { request, settings, packages, dockerfile, key })
    }

    fn source(&self) -> DockerfileSource {
        let name = self.dockerfile.clone();
        match &self.request.dockerfile_text {
            Some(text) => DockerfileSource::Text { name, text: text.clone() },
            None => DockerfileSource::InContext(name),
        }
    }

    /// Of the texts of a context those that decide something: the Dockerfile, and the one ignore file that counts.
    fn texts(&self, mut text: impl FnMut(&str) -> Result<Option<String>, Error>) -> Result<Texts, Error> {
        let mut texts = Texts::new();
        let own = format!("{}.dockerignore", self.dockerfile);
        for name in [own, ".dockerignore".to_owned()] {
            if let Some(found) = text(&name)? {
                texts.insert(name, found);
                break;
            }
        }
        if self.request.dockerfile_text.is_none()
            && let Some(found) = text(&self.dockerfile)?
        {
            texts.insert(self.dockerfile.clone(), found);
        }
        Ok(texts)
    }

    /// The texts of a context that has come.
    async fn texts_of(self: &Arc<Self>, came: &Received) -> Result<Texts, Error> {
        let (asked, path) = (self.clone(), came.path().to_owned());
        let read = move || {
            let text = |name: &str| Context::read(&path, name);
            asked.texts(|name| text(name).map_err(|error| berth_build::Error::from(error).into()))
        };
        tokio::task::spawn_blocking(read).await.map_err(|_| Error::Ending)?
    }

    fn ignore(&self, texts: &Texts) -> Result<Ignore, Error> {
        let file = texts.iter().find(|(name, _)| **name != self.dockerfile);
        let parsed = file.map(|(name, text)| Ignore::parse(name, text)).transpose();
        let parsed = parsed.map_err(|error| berth_build::Error::Context(error.into()))?;
        Ok(parsed.unwrap_or_default())
    }
}

impl Node {
    /// Builds the Dockerfile of a context: a tar, or what the request's manifest says of it, or both.
    ///
    /// Equal builds are done once: whoever asks while one is under way waits for it and sees its progress. It goes on when
    /// the one who asked first goes away, and ends when nobody waits for it.
    ///
    /// # Errors
    /// [`Error::ContextNeeded`] for a manifest without a context where nothing that was built before is the same,
    /// [`Error::ContextChanged`] for a context that is not what its manifest says, [`Error::BadContext`] for a body that is
    /// no tar, and, perhaps [`Error::Shared`] with others, [`Error::Build`] for everything that the build meets.
    pub async fn build_image(
        &self,
        mut options: BuildImage,
        context: Option<Body>,
        sink: Sink,
    ) -> Result<BuildResult, Error> {
        let manifest = options.manifest.take();
        let asked = Arc::new(Asked::new(self, options)?);
        let (built, joined) = match (manifest, context) {
            (Some(manifest), context) => self.build_said(&asked, manifest, context, &sink).await?,
            (None, Some(context)) => self.build_unsaid(&asked, context, &sink).await?,
            // All of it is the Dockerfile.
            (None, None) if asked.request.dockerfile_text.is_some() => {
                let nothing: Body = Box::new(tokio::io::empty());
                self.build_said(&asked, ContextManifest::default(), Some(nothing), &sink).await?
            }
            (None, None) => return Err(Error::ContextNeeded),
        };
        for tag in &asked.request.tags {
            self.0.images.tag(&built.outcome.image, tag).await?;
        }
        let image = self.resolve_image(&built.outcome.image).await?;
        Ok(BuildResult {
            image: image.to_api(),
            content_key: built.outcome.content_key.clone(),
            steps: built.outcome.steps,
            cached_steps: built.outcome.cached_steps,
            warnings: built.outcome.warnings.clone(),
            joined,
        })
    }

    /// The image that the target stage of a context begins with, pulled where it is missing: what a sandbox is made from in
    /// which the stage's steps are replayed.
    ///
    /// # Errors
    /// As [`Node::build_image`]; [`Error::BadRequest`] for a stage that begins with nothing, and for tags.
    pub async fn base_of_build(
        &self,
        mut options: BuildImage,
        context: Option<Body>,
        sink: Sink,
    ) -> Result<BuildResult, Error> {
        if !options.tags.is_empty() {
            let problem = "nothing is built that could be given one".to_owned();
            return Err(Error::BadRequest { field: "tags", problem });
        }
        let manifest = options.manifest.take();
        let asked = Asked::new(self, options)?;
        let machine = self.builder(asked.settings.clone(), &sink);
        let base = match context {
            Some(context) => {
                let came = upload::receive(context, &self.0.tmp, &self.0.builds.room).await?;
                let request = self.request(&asked, came.source(), &sink);
                berth_build::base(&request, &machine).await?
            }
            None if manifest.is_none() && asked.request.dockerfile_text.is_none() => {
                return Err(Error::ContextNeeded);
            }
            None => {
                let manifest = manifest.unwrap_or_default();
                let request = self.request(&asked, ContextSource::Manifest(&manifest), &sink);
                berth_build::base(&request, &machine).await?
            }
        };
        if base.id.is_empty() {
            let problem = "the stage begins with scratch: there is no image to make a sandbox of".to_owned();
            return Err(Error::BadRequest { field: "target", problem });
        }
        Ok(BuildResult {
            image: self.resolve_image(&base.id).await?.to_api(),
            content_key: base.id,
            steps: 0,
            cached_steps: 0,
            warnings: Vec::new(),
            joined: false,
        })
    }

    /// Builds from a context that is here.
    async fn carry_out(&self, asked: &Asked, came: &Received, sink: Sink) -> Result<Built, Error> {
        self.build_from(asked, came.source(), &sink).await
    }

    /// The image that an earlier build made of the same, by what the context holds.
    async fn look_up(
        &self,
        asked: &Asked,
        manifest: &ContextManifest,
        sink: Sink,
    ) -> Result<Option<Arc<Built>>, Error> {
        let told = sink.clone();
        // Where nothing is found the build that follows says all of this again.
        let quiet: Sink = Arc::new(move |progress| {
            if !matches!(progress, Progress::Warning(_)) {
                told(progress);
            }
        });
        match self.build_from(asked, ContextSource::Manifest(manifest), &quiet).await {
            Ok(built) => {
                built.outcome.warnings.iter().for_each(|warning| sink(Progress::Warning(warning.clone())));
                Ok(Some(Arc::new(built)))
            }
            Err(Error::Build(error)) if matches!(*error, berth_build::Error::ContextNeeded { .. }) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Builds the image, and on top of it its packages.
    async fn build_from(
        &self,
        asked: &Asked,
        context: ContextSource<'_>,
        sink: &Sink,
    ) -> Result<Built, Error> {
        let machine = self.builder(asked.settings.clone(), sink);
        let mut outcome = berth_build::build(self.request(asked, context, sink), &machine).await?;
        if !asked.packages.is_empty() {
            outcome = self.add_packages(asked, outcome, context, &machine).await?;
        }
        Ok(Built { outcome, _kept: machine.kept })
    }

    fn builder(&self, settings: Settings, sink: &Sink) -> Builder {
        Builder {
            node: self.clone(),
            sink: sink.clone(),
            kept: Kept::default(),
            settings,
            remotes: Default::default(),
            own: None,
        }
    }

    fn request<'a>(&self, asked: &Asked, context: ContextSource<'a>, sink: &'a Sink) -> Request<'a> {
        Request {
            context,
            dockerfile: asked.source(),
            target: asked.request.target.clone(),
            build_args: asked.request.build_args.clone(),
            no_cache: asked.settings.no_cache,
            no_network: !asked.settings.public_network,
            // Whoever waits gives it his own in the end.
            tags: Vec::new(),
            platform: berth_image::Platform::host().to_string(),
            parallel: self.0.build_policy.parallel_steps.unwrap_or(0),
            progress: &**sink,
        }
    }

    /// Installs the packages on the image that was made, which becomes another image.
    async fn add_packages(
        &self,
        asked: &Asked,
        below: Outcome,
        context: ContextSource<'_>,
        machine: &Builder,
    ) -> Result<Outcome, Error> {
        let image = self.resolve_image(&below.image).await?;
        let text = packages::dockerfile(&image, &asked.packages)?;
        let settings = asked.settings.on_top_of(packages::BELOW, image.id.clone());
        let on_top = Builder { kept: machine.kept.clone(), ..self.builder(settings, &machine.sink) };
        let request = Request {
            dockerfile: DockerfileSource::Text { name: packages::FILE.to_owned(), text },
            target: None,
            build_args: Default::default(),
            // Nothing of it is copied.
            ..self.request(asked, context, &on_top.sink)
        };
        let added = berth_build::build(request, &on_top).await?;
        let was_there = added.cached_steps == added.steps;
        Ok(Outcome {
            steps: below.steps + 1,
            cached_steps: below.cached_steps + u32::from(was_there),
            warnings: below.warnings,
            ..added
        })
    }
}
