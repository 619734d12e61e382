//! The task that keeps the image store within its limits.

use std::time::{Duration, Instant, SystemTime};

use berth_types::image::{PruneImages, PruneReport};

use crate::{Error, Node};

/// Name of the task.
pub(crate) const TIDY_TASK: &str = "unused layers";

/// What was used so short ago is likely to be used again at once: freeing it would only have it made again.
const LATELY: Duration = Duration::from_secs(3600);

/// How much the image store may hold, and for how long what nobody uses. What a sandbox, a build or a pull uses is never touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageLimits {
    /// Most bytes that the files of all layers may have. What no reference names goes first, then whole images, each by last
    /// use; absent: images that a reference names are never removed by themselves.
    pub max_bytes: Option<u64>,
    /// Days after which what no reference names goes: layers of the build cache, untagged images, rows of the cache.
    pub unused_days: u64,
    /// Share of the file system, in percent, that is to be free. Below it, what no reference names goes, as much as is
    /// missing and whatever its age, but for what was used in the last hour.
    pub min_free_percent: u64,
    /// How often the task looks.
    pub check_every: Duration,
}

impl Default for ImageLimits {
    fn default() -> ImageLimits {
        ImageLimits {
            max_bytes: None,
            unused_days: 7,
            min_free_percent: 2,
            check_every: Duration::from_secs(600),
        }
    }
}

/// Keeps the store within its limits, for as long as the node lives.
pub(crate) async fn tidy(node: Node) {
    loop {
        let began = Instant::now();
        let result = node.tidy_once().await;
        match &result {
            Ok(done) if done.is_nothing() => {}
            Ok(done) => tracing::info!(done = done.to_string(), "tidied the image store"),
            Err(error) => tracing::warn!(%error, "the image store could not be tidied"),
        }
        let result = result.map(|done| done.to_string()).map_err(|error| crate::error::chain(&error));
        node.0.tasks.ran(TIDY_TASK, began, result);
        tokio::time::sleep(node.0.image_limits.check_every).await;
    }
}

/// What one run did.
#[derive(Default)]
pub(super) struct Done {
    images: Vec<String>,
    layers: usize,
    bytes: u64,
    rows: usize,
    /// What is still not as it should be.
    short: Option<String>,
}

impl Done {
    fn add(&mut self, report: PruneReport) {
        self.images.extend(report.images);
        self.layers += report.layers.len();
        self.bytes += report.freed_bytes;
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.images.is_empty() && self.layers == 0 && self.rows == 0 && self.short.is_none()
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (images, layers, bytes, rows) = (self.images.len(), self.layers, self.bytes, self.rows);
        write!(f, "{images} images and {layers} layers of {bytes} bytes freed, {rows} cache rows forgotten")?;
        for image in self.images.iter().take(10) {
            write!(f, "; {image}")?;
        }
        self.short.as_ref().map_or(Ok(()), |short| write!(f, "; {short}"))
    }
}

impl Node {
    pub(super) async fn tidy_once(&self) -> Result<Done, Error> {
        let limits = &self.0.image_limits;
        let images = &self.0.images;
        let mut done = Done::default();
        let unused = limits.unused_days.saturating_mul(24 * 3600);
        let old = PruneImages { unused_for_seconds: Some(unused), ..PruneImages::default() };
        done.add(images.prune(old).await?);
        if let Some(max) = limits.max_bytes {
            for all in [false, true] {
                if images.size_bytes() > max {
                    let asked = PruneImages { all, keep_bytes: Some(max), ..PruneImages::default() };
                    done.add(images.prune(asked).await?);
                }
            }
            if images.size_bytes() > max {
                done.short = Some(format!("{} bytes are in use, {max} are allowed", images.size_bytes()));
            }
        }
        if let Some(missing) = self.missing_room()? {
            let asked = PruneImages {
                unused_for_seconds: Some(LATELY.as_secs()),
                keep_bytes: Some(images.size_bytes().saturating_sub(missing)),
                ..PruneImages::default()
            };
            let report = images.prune(asked).await?;
            if report.freed_bytes < missing {
                let left = missing - report.freed_bytes;
                done.short = Some(format!("the disk is nearly full: {left} bytes more should be free"));
            }
            done.add(report);
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let before = i64::try_from(now.saturating_sub(unused)).unwrap_or(i64::MAX);
        done.rows = self.forget_stale_rows(Some(before)).await?;
        Ok(done)
    }

    /// How many bytes more should be free on the store's file system.
    fn missing_room(&self) -> Result<Option<u64>, Error> {
        let stat = rustix::fs::statvfs(&self.0.tmp).map_err(|errno| Error::Context(errno.into()))?;
        // What others than root get: the rest is kept for the system.
        let (size, free) =
            (stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize));
        Ok(missing(size, free, self.0.image_limits.min_free_percent))
    }
}

fn missing(size: u64, free: u64, percent: u64) -> Option<u64> {
    let wanted = size / 100 * percent.min(100);
    wanted.checked_sub(free).filter(|missing| *missing > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_missing_below_the_share_and_not_at_it() {
        assert_eq!(missing(1000, 50, 5), None);
        assert_eq!(missing(1000, 49, 5), Some(1));
        assert_eq!(missing(1000, 0, 0), None);
        assert_eq!(missing(0, 0, 5), None);
        assert_eq!(missing(u64::MAX, 0, 200), Some(u64::MAX / 100 * 100));
    }
}
