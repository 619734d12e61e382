//! Values on the command line that are more than a word.

use berth_types::sandbox::{Capabilities, CapabilitySet, Mount, NetworkMode};
use clap::ValueEnum;

/// `KEY=VALUE`, as `--env`, `--label` and `--build-arg` take it. The value may be empty and hold further `=`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some(("", _)) => Err("the name before = is missing".to_owned()),
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(format!("expected {text}=VALUE")),
    }
}

/// A daemon's address, checked but as it was written.
pub(crate) fn host(text: &str) -> Result<String, berth_client::BadHost> {
    berth_client::Host::parse(text).map(|_| text.to_owned())
}

/// A number of cores.
pub(crate) fn cpus(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(cpus) if cpus.is_finite() && cpus >= 0.01 => Ok(cpus),
        _ => Err("expected a number of cores, at least 0.01".to_owned()),
    }
}

/// A number of seconds, or 0.
pub(crate) fn seconds_or_none(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() && seconds >= 0.0 => Ok(seconds),
        _ => Err("expected a number of seconds, 0 or more".to_owned()),
    }
}

/// `default`, `none`, or names of capabilities, which the daemon knows.
pub(crate) fn capabilities(text: &str) -> Result<Capabilities, String> {
    match text {
        "default" => Ok(Capabilities::Set(CapabilitySet::Default)),
        "none" => Ok(Capabilities::Set(CapabilitySet::None)),
        "" => Err("expected default, none, or names separated by commas".to_owned()),
        names => Ok(Capabilities::Only(names.split(',').map(|name| name.trim().to_uppercase()).collect())),
    }
}

/// A positive number of seconds.
pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() && seconds > 0.0 => Ok(seconds),
        _ => Err("expected a number of seconds above 0".to_owned()),
    }
}

/// A positive factor.
pub(crate) fn factor(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if factor.is_finite() && factor > 0.0 => Ok(factor),
        _ => Err("expected a number above 0".to_owned()),
    }
}

/// A time in seconds: `90`, `90s`, `30m`, `12h`, `7d`.
pub(crate) fn duration(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text);
    let seconds = match unit {
        "" | "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(86_400),
        _ => None,
    };
    let found = number.parse::<u64>().ok().zip(seconds).and_then(|(number, unit)| number.checked_mul(unit));
    found.ok_or_else(|| "expected a time such as 90s, 30m, 12h or 7d".to_owned())
}

/// A size in bytes: `4096`, `500M`, `20G`, by powers of 1024.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text);
    let shift = match unit.to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => Some(0),
        "K" => Some(10),
        "M" => Some(20),
        "G" => Some(30),
        "T" => Some(40),
        _ => None,
    };
    let found = number.parse::<u64>().ok().zip(shift).and_then(|(number, by)| number.checked_mul(1 << by));
    found.ok_or_else(|| "expected a size such as 500M or 20G".to_owned())
}

fn split_unit(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// Kinds of networks, by their names in the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// The internet, through address translation
    Public,
    /// Its own loopback only
    NoNetwork,
}

impl From<Network> for NetworkMode {
    fn from(network: Network) -> Self {
        match network {
            Network::Public => NetworkMode::Public,
            Network::NoNetwork => NetworkMode::NoNetwork,
        }
    }
}

/// `type=bind,src=/host/path,dst=/path[,ro]`, as docker has it.
pub(crate) fn mount(text: &str) -> Result<Mount, String> {
    let (mut source, mut target, mut read_only) = (None, None, false);
    for field in text.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        match key {
            "type" if value == "bind" => {}
            "type" => return Err(format!("type={value} is not supported, only type=bind")),
            "src" | "source" => source = Some(absolute(key, value)?),
            "dst" | "target" | "destination" => target = Some(absolute(key, value)?),
            "ro" | "readonly" => {
                read_only = match value {
                    "" | "true" => true,
                    "false" => false,
                    _ => return Err(format!("{key} is true or false, not {value:?}")),
                }
            }
            _ => return Err(format!("unknown field {key:?}; expected type, src, dst or ro")),
        }
    }
    match (source, target) {
        (Some(source), Some(target)) => Ok(Mount { source, target, read_only }),
        (None, _) => Err("src=/path is missing".to_owned()),
        (_, None) => Err("dst=/path is missing".to_owned()),
    }
}

fn absolute(key: &str, value: &str) -> Result<String, String> {
    if value.starts_with('/') {
        Ok(value.to_owned())
    } else {
        Err(format!("{key}={value} is not an absolute path"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_have_units() {
        assert_eq!(
            ["90", "90s", "30m", "12h", "7d"].map(|text| duration(text).unwrap()),
            [90, 90, 1800, 43_200, 604_800]
        );
        assert_eq!(
            ["4096", "1K", "500M", "20GiB"].map(|text| bytes(text).unwrap()),
            [4096, 1024, 500 << 20, 20 << 30]
        );
        for bad in ["", "d", "7w", "-1", "1.5h", "99999999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        for bad in ["", "G", "1X", "-1", "20000000T"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pairs_keep_all_of_their_value() {
        assert_eq!(key_value("A=b=c").unwrap(), ("A".into(), "b=c".into()));
        assert_eq!(key_value("A=").unwrap(), ("A".into(), String::new()));
        assert_eq!(key_value("A").unwrap_err(), "expected A=VALUE");
        assert!(key_value("=x").is_err());
    }

    #[test]
    fn mounts_are_read_as_docker_has_them() {
        let expected = Mount { source: "/a".into(), target: "/b".into(), read_only: true };
        for text in
            ["type=bind,src=/a,dst=/b,ro", "source=/a,target=/b,readonly=true", "ro,destination=/b,src=/a"]
        {
            assert_eq!(mount(text).unwrap(), expected, "{text}");
        }
        assert!(!mount("src=/a,dst=/b,ro=false").unwrap().read_only);
    }

    #[test]
    fn wrong_mounts_say_what_is_wrong() {
        let wrong = [
            "type=volume,src=/a,dst=/b",
            "src=a,dst=/b",
            "src=/a",
            "dst=/b",
            "src=/a,dst=/b,rw",
            "src=/a,dst=/b,ro=1",
        ];
        insta::assert_snapshot!(wrong.map(|text| format!("{text}: {}", mount(text).unwrap_err())).join("\n"), @r#"
        type=volume,src=/a,dst=/b: type=volume is not supported, only type=bind
        src=a,dst=/b: src=a is not an absolute path
        src=/a: dst=/path is missing
        dst=/b: src=/path is missing
        src=/a,dst=/b,rw: unknown field "rw"; expected type, src, dst or ro
        src=/a,dst=/b,ro=1: ro is true or false, not "1"
        "#);
    }

    #[test]
    fn numbers_are_finite_and_positive() {
        assert_eq!(cpus("0.5"), Ok(0.5));
        assert_eq!(seconds("1.5"), Ok(1.5));
        for text in ["0", "-1", "nan", "inf", "x", ""] {
            assert!(cpus(text).is_err() && seconds(text).is_err() && factor(text).is_err(), "{text}");
        }
    }
}
