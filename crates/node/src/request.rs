//! Whether a request for a sandbox can be honoured as it stands. Pure, but for looking at mount sources.

use std::path::{Component, Path};

use berth_types::sandbox::{CreateSandbox, Resources};

use crate::Error;

/// Smallest processor share: 1 ms of quota in a period of 100 ms, the least that the kernel takes.
const MIN_CPUS: f64 = 0.01;

/// Largest processor share: what the quota's arithmetic takes, and more than any machine has.
const MAX_CPUS: f64 = 65_536.0;

/// Least memory in MB in which the guest and a shell still start.
const MIN_MEMORY_MB: u64 = 6;

/// Fewest processes: the guest, its worker threads and one command.
const MIN_PIDS: u64 = 8;

/// Refuses what could not be honoured exactly.
pub(crate) fn check(request: &CreateSandbox) -> Result<(), Error> {
    if let Some(name) = &request.name {
        check_name(name)?;
    }
    check_resources(&request.resources)?;
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

fn check_resources(resources: &Resources) -> Result<(), Error> {
    if let Some(cpus) = resources.cpus
        && !(cpus.is_finite() && cpus >= MIN_CPUS)
    {
        return Err(bad("resources.cpus", format!("{cpus} is less than {MIN_CPUS}")));
    }
    if let Some(cpus) = resources.cpus
        && cpus > MAX_CPUS
    {
        return Err(bad("resources.cpus", format!("{cpus} is more than {MAX_CPUS}")));
    }
    at_least("resources.memory_mb", resources.memory_mb, MIN_MEMORY_MB)?;
    at_least("resources.storage_mb", resources.storage_mb, 1)?;
    at_least("resources.pids", resources.pids, MIN_PIDS)
}

fn at_least(field: &'static str, value: Option<u64>, least: u64) -> Result<(), Error> {
    match value {
        Some(value) if value < least => Err(bad(field, format!("{value} is less than {least}"))),
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
    if !source.starts_with('/') {
        return Err(bad("mounts.source", format!("{source:?} is not an absolute path")));
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
            ("workdir", |r| r.workdir = Some("app".into())),
            ("env", |r| drop(r.env.insert("A=B".into(), String::new()))),
            ("mounts.source", |r| r.mounts = vec![mount("/does/not/exist", "/x")]),
            ("mounts.source", |r| r.mounts = vec![mount("relative", "/x")]),
            ("mounts.target", |r| r.mounts = vec![mount("/etc", "/proc/1")]),
            ("mounts.target", |r| r.mounts = vec![mount("/etc", "/a/../../b")]),
            ("mounts.target", |r| r.mounts = vec![mount("/etc", "/")]),
        ] {
            let message = refused(change).unwrap_or_else(|| panic!("{field} was accepted"));
            assert!(message.contains(field), "{message}");
        }
        assert_eq!(refused(|r| r.resources.cpus = Some(0.5)), None);
    }

    fn mount(source: &str, target: &str) -> Mount {
        Mount { source: source.into(), target: target.into(), read_only: false }
    }
}
