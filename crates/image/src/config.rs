//! Which registries to ask, how, and as whom.
//!
//! The `[registry]` table of the configuration, and Docker's own `config.json` for credentials that are not in it.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use berth_types::image::BasicAuth;
use serde::Deserialize;

use crate::reference::Reference;

/// Docker's key for the credentials of docker.io.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// Most of a `config.json` that is read, in bytes.
const MAX_DOCKER_CONFIG: u64 = 1 << 20;

/// The `[registry]` table.
///
/// ```toml
/// [registry]
/// upstream = true                       # ask the registry itself when no mirror has the image
/// insecure = ["registry.lan:5000"]      # plain HTTP; loopback hosts need no mention
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
    /// Whether to ask the registry itself after its mirrors. A registry without mirrors is always asked.
    pub upstream: bool,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self { mirrors: BTreeMap::new(), auth: BTreeMap::new(), insecure: Vec::new(), upstream: true }
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
    /// The credentials are in a program that Berth does not run yet.
    #[error(
        "the credentials of {host} are kept by the credential helper {helper:?} ({path}), which is not supported yet"
    )]
    CredentialHelper {
        /// The registry.
        host: String,
        /// The helper's name.
        helper: String,
        /// The file that says so.
        path: PathBuf,
    },
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
        let plain = is_loopback(registry) || self.insecure.iter().any(|host| host == registry);
        Endpoint { https: !plain, host: registry.to_owned(), prefix: String::new(), upstream: true }
    }

    /// Credentials for an endpoint: the caller's (only ever for the registry that the reference names), the
    /// configuration's, Docker's.
    pub(crate) fn credentials(
        &self,
        endpoint: &Endpoint,
        caller: Option<&BasicAuth>,
        docker_config: Option<&Path>,
    ) -> Result<Option<BasicAuth>, ConfigError> {
        if endpoint.upstream
            && let Some(auth) = caller
        {
            return Ok(Some(auth.clone()));
        }
        if let Some(auth) = self.auth.get(&endpoint.host) {
            return Ok(Some(auth.clone()));
        }
        docker_config.map_or(Ok(None), |path| docker_credentials(path, &endpoint.host))
    }
}

/// Where Docker keeps its configuration for the user that Berth runs as.
pub(crate) fn docker_config_path() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("DOCKER_CONFIG") {
        return Some(PathBuf::from(dir).join("config.json"));
    }
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    Some(home.join(".docker/config.json"))
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

fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[').and_then(|r| r.split_once(']')) {
        Some((host, _)) => host,
        None => registry.split_once(':').map_or(registry, |(host, _)| host),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DockerConfig {
    auths: BTreeMap<String, DockerAuth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

fn docker_credentials(path: &Path, host: &str) -> Result<Option<BasicAuth>, ConfigError> {
    let Some(bytes) = read_docker_config(path)? else { return Ok(None) };
    let form = |what: String| ConfigError::DockerConfigForm { path: path.to_owned(), what };
    let config: DockerConfig = serde_json::from_slice(&bytes).map_err(|e| form(e.to_string()))?;
    let names: Vec<String> = match host {
        "docker.io" => vec![DOCKER_HUB_KEY.into(), "index.docker.io".into(), "docker.io".into()],
        _ => {
            vec![host.into(), format!("https://{host}"), format!("http://{host}"), format!("https://{host}/")]
        }
    };
    let helper = |helper: &String| ConfigError::CredentialHelper {
        host: host.to_owned(),
        helper: helper.clone(),
        path: path.to_owned(),
    };
    if let Some(name) = names.iter().find_map(|n| config.cred_helpers.get(n)) {
        return Err(helper(name));
    }
    let Some(auth) = names.iter().find_map(|n| config.auths.get(n)) else { return Ok(None) };
    if let (Some(username), Some(password)) = (&auth.username, &auth.password) {
        return Ok(Some(BasicAuth { username: username.clone(), password: password.clone() }));
    }
    if auth.identitytoken.is_some() {
        return Err(form(format!("the entry of {host} is an identity token, which is not supported yet")));
    }
    match (&auth.auth, &config.creds_store) {
        (Some(encoded), _) if !encoded.is_empty() => decode(encoded)
            .map(Some)
            .ok_or_else(|| form(format!("\"auth\" of {host} is not base64 of USER:PASSWORD"))),
        // Logged in, with the secret elsewhere.
        (_, Some(store)) => Err(helper(store)),
        _ => Ok(None),
    }
}

fn read_docker_config(path: &Path) -> Result<Option<Vec<u8>>, ConfigError> {
    let failed = |source| ConfigError::DockerConfig { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(failed(e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_DOCKER_CONFIG + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_DOCKER_CONFIG {
        let what = format!("it is longer than {MAX_DOCKER_CONFIG} bytes");
        return Err(ConfigError::DockerConfigForm { path: path.to_owned(), what });
    }
    Ok(Some(bytes))
}

fn decode(encoded: &str) -> Option<BasicAuth> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    // Docker pads passwords with zero bytes in some versions.
    Some(BasicAuth { username: username.into(), password: password.trim_end_matches('\0').into() })
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
    }

    #[test]
    fn credentials_in_order_and_only_where_they_belong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let encoded = base64::engine::general_purpose::STANDARD.encode("hub:pw:with:colons");
        let json = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{encoded}"}},"stored.example":{{}}}},
                "credHelpers":{{"helped.example":"pass"}},"credsStore":"desktop"}}"#
        );
        std::fs::write(&path, json).unwrap();
        let config = config("[auth.\"m.example\"]\nusername = \"m\"\npassword = \"n\"\n");
        let user = |host: &str, upstream: bool, caller: Option<&BasicAuth>| {
            let endpoint = Endpoint { https: true, host: host.into(), prefix: String::new(), upstream };
            config.credentials(&endpoint, caller, Some(&path)).map(|a| a.map(|a| a.username))
        };
        let caller = BasicAuth { username: "caller".into(), password: String::new() };
        assert_eq!(user("docker.io", true, Some(&caller)).unwrap().as_deref(), Some("caller"));
        assert_eq!(user("m.example", false, Some(&caller)).unwrap().as_deref(), Some("m"));
        assert_eq!(user("docker.io", true, None).unwrap().as_deref(), Some("hub"));
        assert_eq!(user("other.example", true, None).unwrap(), None);
        for (host, helper) in [("stored.example", "desktop"), ("helped.example", "pass")] {
            assert!(user(host, true, None).unwrap_err().to_string().contains(helper));
        }
        assert_eq!(decode(&encoded).unwrap().password, "pw:with:colons");
    }
}
