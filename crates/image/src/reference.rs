//! References: how people name images, and the one form that Berth keeps.
//!
//! `debian` means `docker.io/library/debian:latest`. With a digest the tag says nothing more and is dropped:
//! `debian:12@sha256:…` is `docker.io/library/debian@sha256:…`.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// Longest repository name, registry included, that registries accept.
const MAX_NAME: usize = 255;

/// A normalised image reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    version: Version,
}

/// Which image of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// By a name that can move.
    Tag(String),
    /// By the digest of its manifest, which cannot.
    Digest(Digest),
}

/// Why a string is not a reference.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("an image reference is empty")]
    Empty,
    /// A capital letter in the repository's name.
    #[error("image reference {reference:?}: repository {repository:?} must be lower-case")]
    UpperCase {
        /// The whole reference.
        reference: String,
        /// Its repository part.
        repository: String,
    },
    /// Something else in the repository's name.
    #[error(
        "image reference {reference:?}: {part:?} is not a repository name: parts are [a-z0-9] joined by one '.', one or two '_', or any number of '-'"
    )]
    Repository {
        /// The whole reference.
        reference: String,
        /// The part that is wrong.
        part: String,
    },
    /// The registry's host or port.
    #[error("image reference {reference:?}: {registry:?} is not a host name with an optional port")]
    Registry {
        /// The whole reference.
        reference: String,
        /// Its registry part.
        registry: String,
    },
    /// The tag.
    #[error(
        "image reference {reference:?}: {tag:?} is not a tag: 1 to 128 of [A-Za-z0-9_.-], not beginning with '.' or '-'"
    )]
    Tag {
        /// The whole reference.
        reference: String,
        /// Its tag part.
        tag: String,
    },
    /// The digest.
    #[error("image reference {reference:?}: the digest is wrong")]
    Digest {
        /// The whole reference.
        reference: String,
        /// What is wrong with it.
        #[source]
        source: DigestError,
    },
    /// Too long.
    #[error("image reference {reference:?}: the name is longer than 255 characters")]
    TooLong {
        /// The whole reference.
        reference: String,
    },
}

impl Reference {
    /// Host, and port where one is given: `docker.io`, `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Repository in the registry: `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag or digest.
    pub fn version(&self) -> &Version {
        &self.version
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { registry, repository, version } = self;
        match version {
            Version::Tag(tag) => write!(f, "{registry}/{repository}:{tag}"),
            Version::Digest(digest) => write!(f, "{registry}/{repository}@{digest}"),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(reference: &str) -> Result<Self, ReferenceError> {
        if reference.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (rest, digest) = match reference.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (reference, None),
        };
        let (registry, rest) = split_registry(rest);
        let (repository, tag) = match rest.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        check_registry(reference, registry)?;
        check_repository(reference, repository)?;
        let tag = tag.unwrap_or(DEFAULT_TAG);
        check_tag(reference, tag)?;
        let version = match digest {
            None => Version::Tag(tag.to_owned()),
            Some(digest) => Version::Digest(
                digest
                    .parse()
                    .map_err(|source| ReferenceError::Digest { reference: reference.to_owned(), source })?,
            ),
        };
        let repository = match registry {
            DEFAULT_REGISTRY if !repository.contains('/') => format!("{DEFAULT_NAMESPACE}/{repository}"),
            _ => repository.to_owned(),
        };
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(ReferenceError::TooLong { reference: reference.to_owned() });
        }
        Ok(Self { registry: registry.to_owned(), repository, version })
    }
}

/// The first part is a registry when it looks like a host: a dot, a port, or `localhost`.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some(("index.docker.io", rest)) => (DEFAULT_REGISTRY, rest),
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn check_registry(reference: &str, registry: &str) -> Result<(), ReferenceError> {
    let bad = || ReferenceError::Registry { reference: reference.to_owned(), registry: registry.to_owned() };
    let (host, port) = match registry.strip_prefix('[').and_then(|r| r.split_once(']')) {
        Some((host, port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => (host, port.strip_prefix(':')),
        Some(_) => return Err(bad()),
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    let labels_fine = host.contains(':')
        || host.split('.').all(|label| {
            let bytes = label.as_bytes();
            !bytes.is_empty()
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        });
    let port_fine = port.is_none_or(|p| p.parse::<u16>().is_ok_and(|p| p > 0));
    if labels_fine && port_fine { Ok(()) } else { Err(bad()) }
}

fn check_repository(reference: &str, repository: &str) -> Result<(), ReferenceError> {
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(ReferenceError::UpperCase {
            reference: reference.to_owned(),
            repository: repository.to_owned(),
        });
    }
    match repository.split('/').find(|part| !is_repository_part(part)) {
        Some(part) => {
            Err(ReferenceError::Repository { reference: reference.to_owned(), part: part.to_owned() })
        }
        None => Ok(()),
    }
}

fn is_repository_part(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends_fine =
        bytes.first().is_some_and(|b| alphanumeric(*b)) && bytes.last().is_some_and(|b| alphanumeric(*b));
    let mut separators = part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    ends_fine && separators.all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

fn check_tag(reference: &str, tag: &str) -> Result<(), ReferenceError> {
    let bytes = tag.as_bytes();
    let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    let fine = (1..=128).contains(&bytes.len())
        && word(&bytes[0])
        && bytes.iter().all(|b| word(b) || matches!(b, b'.' | b'-'));
    match fine {
        true => Ok(()),
        false => Err(ReferenceError::Tag { reference: reference.to_owned(), tag: tag.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn normalises() {
        let digest = format!("sha256:{HEX}");
        for (given, wanted) in [
            ("debian", "docker.io/library/debian:latest".to_owned()),
            ("debian:bookworm-slim", "docker.io/library/debian:bookworm-slim".to_owned()),
            ("docker.io/debian", "docker.io/library/debian:latest".to_owned()),
            ("index.docker.io/library/debian", "docker.io/library/debian:latest".to_owned()),
            ("grafana/loki", "docker.io/grafana/loki:latest".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("localhost:5000/x", "localhost:5000/x:latest".to_owned()),
            (
                "127.0.0.1:5000/a/b_c/d__e/f--g.h:V1.2_x-y",
                "127.0.0.1:5000/a/b_c/d__e/f--g.h:V1.2_x-y".to_owned(),
            ),
            ("[::1]:5000/x:y", "[::1]:5000/x:y".to_owned()),
            ("registry.example/x:1", "registry.example/x:1".to_owned()),
            (&format!("debian@{digest}"), format!("docker.io/library/debian@{digest}")),
            (&format!("r.example:80/debian:12@{digest}"), format!("r.example:80/debian@{digest}")),
        ] {
            let parsed: Reference = given.parse().unwrap_or_else(|e| panic!("{given}: {e}"));
            assert_eq!(parsed.to_string(), wanted, "{given}");
            assert_eq!(parsed.to_string().parse::<Reference>().unwrap(), parsed, "{given}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        let long = "a/".repeat(130) + "a";
        for (given, part) in [
            ("", "empty"),
            ("Debian", "lower-case"),
            ("debian:", "not a tag"),
            ("debian:-x", "not a tag"),
            ("a//b", "not a repository name"),
            ("a___b", "not a repository name"),
            ("a b", "not a repository name"),
            ("-a", "not a repository name"),
            ("host:port/x", "not a host name"),
            ("host:0/x", "not a host name"),
            ("[::z]:5000/x", "not a host name"),
            ("-bad.example/x", "not a host name"),
            ("debian@sha256:12", "digest is wrong"),
            ("debian@md5:12", "digest is wrong"),
            (&long, "longer than 255"),
        ] {
            let error = given.parse::<Reference>().expect_err(given).to_string();
            assert!(error.contains(part), "{given}: {error}");
        }
    }
}
