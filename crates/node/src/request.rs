//! Whether a request for a sandbox can be honoured as it stands. Pure, but for looking at mount sources.

use std::path::{Component, Path};
use std::time::Duration;

use berth_jail::Capability;
use berth_types::sandbox::{Capabilities, CreateSandbox, Resources};

use crate::Error;

/// Smallest processor share: 1 ms of quota in a period of 100 ms, the least that the kernel takes.
const MIN_CPUS: f64 = 0.01;

/// Largest processor share: what the quota's arithmetic takes, and more than any machine has.
const MAX_CPUS: f64 = 65_536.0;

/// Least memory in MB: with 3, `bash -c 'ls | head'` and busybox's shell were measured to run every time (control groups of
/// version 1, two processors), with 2 not quite; the guest needs none of it. One more for machines that count less finely.
const MIN_MEMORY_MB: u64 = 4;

/// Fewest processes: the guest, its worker threads and one command.
const MIN_PIDS: u64 = 8;
/// `PID_MAX_LIMIT`: the kernel takes no larger limit.
const MAX_PIDS: u64 = 4 << 20;

/// Fewest files: Berth's own (mount points, `/etc/hosts` and the like) and some to work with.
const MIN_INODES: u64 = 64;

/// Longest life of a sandbox: a year.
const MAX_TTL_SECONDS: u64 = 31_536_000;

/// Longest that a request may say it waits: a day. Without a limit it waits for as long as its client does.
const MAX_WAIT: Duration = Duration::from_secs(86_400);

/// Longest name of a user, a label's key and the like; nothing real is longer.
const MAX_WORD: usize = 4096;

/// Refuses what could not be honoured exactly.
pub(crate) fn check(request: &CreateSandbox) -> Result<(), Error> {
    if let Some(name) = &request.name {
        check_name(name)?;
    }
    check_resources(&request.resources)?;
    check_life(request)?;
    check_capabilities(&request.capabilities)?;
    check_words(request)?;
    if let Some(workdir) = &request.workdir
        && !workdir.starts_with('/')
    {
        return Err(bad("workdir", format!("{workdir:?} is not an absolute path")));
    }
    for (field, value) in [("workdir", &request.workdir), ("user", &request.user)] {
        if value.as_deref().is_some_and(|value| value.contains('\0')) {
            return Err(bad(field, "it contains a NUL byte".to_owned()));
        }
    }
    for (key, value) in &request.env {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(bad("env", format!("{key:?} cannot be an environment variable")));
        }
    }
    for mount in &request.mounts {
        check_mount_target(&mount.target)?;
        check_mount_source(&mount.source)?;
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), Error> {
    let fits = (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if fits {
        return Ok(());
    }
    Err(bad("name", format!("{name:?} is not 1 to 63 of [a-zA-Z0-9._-], beginning with a letter or digit")))
}

pub(crate) fn check_resources(resources: &Resources) -> Result<(), Error> {
    check_cpus("resources.cpus", resources.cpus)?;
    check_cpus("resources.cpu_request", resources.cpu_request)?;
    at_least("resources.memory_mb", resources.memory_mb, MIN_MEMORY_MB)?;
    at_least("resources.memory_request_mb", resources.memory_request_mb, 1)?;
    at_least("resources.storage_mb", resources.storage_mb, 1)?;
    at_least("resources.storage_inodes", resources.storage_inodes, MIN_INODES)?;
    at_least("resources.pids", resources.pids, MIN_PIDS)?;
    if let Some(pids) = resources.pids.filter(|pids| *pids > MAX_PIDS) {
        return Err(bad(
            "resources.pids",
            format!("{pids} is more than {MAX_PIDS}, which is what a kernel has"),
        ));
    }
    if let (Some(request), Some(limit)) = (resources.cpu_request, resources.cpus)
        && request > limit
    {
        let problem =
            format!("{request} is more than resources.cpus, which is {limit}; set it to at most that");
        return Err(bad("resources.cpu_request", problem));
    }
    if let (Some(request), Some(limit)) = (resources.memory_request_mb, resources.memory_mb)
        && request > limit
    {
        let problem =
            format!("{request} is more than resources.memory_mb, which is {limit}; set it to at most that");
        return Err(bad("resources.memory_request_mb", problem));
    }
    Ok(())
}

fn check_cpus(field: &'static str, cpus: Option<f64>) -> Result<(), Error> {
    match cpus {
        Some(cpus) if !(cpus.is_finite() && cpus >= MIN_CPUS) => {
            Err(bad(field, format!("{cpus} is less than {MIN_CPUS} of a core")))
        }
        Some(cpus) if cpus > MAX_CPUS => Err(bad(field, format!("{cpus} is more than {MAX_CPUS} cores"))),
        _ => Ok(()),
    }
}

fn check_life(request: &CreateSandbox) -> Result<(), Error> {
    if let Some(ttl) = request.ttl_seconds {
        check_ttl(ttl)?;
    }
    wait(request.wait_seconds).map(drop)
}

/// Refuses a life of no time, and one that nobody means.
pub(crate) fn check_ttl(seconds: u64) -> Result<(), Error> {
    if (1..=MAX_TTL_SECONDS).contains(&seconds) {
        return Ok(());
    }
    Err(bad("ttl_seconds", format!("{seconds} is not 1 to {MAX_TTL_SECONDS}")))
}

/// How long a request waits for room; `None` for as long as its client does.
pub(crate) fn wait(seconds: Option<f64>) -> Result<Option<Duration>, Error> {
    let parse = |seconds: f64| Duration::try_from_secs_f64(seconds).ok().filter(|time| *time <= MAX_WAIT);
    match seconds {
        None => Ok(None),
        Some(seconds) => parse(seconds)
            .map(Some)
            .ok_or_else(|| bad("wait_seconds", format!("{seconds} is not 0 to {}", MAX_WAIT.as_secs()))),
    }
}

fn check_capabilities(capabilities: &Capabilities) -> Result<(), Error> {
    let Capabilities::Only(names) = capabilities else { return Ok(()) };
    let defaults = Capability::defaults();
    for name in names {
        let known = Capability::named(name).map_err(|error| bad("capabilities", error.to_string()))?;
        if !defaults.contains(&known) {
            let names: Vec<String> = defaults.iter().copied().map(String::from).collect();
            let problem = format!("{name:?} is not in the default set, which is {}", names.join(", "));
            return Err(bad("capabilities", problem));
        }
    }
    Ok(())
}

/// Control characters in a name are a mistake or a trick on whoever reads a listing.
fn check_words(request: &CreateSandbox) -> Result<(), Error> {
    let plain = |field: &'static str, word: &str| {
        if word.len() > MAX_WORD {
            return Err(bad(field, format!("it is longer than {MAX_WORD} bytes")));
        }
        match word.chars().find(|char| char.is_control()) {
            Some(char) => Err(bad(field, format!("{word:?} contains the control character {char:?}"))),
            None => Ok(()),
        }
    };
    for (key, value) in &request.labels {
        plain("labels", key)?;
        plain("labels", value)?;
    }
    plain("user", request.user.as_deref().unwrap_or(""))?;
    plain("image", &request.image)?;
    plain("idempotency_key", request.idempotency_key.as_deref().unwrap_or(""))
}

fn at_least(field: &'static str, value: Option<u64>, least: u64) -> Result<(), Error> {
    match value {
        Some(value) if value < least => {
            Err(bad(field, format!("{value} is less than {least}, the least that a sandbox works with")))
        }
        Some(value) if value > u64::MAX >> 20 => {
            Err(bad(field, format!("{value} is more than any machine has")))
        }
        _ => Ok(()),
    }
}

fn check_mount_target(target: &str) -> Result<(), Error> {
    let path = Path::new(target);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let plain = plain && !target.contains('\0');
    let taken = ["/proc", "/sys", "/dev"].iter().any(|own| path.starts_with(own));
    if path.is_absolute() && path != Path::new("/") && plain && !taken {
        return Ok(());
    }
    Err(bad("mounts.target", format!("{target:?} is not an absolute path outside /, /proc, /sys and /dev")))
}

fn check_mount_source(source: &str) -> Result<(), Error> {
    if !source.starts_with('/') || Path::new(source).components().any(|part| part == Component::ParentDir) {
        return Err(bad("mounts.source", format!("{source:?} is not an absolute path without \"..\"")));
    }
    match std::fs::metadata(source) {
        Ok(_) => Ok(()),
        Err(error) => Err(bad("mounts.source", format!("{source:?} cannot be mounted: {error}"))),
    }
}

fn bad(field: &'static str, problem: String) -> Error {
    Error::BadRequest { field, problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_types::sandbox::Mount;

    fn refused(change: impl FnOnce(&mut CreateSandbox)) -> Option<String> {
        let mut request = CreateSandbox { image: "debian".into(), ..Default::default() };
        change(&mut request);
        check(&request).err().map(|error| error.to_string())
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        assert_eq!(refused(|_| {}), None);
        for (field, change) in [
            ("name", (|r: &mut CreateSandbox| r.name = Some("-x".into())) as fn(&mut CreateSandbox)),
            ("name", |r| r.name = Some("x".repeat(64))),
            ("resources.cpus", |r| r.resources.cpus = Some(0.0)),
            ("resources.cpus", |r| r.resources.cpus = Some(f64::NAN)),
            ("resources.cpus", |r| r.resources.cpus = Some(1e6)),
            ("user", |r| r.user = Some("a\0".into())),
            ("workdir", |r| r.workdir = Some("/a\0".into())),
            ("mounts.target", |r| r.mounts = vec![mount("/etc", "/a\0")]),
            ("resources.memory_mb", |r| r.resources.memory_mb = Some(1)),
            ("resources.memory_mb", |r| r.resources.memory_mb = Some(u64::MAX)),
            ("resources.pids", |r| r.resources.pids = Some(1)),
            ("resources.pids", |r| r.resources.pids = Some(MAX_PIDS + 1)),
            ("resources.storage_mb", |r| r.resources.storage_mb = Some(0)),
            ("resources.storage_inodes", |r| r.resources.storage_inodes = Some(63)),
            ("resources.cpu_request", |r| r.resources.cpu_request = Some(-1.0)),
            ("resources.cpu_request", |r| {
                (r.resources.cpus, r.resources.cpu_request) = (Some(1.0), Some(1.5));
            }),
            ("resources.memory_request_mb", |r| {
                (r.resources.memory_mb, r.resources.memory_request_mb) = (Some(64), Some(65));
            }),
            ("ttl_seconds", |r| r.ttl_seconds = Some(0)),
            ("ttl_seconds", |r| r.ttl_seconds = Some(u64::MAX)),
            ("wait_seconds", |r| r.wait_seconds = Some(-0.5)),
            ("wait_seconds", |r| r.wait_seconds = Some(1e300)),
            ("capabilities", |r| r.capabilities = Capabilities::Only(vec!["NET_RAWW".into()])),
            ("capabilities", |r| r.capabilities = Capabilities::Only(vec!["SYS_ADMIN".into()])),
            ("labels", |r| drop(r.labels.insert("a\nb".into(), String::new()))),
            ("user", |r| r.user = Some("root\nx".into())),
            ("name", |r| r.name = Some("a\nb".into())),
            ("image", |r| r.image = "debian\n".into()),
            ("workdir", |r| r.workdir = Some("app".into())),
            ("env", |r| drop(r.env.insert("A=B".into(), String::new()))),
            ("mounts.source", |r| r.mounts = vec![mount("/does/not/exist", "/x")]),
            ("mounts.source", |r| r.mounts = vec![mount("relative", "/x")]),
            ("mounts.source", |r| r.mounts = vec![mount("/etc/../etc", "/x")]),
            ("mounts.target", |r| r.mounts = vec![mount("/etc", "/proc/1")]),
            ("mounts.target", |r| r.mounts = vec![mount("/etc", "/a/../../b")]),
            ("mounts.target", |r| r.mounts = vec![mount("/etc", "/")]),
        ] {
            let message = refused(change).unwrap_or_else(|| panic!("{field} was accepted"));
            assert!(message.contains(field), "{message}");
        }
        assert_eq!(refused(|r| r.resources.cpus = Some(0.5)), None);
        assert_eq!(
            refused(|r| r.capabilities = Capabilities::Only(vec!["CAP_NET_RAW".into(), "KILL".into()])),
            None
        );
        assert_eq!(refused(|r| drop(r.env.insert("A".into(), "x\n".repeat(500_000)))), None);
    }

    fn mount(source: &str, target: &str) -> Mount {
        Mount { source: source.into(), target: target.into(), read_only: false }
    }
}
