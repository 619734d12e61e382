//! Ends what an earlier daemon of an instance left, but for the sandboxes that the next one takes over.
//!
//! What a dead daemon knew of its sandboxes may be lost, so this goes by what is there. With version 1 the first processes
//! of all sandboxes are in the instance's own groups, too: which sandbox one belongs to is told by its pid namespace.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Instant;

use super::live::{KILL_PATIENCE, PAUSE, change, kill_listed, number, remove_tree, subtree};
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
/// The first failure, after everything else was tried.
pub fn remove_others(facts: &Facts, instance: &str, keep: &[Survivor]) -> Result<(), Error> {
    let spared: BTreeSet<CString> = keep.iter().filter_map(|kept| pid_namespace(kept.pid)).collect();
    let is_spared =
        |pid: i32| !spared.is_empty() && pid_namespace(pid).is_some_and(|own| spared.contains(&own));
    let mut done = Ok(());
    let bases = facts.v1.iter().map(|hierarchy| &hierarchy.mount_point);
    for base in bases.chain(facts.v2.as_ref().map(|unified| &unified.base)) {
        let instance = base.join("berth").join(instance);
        if instance.is_dir() {
            done = done.and(sweep(&instance, keep, &is_spared));
        }
    }
    if keep.is_empty() { done.and(remove_instance(facts, instance)) } else { done }
}

/// One hierarchy's.
fn sweep(instance: &Path, keep: &[Survivor], is_spared: &dyn Fn(i32) -> bool) -> Result<(), Error> {
    let others = others(instance, keep)?;
    kill(instance, &others, is_spared)?;
    others.iter().try_for_each(|dir| {
        give_back_reserve(instance, dir)?;
        remove_tree(dir)
    })
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

fn kill(instance: &Path, others: &[PathBuf], is_spared: &dyn Fn(i32) -> bool) -> Result<(), Error> {
    let deadline = Instant::now() + KILL_PATIENCE;
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

/// What was set aside for it in the groups above, version 2: those may outlive it.
fn give_back_reserve(instance: &Path, dir: &Path) -> Result<(), Error> {
    let Some(bytes) = number(Some(dir), "memory.low")?.filter(|bytes| *bytes > 0) else { return Ok(()) };
    let groups = instance.parent().into_iter().chain([instance]).map(Path::to_owned).collect();
    change(&Reserve { groups, bytes }, |now| now.saturating_sub(bytes))
}

/// None for a process that is gone.
fn pid_namespace(pid: i32) -> Option<CString> {
    rustix::fs::readlink(format!("/proc/{pid}/ns/pid"), Vec::new()).ok()
}
