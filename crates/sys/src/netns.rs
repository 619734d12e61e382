//! Network namespaces that live only as long as a descriptor of them: made on a thread that is thrown away, never
//! bound to a path.
//!
//! unshare(2) moves only the calling thread (a namespace belongs to a task, not to a process), so a short-lived thread
//! keeps the caller's own namespace out of it whatever fails in between.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::thread;

use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// Makes a network namespace and runs `inside` in it, on a thread of its own.
///
/// The namespace lives while the descriptor, a socket opened in it or a task in it lives. Sockets that `inside`
/// returns stay in the namespace, whichever thread uses them.
///
/// unshare(2) with `CLONE_NEWNET` (Linux 2.6.24); /proc/thread-self (Linux 3.17).
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_ADMIN`, `ENOSPC` at the limit of namespaces (`user.max_net_namespaces`), and whatever
/// `inside` returns.
pub fn create<T: Send>(inside: impl FnOnce() -> io::Result<T> + Send) -> io::Result<(OwnedFd, T)> {
    on_new_thread(|| {
        unshare_network()?;
        let netns = File::open("/proc/thread-self/ns/net")?;
        let value = inside()?;
        Ok((OwnedFd::from(netns), value))
    })
}

/// Runs `inside` in the network namespace `netns`, on a thread of its own. Threads and processes that it starts are in
/// that namespace too.
///
/// setns(2) (Linux 3.0).
///
/// # Errors
///
/// `EINVAL` when `netns` is not a network namespace, `EPERM` without `CAP_SYS_ADMIN`, and whatever `inside` returns.
pub fn run_in<T: Send>(
    netns: BorrowedFd<'_>,
    inside: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    on_new_thread(|| {
        rustix::thread::move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
        inside()
    })
}

fn unshare_network() -> io::Result<()> {
    #[allow(unsafe_code)]
    // SAFETY: unshare(2) is unsafe for `CLONE_FILES` only, which is not among the flags.
    unsafe {
        rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)?;
    }
    Ok(())
}

fn on_new_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("berth-netns".to_owned()).spawn_scoped(scope, work)?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn own_namespace() -> io::Result<std::path::PathBuf> {
        std::fs::read_link("/proc/thread-self/ns/net")
    }

    #[test]
    fn a_new_namespace_is_another_one_and_leaves_the_caller_where_it_was() {
        let before = own_namespace().unwrap();
        let made = create(own_namespace);
        if let Err(error) = &made
            && error.kind() == io::ErrorKind::PermissionDenied
        {
            println!("SKIP: making a network namespace needs CAP_SYS_ADMIN");
            return;
        }
        let (netns, inside) = made.unwrap();
        assert_ne!(inside, before);
        assert_eq!(own_namespace().unwrap(), before);
        assert_eq!(run_in(netns.as_fd(), own_namespace).unwrap(), inside);
    }

    #[test]
    fn a_descriptor_of_something_else_is_refused() {
        let file = File::open("/dev/null").unwrap();
        assert!(run_in(file.as_fd(), || Ok(())).is_err());
    }
}
