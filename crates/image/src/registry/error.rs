//! How asking a registry can fail: [`Trouble`] is what one request came to, [`RegistryError`] what became of the image.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::digest::DigestError;

/// What a manifest is called in errors about its size.
pub(crate) const MANIFEST: &str = "the manifest";
/// Most of a registry's own words that are repeated, in characters.
const MAX_WORDS: usize = 300;

/// Who was asked, as whom, for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// URL of the registry or mirror.
    pub registry: String,
    /// User, where there were credentials.
    pub user: Option<String>,
    /// The image.
    pub reference: String,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { registry, user, reference } = self;
        match user {
            Some(user) => write!(f, "{registry} (as user {user}) for {reference}"),
            None => write!(f, "{registry} (as an anonymous user) for {reference}"),
        }
    }
}

/// What one request to a registry came to, when that was no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// An answer that says no.
    #[error("HTTP status {status}{}", quoted(words))]
    Status {
        /// The status.
        status: u16,
        /// What the registry says about it; empty when nothing.
        words: String,
    },
    /// Too many requests, for longer than Berth waits.
    #[error("HTTP status 429 (too many requests) {}; waited {waited:?} in all{}", retry_after(*asked), quoted(words))]
    RateLimited {
        /// How long was waited before giving up.
        waited: Duration,
        /// How long the registry last asked to wait, where it did.
        asked: Option<Duration>,
        /// What the registry says about it.
        words: String,
    },
    /// The server's certificate is not accepted, or there is no common ground for TLS.
    #[error("TLS: {what}")]
    Tls {
        /// What is wrong.
        what: String,
        /// The connection's failure.
        #[source]
        source: reqwest::Error,
    },
    /// Nobody listens there.
    #[error("could not be reached: connection refused")]
    Refused(#[source] reqwest::Error),
    /// The host's name is not known.
    #[error("could not be reached: its host name does not resolve")]
    Name(#[source] reqwest::Error),
    /// No answer, or no more of it, in time.
    #[error("did not answer in time")]
    Timeout(#[source] reqwest::Error),
    /// The connection could not be made.
    #[error("could not be reached")]
    Connect(#[source] reqwest::Error),
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[source] reqwest::Error),
    /// The body ended too early.
    #[error("the answer ended after {got} of {expected} bytes")]
    Short {
        /// Bytes that came.
        got: u64,
        /// Bytes that were to come.
        expected: u64,
    },
    /// Redirected where Berth does not follow.
    #[error("redirected {to}, which is not followed: {why}")]
    Redirect {
        /// Where, without its query.
        to: String,
        /// Why not.
        why: &'static str,
    },
    /// The way to authenticate is not understood.
    #[error("asks for authentication in a way that is not understood: {0}")]
    Challenge(String),
    /// The place that gives tokens did not.
    #[error("no token from {realm}")]
    Token {
        /// URL of the token server, without its query.
        realm: String,
        /// What it came to.
        #[source]
        source: Box<Trouble>,
    },
    /// An answer that is not what the protocol says.
    #[error("{0}")]
    Protocol(String),
    /// An answer that is not what was asked for.
    #[error("{0}")]
    Lie(Box<RegistryError>),
    /// A file that is to be sent cannot be read.
    #[error("cannot read {path}")]
    Local {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A client could not be set up.
    #[error("cannot set up an HTTP client")]
    Setup(#[source] reqwest::Error),
}

fn quoted(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(" ({words})") }
}

fn retry_after(asked: Option<Duration>) -> String {
    match asked {
        Some(asked) => format!("with the request to wait {} s", asked.as_secs()),
        None => "without saying how long to wait".to_owned(),
    }
}

impl Trouble {
    /// The failure of a request or of reading its answer, told apart by what lies at its bottom.
    pub(crate) fn of(error: reqwest::Error) -> Self {
        // The URL may carry a signature, and is named by whoever reports this.
        let error = error.without_url();
        if error.is_timeout() {
            return Self::Timeout(error);
        }
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(current) = cause {
            if let Some(tls) = current.downcast_ref::<rustls::Error>() {
                return Self::Tls { what: tls_words(tls), source: error };
            }
            let io = current.downcast_ref::<io::Error>().map(io::Error::kind);
            match io {
                Some(io::ErrorKind::ConnectionRefused) => return Self::Refused(error),
                Some(io::ErrorKind::TimedOut) => return Self::Timeout(error),
                _ => cause = below(current),
            }
        }
        match (error.is_dns(), error.is_connect()) {
            (true, _) => Self::Name(error),
            (_, true) => Self::Connect(error),
            _ => Self::Broken(error),
        }
    }

    /// HTTP status, where an answer came.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            Self::RateLimited { .. } => Some(429),
            Self::Token { source, .. } => source.status(),
            _ => None,
        }
    }

    /// Whether the same request may be answered a moment later.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 500 | 502 | 503 | 504),
            Self::Timeout(_) | Self::Connect(_) | Self::Broken(_) | Self::Short { .. } | Self::Name(_) => {
                true
            }
            Self::Token { source, .. } => source.is_passing(),
            _ => false,
        }
    }
}

/// The next error below. What an I/O error carries hides from its `source`, which is already the cause of that.
fn below<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a (dyn std::error::Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(carried) => Some(carried),
        None => error.source(),
    }
}

fn tls_words(error: &rustls::Error) -> String {
    use rustls::CertificateError as C;
    let rustls::Error::InvalidCertificate(wrong) = error else {
        return error.to_string();
    };
    match wrong {
        C::UnknownIssuer => "its certificate is signed by an authority that is not known here".to_owned(),
        C::Expired | C::ExpiredContext { .. } => "its certificate has expired".to_owned(),
        C::NotValidYet | C::NotValidYetContext { .. } => "its certificate is not valid yet".to_owned(),
        C::NotValidForName | C::NotValidForNameContext { .. } => {
            "its certificate is for another name".to_owned()
        }
        C::Revoked => "its certificate was revoked".to_owned(),
        other => format!("its certificate is not accepted: {other:?}"),
    }
}

/// A registry's words, cut to a length that an error can hold, without what could disturb a terminal.
pub(crate) fn tidy(words: &str) -> String {
    let mut tidied: String =
        words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_WORDS).collect();
    if words.chars().nth(MAX_WORDS).is_some() {
        tidied.push('…');
    }
    tidied.trim().to_owned()
}

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
    /// 401: the registry wants credentials, or other ones.
    #[error("registry {registry} does not let {} have {reference}: {}", whom(user), match user { Some(_) => "user or password are not accepted (401)", None => "it wants credentials (401)" })]
    Unauthorised {
        /// The registry's URL.
        registry: String,
        /// As whom it was asked.
        user: Option<String>,
        /// The image.
        reference: String,
        /// The registry's words.
        #[source]
        source: Box<Trouble>,
    },
    /// 403: the registry knows who asks, and does not allow it.
    #[error("registry {registry} does not let {} have {reference}: access is forbidden (403)", whom(user))]
    Forbidden {
        /// The registry's URL.
        registry: String,
        /// As whom it was asked.
        user: Option<String>,
        /// The image.
        reference: String,
        /// The registry's words.
        #[source]
        source: Box<Trouble>,
    },
    /// 429: the registry wants fewer requests, for longer than Berth waits.
    #[error("registry {registry} limits the requests of {} for {reference}", whom(user))]
    RateLimited {
        /// The registry's URL.
        registry: String,
        /// As whom it was asked.
        user: Option<String>,
        /// The image.
        reference: String,
        /// How long it asks to wait.
        #[source]
        source: Box<Trouble>,
    },
    /// The registry's certificate is not accepted.
    #[error("registry {registry} cannot be trusted (asked for {reference} as {})", whom(user))]
    Tls {
        /// The registry's URL.
        registry: String,
        /// As whom it was to be asked.
        user: Option<String>,
        /// The image.
        reference: String,
        /// What is wrong with the certificate.
        #[source]
        source: Box<Trouble>,
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
        source: Box<Trouble>,
    },
    /// A part that the image's manifest names is not there.
    #[error("{asked} does not have {what} {digest}, which the image's manifest names")]
    Missing {
        /// Who was asked.
        asked: Box<Asked>,
        /// Which part.
        what: &'static str,
        /// Its digest.
        digest: String,
    },
    /// Content does not have the digest that it was asked for by.
    #[error("{what} from {asked} has digest {actual} instead of {expected}")]
    DigestMismatch {
        /// What was asked for.
        what: &'static str,
        /// Who was asked.
        asked: Box<Asked>,
        /// The digest asked for.
        expected: String,
        /// The digest it has.
        actual: String,
    },
    /// Content is not as long as the manifest says.
    #[error("{what} from {asked} is {} bytes long instead of the manifest's {expected}", actual.map_or("more".to_owned(), |n| n.to_string()))]
    SizeMismatch {
        /// What was asked for.
        what: &'static str,
        /// Who was asked.
        asked: Box<Asked>,
        /// The manifest's size.
        expected: u64,
        /// The size it has; `None` where it was not read to its end.
        actual: Option<u64>,
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
    /// What the registry has is no image that could be run, and why.
    #[error("{reference} cannot be pulled: {why}")]
    NotAnImage {
        /// The image.
        reference: String,
        /// What it is instead.
        why: String,
    },
    /// A manifest that makes no sense.
    #[error("the manifest of image {} from {} is malformed", asked.reference, asked.registry)]
    Manifest {
        /// Who was asked.
        asked: Box<Asked>,
        /// Where.
        #[source]
        source: serde_json::Error,
    },
    /// A digest in a manifest is none.
    #[error("the manifest of image {reference} names a bad digest")]
    Digest {
        /// The image.
        reference: String,
        /// What is wrong.
        #[source]
        source: DigestError,
    },
    /// Something larger than is ever needed.
    #[error("{what} of image {reference} is {size} bytes long; at most {limit} are taken")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// The image.
        reference: String,
        /// Its size, or what was read of it.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// At least one place gave something else than what it was asked for, and no other had the image.
    #[error("image {reference} could not be fetched: {}", tried.join("; "))]
    Lied {
        /// The image.
        reference: String,
        /// What each place said, or gave.
        tried: Vec<String>,
        /// What was wrong with what the last such place gave.
        #[source]
        source: Box<RegistryError>,
    },
    /// Downloaded bytes could not be kept.
    #[error("cannot keep a download in {path}")]
    Keep {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A push was refused.
    #[error("{} did not take {what} of {} from {}", asked.registry, asked.reference, whom(&asked.user))]
    Push {
        /// Who was asked.
        asked: Box<Asked>,
        /// Which part.
        what: &'static str,
        /// What it came to.
        #[source]
        source: Box<Trouble>,
    },
}

pub(crate) fn whom(user: &Option<String>) -> String {
    user.as_ref().map_or_else(|| "an anonymous user".to_owned(), |user| format!("user {user}"))
}

/// Any failure of one place to ask; decides whether the next one is asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It said no, or could not be asked: another may say otherwise.
    Trouble(Trouble),
    /// No other place is asked, unless this says only of the one place that it is not to be believed.
    Fatal(RegistryError),
}

impl RegistryError {
    /// Whether it is about what one place gave, so that another one may give what it should.
    pub(crate) fn is_lie(&self) -> bool {
        matches!(
            self,
            Self::DigestMismatch { .. }
                | Self::SizeMismatch { .. }
                | Self::Manifest { .. }
                | Self::Digest { .. }
                | Self::TooLarge { what: MANIFEST, .. }
        )
    }

    /// The same after other places had given something wrong.
    pub(crate) fn after(self, lies: Vec<RegistryError>, reference: &str) -> Self {
        let mut tried: Vec<String> = lies.iter().map(ToString::to_string).collect();
        tried.push(self.to_string());
        match lies.into_iter().next_back() {
            None => self,
            Some(last) => Self::Lied { reference: reference.to_owned(), tried, source: Box::new(last) },
        }
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::Fatal(error)
    }
}

impl Asked {
    /// The error where this was the only place to ask.
    pub(crate) fn error(&self, failure: Failure) -> RegistryError {
        let trouble = match failure {
            Failure::Fatal(error) => return error,
            Failure::Trouble(Trouble::Lie(error)) => return *error,
            Failure::Trouble(trouble) => trouble,
        };
        let Self { registry, user, reference } = self.clone();
        let status = trouble.status();
        let source = Box::new(trouble);
        match (status, &*source) {
            (Some(404), _) => RegistryError::NotFound { reference, tried: vec![named(&registry, &source)] },
            (Some(401), _) => RegistryError::Unauthorised { registry, user, reference, source },
            (Some(403), _) => RegistryError::Forbidden { registry, user, reference, source },
            (Some(429), _) => RegistryError::RateLimited { registry, user, reference, source },
            (_, Trouble::Tls { .. }) => RegistryError::Tls { registry, user, reference, source },
            _ => RegistryError::Unreachable { reference, tried: vec![self.describe(&source)], source },
        }
    }

    /// One place's failure in a line.
    pub(crate) fn describe(&self, trouble: &Trouble) -> String {
        let (registry, whom) = (&self.registry, whom(&self.user));
        match trouble.status() {
            Some(404) => format!("{registry} does not have it"),
            Some(401 | 403) => format!("{registry} refused access to {whom}: {trouble}"),
            Some(429) => format!("{registry} limits the requests of {whom}: {trouble}"),
            Some(_) => format!("{registry} answered {trouble} to {whom}"),
            None => match trouble {
                Trouble::Refused(_) | Trouble::Name(_) | Trouble::Connect(_) | Trouble::Timeout(_) => {
                    format!("{registry} {trouble}")
                }
                // Names who gave it.
                Trouble::Lie(error) => error.to_string(),
                trouble => format!("{registry}: {trouble}"),
            },
        }
    }
}

/// The URL, and what the registry says it does not know: the repository or only the tag.
fn named(registry: &str, trouble: &Trouble) -> String {
    match trouble {
        Trouble::Status { words, .. } if !words.is_empty() => format!("{registry} ({words})"),
        _ => registry.to_owned(),
    }
}

/// What is known after several places failed: the worst of it decides, since "not found" may only be said when everybody
/// could be asked.
#[derive(Default)]
pub(crate) struct Failures(Vec<(Asked, Trouble)>);

impl Failures {
    /// Takes note of a failure; an error when there is no use in asking further.
    pub(crate) fn add(&mut self, asked: &Asked, failure: Failure) -> Result<(), RegistryError> {
        match failure {
            Failure::Fatal(error) if error.is_lie() => {
                self.0.push((asked.clone(), Trouble::Lie(Box::new(error))));
                Ok(())
            }
            Failure::Fatal(error) => Err(error),
            Failure::Trouble(trouble) => {
                tracing::debug!(
                    registry = asked.registry,
                    error = &trouble as &dyn std::error::Error,
                    "a registry was no help"
                );
                self.0.push((asked.clone(), trouble));
                Ok(())
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn into_error(mut self, reference: &str) -> RegistryError {
        let severity = |trouble: &Trouble| match (trouble, trouble.status()) {
            (Trouble::Lie(_), _) => 3,
            (_, Some(404)) => 0,
            (_, Some(401 | 403)) => 1,
            _ => 2,
        };
        let worst = self.0.iter().map(|(_, trouble)| severity(trouble)).max().unwrap_or(0);
        let reference = reference.to_owned();
        if worst == 0 {
            let tried = self.0.iter().map(|(asked, trouble)| named(&asked.registry, trouble)).collect();
            return RegistryError::NotFound { reference, tried };
        }
        let alone = self.0.len() == 1;
        let tried = self.0.iter().map(|(asked, trouble)| asked.describe(trouble)).collect();
        let at = self.0.iter().rposition(|(_, trouble)| severity(trouble) == worst).unwrap_or(0);
        let (asked, trouble) = self.0.swap_remove(at);
        match trouble {
            trouble if alone || worst == 1 => asked.error(trouble.into()),
            Trouble::Lie(source) => RegistryError::Lied { reference, tried, source },
            trouble => RegistryError::Unreachable { reference, tried, source: Box::new(trouble) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(registry: &str) -> Asked {
        Asked { registry: registry.into(), user: Some("me".into()), reference: "r/x:1".into() }
    }

    fn status(status: u16) -> Failure {
        Trouble::Status { status, words: String::new() }.into()
    }

    #[test]
    fn the_worst_of_several_failures_decides() {
        let of = |codes: &[u16]| {
            let mut failures = Failures::default();
            for code in codes {
                failures.add(&asked(&format!("https://{code}")), status(*code)).unwrap();
            }
            failures.into_error("r/x:1")
        };
        assert!(matches!(of(&[404, 404]), RegistryError::NotFound { tried, .. } if tried.len() == 2));
        assert!(
            matches!(of(&[404, 401]), RegistryError::Unauthorised { registry, .. } if registry == "https://401")
        );
        assert!(matches!(of(&[403]), RegistryError::Forbidden { user: Some(_), .. }));
        assert!(matches!(of(&[401, 502, 404]), RegistryError::Unreachable { tried, .. } if tried.len() == 3));
        assert!(matches!(of(&[502]), RegistryError::Unreachable { .. }));
        let lie = |failures: &mut Failures| {
            let (asked_of, actual) = (Box::new(asked("https://liar")), Some(1));
            let lie = RegistryError::SizeMismatch { what: "a layer", asked: asked_of, expected: 2, actual };
            failures.add(&asked("https://liar"), lie.into()).unwrap();
        };
        let mut alone = Failures::default();
        lie(&mut alone);
        assert!(matches!(alone.into_error("r/x:1"), RegistryError::SizeMismatch { .. }));
        let mut several = Failures::default();
        lie(&mut several);
        several.add(&asked("https://404"), status(404)).unwrap();
        let error = several.into_error("r/x:1");
        assert!(matches!(&error, RegistryError::Lied { tried, .. } if tried.len() == 2), "{error}");
        assert!(error.to_string().contains("https://liar") && error.to_string().contains("https://404"));
    }

    #[test]
    fn a_registrys_words_are_cut_and_kept_from_the_terminal() {
        assert_eq!(tidy(" a\x1b[31mb\n "), "a [31mb");
        assert_eq!(tidy(&"x".repeat(1000)).chars().count(), MAX_WORDS + 1);
    }
}
