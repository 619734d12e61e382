//! `[builds]`: how Dockerfiles are built.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use berth_node::BuildPolicy;
use berth_types::sandbox::{NetworkMode, Resources};
use serde::{Deserialize, Serialize};

/// Least memory of a step in MB, as of any sandbox.
const MIN_MEMORY_MB: u64 = 4;

/// Fewest processes of a step, as of any sandbox.
const MIN_PIDS: u64 = 8;

/// Longest that a build may be given: a week.
const MAX_TIMEOUT_SECONDS: u64 = 7 * 86_400;

/// The section.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BuildsConfig {
    /// What `RUN` reaches at most: `public` or `no-network`.
    pub(crate) network: NetworkMode,
    /// Most bytes that cache mounts have together; 0 is no bound.
    pub(crate) cache_bytes: u64,
    /// Most bytes that the contexts of builds under way have together; 0 is no bound.
    pub(crate) context_bytes: u64,
    /// Longest that a build may take, in seconds; 0 is no limit.
    pub(crate) timeout_seconds: u64,
    /// Most steps that run at a time, over all builds; 0: as many as there is room for.
    pub(crate) parallel_steps: usize,
    /// Limit of a step's processor time, in cores, where the request names none; none when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpus: Option<f64>,
    /// Limit of a step's memory in MB, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_mb: Option<u64>,
    /// Limit of what a step writes in MB, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) storage_mb: Option<u64>,
    /// Limit of a step's processes, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pids: Option<u64>,
    /// Certificates (PEM) that steps are to trust beside the machine's; nothing is offered to them when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_bundle: Option<PathBuf>,
}

impl Default for BuildsConfig {
    fn default() -> BuildsConfig {
        let policy = BuildPolicy::default();
        BuildsConfig {
            network: policy.network,
            cache_bytes: policy.cache_bytes.unwrap_or(0),
            context_bytes: policy.context_bytes.unwrap_or(0),
            timeout_seconds: policy.timeout.map_or(0, |timeout| timeout.as_secs()),
            parallel_steps: policy.parallel_steps.unwrap_or(0),
            cpus: policy.resources.cpus,
            memory_mb: policy.resources.memory_mb,
            storage_mb: policy.resources.storage_mb,
            pids: policy.resources.pids,
            ca_bundle: policy.ca_bundle,
        }
    }
}

impl BuildsConfig {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let at_least = |key: &str, value: Option<u64>, least: u64| {
            let value = value.unwrap_or(least);
            ensure!(
                (least..=u64::MAX >> 20).contains(&value),
                "{key} = {value} is not {least} or more, as far as machines go"
            );
            Ok(())
        };
        at_least("memory_mb", self.memory_mb, MIN_MEMORY_MB)?;
        at_least("storage_mb", self.storage_mb, 1)?;
        at_least("pids", self.pids, MIN_PIDS)?;
        let cpus = self.cpus.unwrap_or(1.0);
        ensure!(cpus.is_finite() && (0.01..=65_536.0).contains(&cpus), "cpus = {cpus} is not 0.01 or more");
        let timeout = self.timeout_seconds;
        ensure!(
            timeout <= MAX_TIMEOUT_SECONDS,
            "timeout_seconds = {timeout} is more than {MAX_TIMEOUT_SECONDS}"
        );
        Ok(())
    }

    /// What the node is told.
    pub(crate) fn policy(&self) -> BuildPolicy {
        BuildPolicy {
            network: self.network,
            resources: Resources {
                cpus: self.cpus,
                memory_mb: self.memory_mb,
                storage_mb: self.storage_mb,
                pids: self.pids,
                ..Resources::default()
            },
            parallel_steps: Some(self.parallel_steps).filter(|steps| *steps > 0),
            timeout: Some(self.timeout_seconds).filter(|seconds| *seconds > 0).map(Duration::from_secs),
            context_bytes: Some(self.context_bytes).filter(|bytes| *bytes > 0),
            cache_bytes: Some(self.cache_bytes).filter(|bytes| *bytes > 0),
            ca_bundle: self.ca_bundle.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_nodes() {
        assert_eq!(BuildsConfig::default().policy(), BuildPolicy::default());
    }

    #[test]
    fn what_is_set_is_what_the_node_is_told() {
        let text = "network = \"no-network\"\ncache_bytes = 0\ntimeout_seconds = 60\nparallel_steps = 2\n\
                    memory_mb = 512\npids = 64\nca_bundle = \"/ca.pem\"\n";
        let policy = toml::from_str::<BuildsConfig>(text).unwrap().policy();
        assert_eq!(policy.network, NetworkMode::NoNetwork);
        assert_eq!((policy.cache_bytes, policy.parallel_steps), (None, Some(2)));
        assert_eq!(policy.timeout, Some(Duration::from_secs(60)));
        assert_eq!((policy.resources.memory_mb, policy.resources.pids), (Some(512), Some(64)));
        assert_eq!(policy.ca_bundle, Some(PathBuf::from("/ca.pem")));
    }
}
