//! Asking registries, so that every failure says which kind it is.
//!
//! One [`Connection`] is one endpoint with its credentials, for one image and one pull or push. What fails at one place may
//! succeed at the next (`error.rs`); what passes by itself is tried again (`retry.rs`).
//!
//! Where to start reading: [`Connection::ask`], which every request goes through.

mod auth;
pub(crate) mod download;
pub(crate) mod error;
mod http;
pub(crate) mod known;
pub(crate) mod partial;
mod retry;
pub(crate) mod tail;
mod upload;

use std::path::PathBuf;
use std::sync::Arc;

use berth_types::image::BasicAuth;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Method, Request, Response, Url};
use tokio::sync::Semaphore;

use crate::config::{ConfigError, Credentials, Endpoint, RegistryConfig, docker};
use crate::digest::Digest;
use crate::error::Error;
use crate::flights::Flights;
use crate::image::Image;
use crate::manifest::Descriptor;
use crate::progress::{Reporter, say};
use crate::reference::{Reference, Version};
use auth::Authorizer;
use error::{Asked, Failure, Failures, Trouble};
use http::{Http, same_origin};
use known::{Known, KnownBlob};
use partial::Partials;
use retry::{Retry, checked};

pub use error::RegistryError;

/// Largest manifest that is taken, in bytes; registries refuse more than 4 MiB themselves.
const MAX_MANIFEST: u64 = 4 << 20;
/// Layers that are downloaded and unpacked at once, whatever the number of pulls.
const MAX_LAYERS: usize = 32;
/// Kinds of manifests that are asked for.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Whose credentials a pull or push uses, before those of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// Nobody's: the configuration's, then Docker's.
    #[default]
    Configured,
    /// These, for the registry that the reference names and no mirror of it.
    Registry(BasicAuth),
    /// These, by host (and port, where the reference has one).
    Hosts(Arc<std::collections::BTreeMap<String, BasicAuth>>),
}

impl From<Option<BasicAuth>> for Auth {
    fn from(auth: Option<BasicAuth>) -> Self {
        auth.map_or(Self::Configured, Self::Registry)
    }
}

impl Auth {
    /// Tells one set of credentials from another without holding them.
    pub(crate) fn key(&self) -> Digest {
        let text = match self {
            Self::Configured => String::new(),
            Self::Registry(auth) => format!("registry {:?} {:?}", auth.username, auth.password),
            Self::Hosts(hosts) => {
                hosts.iter().map(|(host, a)| format!("{host:?} {:?} {:?},", a.username, a.password)).collect()
            }
        };
        Digest::of(text.as_bytes())
    }

    fn of(&self, endpoint: &Endpoint) -> Option<&BasicAuth> {
        match self {
            Self::Configured => None,
            Self::Registry(auth) => endpoint.upstream.then_some(auth),
            Self::Hosts(hosts) => hosts.get(&endpoint.host),
        }
    }
}

/// Everything that pulls and pushes share.
pub(crate) struct Registries {
    pub(crate) config: RegistryConfig,
    docker_config: Option<PathBuf>,
    http: Http,
    pub(crate) partials: Partials,
    pub(crate) known: Known,
    pub(crate) pulls: Flights<String, Image, Error>,
    /// Room for layers on their way, of all pulls together: each takes threads.
    pub(crate) layers: Semaphore,
}

impl Registries {
    pub(crate) fn new(config: RegistryConfig, root: &std::path::Path) -> Result<Self, ConfigError> {
        config.check()?;
        let http = Http::new(&config)?;
        let partials = Partials::new(root.join("tmp"));
        let known = Known::new(root);
        let docker_config = config.docker_config.clone().or_else(docker::config_path);
        Ok(Self {
            config,
            docker_config,
            http,
            partials,
            known,
            pulls: Flights::new(),
            layers: Semaphore::new(MAX_LAYERS),
        })
    }

    /// A connection to `endpoint` about `reference`. May run a credential helper.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        endpoint: Endpoint,
        auth: &Auth,
        reference: &Reference,
        actions: &str,
        reporter: &Reporter,
    ) -> Result<Connection, ConfigError> {
        let caller = auth.of(&endpoint);
        let credentials: Option<Credentials> = match caller {
            Some(auth) => Some(Credentials::Basic(auth.clone())),
            None => self.config.credentials(&endpoint, self.docker_config.as_deref()).await?,
        };
        let repository = format!("{}{}", endpoint.prefix, reference.repository());
        let scopes = vec![format!("repository:{repository}:{actions}")];
        let authorizer = Authorizer::new(credentials, scopes, endpoint.https);
        let asked = Box::new(Asked {
            registry: endpoint.url(),
            user: authorizer.user(),
            reference: reference.to_string(),
        });
        let registries = Arc::clone(self);
        let version = reference.version().clone();
        let reporter = Arc::clone(reporter);
        Ok(Connection { registries, endpoint, repository, version, authorizer, asked, reporter })
    }
}

/// An endpoint, ready to be asked about one image.
pub(crate) struct Connection {
    registries: Arc<Registries>,
    endpoint: Endpoint,
    /// With the endpoint's prefix.
    repository: String,
    version: Version,
    authorizer: Authorizer,
    pub(crate) asked: Box<Asked>,
    reporter: Reporter,
}

/// One request, before it is signed.
struct Ask {
    method: Method,
    url: Url,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Option<Vec<u8>>,
}

impl Ask {
    fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: Vec::new(), body: None }
    }

    /// A header whose value is one; values here are made of digests and numbers.
    fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }

    fn body(mut self, bytes: Vec<u8>) -> Self {
        self.body = Some(bytes);
        self
    }

    fn request(&self) -> Request {
        let mut request = Request::new(self.method.clone(), self.url.clone());
        request.headers_mut().extend(self.headers.iter().cloned());
        *request.body_mut() = self.body.clone().map(Into::into);
        request
    }
}

impl Connection {
    pub(crate) fn url(&self) -> &str {
        &self.asked.registry
    }

    /// Host and repository, as other pushes to the same registry name them.
    pub(crate) fn place(&self) -> (&str, &str) {
        (&self.endpoint.host, &self.repository)
    }

    /// Notes that this repository has these layers' blobs.
    pub(crate) fn note(&self, found: Vec<(Digest, KnownBlob)>, keep: impl Fn(&Digest) -> bool) {
        self.registries.known.note(found, &self.endpoint.host, &self.repository, keep);
    }

    pub(crate) fn error(&self, failure: impl Into<Failure>) -> RegistryError {
        self.asked.error(failure.into())
    }

    /// Takes note of what this place came to; an error when there is no use in asking others. That it gave something wrong is
    /// told at once, since the pull may well go on.
    pub(crate) fn failed(&self, failures: &mut Failures, failure: Failure) -> Result<(), RegistryError> {
        if let Failure::Fatal(error) = &failure
            && error.is_lie()
        {
            self.tell(error);
        }
        failures.add(&self.asked, failure)
    }

    fn tell(&self, lie: &RegistryError) {
        say(&self.reporter, format!("warning: not to be believed: {lie}"));
    }

    /// `https://host/v2/repository/` and what comes after.
    fn at(&self, rest: &str) -> Result<Url, Trouble> {
        // Docker's own registry answers at another host than its name.
        let host = match self.endpoint.host.as_str() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let scheme = if self.endpoint.https { "https" } else { "http" };
        let text = format!("{scheme}://{host}/v2/{}/{rest}", self.repository);
        Url::parse(&text).map_err(|e| Trouble::Protocol(format!("{text:?} is no URL: {e}")))
    }

    /// One request with its redirects and authentication, but not repeated: any answer but a 401 that could be met.
    async fn once(&self, mut request: Request) -> Result<Response, Trouble> {
        let http = &self.registries.http;
        self.authorizer.sign(http, &mut request).await?;
        let again = request.try_clone();
        let response = http.send(request).await?;
        let Some(mut again) = again else { return Ok(response) };
        // What another host asks for that the registry redirected to is none of its business.
        if response.status().as_u16() != 401 || !same_origin(response.url(), again.url()) {
            return Ok(response);
        }
        if !self.authorizer.meet(http, response.headers()).await? {
            return Ok(response);
        }
        self.authorizer.sign(http, &mut again).await?;
        http.send(again).await
    }

    /// A request until it is answered with success, or has failed for good.
    async fn ask(&self, ask: &Ask) -> Result<Response, Trouble> {
        let mut retry = self.retry();
        loop {
            let answer = async { checked(self.once(ask.request()).await?).await };
            match answer.await {
                Ok(response) => return Ok(response),
                Err(trouble) => retry.after(trouble).await?,
            }
        }
    }

    /// The same with the whole body; at most `limit` bytes of it are read.
    async fn read(&self, ask: &Ask, limit: u64) -> Result<(Response, Vec<u8>), Trouble> {
        let mut retry = self.retry();
        loop {
            let answer = async {
                let mut response = checked(self.once(ask.request()).await?).await?;
                let body = body(&mut response, limit).await?;
                Ok((response, body))
            };
            match answer.await {
                Ok(answer) => return Ok(answer),
                Err(trouble) => retry.after(trouble).await?,
            }
        }
    }

    fn retry(&self) -> Retry<'_> {
        Retry::new(self.asked.registry.clone(), &self.reporter)
    }

    /// The manifest that the reference names, or the one of an index's entry.
    pub(crate) async fn manifest(&self, entry: Option<&(Digest, Option<u64>)>) -> Result<Vec<u8>, Failure> {
        let version = match (entry, &self.version) {
            (Some((digest, _)), _) | (None, Version::Digest(digest)) => digest.as_str(),
            (None, Version::Tag(tag)) => tag,
        };
        let ask = Ask::new(Method::GET, self.at(&format!("manifests/{version}"))?).header(ACCEPT, ACCEPTED);
        let (response, bytes) = self.read(&ask, MAX_MANIFEST).await?;
        if bytes.len() as u64 > MAX_MANIFEST {
            let reference = self.asked.reference.clone();
            let (size, limit) = (bytes.len() as u64, MAX_MANIFEST);
            return Err(RegistryError::TooLarge { what: error::MANIFEST, reference, size, limit }.into());
        }
        self.check_manifest_type(&response)?;
        // By tag the registry says itself which digest it gives; by digest that is already known.
        let told = response.headers().get("docker-content-digest").and_then(|v| v.to_str().ok());
        let expected = match (entry, &self.version) {
            (Some((digest, _)), _) | (None, Version::Digest(digest)) => Some(digest.to_string()),
            (None, Version::Tag(_)) => told.filter(|t| t.starts_with("sha256:")).map(str::to_owned),
        };
        if let Some(expected) = expected {
            self.check("a manifest", &expected, Digest::of(&bytes))?;
        }
        if let Some((_, Some(size))) = entry {
            self.check_size("a manifest", *size, bytes.len() as u64)?;
        }
        Ok(bytes)
    }

    /// A page that a proxy or a portal put in the place of the answer is no malformed manifest.
    fn check_manifest_type(&self, response: &Response) -> Result<(), Trouble> {
        let given = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let plain = given.split(';').next().unwrap_or_default().trim();
        if plain.starts_with("text/html") || plain.starts_with("image/") {
            return Err(Trouble::Protocol(format!(
                "answered with {plain} instead of a manifest: it is no registry, or something stands before it"
            )));
        }
        Ok(())
    }

    /// A small blob, whole.
    pub(crate) async fn small_blob(
        &self,
        descriptor: &Descriptor,
        what: &'static str,
        limit: u64,
    ) -> Result<Vec<u8>, Failure> {
        let reference = self.asked.reference.clone();
        let digest: Digest = descriptor
            .digest
            .parse()
            .map_err(|source| RegistryError::Digest { reference: reference.clone(), source })?;
        let size = descriptor.size;
        if size > limit {
            return Err(RegistryError::TooLarge { what, reference, size, limit }.into());
        }
        let ask = Ask::new(Method::GET, self.at(&format!("blobs/{digest}"))?);
        let read = self.read(&ask, size).await;
        let (_, bytes) = read.map_err(|trouble| self.missing(trouble, what, &digest))?;
        self.check_size(what, size, bytes.len() as u64)?;
        self.check(what, digest.as_str(), Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// A 404 of something that the manifest names is another thing than one of the image.
    fn missing(&self, trouble: Trouble, what: &'static str, digest: &Digest) -> Failure {
        match trouble.status() {
            Some(404) => {
                let (asked, digest) = (self.asked.clone(), digest.to_string());
                RegistryError::Missing { asked, what, digest }.into()
            }
            _ => trouble.into(),
        }
    }

    fn check(&self, what: &'static str, expected: &str, actual: Digest) -> Result<(), RegistryError> {
        if actual.as_str() == expected {
            return Ok(());
        }
        let (expected, actual) = (expected.to_owned(), actual.to_string());
        Err(RegistryError::DigestMismatch { what, asked: self.asked.clone(), expected, actual })
    }

    fn check_size(&self, what: &'static str, expected: u64, actual: u64) -> Result<(), RegistryError> {
        if actual == expected {
            return Ok(());
        }
        // One byte more than announced is as far as anything is read.
        let actual = (actual < expected).then_some(actual);
        Err(RegistryError::SizeMismatch { what, asked: self.asked.clone(), expected, actual })
    }
}

/// A body, of which at most one chunk more than `limit` bytes is read.
async fn body(response: &mut Response, limit: u64) -> Result<Vec<u8>, Trouble> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(Trouble::of)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > limit {
            break;
        }
    }
    Ok(bytes)
}
