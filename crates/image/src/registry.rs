//! Asking registries: `oci-client`, wrapped so that every failure says which kind it is.
//!
//! One [`Connection`] is one endpoint with its credentials, for one pull or push. A mirror that cannot be reached or lacks
//! the image is passed over; what was tried is in the error when nothing is left. Only GETs are repeated, and only when
//! the transport failed.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_types::image::BasicAuth;
use futures_util::StreamExt;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol, SizedStream};
use oci_client::errors::{DigestError as OciDigestError, OciDistributionError, OciErrorCode};
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE, OciDescriptor,
};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference as OciReference, RegistryOperation};
use tokio::io::AsyncWriteExt;

use crate::config::Endpoint;
use crate::digest::{Digest, Hasher};
use crate::reference::{Reference, Version};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence in a transfer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const ATTEMPTS: u32 = 4;
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
/// Largest manifest that is taken, in bytes; registries refuse more than 4 MiB themselves.
const MAX_MANIFEST: usize = 4 << 20;

/// Why a registry did not do it.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// None of the places to ask has the image.
    #[error("image {reference} was not found; asked {}", tried.join(", "))]
    NotFound {
        /// The image.
        reference: String,
        /// URLs that said so.
        tried: Vec<String>,
    },
    /// The registry wants other credentials, or does not show this image to these.
    #[error("registry {registry} does not let {} have {reference}", user.as_deref().unwrap_or("an anonymous user"))]
    Unauthorised {
        /// The registry's URL.
        registry: String,
        /// As whom it was asked.
        user: Option<String>,
        /// The image.
        reference: String,
        /// The registry's words.
        #[source]
        source: Box<OciDistributionError>,
    },
    /// At least one place could not be asked, and no other had the image.
    #[error("image {reference} could not be fetched: {}", tried.join("; "))]
    Unreachable {
        /// The image.
        reference: String,
        /// What each place said.
        tried: Vec<String>,
        /// The last place's failure.
        #[source]
        source: Box<OciDistributionError>,
    },
    /// Content does not have the digest that it was asked for by.
    #[error("{what} from {url} has digest {actual} instead of {expected}")]
    DigestMismatch {
        /// What was asked for.
        what: &'static str,
        /// The endpoint.
        url: String,
        /// The digest asked for.
        expected: String,
        /// The digest it has.
        actual: String,
    },
    /// A manifest or layer of a kind that is not supported.
    #[error("image {reference} has {what} of unsupported media type {media_type:?}")]
    MediaType {
        /// The image.
        reference: String,
        /// Which part.
        what: &'static str,
        /// Its type.
        media_type: String,
    },
    /// A manifest that makes no sense.
    #[error("the manifest of image {reference} is malformed")]
    Manifest {
        /// The image.
        reference: String,
        /// Where.
        #[source]
        source: serde_json::Error,
    },
    /// Something larger than is ever needed.
    #[error("{what} of image {reference} is {size} bytes long; at most {limit} are taken")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// The image.
        reference: String,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// Downloaded bytes could not be kept.
    #[error("cannot write {path}")]
    Keep {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A client could not be set up: no usable certificates, for example.
    #[error("cannot set up a connection to {url}")]
    Setup {
        /// The endpoint.
        url: String,
        /// Cause.
        #[source]
        source: Box<OciDistributionError>,
    },
    /// A push was refused.
    #[error("{url} did not take {what} of {reference}")]
    Push {
        /// The endpoint.
        url: String,
        /// Which part.
        what: &'static str,
        /// The image.
        reference: String,
        /// Its words.
        #[source]
        source: Box<OciDistributionError>,
    },
}

/// An endpoint, ready to be asked about one image.
pub(crate) struct Connection {
    client: Client,
    pub(crate) endpoint: Endpoint,
    user: Option<String>,
    auth: RegistryAuth,
    reference: Reference,
    target: OciReference,
}

/// How one endpoint failed; decides whether the next is asked.
pub(crate) enum Failure {
    NotFound,
    Unauthorised(Box<OciDistributionError>),
    Away(Box<OciDistributionError>),
    Fatal(RegistryError),
}

impl Connection {
    pub(crate) fn new(
        endpoint: Endpoint,
        auth: Option<BasicAuth>,
        reference: &Reference,
    ) -> Result<Self, RegistryError> {
        let config = ClientConfig {
            protocol: if endpoint.https { ClientProtocol::Https } else { ClientProtocol::Http },
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            platform_resolver: None,
            use_monolithic_push: true,
            user_agent: concat!("berth/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client = Client::try_from(config)
            .map_err(|source| RegistryError::Setup { url: endpoint.url(), source: source.into() })?;
        let repository = format!("{}{}", endpoint.prefix, reference.repository());
        let target = match reference.version() {
            Version::Tag(tag) => OciReference::with_tag(endpoint.host.clone(), repository, tag.clone()),
            Version::Digest(digest) => {
                OciReference::with_digest(endpoint.host.clone(), repository, digest.to_string())
            }
        };
        let user = auth.as_ref().map(|a| a.username.clone());
        let auth = auth.map_or(RegistryAuth::Anonymous, |a| RegistryAuth::Basic(a.username, a.password));
        Ok(Self { client, endpoint, user, auth, reference: reference.clone(), target })
    }

    pub(crate) fn url(&self) -> String {
        self.endpoint.url()
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn target(&self) -> &OciReference {
        &self.target
    }

    /// Obtains a token where the registry gives tokens.
    pub(crate) async fn log_in(&self, operation: RegistryOperation) -> Result<(), Failure> {
        let log_in = || self.client.auth(&self.target, &self.auth, operation);
        retry(log_in).await.map(drop).map_err(|error| self.classify(error, "a token"))
    }

    /// The manifest that the reference names, or the one of `digest`.
    pub(crate) async fn manifest(&self, digest: Option<&Digest>) -> Result<Vec<u8>, Failure> {
        const ACCEPTED: &[&str] = &[
            OCI_IMAGE_MEDIA_TYPE,
            OCI_IMAGE_INDEX_MEDIA_TYPE,
            IMAGE_MANIFEST_MEDIA_TYPE,
            IMAGE_MANIFEST_LIST_MEDIA_TYPE,
        ];
        let target = match digest {
            Some(digest) => self.target.clone_with_digest(digest.to_string()),
            None => self.target.clone(),
        };
        let get = || self.client.pull_manifest_raw(&target, &self.auth, ACCEPTED);
        let (bytes, _) = retry(get).await.map_err(|error| self.classify(error, "a manifest"))?;
        if bytes.len() > MAX_MANIFEST {
            return Err(Failure::Fatal(RegistryError::TooLarge {
                what: "the manifest",
                reference: self.reference.to_string(),
                size: bytes.len() as u64,
                limit: MAX_MANIFEST as u64,
            }));
        }
        Ok(bytes.to_vec())
    }

    /// A small blob, whole.
    pub(crate) async fn small_blob(
        &self,
        descriptor: &OciDescriptor,
        limit: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let size = u64::try_from(descriptor.size).unwrap_or(u64::MAX);
        if size > limit {
            let reference = self.reference.to_string();
            return Err(RegistryError::TooLarge { what: "the config", reference, size, limit });
        }
        let get = async || {
            let mut stream = self.client.pull_blob_stream(&self.target, descriptor).await?;
            let mut bytes = Vec::new();
            while let Some(chunk) = stream.stream.next().await {
                bytes.extend_from_slice(&chunk.map_err(stream_error)?);
                if bytes.len() as u64 > size {
                    // More than announced can only fail the digest; do not wait for its end.
                    break;
                }
            }
            Ok(bytes)
        };
        let bytes = retry(get).await.map_err(|error| self.error(self.classify(error, "the config")))?;
        self.check("the config", &descriptor.digest, Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// A blob into a file, resumed where the connection broke; `progress` hears the bytes so far.
    pub(crate) async fn blob_to_file(
        &self,
        descriptor: &OciDescriptor,
        path: &Path,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RegistryError> {
        let keep = |source| RegistryError::Keep { path: path.to_owned(), source };
        let mut file = Partial {
            file: tokio::fs::File::create(path).await.map_err(keep)?,
            hasher: Hasher::new(),
            bytes: 0,
        };
        let mut attempt = 1;
        loop {
            match self.blob_rest(descriptor, &mut file, progress).await {
                Ok(()) => break,
                Err(Broken::Keep(source)) => return Err(keep(source)),
                Err(Broken::Transport(error)) if attempt < ATTEMPTS && is_transport(&error) => {
                    tracing::debug!(%error, attempt, bytes = file.bytes, "a transfer broke; it is resumed");
                    tokio::time::sleep(FIRST_BACKOFF * 2u32.pow(attempt - 1)).await;
                    attempt += 1;
                }
                Err(Broken::Transport(error)) => return Err(self.error(self.classify(error, "a layer"))),
            }
        }
        file.file.flush().await.map_err(keep)?;
        self.check("a layer", &descriptor.digest, file.hasher.finish())
    }

    async fn blob_rest(
        &self,
        descriptor: &OciDescriptor,
        out: &mut Partial,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), Broken> {
        let mut stream = self.open_blob(descriptor, out).await?;
        let announced = u64::try_from(descriptor.size).unwrap_or(0);
        while let Some(chunk) = stream.stream.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => return Err(Broken::Transport(stream_error(error))),
            };
            out.file.write_all(&chunk).await.map_err(Broken::Keep)?;
            out.hasher.update(&chunk);
            out.bytes += chunk.len() as u64;
            progress(out.bytes);
            if out.bytes > announced {
                // Never more on the disk than the manifest announces; the digest tells the rest.
                break;
            }
        }
        Ok(())
    }

    async fn open_blob(&self, descriptor: &OciDescriptor, out: &mut Partial) -> Result<SizedStream, Broken> {
        if out.bytes > 0 {
            let rest = self.client.pull_blob_stream_partial(&self.target, descriptor, out.bytes, None).await;
            match rest.map_err(Broken::Transport)? {
                BlobResponse::Partial(stream) => return Ok(stream),
                BlobResponse::Full(stream) => {
                    // This registry cannot resume.
                    out.restart().await.map_err(Broken::Keep)?;
                    return Ok(stream);
                }
            }
        }
        self.client.pull_blob_stream(&self.target, descriptor).await.map_err(Broken::Transport)
    }

    fn check(&self, what: &'static str, expected: &str, actual: Digest) -> Result<(), RegistryError> {
        if actual.as_str() == expected {
            return Ok(());
        }
        let (expected, actual) = (expected.to_owned(), actual.to_string());
        Err(RegistryError::DigestMismatch { what, url: self.url(), expected, actual })
    }

    pub(crate) fn classify(&self, error: OciDistributionError, what: &'static str) -> Failure {
        use OciDistributionError as E;
        match error {
            E::DigestError(OciDigestError::VerificationError { expected, actual }) => {
                Failure::Fatal(RegistryError::DigestMismatch { what, url: self.url(), expected, actual })
            }
            E::UnsupportedMediaTypeError(media_type) => Failure::Fatal(RegistryError::MediaType {
                reference: self.reference.to_string(),
                what: "a manifest",
                media_type,
            }),
            error => match status(&error) {
                Some(404) => Failure::NotFound,
                Some(401 | 403) => Failure::Unauthorised(error.into()),
                _ => Failure::Away(error.into()),
            },
        }
    }

    /// The error of a failure after which no other endpoint is asked.
    pub(crate) fn error(&self, failure: Failure) -> RegistryError {
        let reference = self.reference.to_string();
        match failure {
            Failure::Fatal(error) => error,
            Failure::NotFound => RegistryError::NotFound { reference, tried: vec![self.url()] },
            Failure::Unauthorised(source) => RegistryError::Unauthorised {
                registry: self.url(),
                user: self.user.clone(),
                reference,
                source,
            },
            Failure::Away(source) => {
                RegistryError::Unreachable { reference, tried: vec![self.describe(&source)], source }
            }
        }
    }

    /// One endpoint's failure in a line.
    fn describe(&self, error: &OciDistributionError) -> String {
        match status(error) {
            Some(code) => format!("{} answered HTTP status {code}", self.url()),
            None => format!("{} could not be reached", self.url()),
        }
    }
}

/// What is known after several endpoints failed: the worst of it decides, since "not found" may only be said when everybody
/// could be asked.
#[derive(Default)]
pub(crate) struct Failures {
    tried: Vec<String>,
    not_found: Vec<String>,
    unauthorised: Option<RegistryError>,
    away: Option<Box<OciDistributionError>>,
}

impl Failures {
    /// Takes note of a failure; an error when there is no use in asking further.
    pub(crate) fn add(&mut self, connection: &Connection, failure: Failure) -> Result<(), RegistryError> {
        match failure {
            Failure::Fatal(_) => return Err(connection.error(failure)),
            Failure::NotFound => {
                self.not_found.push(connection.url());
                self.tried.push(format!("{} does not have it", connection.url()));
            }
            Failure::Unauthorised(_) => {
                self.tried.push(format!("{} refused access", connection.url()));
                self.unauthorised = Some(connection.error(failure));
            }
            Failure::Away(error) => {
                self.tried.push(connection.describe(&error));
                self.away = Some(error);
            }
        }
        Ok(())
    }

    pub(crate) fn into_error(self, reference: &Reference) -> RegistryError {
        let reference = reference.to_string();
        match (self.away, self.unauthorised) {
            (Some(source), _) => RegistryError::Unreachable { reference, tried: self.tried, source },
            (None, Some(error)) => error,
            (None, None) => RegistryError::NotFound { reference, tried: self.not_found },
        }
    }
}

struct Partial {
    file: tokio::fs::File,
    hasher: Hasher,
    bytes: u64,
}

impl Partial {
    async fn restart(&mut self) -> io::Result<()> {
        use tokio::io::AsyncSeekExt;
        self.file.flush().await?;
        self.file.set_len(0).await?;
        self.file.rewind().await?;
        self.hasher = Hasher::new();
        self.bytes = 0;
        Ok(())
    }
}

enum Broken {
    Transport(OciDistributionError),
    Keep(io::Error),
}

/// The client hands a wrong digest, found at the end of a stream, on as an I/O error, which it is not.
fn stream_error(error: io::Error) -> OciDistributionError {
    match error.downcast::<OciDigestError>() {
        Ok(digest) => OciDistributionError::DigestError(digest),
        Err(error) => OciDistributionError::IoError(error),
    }
}

async fn retry<T, F, G>(get: G) -> Result<T, OciDistributionError>
where
    F: Future<Output = Result<T, OciDistributionError>>,
    G: Fn() -> F,
{
    let mut attempt = 1;
    loop {
        match get().await {
            Err(error) if attempt < ATTEMPTS && is_transport(&error) && !is_refused(&error) => {
                tracing::debug!(%error, attempt, "a registry did not answer; it is asked again");
                tokio::time::sleep(FIRST_BACKOFF * 2u32.pow(attempt - 1)).await;
                attempt += 1;
            }
            other => return other,
        }
    }
}

/// Whether no answer came, or a gateway's instead of the registry's.
fn is_transport(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::RequestError(_) | OciDistributionError::IoError(_) => true,
        error => matches!(status(error), Some(429 | 502 | 503 | 504)),
    }
}

/// Whether nobody listens there, which a second try will not change.
fn is_refused(error: &OciDistributionError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        let io = current.downcast_ref::<io::Error>();
        if io.is_some_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
            return true;
        }
        cause = current.source();
    }
    false
}

/// HTTP status, where an answer came.
fn status(error: &OciDistributionError) -> Option<u16> {
    use OciDistributionError as E;
    match error {
        E::ServerError { code, .. } => Some(*code),
        E::UnauthorizedError { .. } | E::AuthenticationFailure(_) => Some(401),
        E::ImageManifestNotFoundError(_) => Some(404),
        E::RequestError(error) => error.status().map(|s| s.as_u16()),
        E::RegistryError { envelope, .. } => envelope.errors.first().map(|error| match error.code {
            OciErrorCode::ManifestUnknown
            | OciErrorCode::NameUnknown
            | OciErrorCode::NameInvalid
            | OciErrorCode::BlobUnknown
            | OciErrorCode::ManifestBlobUnknown
            | OciErrorCode::NotFound => 404,
            OciErrorCode::Unauthorized => 401,
            OciErrorCode::Denied => 403,
            OciErrorCode::Toomanyrequests => 429,
            _ => 400,
        }),
        _ => None,
    }
}
