//! `EXPOSE` and `STOPSIGNAL`: which ports and signals there are.

use std::net::IpAddr;

use super::Planner;
use super::stage::Current;
use crate::fault::{Fault, Problem};
use crate::syntax::{Statement, Word};

/// Ports of one word of `EXPOSE`.
struct Ports {
    /// As the config lists them.
    listed: Vec<String>,
    /// The protocol, where it is not in lower case.
    odd_protocol: Option<String>,
    /// Whether it says which address or port of the host is meant, which `EXPOSE` cannot decide.
    maps: bool,
}

impl Planner<'_> {
    pub(super) fn ports(
        &mut self,
        current: &Current<'_>,
        words: &[Word],
        statement: &Statement,
    ) -> Result<Vec<String>, Box<Fault>> {
        let mut listed = Vec::new();
        for word in words {
            for text in current.expand_many(word, statement)? {
                let Some(ports) = ports(&text) else {
                    let expected = "a port like `80`, `80/udp` or `8000-8010`";
                    let found = format!("`{text}`");
                    let problem = Problem::Expected { instruction: "EXPOSE", expected, found };
                    return Err(statement.fault(word.span, problem));
                };
                if let Some(protocol) = ports.odd_protocol {
                    let message =
                        format!("Defined protocol '{protocol}' in EXPOSE instruction should be lowercase");
                    self.warn("ExposeProtoCasing", statement, word.span, message);
                }
                if ports.maps {
                    let message = format!(
                        "EXPOSE instruction should not define an IP address or host-port mapping, found '{text}'"
                    );
                    self.warn("ExposeInvalidFormat", statement, word.span, message);
                }
                listed.extend(ports.listed);
            }
        }
        Ok(listed)
    }
}

impl Current<'_> {
    pub(super) fn signal(&self, word: &Word, statement: &Statement) -> Result<String, Box<Fault>> {
        let signal = self.expand_some(word, statement, "STOPSIGNAL", "a signal")?;
        if is_signal(&signal) {
            return Ok(signal);
        }
        let expected = "a signal's name or number, for example `SIGTERM` or `9`";
        let problem = Problem::Expected { instruction: "STOPSIGNAL", expected, found: format!("`{signal}`") };
        Err(statement.fault(word.span, problem))
    }
}

/// `80`, `80/udp`, `8000-8010`, and with the `address:port:` before it that is for `docker run`.
fn ports(text: &str) -> Option<Ports> {
    let (rest, written) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = written.to_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return None;
    }
    let (before, container) = match rest.rsplit_once(':') {
        Some((before, container)) => (Some(before), container),
        None => (None, rest),
    };
    let (low, high) = range(container)?;
    if let Some(before) = before {
        let (address, host) = before.rsplit_once(':').map_or((None, before), |(ip, port)| (Some(ip), port));
        let address = address.map(|ip| ip.trim_start_matches('[').trim_end_matches(']'));
        if address.is_some_and(|ip| !ip.is_empty() && ip.parse::<IpAddr>().is_err()) {
            return None;
        }
        if !host.is_empty() {
            let (first, last) = range(host)?;
            // A range stands for a range as long, or for one port.
            if low != high && last - first != high - low {
                return None;
            }
        }
    }
    Some(Ports {
        listed: (low..=high).map(|port| format!("{port}/{protocol}")).collect(),
        odd_protocol: (written != protocol).then(|| written.to_owned()),
        maps: before.is_some(),
    })
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let (low, high): (u16, u16) = (low.parse().ok()?, high.parse().ok()?);
    (low > 0 && low <= high).then_some((low, high))
}

fn is_signal(text: &str) -> bool {
    const NAMES: [&str; 35] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "IOT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "POLL", "PWR", "SYS", "UNUSED",
    ];
    let name = text.to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let real_time = |prefix: &str| {
        name.strip_prefix(prefix).is_some_and(|rest| {
            rest.is_empty()
                || rest.strip_prefix(['+', '-']).is_some_and(|n| n.parse::<u8>().is_ok_and(|n| n <= 15))
        })
    };
    let numeric = text.parse::<u8>().is_ok_and(|number| (1..=64).contains(&number));
    numeric || NAMES.contains(&name) || real_time("RTMIN") || real_time("RTMAX")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_with_and_without_what_the_host_has() {
        let table: [(&str, Option<&[&str]>); 14] = [
            ("80", Some(&["80/tcp"])),
            ("80/UDP", Some(&["80/udp"])),
            ("80-82/sctp", Some(&["80/sctp", "81/sctp", "82/sctp"])),
            ("8080:80", Some(&["80/tcp"])),
            ("127.0.0.1:8080:80/udp", Some(&["80/udp"])),
            ("127.0.0.1::80", Some(&["80/tcp"])),
            ("[::1]:8080:80", Some(&["80/tcp"])),
            ("8000-8001:80-81", Some(&["80/tcp", "81/tcp"])),
            ("8000-8002:80-81", None),
            ("here:80:80", None),
            ("0", None),
            ("82-80", None),
            ("80/http", None),
            ("65536", None),
        ];
        for (text, wanted) in table {
            let listed = ports(text).map(|ports| ports.listed);
            let wanted = wanted.map(|ports| ports.iter().map(|port| (*port).to_owned()).collect::<Vec<_>>());
            assert_eq!(listed, wanted, "{text}");
        }
    }

    #[test]
    fn signals_are_names_or_numbers() {
        let table = [
            ("SIGTERM", true),
            ("term", true),
            ("9", true),
            ("SIGRTMIN+3", true),
            ("RTMAX-15", true),
            ("RTMIN+16", false),
            ("RTMINé", false),
            ("0", false),
            ("65", false),
            ("SIGNOPE", false),
        ];
        for (text, wanted) in table {
            assert_eq!(is_signal(text), wanted, "{text}");
        }
    }
}
