//! HTTP to registries: certificates, proxies, redirects. Knows nothing of images.
//!
//! Clients are made once and shared, so that connections are. A client verifies certificates unless the configuration says
//! otherwise of the very host; a host of loopback is never reached through a proxy.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, LOCATION};
use reqwest::{Certificate, Client, Method, NoProxy, Proxy, Request, Response, StatusCode, Url};

use super::error::Trouble;
use crate::config::{ConfigError, RegistryConfig, is_loopback};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence in a transfer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 10;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Most of a CA bundle that is read, in bytes; the bundles of distributions have some 250 KB.
const MAX_CA_BUNDLE: u64 = 8 << 20;

/// What makes one client another than the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    verified: bool,
    proxied: bool,
}

/// The clients of one configuration.
pub(crate) struct Http {
    clients: Mutex<HashMap<Kind, Client>>,
    roots: Vec<Certificate>,
    unverified: Vec<String>,
    plain: Vec<String>,
    proxy: Option<Proxy>,
}

impl Http {
    /// Reads the CA bundle and checks the proxy; connects to nobody.
    pub(crate) fn new(config: &RegistryConfig) -> Result<Self, ConfigError> {
        let roots = config.ca_bundle.as_deref().map_or(Ok(Vec::new()), read_bundle)?;
        Ok(Self {
            clients: Mutex::default(),
            roots,
            unverified: config.unverified.clone(),
            plain: config.insecure.clone(),
            proxy: proxy(config)?,
        })
    }

    fn client(&self, url: &Url) -> Result<Client, Trouble> {
        let authority = authority(url);
        let kind =
            Kind { verified: !self.unverified.contains(&authority), proxied: !is_loopback(&authority) };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&kind) {
            return Ok(client.clone());
        }
        let client = self.build(kind).map_err(Trouble::Setup)?;
        clients.insert(kind, client.clone());
        Ok(client)
    }

    fn build(&self, kind: Kind) -> Result<Client, reqwest::Error> {
        let mut builder = Client::builder()
            .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none());
        builder = match kind.verified {
            true => builder.tls_certs_merge(self.roots.iter().cloned()),
            false => builder.tls_danger_accept_invalid_certs(true),
        };
        builder = match (kind.proxied, &self.proxy) {
            (false, _) => builder.no_proxy(),
            (true, Some(proxy)) => builder.proxy(proxy.clone()),
            // As the environment says.
            (true, None) => builder,
        };
        builder.build()
    }

    /// Sends one request, and follows redirects of GET and HEAD. Credentials go to nobody but the host that they are for.
    pub(crate) async fn send(&self, mut request: Request) -> Result<Response, Trouble> {
        let mut followed = 0;
        loop {
            let next = request.try_clone();
            let url = request.url().clone();
            let response = self.client(&url)?.execute(request).await.map_err(Trouble::of)?;
            if !is_redirect(response.status()) {
                return Ok(response);
            }
            let Some(mut next) = next.filter(|r| matches!(*r.method(), Method::GET | Method::HEAD)) else {
                return Ok(response);
            };
            let target = self.target(&url, &response)?;
            followed += 1;
            if followed > MAX_REDIRECTS {
                let why = "there were ten before it";
                return Err(Trouble::Redirect { to: shown(&target), why });
            }
            if !same_origin(&url, &target) {
                next.headers_mut().remove(AUTHORIZATION);
            }
            *next.url_mut() = target;
            request = next;
        }
    }

    fn target(&self, from: &Url, response: &Response) -> Result<Url, Trouble> {
        let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
        let target = location.and_then(|l| from.join(l).ok());
        let Some(target) = target.filter(|t| matches!(t.scheme(), "http" | "https") && t.has_host()) else {
            return Err(Trouble::Redirect { to: "nowhere".into(), why: "it has no usable Location" });
        };
        let plain = authority(&target);
        let may_be_plain = is_loopback(&plain) || self.plain.contains(&plain);
        if from.scheme() == "https" && target.scheme() == "http" && !may_be_plain {
            return Err(Trouble::Redirect { to: shown(&target), why: "it leads from TLS to plain HTTP" });
        }
        Ok(target)
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

pub(crate) fn same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host_str() == other.host_str()
        && one.port_or_known_default() == other.port_or_known_default()
}

/// Host, and port where it is not the scheme's own.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// A URL as it may be told: queries of storage servers hold signatures.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Both fail only of URLs that can have neither.
    let _ = url.set_password(None);
    let _ = url.set_username("");
    url.into()
}

fn read_bundle(path: &Path) -> Result<Vec<Certificate>, ConfigError> {
    use std::io::Read;
    let failed = |source| ConfigError::CaBundle { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_CA_BUNDLE + 1).read_to_end(&mut bytes).map_err(failed)?;
    let form = |what: String| ConfigError::CaBundleForm { path: path.to_owned(), what };
    if bytes.len() as u64 > MAX_CA_BUNDLE {
        return Err(form(format!("it is longer than {MAX_CA_BUNDLE} bytes")));
    }
    let roots = Certificate::from_pem_bundle(&bytes).map_err(|e| form(e.to_string()))?;
    if roots.is_empty() {
        return Err(form("it holds no certificate in PEM".to_owned()));
    }
    // A certificate that is none is only found when a client is made of it.
    Client::builder()
        .tls_certs_only(roots.iter().cloned())
        .build()
        .map_err(|_| form("a certificate in it is malformed".to_owned()))?;
    Ok(roots)
}

fn proxy(config: &RegistryConfig) -> Result<Option<Proxy>, ConfigError> {
    let Some(url) = &config.proxy else { return Ok(None) };
    let good = Url::parse(url).ok().filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
    let Some(parsed) = good else {
        return Err(ConfigError::Proxy);
    };
    let proxy = Proxy::all(parsed).map_err(|_| ConfigError::Proxy)?;
    Ok(Some(proxy.no_proxy(NoProxy::from_string(&config.no_proxy.join(",")))))
}
