//! The sockets by which another daemon reaches the guests of an earlier one: one a sandbox, in a directory for root
//! alone, outside of all that a sandbox can see.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use tokio::net::UnixStream;

/// What the name of each ends with.
const SUFFIX: &str = ".sock";

/// The directory. Sockets in it are named by way of its descriptor: a path of a socket has at most 107 bytes, and that of
/// a data directory may have more.
pub(crate) struct Sockets {
    path: PathBuf,
    dir: Arc<OwnedFd>,
}

/// One of them, by name.
#[derive(Clone)]
pub(crate) struct Socket {
    dir: Arc<OwnedFd>,
    name: String,
}

impl Sockets {
    /// Opens the directory, and makes it where it is not there.
    pub(crate) fn open(path: &Path) -> io::Result<Sockets> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o700))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        Ok(Sockets { path: path.to_owned(), dir: Arc::new(dir) })
    }

    /// The directory's path, for people.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// That of a sandbox, whether it is there or not.
    pub(crate) fn of(&self, id: &str) -> Socket {
        Socket { dir: self.dir.clone(), name: format!("{id}{SUFFIX}") }
    }

    /// Removes what is not a socket of these sandboxes.
    pub(crate) fn remove_others(&self, keep: &[&str]) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            if id.is_none_or(|id| !keep.contains(&id)) {
                remove(&self.dir, name)?;
            }
        }
        Ok(())
    }
}

impl Socket {
    /// Makes it, ready for streams to come.
    pub(crate) fn listen(&self) -> io::Result<OwnedFd> {
        self.remove()?;
        Ok(UnixListener::bind(self.path())?.into())
    }

    /// A stream to whoever listens.
    pub(crate) async fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(self.path()).await
    }

    /// Takes its name away. All right when it has none.
    pub(crate) fn remove(&self) -> io::Result<()> {
        remove(&self.dir, &self.name)
    }

    /// Its name, for people.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn path(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.dir.as_raw_fd().to_string()).join(&self.name)
    }
}

fn remove(dir: &OwnedFd, name: impl rustix::path::Arg) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_works_however_long_its_path_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x".repeat(200));
        let sockets = Sockets::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let socket = sockets.of("a");
        let listener = UnixListener::from(socket.listen().unwrap());
        socket.connect().await.unwrap();
        listener.accept().unwrap();
        // One of an earlier bearer of the id is in nobody's way.
        drop(listener);
        assert!(socket.connect().await.is_err());
        let _listener = socket.listen().unwrap();
        socket.connect().await.unwrap();
        socket.remove().unwrap();
        socket.remove().unwrap();
        assert_eq!(socket.connect().await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn only_sockets_of_those_who_live_stay() {
        let dir = tempfile::tempdir().unwrap();
        let sockets = Sockets::open(dir.path()).unwrap();
        let _listening = ["a", "b"].map(|id| sockets.of(id).listen().unwrap());
        std::fs::write(dir.path().join("a"), "").unwrap();
        sockets.remove_others(&["a"]).unwrap();
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["a.sock"]);
    }
}
