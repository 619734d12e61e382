//! Where a daemon listens: `unix:///path`, `tcp://host:port` or `http://host:port`.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Socket of the daemon of a machine, unless `BERTH_HOST` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/berth/berth.sock";

/// Environment variable that names the daemon.
pub(crate) const HOST_VARIABLE: &str = "BERTH_HOST";

/// A daemon's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port, plain HTTP.
    Tcp {
        /// Name or address; an IPv6 address without brackets.
        host: String,
        /// Port.
        port: u16,
    },
}

/// A text that is no daemon's address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{value:?} is not a daemon's address: {reason}; expected unix:///path, tcp://host:port or http://host:port"
)]
pub struct BadHost {
    /// The text.
    pub value: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Host {
    /// What `BERTH_HOST` says, else the default socket.
    ///
    /// # Errors
    /// When the variable holds something that is no address.
    pub fn from_env() -> Result<Self, BadHost> {
        Ok(Self::named_by(std::env::var_os(HOST_VARIABLE))?.unwrap_or_default())
    }

    /// The address in an environment variable's value; unset and empty mean none.
    pub(crate) fn named_by(value: Option<OsString>) -> Result<Option<Self>, BadHost> {
        match value {
            None => Ok(None),
            Some(value) if value.is_empty() => Ok(None),
            Some(value) => match value.into_string() {
                Ok(text) => Self::parse(&text).map(Some),
                Err(raw) => Err(BadHost { value: raw.to_string_lossy().into_owned(), reason: "not UTF-8" }),
            },
        }
    }

    /// Reads an address.
    ///
    /// # Errors
    /// When `text` is none; the error says what is wrong and what would be right.
    pub fn parse(text: &str) -> Result<Self, BadHost> {
        let bad = |reason| BadHost { value: text.to_owned(), reason };
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.starts_with('/') && path.len() > 1 {
                Ok(Host::Unix(PathBuf::from(path)))
            } else {
                Err(bad("the socket's path must be absolute"))
            };
        }
        let (rest, default_port) = match text.split_once("://") {
            Some(("tcp", rest)) => (rest, None),
            Some(("http", rest)) => (rest, Some(80)),
            Some(("https", _)) => return Err(bad("TLS is not supported")),
            _ => return Err(bad("unknown scheme")),
        };
        parse_authority(rest.trim_end_matches('/'), default_port).map_err(bad)
    }

    /// The socket's path, for a unix socket.
    pub fn socket(&self) -> Option<&Path> {
        match self {
            Host::Unix(path) => Some(path),
            Host::Tcp { .. } => None,
        }
    }
}

fn parse_authority(text: &str, default_port: Option<u16>) -> Result<Host, &'static str> {
    if text.contains(['/', '?', '#', '@']) {
        return Err("only a host and a port may stand there");
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            (host, Some(port.parse().map_err(|_| "the port is not a number from 0 to 65535")?))
        }
        _ => (text, None),
    };
    let port = port.or(default_port).ok_or("the port is missing")?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = bare.unwrap_or(host);
    if host.is_empty() {
        return Err("the host is missing");
    }
    if bare.is_none() && host.contains(':') {
        return Err("an IPv6 address needs brackets");
    }
    Ok(Host::Tcp { host: host.to_owned(), port })
}

impl Default for Host {
    fn default() -> Self {
        Host::Unix(PathBuf::from(DEFAULT_SOCKET))
    }
}

impl FromStr for Host {
    type Err = BadHost;

    fn from_str(text: &str) -> Result<Self, BadHost> {
        Self::parse(text)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Unix(path) => write!(f, "unix://{}", path.display()),
            Host::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Host::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_and_print() {
        for (text, printed) in [
            ("unix:///run/x.sock", "unix:///run/x.sock"),
            ("tcp://127.0.0.1:80", "tcp://127.0.0.1:80"),
            ("tcp://[::1]:8080", "tcp://[::1]:8080"),
            ("http://box:1234/", "tcp://box:1234"),
            ("http://box", "tcp://box:80"),
        ] {
            assert_eq!(Host::parse(text).unwrap().to_string(), printed, "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_reason() {
        for (text, reason) in [
            ("/run/x.sock", "unknown scheme"),
            ("unix://x.sock", "the socket's path must be absolute"),
            ("tcp://box", "the port is missing"),
            ("tcp://box:http", "the port is not a number from 0 to 65535"),
            ("tcp://:80", "the host is missing"),
            ("tcp://::1:80", "an IPv6 address needs brackets"),
            ("https://box", "TLS is not supported"),
            ("http://box:80/v1", "only a host and a port may stand there"),
        ] {
            assert_eq!(Host::parse(text).unwrap_err().reason, reason, "{text}");
        }
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        assert_eq!(Host::named_by(Some(OsString::new())), Ok(None));
    }
}
