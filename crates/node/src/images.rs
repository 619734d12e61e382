//! Images, as the API has them.

use std::time::{Duration, Instant};

use berth_image::{BootstrapOptions, Image, ImportOptions};
use berth_types::image as api;
use berth_types::progress::Progress;
use tokio::io::AsyncRead;

use crate::{Error, Node};

/// Where a long call reports to.
pub type Sink = berth_image::Reporter;

/// A body that a client sends.
pub type Body = Box<dyn AsyncRead + Send + Unpin>;

/// How long a layer that no image names is kept: as build cache, or left by a pull that was cut off.
const KEEP_UNUSED: Duration = Duration::from_secs(7 * 24 * 3600);

/// Name of the task.
pub(crate) const TIDY_TASK: &str = "unused layers";

/// How often such layers are looked for.
const TIDY_EVERY: Duration = Duration::from_secs(3600);

/// Frees layers that nobody has used for long, for as long as the node lives.
pub(crate) async fn tidy(node: Node) {
    loop {
        let began = Instant::now();
        let freed = node.0.images.gc(KEEP_UNUSED).await;
        match &freed {
            Ok(freed) if freed.is_empty() => {}
            Ok(freed) => tracing::info!(layers = freed.len(), "freed layers that no image names"),
            Err(error) => tracing::warn!(%error, "unused layers could not be freed"),
        }
        let result = freed.map(|freed| format!("{} layers freed", freed.len()));
        node.0.tasks.ran(TIDY_TASK, began, result.map_err(|error| crate::error::chain(&error)));
        tokio::time::sleep(TIDY_EVERY).await;
    }
}

impl Node {
    /// Every image of the store.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn images(&self) -> Result<Vec<api::Image>, Error> {
        Ok(self.0.images.list().iter().map(Image::to_api).collect())
    }

    /// One image, by reference or id.
    ///
    /// # Errors
    /// [`Error::ImageNotFound`].
    pub async fn image(&self, name: &str) -> Result<api::Image, Error> {
        Ok(self.resolve_image(name).await?.to_api())
    }

    /// Removes a reference, and the image with its last one.
    ///
    /// # Errors
    /// [`Error::ImageNotFound`]; a conflict while a sandbox stands on it.
    pub async fn remove_image(&self, name: &str) -> Result<(), Error> {
        self.resolve_image(name).await?;
        self.0.images.remove(name).await?;
        Ok(())
    }

    /// Pulls an image.
    ///
    /// # Errors
    /// What the registry, the network or the disk refuses.
    pub async fn pull_image(&self, request: api::PullImage, sink: Sink) -> Result<api::Image, Error> {
        let image = self.0.images.pull(&request.reference, request.policy, request.auth, sink).await?;
        Ok(image.to_api())
    }

    /// Pushes an image.
    ///
    /// # Errors
    /// [`Error::ImageNotFound`], and what the registry refuses.
    pub async fn push_image(&self, request: api::PushImage, sink: Sink) -> Result<api::Image, Error> {
        let image = self.resolve_image(&request.reference).await?;
        self.0.images.push(&image, &request.reference, request.auth, sink).await?;
        Ok(image.to_api())
    }

    /// Imports an archive.
    ///
    /// # Errors
    /// When it is none that Berth knows, or names nothing.
    pub async fn import_image(
        &self,
        request: api::ImportImage,
        archive: Body,
        sink: Sink,
    ) -> Result<api::Image, Error> {
        let options = ImportOptions { reference: request.reference, format: request.format };
        let images = self.0.images.import(archive, options, sink.clone()).await?;
        let (first, others) = images.split_first().ok_or_else(|| Error::EmptyArchive)?;
        for other in others {
            sink(Progress::Message {
                text: format!("also imported {} ({})", other.id, other.references.join(", ")),
            });
        }
        Ok(first.to_api())
    }

    /// Makes a base image from a Debian mirror.
    ///
    /// # Errors
    /// When the tools are missing, the suite is unknown or the mirror fails.
    pub async fn bootstrap_image(
        &self,
        request: api::BootstrapImage,
        sink: Sink,
    ) -> Result<api::Image, Error> {
        let options = BootstrapOptions {
            reference: request.reference,
            mirror: request.mirror,
            packages: request.packages,
        };
        Ok(self.0.images.bootstrap(options, sink).await?.to_api())
    }

    /// An image of the store.
    pub(crate) async fn resolve_image(&self, name: &str) -> Result<Image, Error> {
        self.0.images.resolve(name)?.ok_or_else(|| Error::ImageNotFound { name: name.to_owned() })
    }
}
