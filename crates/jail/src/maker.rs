//! The launcher process's side of [`crate::Launcher::make_namespaces`].
//!
//! A namespace of users comes with a process in it, and its map is written by one outside. So a copy of this process
//! enters it, waits until its namespaces are open here, and ends: nothing but the two descriptors stays.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_sys::namespace::{Namespaces, unshare};
use berth_sys::process::{Clone, clone_child, count_as, end_now};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Resource, Rlimit, WaitId, WaitIdOptions, getrlimit, setrlimit, waitid};

use crate::ids::{IdRange, NamespacePair};
use crate::perform::{At, Failure};

/// Length of what the copy says: an errno, 0 for none.
const ANSWER_LEN: usize = 4;
/// Limits whose height at the birth of a user namespace bounds the sum over all users in it, who would each have as
/// much on a host. The limits of each process hold all the same.
const SHARED_LIMITS: [Resource; 3] = [Resource::Memlock, Resource::Sigpending, Resource::Msgqueue];

/// Makes the pair. Whatever happens, the copy is gone and reaped afterwards.
pub(crate) fn make(ids: IdRange) -> Result<NamespacePair, Failure> {
    let what = format!("ids {ids}");
    let (answer, answer_writer) = pipe_with(PipeFlags::CLOEXEC).at("make namespaces for", &what)?;
    let (hold, hold_writer) = pipe_with(PipeFlags::CLOEXEC).at("make namespaces for", &what)?;
    match clone_child(Namespaces::empty()).at("make namespaces for", &what)? {
        Clone::Child => {
            drop((answer, hold_writer));
            live(ids, &answer_writer, &hold)
        }
        Clone::Parent { pid, pidfd } => {
            drop((answer_writer, hold));
            let pair =
                await_answer(&answer).at("make namespaces for", &what).and_then(|()| furnish(pid, ids));
            // End-of-file is what ends it.
            drop(hold_writer);
            reap(&pidfd).at("see the end of the process that made namespaces for", &what)?;
            pair
        }
    }
}

/// The copy's life.
fn live(ids: IdRange, answer: &OwnedFd, hold: &OwnedFd) -> ! {
    SHARED_LIMITS.into_iter().for_each(raise);
    // As nobody but this sandbox's root: what is used in a user namespace (inotify instances, locked memory) counts for
    // who made it too, and as the host's root's one sandbox could use up what all others and the host need.
    let made = count_as(ids.first).and_then(|()| unshare(Namespaces::USER | Namespaces::NETWORK));
    let errno = made.err().map_or(0, |error| error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()));
    if rustix::io::write(answer, &errno.to_ne_bytes()).is_ok() {
        while rustix::io::read(hold, &mut [0; 1]) == Err(Errno::INTR) {}
    }
    end_now(0)
}

/// As far as it goes.
fn raise(resource: Resource) {
    if setrlimit(resource, Rlimit { current: None, maximum: None }).is_err() {
        let maximum = getrlimit(resource).maximum;
        let _ = setrlimit(resource, Rlimit { current: maximum, maximum });
    }
}

fn await_answer(answer: &OwnedFd) -> io::Result<()> {
    let mut bytes = [0; ANSWER_LEN];
    let len = loop {
        match rustix::io::read(answer, &mut bytes) {
            Err(Errno::INTR) => {}
            len => break len?,
        }
    };
    match (len, i32::from_ne_bytes(bytes)) {
        (ANSWER_LEN, 0) => Ok(()),
        (ANSWER_LEN, errno) => Err(io::Error::from_raw_os_error(errno)),
        // Killed, or it could not even write.
        _ => Err(Errno::SRCH.into()),
    }
}

/// Maps the ids and opens what the copy is in.
fn furnish(pid: i32, ids: IdRange) -> Result<NamespacePair, Failure> {
    let of_copy = PathBuf::from(format!("/proc/{pid}"));
    let map = format!("0 {} {}\n", ids.first, ids.count);
    for file in ["uid_map", "gid_map"] {
        let path = of_copy.join(file);
        std::fs::write(&path, &map).at(&format!("map ids {ids} in"), &path)?;
    }
    Ok(NamespacePair { user: open(&of_copy.join("ns/user"))?, net: open(&of_copy.join("ns/net"))? })
}

fn open(path: &Path) -> Result<OwnedFd, Failure> {
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .at("open the namespace", path)
}

fn reap(pidfd: &OwnedFd) -> io::Result<()> {
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            answer => return answer.map(drop).map_err(io::Error::from),
        }
    }
}
