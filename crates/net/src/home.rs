//! Where a thread belongs that goes into other network namespaces and comes back.
//!
//! A thread of its own for each visit would be simpler, as it could be thrown away; but on a busy machine whoever waits
//! for a new thread waits for its turn, each time.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use berth_sys::namespace::{Namespaces, unshare};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The network namespace that a thread goes back to.
///
/// A thread that cannot go back says so and stays where it is; what it does for the host it does through descriptors
/// that were opened there, so that it does nothing wrong meanwhile.
#[derive(Debug)]
pub(crate) struct Home(OwnedFd);

impl Home {
    /// Where the calling thread is.
    pub(crate) fn of_this_thread() -> io::Result<Self> {
        own_namespace().map(Self)
    }

    /// Makes a network namespace and calls `inside` in it.
    pub(crate) fn create<T>(&self, inside: impl FnOnce() -> T) -> io::Result<(OwnedFd, T)> {
        unshare(Namespaces::NETWORK)?;
        let made = own_namespace().map(|namespace| (namespace, inside()));
        self.go_back().and(made)
    }

    /// Calls `inside` in the network namespace `there`.
    pub(crate) fn visit<T>(&self, there: BorrowedFd<'_>, inside: impl FnOnce() -> T) -> io::Result<T> {
        enter(there)?;
        let value = inside();
        self.go_back().map(|()| value)
    }

    fn go_back(&self) -> io::Result<()> {
        enter(self.0.as_fd())
    }
}

fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?)
}

fn own_namespace() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> std::path::PathBuf {
        std::fs::read_link("/proc/thread-self/ns/net").unwrap()
    }

    #[test]
    fn a_thread_comes_back_from_every_visit() {
        let (home, before) = (Home::of_this_thread().unwrap(), place());
        let made = home.create(place);
        if made.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
            println!("SKIP: making a network namespace needs CAP_SYS_ADMIN");
            return;
        }
        let (there, inside) = made.unwrap();
        assert_ne!(inside, before);
        assert_eq!(place(), before);
        assert_eq!(home.visit(there.as_fd(), place).unwrap(), inside);
        assert_eq!(place(), before);
        let elsewhere = File::open("/dev/null").unwrap();
        assert!(home.visit(elsewhere.as_fd(), place).is_err());
        assert_eq!(place(), before);
    }
}
