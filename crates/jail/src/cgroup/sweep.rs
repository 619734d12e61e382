//! Ends what an earlier daemon of an instance left, but for the sandboxes that the next one takes over.
//!
//! What a dead daemon knew of its sandboxes may be lost, so this goes by what is there. With version 1 the first processes
//! of all sandboxes are in the instance's own groups, too: which sandbox one belongs to is told by its pid namespace.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::live::{KILL_PATIENCE, PAUSE, change, check_instance, kill_listed, number, remove_tree, subtree};
use super::plan::Reserve;
use super::{Error, Facts, remove_instance};

/// A sandbox that lives on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survivor {
    /// Its id, the name of its groups.
    pub id: String,
    /// Its first process.
    pub pid: i32,
}

/// Kills every process of an instance that belongs to none of `keep`, and removes the groups of all others, at last
/// those of the instance itself where nobody is kept.
///
/// # Errors
///
/// The first failure, after everything else was tried; nothing was for an instance that cannot be one.
pub fn remove_others(facts: &Facts, instance: &str, keep: &[Survivor]) -> Result<(), Error> {
    check_instance(instance)?;
    let spared: BTreeSet<CString> = keep.iter().filter_map(|kept| pid_namespace(kept.pid)).collect();
    let is_spared =
        |pid: i32| !spared.is_empty() && pid_namespace(pid).is_some_and(|own| spared.contains(&own));
    let mut done = Ok(());
    let bases = facts.v1.iter().map(|hierarchy| &hierarchy.mount_point);
    for base in bases.chain(facts.v2.as_ref().map(|unified| &unified.base)) {
        let instance = base.join("berth").join(instance);
        if instance.is_dir() {
            done = done.and(sweep(&instance, keep, &is_spared, KILL_PATIENCE));
        }
    }
    if keep.is_empty() { done.and(remove_instance(facts, instance)) } else { done }
}

/// One hierarchy's. What hangs in one group keeps no other from being removed.
fn sweep(
    instance: &Path,
    keep: &[Survivor],
    is_spared: &dyn Fn(i32) -> bool,
    patience: Duration,
) -> Result<(), Error> {
    let others = others(instance, keep)?;
    let killed = kill(instance, &others, is_spared, patience);
    others.iter().map(|dir| remove(instance, dir)).fold(killed, Result::and)
}

/// Groups of sandboxes that are not kept.
fn others(instance: &Path, keep: &[Survivor]) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Read { path: instance.to_owned(), source };
    let mut others = Vec::new();
    for entry in std::fs::read_dir(instance).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_kept = keep.iter().any(|kept| entry.file_name() == kept.id.as_str());
        if !is_kept && entry.file_type().map_err(failed)?.is_dir() {
            others.push(entry.path());
        }
    }
    Ok(others)
}

fn kill(
    instance: &Path,
    others: &[PathBuf],
    is_spared: &dyn Fn(i32) -> bool,
    patience: Duration,
) -> Result<(), Error> {
    let deadline = Instant::now() + patience;
    loop {
        let mut count = kill_listed(instance, is_spared)?;
        for dir in others {
            for group in subtree(dir)? {
                count += kill_listed(&group, &|_| false)?;
            }
        }
        if count == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::Survivors { path: instance.to_owned(), count });
        }
        sleep(PAUSE);
    }
}

/// With what was set aside for it in the groups above, version 2: those may outlive it.
fn remove(instance: &Path, dir: &Path) -> Result<(), Error> {
    let bytes = number(Some(dir), "memory.low")?.unwrap_or(0);
    remove_tree(dir)?;
    if bytes == 0 {
        return Ok(());
    }
    let groups = instance.parent().into_iter().chain([instance]).map(Path::to_owned).collect();
    change(&Reserve { groups, bytes }, |now| now.saturating_sub(bytes))
}

/// None for a process that is gone.
fn pid_namespace(pid: i32) -> Option<CString> {
    rustix::fs::readlink(format!("/proc/{pid}/ns/pid"), Vec::new()).ok()
}

#[cfg(test)]
mod tests {
    use super::super::Unified;
    use super::*;

    #[test]
    fn a_process_that_does_not_die_keeps_only_its_own_group() {
        let dir = tempfile::tempdir().unwrap();
        let [hung, dead, kept] = ["hung", "dead", "kept"].map(|id| dir.path().join(id));
        [&hung, &dead, &kept].into_iter().for_each(|group| std::fs::create_dir(group).unwrap());
        // No process has this pid, so none is killed, and the group lists it on.
        std::fs::write(hung.join("cgroup.procs"), i32::MAX.to_string()).unwrap();
        let keep = [Survivor { id: "kept".to_owned(), pid: 1 }];
        let swept = sweep(dir.path(), &keep, &|_| true, Duration::ZERO);
        assert!(matches!(swept, Err(Error::Survivors { count: 1, .. })), "{swept:?}");
        assert_eq!([&hung, &dead, &kept].map(|group| group.exists()), [true, false, true]);
    }

    #[test]
    fn what_is_no_instance_is_refused_before_anything_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let groups = ["berth/daemon/kept", "berth/one/kept"].map(|group| dir.path().join(group));
        groups.iter().for_each(|group| std::fs::create_dir_all(group).unwrap());
        let base = dir.path().to_owned();
        let unified = Unified { base, delegated: false, controllers: Vec::new(), enabled: Vec::new() };
        let facts = Facts { v2: Some(unified), ..Facts::default() };
        for instance in ["", ".", "..", "a/b", "daemon"] {
            let refused = remove_others(&facts, instance, &[]);
            assert!(matches!(refused, Err(Error::Path { .. })), "{instance}: {refused:?}");
        }
        assert!(groups.iter().all(|group| group.exists()));
    }
}
