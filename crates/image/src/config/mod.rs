//! Which registries to ask, how, and as whom.
//!
//! The `[registry]` table of the configuration, and Docker's own `config.json` for credentials that are not in it
//! (`docker.rs`).

pub(crate) mod docker;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use berth_types::image::BasicAuth;
use serde::Deserialize;

use crate::reference::Reference;

/// Layers of one pull or push that are moved at once, unless the configuration says otherwise.
const PARALLEL_DOWNLOADS: usize = 4;
/// Most that it may say.
const MAX_PARALLEL_DOWNLOADS: usize = 32;

/// The `[registry]` table.
///
/// ```toml
/// [registry]
/// upstream = true                       # ask the registry itself when no mirror has the image
/// insecure = ["registry.lan:5000"]      # plain HTTP; loopback hosts need no mention
/// unverified = ["old.lan"]              # TLS whose certificate nobody checks
/// ca_bundle = "/etc/ssl/corporate.pem"  # certificates in PEM that count besides the machine's own
/// proxy = "http://proxy.lan:3128"       # instead of what the environment says
/// no_proxy = ["registry.lan", ".corp"]  # hosts that are reached without it
/// parallel_downloads = 4                # layers of one pull or push at once
/// [registry.mirrors]
/// "docker.io" = ["http://127.0.0.1:5000", "https://mirror.lan/proxy"]
/// [registry.auth."mirror.lan"]
/// username = "me"
/// password = "secret"
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Registry → base URLs to ask before it, in order. A path in the URL goes before the repository's name.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Credentials by host (and port, where the reference has one).
    pub auth: BTreeMap<String, BasicAuth>,
    /// Hosts (and ports) that speak plain HTTP.
    pub insecure: Vec<String>,
    /// Hosts (and ports) on TLS whose certificate is not checked: whoever stands between can read and change what goes over
    /// the wire, credentials included.
    pub unverified: Vec<String>,
    /// File of certificates in PEM that are trusted besides the machine's own.
    pub ca_bundle: Option<PathBuf>,
    /// Proxy for all registries, `http://[USER:PASSWORD@]HOST:PORT`. When absent the environment decides: `HTTPS_PROXY`,
    /// `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`. Hosts of loopback are never reached through one.
    pub proxy: Option<String>,
    /// Hosts, domains (`.corp`) and networks (`10.0.0.0/8`) that are reached without `proxy`.
    pub no_proxy: Vec<String>,
    /// Docker's file of credentials; `$DOCKER_CONFIG/config.json` or `~/.docker/config.json` of the daemon's user when absent.
    pub docker_config: Option<PathBuf>,
    /// Layers of one pull or push that are moved at once, from 1 to 32.
    pub parallel_downloads: usize,
    /// Whether to ask the registry itself after its mirrors. A registry without mirrors is always asked.
    pub upstream: bool,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            mirrors: BTreeMap::new(),
            auth: BTreeMap::new(),
            insecure: Vec::new(),
            unverified: Vec::new(),
            ca_bundle: None,
            proxy: None,
            no_proxy: Vec::new(),
            docker_config: None,
            parallel_downloads: PARALLEL_DOWNLOADS,
            upstream: true,
        }
    }
}

/// What is wrong with the configuration of registries.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A mirror that is no base URL.
    #[error(
        "mirror {url:?} of registry {registry:?} is not http://HOST[:PORT][/PATH] or https://HOST[:PORT][/PATH]"
    )]
    Mirror {
        /// The registry it stands for.
        registry: String,
        /// The URL.
        url: String,
    },
    /// Docker's file of credentials cannot be read.
    #[error("cannot read Docker's credentials in {path}")]
    DockerConfig {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// Docker's file of credentials is not what it should be.
    #[error("Docker's credentials in {path} are malformed: {what}")]
    DockerConfigForm {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The program that keeps the credentials did not give them.
    #[error("the credential helper {helper:?}, which {path} names for {host}, gave no credentials: {what}")]
    CredentialHelper {
        /// The registry.
        host: String,
        /// The helper's name.
        helper: String,
        /// The file that says so.
        path: PathBuf,
        /// What went wrong.
        what: String,
    },
    /// The extra certificates cannot be read.
    #[error("cannot read the certificates of [registry] ca_bundle in {path}")]
    CaBundle {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The extra certificates are none.
    #[error("[registry] ca_bundle {path} cannot be used: {what}")]
    CaBundleForm {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The proxy is no URL; it is not repeated, since it may hold a password.
    #[error("[registry] proxy is not http://[USER:PASSWORD@]HOST[:PORT]")]
    Proxy,
    /// A number of layers at once that makes no sense.
    #[error("[registry] parallel_downloads is {given}; it can be from 1 to {MAX_PARALLEL_DOWNLOADS}")]
    Parallel {
        /// The number.
        given: usize,
    },
}

/// What is shown to a registry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// User and password.
    Basic(BasicAuth),
    /// A token that is exchanged for tokens of the registry.
    Identity { user: String, token: String },
}

impl Credentials {
    pub(crate) fn user(&self) -> &str {
        match self {
            Self::Basic(auth) => &auth.username,
            Self::Identity { user, .. } => user,
        }
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user()).finish_non_exhaustive()
    }
}

/// One place to ask for an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) https: bool,
    /// Host and port.
    pub(crate) host: String,
    /// Goes before the repository's name, with its slash; mostly empty.
    pub(crate) prefix: String,
    /// Whether this is the registry that the reference names, and not a mirror of it.
    pub(crate) upstream: bool,
}

impl Endpoint {
    pub(crate) fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        let path = self.prefix.trim_end_matches('/');
        format!("{scheme}://{}{}{path}", self.host, if path.is_empty() { "" } else { "/" })
    }
}

impl RegistryConfig {
    /// Checks what serde cannot.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if !(1..=MAX_PARALLEL_DOWNLOADS).contains(&self.parallel_downloads) {
            return Err(ConfigError::Parallel { given: self.parallel_downloads });
        }
        for (registry, urls) in &self.mirrors {
            urls.iter().try_for_each(|url| parse_mirror(registry, url).map(drop))?;
        }
        Ok(())
    }

    /// Where to ask for `reference`, in order.
    pub(crate) fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, ConfigError> {
        let registry = reference.registry();
        let mirrors = self.mirrors.get(registry).map(Vec::as_slice).unwrap_or_default();
        let mut endpoints =
            mirrors.iter().map(|url| parse_mirror(registry, url)).collect::<Result<Vec<_>, _>>()?;
        if self.upstream || endpoints.is_empty() {
            endpoints.push(self.upstream(registry));
        }
        Ok(endpoints)
    }

    /// The registry itself.
    pub(crate) fn upstream(&self, registry: &str) -> Endpoint {
        let named = |hosts: &[String]| hosts.iter().any(|host| host == registry);
        let plain = named(&self.insecure) || is_loopback(registry) && !named(&self.unverified);
        Endpoint { https: !plain, host: registry.to_owned(), prefix: String::new(), upstream: true }
    }

    /// Credentials for an endpoint: the configuration's, then Docker's.
    pub(crate) async fn credentials(
        &self,
        endpoint: &Endpoint,
        docker_config: Option<&Path>,
    ) -> Result<Option<Credentials>, ConfigError> {
        if let Some(auth) = self.auth.get(&endpoint.host) {
            return Ok(Some(Credentials::Basic(auth.clone())));
        }
        match docker_config {
            Some(path) => docker::credentials(path, &endpoint.host).await,
            None => Ok(None),
        }
    }
}

fn parse_mirror(registry: &str, url: &str) -> Result<Endpoint, ConfigError> {
    let bad = || ConfigError::Mirror { registry: registry.to_owned(), url: url.to_owned() };
    let (scheme, rest) = url.split_once("://").ok_or_else(bad)?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = path.trim_matches('/');
    let odd = |text: &str| text.contains(['@', '?', '#', ' ']);
    if !matches!(scheme, "http" | "https") || host.is_empty() || odd(host) || odd(path) {
        return Err(bad());
    }
    let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
    Ok(Endpoint { https: scheme == "https", host: host.to_owned(), prefix, upstream: false })
}

/// Whether a host, with or without its port, is this machine.
pub(crate) fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[').and_then(|r| r.split_once(']')) {
        Some((host, _)) => host,
        None => registry.split_once(':').map_or(registry, |(host, _)| host),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> RegistryConfig {
        toml::from_str(text).expect("valid TOML")
    }

    #[test]
    fn mirrors_come_first() {
        let config = config(
            r#"
            insecure = ["plain.example:80"]
            [mirrors]
            "docker.io" = ["http://127.0.0.1:5000", "https://m.example/proxy/hub/"]
            "#,
        );
        config.check().unwrap();
        let urls = |config: &RegistryConfig, r: &str| -> Vec<String> {
            config.endpoints(&r.parse().unwrap()).unwrap().iter().map(Endpoint::url).collect()
        };
        assert_eq!(
            urls(&config, "debian"),
            ["http://127.0.0.1:5000", "https://m.example/proxy/hub", "https://docker.io"]
        );
        let only_mirrors = RegistryConfig { upstream: false, ..config.clone() };
        assert_eq!(urls(&only_mirrors, "debian").len(), 2);
        assert_eq!(urls(&only_mirrors, "r.example/x"), ["https://r.example"]);
        assert_eq!(urls(&config, "plain.example:80/x"), ["http://plain.example:80"]);
        for loopback in ["localhost:5000", "127.1.2.3", "[::1]:5000"] {
            assert_eq!(urls(&config, &format!("{loopback}/x")), [format!("http://{loopback}")]);
        }
    }

    #[test]
    fn refuses_bad_tables() {
        assert!(toml::from_str::<RegistryConfig>("mirrorz = {}").is_err());
        for url in ["127.0.0.1:5000", "ftp://x", "http://", "http://u:p@h", "http://h/?x"] {
            let mirrors = BTreeMap::from([("docker.io".to_owned(), vec![url.to_owned()])]);
            let config = RegistryConfig { mirrors, ..RegistryConfig::default() };
            assert!(config.check().unwrap_err().to_string().contains(url));
        }
        for parallel_downloads in [0, 33] {
            assert!(RegistryConfig { parallel_downloads, ..RegistryConfig::default() }.check().is_err());
        }
    }

    #[tokio::test]
    async fn credentials_in_order_and_only_where_they_belong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let json = r#"{"auths":{"https://index.docker.io/v1/":{"username":"hub","password":"p"}}}"#;
        std::fs::write(&path, json).unwrap();
        let config = config("[auth.\"m.example\"]\nusername = \"m\"\npassword = \"n\"\n");
        for (host, user) in [("docker.io", Some("hub")), ("m.example", Some("m")), ("other.example", None)] {
            let endpoint = Endpoint { https: true, host: host.into(), prefix: String::new(), upstream: true };
            let found = config.credentials(&endpoint, Some(&path)).await.unwrap();
            assert_eq!(found.as_ref().map(Credentials::user), user);
        }
    }
}
