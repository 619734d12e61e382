//! What a sandbox's `/etc/resolv.conf` says: the host's, without what a sandbox cannot reach. Pure.

use std::net::{IpAddr, Ipv4Addr};

/// Where the host says which resolvers it uses: its own view first, then the servers behind systemd-resolved's stub.
pub(crate) const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Resolvers for sandboxes, and how to use them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    /// Servers in order of preference; empty when there is none that a sandbox can reach.
    pub(crate) nameservers: Vec<Ipv4Addr>,
    /// Whole `search` and `options` lines of the host.
    lines: Vec<String>,
}

impl Resolver {
    /// Those servers and nothing else.
    pub(crate) fn of(nameservers: Vec<Ipv4Addr>) -> Self {
        Self { nameservers, lines: Vec::new() }
    }

    /// The first of the host's `files` (their text) that names a server which a sandbox can reach: by IPv4, and not an
    /// address of the host itself, `own`, where sandboxes may not go.
    pub(crate) fn of_host<'a>(files: impl IntoIterator<Item = &'a str>, own: &[Ipv4Addr]) -> Self {
        files.into_iter().map(|text| parse(text, own)).find(|r| !r.nameservers.is_empty()).unwrap_or_default()
    }

    /// The text of the file.
    pub(crate) fn text(&self) -> String {
        let servers = self.nameservers.iter().map(|s| format!("nameserver {s}\n"));
        let lines = self.lines.iter().map(|line| format!("{line}\n"));
        servers.chain(lines).collect()
    }
}

fn parse(text: &str, own: &[Ipv4Addr]) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines().map(str::trim) {
        let (keyword, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (keyword, rest.trim().parse::<IpAddr>()) {
            ("nameserver", Ok(IpAddr::V4(server))) if reachable(server, own) => {
                resolver.nameservers.push(server);
            }
            // The last one of each wins in the C library too, which reads them in order.
            ("search" | "domain" | "options", _) => resolver.lines.push(line.to_owned()),
            _ => {}
        }
    }
    resolver
}

fn reachable(server: Ipv4Addr, own: &[Ipv4Addr]) -> bool {
    // 0.0.0.0 means the host itself, too.
    !server.is_loopback() && !server.is_unspecified() && !own.contains(&server)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STUB: &str = "# made by something\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n";

    #[test]
    fn the_hosts_servers_and_options_are_kept() {
        let host = "nameserver\t192.0.2.1 \nnameserver fd00::1\n; no\nnameserver 192.0.2.9\nsearch a.example b.example\n";
        insta::assert_snapshot!(Resolver::of_host([host], &[Ipv4Addr::new(192, 0, 2, 9)]).text(), @r"
        nameserver 192.0.2.1
        search a.example b.example
        ");
    }

    #[test]
    fn behind_a_stub_on_loopback_the_real_servers_are_looked_up() {
        let real = "nameserver 198.51.100.4\nsearch lan\n";
        assert_eq!(Resolver::of_host([STUB, real], &[]).text(), "nameserver 198.51.100.4\nsearch lan\n");
        assert_eq!(Resolver::of_host([STUB, "nameserver ::1"], &[]), Resolver::default());
    }
}
