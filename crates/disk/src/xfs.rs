//! Sandboxes as directories with an XFS project each: hard limits of bytes and of inodes, by directory tree.
//!
//! The sandbox's directory carries the project and `FS_XFLAG_PROJINHERIT`, so all that is made in it belongs to the
//! project. At the limit writes fail with `ENOSPC`, and statfs(2) inside shows the limit by itself.
//!
//! Project numbers are picked at random in a range of our own and used when nothing is on their account, so that two
//! data directories on one file system do not meet.
//!
//! XFS refuses a rename *into* a directory that inherits another project (`EXDEV`); out of one it allows it. So a
//! released tree can go to where layers are, as nothing there inherits. It stays on its project's account, without limit.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{fs, io};

use berth_sys::quota;
use rustix::fs::statfs;

use crate::health;
use crate::layout::{self, Layout};
use crate::{
    Capacity, Counted, Engine, Error, Full, Limits, Reaped, Resource, Unavailable, Usage, Writable, tree,
};

/// Magic number of statfs(2).
const MAGIC: u64 = 0x5846_5342;

/// XFS's accounts are in blocks of the file system; smaller ones than this are rare, larger ones than a page impossible
/// on most machines.
const UNIT: u64 = 4096;

/// The four directories of an empty sandbox need no block on XFS; overlayfs adds one.
const LEAST_BYTES: u64 = 64 << 10;

/// Inodes that are Berth's and overlayfs's: the sandbox's directory, `upper`, `work`, `work/work`, `spool`. Given on top
/// of what a sandbox may make, and taken off what it is said to have. Files in the spool count as the sandbox's.
const OWN_INODES: u64 = 5;

/// Projects from here on ("be" in the first two bytes), as many as 24 bits tell apart.
const FIRST_PROJECT: u32 = 0x6265_0000;
const PROJECTS: u32 = 1 << 24;

/// The engine.
#[derive(Debug)]
pub(crate) struct Xfs {
    layout: Layout,
    /// Open on the root: quotactl_fd(2) goes by it.
    root: OwnedFd,
    reserve: u64,
    /// Held from picking a project until something is on its account.
    picking: Mutex<u32>,
}

impl Xfs {
    /// On the file system that `data_dir` is on.
    pub(crate) fn open(data_dir: &Path, reserve: u64) -> Result<Self, Unavailable> {
        let found = statfs(data_dir)
            .map_err(|e| Unavailable::system("ask for the file system of", data_dir)(e.into()))?;
        if found.f_type as u64 != MAGIC {
            let found = crate::plain::file_system_name(found.f_type as u64);
            return Err(Unavailable::FileSystem { path: data_dir.to_owned(), found, wanted: "xfs" });
        }
        let root = layout::open_dir(data_dir).map_err(Box::new)?;
        let on = match quota::state(root.as_fd()) {
            Ok(state) => state.accounted && state.enforced,
            // A kernel without quotas, or a mount without.
            Err(error) if says_no_quota(&error) => false,
            Err(error) => return Err(Unavailable::system("ask for the quota state of", data_dir)(error)),
        };
        if !on {
            return Err(Unavailable::NoProjectQuota { path: data_dir.to_owned() });
        }
        let inherited = quota::inherited_project(root.as_fd())
            .map_err(Unavailable::system("ask for the project of", data_dir))?;
        if let Some(project) = inherited {
            return Err(Unavailable::InProject { path: data_dir.to_owned(), project });
        }
        let layout = Layout::open(data_dir).map_err(Box::new)?;
        Ok(Self { layout, root, reserve, picking: Mutex::new(seed()) })
    }

    fn set(&self, project: u32, limits: &Limits) -> io::Result<()> {
        let inodes = limits.inodes.map_or(0, |inodes| inodes.saturating_add(OWN_INODES));
        quota::set_limits(self.root.as_fd(), project, limits.bytes.unwrap_or(0), inodes)
    }

    /// Finds a project that nothing belongs to, limits it and gives it to the directory `dir`.
    fn give_project(&self, dir: BorrowedFd<'_>, limits: &Limits) -> io::Result<()> {
        let mut next = self.picking.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..PROJECTS {
            let project = FIRST_PROJECT + *next % PROJECTS;
            *next = next.wrapping_add(1);
            if quota::project(self.root.as_fd(), project)? == quota::Project::default() {
                self.set(project, limits)?;
                return quota::set_project(dir, project, true);
            }
        }
        Err(io::Error::from_raw_os_error(rustix::io::Errno::AGAIN.raw_os_error()))
    }

    /// The sandbox's directory, its project's number and account.
    fn account(&self, id: &str) -> Result<(PathBuf, u32, quota::Project), Error> {
        let (path, fd) = self.layout.open_sandbox(id)?;
        let read = || {
            let project = quota::project_id(fd.as_fd())?;
            Ok((project, quota::project(self.root.as_fd(), project)?))
        };
        match read() {
            Ok((project, account)) => Ok((path, project, account)),
            Err(source) => Err(Error::ReadQuota { path, source }),
        }
    }

    fn fill(&self, path: &Path, limits: &Limits) -> Result<Writable, Error> {
        let dir = layout::open_dir(path)?;
        self.give_project(dir.as_fd(), limits)
            .map_err(|source| Error::SetQuota { path: path.to_owned(), source })?;
        layout::make_parts(path)
    }

    /// Deletes a sandbox's directory and takes the limit off its project, which is free for another then.
    fn delete(&self, path: &Path) -> Result<u64, Error> {
        let project = layout::open_dir(path).ok().and_then(|dir| quota::project_id(dir.as_fd()).ok());
        let entries = tree::delete(path)?;
        // A data directory that was of the plain engine has directories of project 0, or of its owner's.
        if let Some(project) = project.filter(|project| is_ours(*project)) {
            self.set(project, &Limits::default())
                .map_err(|source| Error::SetQuota { path: path.to_owned(), source })?;
        }
        Ok(entries)
    }
}

impl Engine for Xfs {
    fn name(&self) -> &'static str {
        "xfs"
    }

    fn root(&self) -> &Path {
        &self.layout.root
    }

    fn create(&self, id: &str, limits: &Limits) -> Result<Writable, Error> {
        check(limits)?;
        let path = self.layout.sandbox(id)?;
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::Exists { id: id.to_owned(), path });
            }
            other => other.map_err(|source| Error::MakeDir { path: path.clone(), source })?,
        }
        self.fill(&path, limits).inspect_err(|_| {
            let _ = self.delete(&path);
        })
    }

    fn writable(&self, id: &str) -> Result<Writable, Error> {
        self.layout.writable(id)
    }

    fn set_limits(&self, id: &str, limits: &Limits) -> Result<(), Error> {
        check(limits)?;
        let (path, project, _) = self.account(id)?;
        self.set(project, limits).map_err(|source| Error::SetQuota { path, source })
    }

    fn release_tree(&self, id: &str) -> Result<PathBuf, Error> {
        self.set_limits(id, &Limits::default())?;
        let (path, project, _) = self.account(id)?;
        let Writable { upper, spool, mounts, .. } = layout::parts(path);
        tree::delete(&spool)?;
        tree::delete(&mounts)?;
        let dir = layout::open_dir(&upper)?;
        quota::set_project(dir.as_fd(), project, false)
            .map_err(|source| Error::SetQuota { path: upper.clone(), source })?;
        Ok(upper)
    }

    fn remove(&self, id: &str) -> Result<(), Error> {
        self.layout.discard(id)
    }

    fn list(&self) -> Result<Vec<String>, Error> {
        self.layout.list()
    }

    fn reap_trash(&self) -> Result<Reaped, Error> {
        self.layout.reap(|path| self.delete(path))
    }

    fn enforces(&self, what: Resource) -> bool {
        matches!(what, Resource::Bytes | Resource::Inodes)
    }

    fn usage(&self, id: &str) -> Result<Usage, Error> {
        let (_, _, account) = self.account(id)?;
        let inodes = Some(account.inodes.saturating_sub(OWN_INODES));
        Ok(Usage { bytes: account.bytes, inodes, counted: Counted::Project })
    }

    fn limit_hit(&self, id: &str) -> Result<Option<Full>, Error> {
        let (_, _, account) = self.account(id)?;
        let own = full(&account);
        if own.is_some() {
            return Ok(own);
        }
        // The reserve keeps sandboxes from being made, not those that are there from writing.
        let (_, free) = layout::space(&self.layout.root)?;
        Ok((free < UNIT).then_some(Full::Pool { free }))
    }

    fn capacity(&self) -> Result<Capacity, Error> {
        let (total, free) = layout::space(&self.layout.root)?;
        Ok(Capacity::beside(self.reserve, total, free))
    }

    fn health(&self) -> Result<(), Error> {
        health::writable(&self.layout)
    }

    fn describe(&self) -> String {
        format!("directories with project quotas on the xfs of {}", self.layout.root.display())
    }
}

fn is_ours(project: u32) -> bool {
    (FIRST_PROJECT..FIRST_PROJECT + PROJECTS).contains(&project)
}

fn says_no_quota(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let no = [Errno::NOSYS, Errno::OPNOTSUPP, Errno::SRCH, Errno::INVAL, Errno::NOTTY];
    no.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn check(limits: &Limits) -> Result<(), Error> {
    layout::check_least(limits, LEAST_BYTES)?;
    match limits.bytes.filter(|bytes| bytes % UNIT != 0) {
        Some(limit) => Err(Error::LimitUnit { engine: "xfs", limit, unit: UNIT }),
        None => Ok(()),
    }
}

/// XFS allocates ahead of what is written and takes a little for that from the account, so the last few blocks before
/// the limit may not be had.
const NEARLY: u64 = 64 << 10;

fn full(account: &quota::Project) -> Option<Full> {
    if account.max_inodes != 0 && account.inodes >= account.max_inodes {
        let (used, limit) = (account.inodes, account.max_inodes);
        return Some(Full::Inodes {
            used: used.saturating_sub(OWN_INODES),
            limit: limit.saturating_sub(OWN_INODES),
        });
    }
    (account.max_bytes != 0 && account.bytes.saturating_add(NEARLY) >= account.max_bytes)
        .then_some(Full::Bytes { used: account.bytes, limit: account.max_bytes })
}

/// Where to begin picking. Any number will do: what is taken is skipped.
fn seed() -> u32 {
    let mut bytes = [0; 4];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(4) => u32::from_ne_bytes(bytes),
        _ => std::process::id().wrapping_mul(2_654_435_761),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_never_rounded() {
        let limits = |bytes| Limits { bytes: Some(bytes), inodes: None };
        assert!(check(&limits(1 << 20)).is_ok());
        assert!(matches!(check(&limits((1 << 20) + 1)), Err(Error::LimitUnit { unit: 4096, .. })));
        assert!(matches!(check(&limits(0)), Err(Error::LimitTooSmall { .. })));
        let none = Limits { bytes: None, inodes: Some(0) };
        assert!(matches!(check(&none), Err(Error::LimitTooSmall { what: Resource::Inodes, .. })));
    }

    #[test]
    fn fullness_is_told_by_kind() {
        let account = |bytes, inodes| quota::Project { bytes, inodes, max_bytes: 1 << 20, max_inodes: 15 };
        assert_eq!(full(&account(0, 14)), None);
        assert_eq!(full(&account(0, 15)), Some(Full::Inodes { used: 10, limit: 10 }));
        assert_eq!(full(&account(1 << 20, 5)), Some(Full::Bytes { used: 1 << 20, limit: 1 << 20 }));
        let unlimited = quota::Project { bytes: u64::MAX, inodes: u64::MAX, ..quota::Project::default() };
        assert_eq!(full(&unlimited), None);
    }

    #[test]
    fn projects_of_others_are_left_alone() {
        assert!(!is_ours(0) && !is_ours(FIRST_PROJECT - 1) && !is_ours(FIRST_PROJECT + PROJECTS));
        assert!(is_ours(FIRST_PROJECT) && is_ours(FIRST_PROJECT + PROJECTS - 1));
    }
}
