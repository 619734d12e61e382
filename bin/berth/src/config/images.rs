//! `[images]`: how much of images and layers is kept, and for how long.

use std::time::Duration;

use anyhow::ensure;
use berth_node::ImageLimits;
use serde::{Deserialize, Serialize};

/// Longest that the store may go without being looked at: a day.
const MAX_CHECK_SECONDS: u64 = 86_400;

/// The section.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ImagesConfig {
    /// Most bytes that the files of all layers have; 0: images that a reference names are never removed by themselves.
    pub(crate) max_bytes: u64,
    /// Days after which what no reference names goes: layers of the build cache, untagged images.
    pub(crate) unused_days: u64,
    /// Share of the file system, in percent, below which what no reference names goes, whatever its age.
    pub(crate) min_free_percent: u64,
    /// How often that is looked at, in seconds.
    pub(crate) check_seconds: u64,
}

impl Default for ImagesConfig {
    fn default() -> ImagesConfig {
        let limits = ImageLimits::default();
        ImagesConfig {
            max_bytes: limits.max_bytes.unwrap_or(0),
            unused_days: limits.unused_days,
            min_free_percent: limits.min_free_percent,
            check_seconds: limits.check_every.as_secs(),
        }
    }
}

impl ImagesConfig {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let (percent, seconds) = (self.min_free_percent, self.check_seconds);
        ensure!(percent <= 90, "min_free_percent = {percent} is more than 90");
        ensure!(
            (1..=MAX_CHECK_SECONDS).contains(&seconds),
            "check_seconds = {seconds} is not 1 to {MAX_CHECK_SECONDS}"
        );
        Ok(())
    }

    /// What the node is told.
    pub(crate) fn limits(&self) -> ImageLimits {
        ImageLimits {
            max_bytes: Some(self.max_bytes).filter(|bytes| *bytes > 0),
            unused_days: self.unused_days,
            min_free_percent: self.min_free_percent,
            check_every: Duration::from_secs(self.check_seconds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_nodes() {
        assert_eq!(ImagesConfig::default().limits(), ImageLimits::default());
    }
}
