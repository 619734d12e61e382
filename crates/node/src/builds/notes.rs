//! What is told of builds on this side: the daemon's log, and the line of `builds` among the node's tasks.
//!
//! Neither has anything of a Dockerfile's text or a step's output: arguments of builds may be somebody's token.

use std::error::Error as _;
use std::time::Instant;

use berth_types::error::{ApiError, Kind};

use super::jobs::Built;
use crate::{Error, Node};

/// Name of the line.
pub(crate) const BUILDS_TASK: &str = "builds";

impl Node {
    /// Notes an image that a build made.
    pub(super) fn note_built(&self, began: Instant, built: &Built) {
        let seconds = since(began);
        let berth_build::Outcome { image, content_key, steps, cached_steps, .. } = &built.outcome;
        tracing::info!(image, content_key, steps, cached_steps, seconds, "built an image");
        let line = format!("{image} in {seconds} s, {cached_steps} of {steps} steps from the cache");
        self.note(began, Ok(line));
    }

    /// Notes an image that was there already.
    pub(super) fn note_found(&self, began: Instant, built: &Built) {
        let seconds = since(began);
        let berth_build::Outcome { image, content_key, .. } = &built.outcome;
        tracing::debug!(image, content_key, seconds, "an image was built before");
        self.note(began, Ok(format!("{image} found in {seconds} s")));
    }

    /// Notes a build that failed.
    pub(super) fn note_failed(&self, began: Instant, error: &Error) {
        let seconds = since(began);
        let ApiError { code, kind, .. } = ApiError::from(error);
        let own = matches!(kind, Kind::User | Kind::NotFound | Kind::Conflict);
        if own {
            tracing::info!(code, seconds, "a build failed");
            return self.note(began, Ok(format!("failed by its own fault after {seconds} s: {code}")));
        }
        let cause = cause(error);
        tracing::warn!(code, ?kind, cause, seconds, "a build failed, and not by its own fault");
        self.note(began, Err(format!("failed after {seconds} s: {code}")));
    }

    fn note(&self, began: Instant, line: Result<String, String>) {
        let with_others = |line: String| match self.0.builds.slots.taken() {
            0 => line,
            running => format!("{line}; {running} steps run"),
        };
        self.0.tasks.ran(BUILDS_TASK, began, line.map(with_others).map_err(with_others));
    }
}

/// Seconds, to milliseconds.
fn since(began: Instant) -> f64 {
    (began.elapsed().as_secs_f64() * 1e3).round() / 1e3
}

/// What lies beneath a build's failure; its own words have the Dockerfile's in them.
fn cause(error: &Error) -> String {
    match error {
        Error::Shared(error) => cause(error),
        Error::Build(error) => error.source().map(crate::error::chain).unwrap_or_default(),
        other => crate::error::chain(other),
    }
}
