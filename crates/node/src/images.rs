//! Images, as the API has them.

use std::io::{self, Write};

use berth_build::runner::CachedStep;
use berth_image::{BootstrapOptions, CacheRow, Digest, Export, Image, ImportOptions, Imported};
use berth_types::image as api;
use berth_types::progress::Progress;
use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use crate::builds::{IMAGE, PruneCaches, STEP};
use crate::{Error, Node};

#[cfg(test)]
mod tests;
mod tidy;

pub use tidy::ImageLimits;
pub(crate) use tidy::{TIDY_TASK, tidy};

/// Where a long call reports to.
pub type Sink = berth_image::Reporter;

/// A body that a client sends, or is sent.
pub type Body = Box<dyn AsyncRead + Send + Unpin>;

/// Size of the pieces in which an archive is given to whoever reads it, and how many may wait for that.
const EXPORT_PIECE: usize = 256 * 1024;
const EXPORT_PIECES: usize = 4;

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

    /// Points another reference at an image.
    ///
    /// # Errors
    /// [`Error::ImageNotFound`], or a reference that is none.
    pub async fn tag_image(&self, request: api::TagImage) -> Result<api::Image, Error> {
        let image = self.resolve_image(&request.image).await?;
        Ok(self.0.images.tag(image.id.as_str(), &request.reference).await?.to_api())
    }

    /// Removes what nobody uses, or says what that would be. What the build cache remembers of it is forgotten.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn prune_images(
        &self,
        request: api::PruneImages,
        sink: Sink,
    ) -> Result<api::PruneReport, Error> {
        let mut report = self.0.images.prune(request.clone()).await?;
        if request.cache_mounts {
            let node = self.clone();
            let wanted = PruneCaches {
                unused_for: request.unused_for_seconds,
                // The bound is one for both: cache mounts may have what images and layers leave of it.
                keep_bytes: request.keep_bytes.map(|keep| keep.saturating_sub(report.left_bytes)),
                dry_run: request.dry_run,
            };
            let gone = tokio::task::spawn_blocking(move || node.0.caches.prune(wanted)).await;
            for (id, bytes) in gone.map_err(|_| Error::Ending)? {
                report.cache_mounts.push(id);
                report.freed_bytes += bytes;
            }
        }
        if !request.dry_run {
            let forgotten = self.forget_stale_rows(None).await?;
            sink(Progress::Message { text: format!("{forgotten} rows of the build cache forgotten") });
        }
        Ok(report)
    }

    /// Compares the image store with itself; nothing is repaired.
    ///
    /// # Errors
    /// When the store cannot be read at all.
    pub async fn verify_images(
        &self,
        request: api::VerifyImages,
        sink: Sink,
    ) -> Result<api::VerifyReport, Error> {
        Ok(self.0.images.verify(request.deep, sink).await?)
    }

    /// Images as an archive. What goes wrong once it has begun is an error of the stream, never its end.
    ///
    /// # Errors
    /// [`Error::ImageNotFound`] and the like, before anything is sent.
    pub async fn export_images(&self, request: api::ExportImages) -> Result<Body, Error> {
        let cache = match request.cache {
            true => Some(self.0.images.build_cache(self.portable_rows().await?)),
            false => None,
        };
        let export = self.0.images.export(&request.images, request.format, cache)?;
        Ok(stream(export))
    }

    /// Pulls an image, and with `cache` the build cache beside it; that there is none is told and no error.
    ///
    /// # Errors
    /// What the registry, the network or the disk refuses.
    pub async fn pull_image(&self, request: api::PullImage, sink: Sink) -> Result<api::Image, Error> {
        let images = &self.0.images;
        let (reference, auth) = (&request.reference, request.auth);
        let image = self.pull(reference, request.policy, auth.clone().into(), sink.clone()).await?;
        if request.cache && request.policy != api::PullPolicy::Never {
            // Removed meanwhile, the rows would lead to nothing.
            let pin = images.pin(&image.id)?;
            let text = match images.pull_cache(reference, auth, sink.clone()).await? {
                None => format!("there is no build cache beside {reference}"),
                Some(imported) => {
                    let taken = self.take_rows(imported.cache).await?;
                    format!("{taken} rows of the build cache pulled")
                }
            };
            sink(Progress::Message { text });
            drop(pin);
        }
        Ok(image.to_api())
    }

    /// Pushes an image, and with `cache` all of the build cache beside it.
    ///
    /// # Errors
    /// [`Error::ImageNotFound`], and what the registry refuses.
    pub async fn push_image(&self, request: api::PushImage, sink: Sink) -> Result<api::Image, Error> {
        let image = self.resolve_image(&request.reference).await?;
        let to = request.to.as_deref().unwrap_or(&request.reference);
        let images = &self.0.images;
        images.push(&image, to, request.auth.clone(), sink.clone()).await?;
        if request.cache {
            let (cache, _hold) = images.build_cache(self.portable_rows().await?);
            images.push_cache(&cache, to, request.auth, sink).await?;
        }
        Ok(image.to_api())
    }

    /// Imports an archive, and its build cache where it has one. The result is its first image; every image is told.
    ///
    /// # Errors
    /// When it is none that Berth knows, or names nothing.
    pub async fn import_images(
        &self,
        request: api::ImportImage,
        archive: Body,
        sink: Sink,
    ) -> Result<api::ImportResult, Error> {
        let options = ImportOptions { reference: request.reference, format: request.format };
        let Imported { images, cache, hold } =
            self.0.images.import_all(archive, options, sink.clone()).await?;
        for image in &images {
            let text = format!("imported {} ({})", image.id, image.references.join(", "));
            sink(Progress::Message { text });
        }
        if !cache.is_empty() {
            let taken = self.take_rows(cache).await?;
            sink(Progress::Message { text: format!("{taken} rows of the build cache imported") });
        }
        drop(hold);
        let images: Vec<api::Image> = images.iter().map(Image::to_api).collect();
        let image = images.first().ok_or(Error::EmptyArchive)?.clone();
        Ok(api::ImportResult { image, images })
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

    // The build cache, as far as it is about images.

    /// What the build cache knows, in the form in which it goes to other machines.
    pub(crate) async fn portable_rows(&self) -> Result<Vec<CacheRow>, Error> {
        let rows = self.with_store(|store| store.cache_rows()).await?;
        Ok(rows.iter().filter_map(portable).collect())
    }

    /// Remembers what another machine did. What is remembered here, and still is here, stays.
    pub(crate) async fn take_rows(&self, rows: Vec<CacheRow>) -> Result<usize, Error> {
        // Rows whose layers are gone would only stand in the way.
        self.forget_stale_rows(None).await?;
        let consistent = rows.into_iter().filter(|row| {
            let stored = stored(row);
            portable(&stored).as_ref() == Some(row)
        });
        let rows: Vec<_> = consistent.map(|row| (row.kind, row.key, row.value)).collect();
        self.with_store(move |store| store.take_rows(&rows)).await
    }

    /// Forgets what led to layers and images that are no longer here, and what was not used since `before` (seconds since
    /// the epoch). Says how many rows that were.
    async fn forget_stale_rows(&self, before: Option<i64>) -> Result<usize, Error> {
        let node = self.clone();
        self.with_store(move |store| {
            let rows = store.cache_rows()?;
            let stale = |row: &berth_store::CacheRow| {
                // Where an image came from is not forgotten: a base would never be resolved anew.
                let is_old = before.is_some_and(|before| row.last_used < before);
                matches!(row.kind.as_str(), STEP | IMAGE) && (is_old || !node.is_here(row))
            };
            let stale: Vec<_> = rows.into_iter().filter(stale).collect();
            store.forget_rows(&stale)
        })
        .await
    }

    /// Whether a row leads to something that is still in the store; of rows of other kinds nothing is known.
    fn is_here(&self, row: &berth_store::CacheRow) -> bool {
        match portable(row) {
            Some(row) => !self.0.images.usable(vec![row]).is_empty(),
            None => !matches!(row.kind.as_str(), STEP | IMAGE),
        }
    }
}

/// A row as it goes to another machine; `None` for what means nothing there.
fn portable(row: &berth_store::CacheRow) -> Option<CacheRow> {
    let (layer, image) = match row.kind.as_str() {
        STEP => (layer_of_step(&row.value)?, None),
        IMAGE => (None, Some(row.value.parse::<Digest>().ok()?)),
        _ => return None,
    };
    Some(CacheRow { kind: row.kind.clone(), key: row.key.clone(), value: row.value.clone(), layer, image })
}

/// The layer that a step's row speaks of, where it made one.
fn layer_of_step(value: &str) -> Option<Option<Digest>> {
    let step: CachedStep = serde_json::from_str(value).ok()?;
    step.layer.map(|layer| layer.0.parse().ok()).map_or(Some(None), |digest| digest.map(Some))
}

fn stored(row: &CacheRow) -> berth_store::CacheRow {
    berth_store::CacheRow {
        kind: row.kind.clone(),
        key: row.key.clone(),
        value: row.value.clone(),
        last_used: 0,
    }
}

/// The archive, written as it is read.
fn stream(export: Export) -> Body {
    let (pieces, receiver) = mpsc::channel(EXPORT_PIECES);
    tokio::task::spawn_blocking(move || {
        let out = Pieces { pieces: pieces.clone(), piece: Vec::with_capacity(EXPORT_PIECE) };
        if let Err(error) = export.write(out) {
            let text = crate::error::chain(&error);
            tracing::warn!(error = text, "an export broke off");
            // Nobody there to hear it is why it broke off.
            drop(pieces.blocking_send(Err(io::Error::other(text))));
        }
    });
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let piece: io::Result<Bytes> = receiver.recv().await?;
        Some((piece, receiver))
    });
    Box::new(StreamReader::new(Box::pin(pieces)))
}

/// Gives what is written to whoever reads the stream, and waits for them.
struct Pieces {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    piece: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(EXPORT_PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..n]);
        if self.piece.len() == EXPORT_PIECE {
            self.flush()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(EXPORT_PIECE));
        self.pieces.blocking_send(Ok(piece.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
