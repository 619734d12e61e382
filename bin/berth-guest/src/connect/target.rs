//! What a request for a socket means in the sandbox: addresses to try, in order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use berth_wire::{Connect, FailureCode};
use rustix::fs::{CWD, FileType};

use crate::{failure, places, users};

/// Most addresses that are tried of one name.
const MAX_ADDRESSES: usize = 8;
/// Longest name that DNS knows.
const MAX_NAME: usize = 253;

/// One thing to connect to.
#[derive(Debug)]
pub(super) enum Target {
    Tcp(SocketAddr),
    /// The socket itself, whatever becomes of its path, and that path for people.
    Unix(OwnedFd, String),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(_, path) => path.fmt(f),
        }
    }
}

/// What to try; at least one.
pub(super) fn find(request: &Connect) -> failure::Result<Vec<Target>> {
    match request {
        Connect::Tcp { port: 0, .. } => Err(failure::because(FailureCode::Invalid, "port 0 is none", None)),
        Connect::Tcp { host, port } => {
            let addresses = addresses(host)?.into_iter();
            Ok(addresses.map(|address| Target::Tcp(SocketAddr::new(address, *port))).collect())
        }
        Connect::Unix { path } => Ok(vec![unix(path)?]),
    }
}

/// Links that are no paths are not followed: they could lead to sockets of the host, through the guest's descriptors.
fn unix(path: &str) -> failure::Result<Target> {
    let bytes = failure::absolute(path)?;
    let not_connected = |message: String| failure::because(FailureCode::NotConnected, message, Some(bytes));
    let socket = places::open(CWD, bytes, places::PLACE)
        .map_err(|errno| not_connected(format!("connect: {}", std::io::Error::from(errno))))?;
    let stat = rustix::fs::fstat(&socket).map_err(|errno| failure::at("look at", bytes, errno))?;
    if places::file_type(&stat) == FileType::Socket {
        Ok(Target::Unix(socket, path.to_owned()))
    } else {
        Err(not_connected("connect: not a socket".into()))
    }
}

fn addresses(host: &str) -> failure::Result<Vec<IpAddr>> {
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = literal.parse() {
        return Ok(vec![address]);
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(failure::because(
            FailureCode::Invalid,
            "the name of the host is empty or too long",
            None,
        ));
    }
    let hosts = users::read("/etc/hosts");
    let hosts = hosts
        .map_err(|error| failure::because(FailureCode::Io, format!("look up {name:?}: {error}"), None))?;
    let found = look_up(name, &hosts);
    if found.is_empty() {
        let message = format!("{name:?} is neither an address nor in the sandbox's /etc/hosts");
        return Err(failure::because(FailureCode::Refused, message, None));
    }
    Ok(found)
}

fn look_up(name: &str, hosts: &str) -> Vec<IpAddr> {
    let line = |line: &str| {
        let mut words = line.split('#').next().unwrap_or("").split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    };
    hosts.lines().filter_map(line).take(MAX_ADDRESSES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stand_for_themselves_and_localhost_for_both() {
        let shown = |host: &str| addresses(host).unwrap().iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(shown("10.1.2.3"), ["10.1.2.3"]);
        assert_eq!(shown("::1"), ["::1"]);
        assert_eq!(shown("[::1]"), ["::1"]);
        assert_eq!(shown("LocalHost."), ["127.0.0.1", "::1"]);
    }

    #[test]
    fn names_are_those_of_the_file_alone() {
        let hosts = "# db\n10.0.0.1 db db.internal # other\nbad db\n::1 DB\n10.0.0.2 dbx #db\n";
        let shown = |name: &str| look_up(name, hosts).iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(shown("db"), ["10.0.0.1", "::1"]);
        assert_eq!(shown("db.internal"), ["10.0.0.1"]);
        assert_eq!(shown("other"), Vec::<String>::new());
        let failure = addresses("no-such-host.invalid").unwrap_err();
        assert_eq!(failure.code, FailureCode::Refused);
        assert!(failure.message.contains("no-such-host.invalid"), "{failure}");
        assert_eq!(addresses(&"x".repeat(300)).unwrap_err().code, FailureCode::Invalid);
    }

    #[test]
    fn paths_lead_to_sockets_of_the_sandbox_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let _listener = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        std::fs::write(path("file"), "").unwrap();
        std::os::unix::fs::symlink("socket", path("link")).unwrap();
        let held = std::fs::File::open(dir.path()).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&held);
        std::os::unix::fs::symlink(format!("/proc/self/fd/{number}/socket"), path("magic")).unwrap();
        assert!(unix(&path("socket")).is_ok() && unix(&path("link")).is_ok());
        for name in ["file", "nothing", "magic"] {
            let failure = unix(&path(name)).unwrap_err();
            assert_eq!(failure.code, FailureCode::NotConnected, "{name}");
            assert_eq!(failure.path, Some(path(name)));
        }
        assert_eq!(unix("relative").unwrap_err().code, FailureCode::Invalid);
    }
}
