//! The configuration file: one TOML, every key optional, unknown keys refused.
//!
//! Defaults are overridden by the file, the file by the environment, that by flags.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

/// Where the file is looked for when nobody names one.
const DEFAULT_PATH: &str = "/etc/berth/berth.toml";

/// What the file may hold.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Where layers, images and sandboxes live; `/var/lib/berth` when absent.
    pub(crate) data_dir: Option<PathBuf>,
    /// Where the daemon listens; `unix:///run/berth/berth.sock` when absent.
    pub(crate) host: Option<String>,
    /// Registries: mirrors, credentials.
    pub(crate) registry: berth_node::RegistryConfig,
    /// Networks of sandboxes.
    pub(crate) network: NetworkConfig,
}

/// `[network]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NetworkConfig {
    /// IPv4 range that sandboxes get their addresses from; one that is free is chosen when absent.
    pub(crate) range: Option<ipnet::Ipv4Net>,
}

impl Config {
    /// Reads `path`, or the default one if there is any.
    pub(crate) fn load(path: Option<&Path>) -> anyhow::Result<Config> {
        let (path, named) = path.map_or((Path::new(DEFAULT_PATH), false), |path| (path, true));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !named => {
                return Ok(Config::default());
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        toml::from_str(&text).with_context(|| format!("{} is not a valid configuration", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("berth.toml");
        std::fs::write(&path, "[network]\nrnage = \"10.0.0.0/8\"\n").unwrap();
        let error = format!("{:#}", Config::load(Some(&path)).unwrap_err());
        assert!(error.contains("rnage") && error.contains("range"), "{error}");
        assert!(Config::load(Some(&dir.path().join("absent"))).is_err());
    }
}
