//! Where caches are on disk.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::Attributes;
use super::choose::Key;

const DIR: &str = "build-caches";
const NEW: &str = "new-";
const GONE: &str = "gone-";
const DATA: &str = "data";
const ABOUT: &str = "about.json";

/// Version of [`About`] on disk.
const VERSION: u32 = 1;

/// Longest [`About`] that is read, in bytes: an id is a word of a Dockerfile.
const MAX_ABOUT: u64 = 1 << 20;

/// The directory of a cache cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The file system refused something.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The daemon ends.
    #[error("the daemon is ending")]
    Ending,
}

impl Error {
    /// Whether there was no room for it.
    pub(super) fn is_full(&self) -> bool {
        let Error::Io { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { operation, path: path.to_owned(), source }
}

/// What is written down of a cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct About {
    version: u32,
    pub(super) id: String,
    /// Seconds since the epoch.
    pub(super) created: i64,
    /// Seconds since the epoch.
    pub(super) used: i64,
    pub(super) bytes: u64,
}

impl About {
    pub(super) fn new(key: &Key, now: i64) -> About {
        About { version: VERSION, id: key.id.clone(), created: now, used: now, bytes: 0 }
    }
}

/// The directory of all caches.
pub(super) struct Place {
    root: PathBuf,
}

impl Place {
    pub(super) fn open(root: &Path) -> Result<Place, Error> {
        let root = root.join(DIR);
        // For root alone: files of any owner and mode are below, set-user-id programs among them.
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&root);
        made.map_err(failed("make the directory", &root))?;
        Ok(Place { root })
    }

    /// What is there. What is half-made, half-gone or cannot be read goes.
    pub(super) fn read(&self) -> Result<Vec<(Key, About)>, Error> {
        let mut found = Vec::new();
        for name in names(&self.root)? {
            let path = self.root.join(&name);
            if name.starts_with(NEW) || name.starts_with(GONE) {
                Place::delete(&path);
                continue;
            }
            for number in names(&path)? {
                let path = path.join(&number);
                match self.known(&path, &number) {
                    Some(known) => found.push(known),
                    None => self.drop_unknown(&path),
                }
            }
        }
        Ok(found)
    }

    fn known(&self, path: &Path, number: &str) -> Option<(Key, About)> {
        let about = read_about(path)?;
        let key = Key { id: about.id.clone(), number: number.parse().ok()? };
        (self.path(&key) == path).then_some((key, about))
    }

    fn drop_unknown(&self, path: &Path) {
        tracing::warn!(path = %path.display(), "a cache of builds says not what it is, and is removed");
        let gone = self.gone_path();
        match fs::rename(path, &gone) {
            Ok(()) => Place::delete(&gone),
            // Where there is no room to move anything there still is to delete.
            Err(_) => Place::delete(path),
        }
    }

    /// Where the one of that key is.
    pub(super) fn path(&self, key: &Key) -> PathBuf {
        // An id may have slashes, and be longer than a name can be.
        let digest = Sha256::digest(key.id.as_bytes());
        let name: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        self.root.join(name).join(key.number.to_string())
    }

    /// What a step sees of the one at `path`.
    pub(super) fn data(path: &Path) -> PathBuf {
        path.join(DATA)
    }

    /// Where one is made.
    pub(super) fn new_path(&self) -> PathBuf {
        self.root.join(format!("{NEW}{}", Uuid::now_v7().simple()))
    }

    fn gone_path(&self) -> PathBuf {
        self.root.join(format!("{GONE}{}", Uuid::now_v7().simple()))
    }

    /// Makes an empty one.
    pub(super) fn make(new: &Path, attributes: Attributes) -> Result<(), Error> {
        let data = Place::data(new);
        let make = || {
            fs::DirBuilder::new().mode(0o700).create(new)?;
            fs::create_dir(&data)?;
            // Owner first: that takes set-id bits away.
            std::os::unix::fs::chown(&data, Some(attributes.uid), Some(attributes.gid))?;
            fs::set_permissions(&data, fs::Permissions::from_mode(attributes.mode & 0o7777))
        };
        make().map_err(failed("make the cache", new))
    }

    /// Gives a new one its name.
    pub(super) fn name(&self, new: &Path, key: &Key, about: &About) -> Result<(), Error> {
        write_about(new, about)?;
        let path = self.path(key);
        let parent = path.parent().unwrap_or(&self.root);
        let rename = || match fs::create_dir(parent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => fs::rename(new, &path),
        };
        // The last other one of its id may go, with their directory, at this moment.
        let named = rename().or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => rename(),
            _ => Err(error),
        });
        named.map_err(failed("give its name to the cache", &path))
    }

    pub(super) fn write(&self, key: &Key, about: &About) -> Result<(), Error> {
        write_about(&self.path(key), about)
    }

    /// Bytes on disk.
    pub(super) fn measure(&self, key: &Key) -> Result<u64, berth_disk::Error> {
        berth_disk::walk_usage(&self.path(key)).map(|usage| usage.bytes)
    }

    /// Moves one to where it waits to be deleted.
    pub(super) fn set_aside(&self, key: &Key) -> Result<PathBuf, Error> {
        let (path, gone) = (self.path(key), self.gone_path());
        fs::rename(&path, &gone).map_err(failed("set aside the cache", &path))?;
        // The last of its id; otherwise this fails, and that is well.
        let _ = path.parent().map(fs::remove_dir);
        Ok(gone)
    }

    /// Deletes one where it is. Nobody may find it meanwhile; a daemon that ends half-way leaves one that says not what it
    /// is.
    ///
    /// # Errors
    /// When the file system refuses: all of it is there still.
    pub(super) fn delete_in_place(&self, key: &Key) -> Result<(), Error> {
        let path = self.path(key);
        match fs::remove_file(path.join(ABOUT)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove the cache", &path)(source));
            }
            _ => Place::delete(&path),
        }
        let _ = path.parent().map(fs::remove_dir);
        Ok(())
    }

    /// Deletes one that has no name (any more). Takes as long as there are files.
    pub(super) fn delete(path: &Path) {
        if let Err(error) = berth_disk::delete_tree(path) {
            let error = crate::error::chain(&error);
            tracing::warn!(error, "what a cache of builds held stays until the next start");
        }
    }
}

fn read_about(dir: &Path) -> Option<About> {
    let mut text = Vec::new();
    fs::File::open(dir.join(ABOUT)).ok()?.take(MAX_ABOUT).read_to_end(&mut text).ok()?;
    let about: About = serde_json::from_slice(&text).ok()?;
    (about.version == VERSION).then_some(about)
}

/// As a whole or not at all. It is no loss when the machine goes down before it is on disk: what cannot be read is a cache
/// that is made anew.
fn write_about(dir: &Path, about: &About) -> Result<(), Error> {
    let (path, new) = (dir.join(ABOUT), dir.join(format!(".{}", Uuid::now_v7().simple())));
    let write = || {
        fs::write(&new, serde_json::to_vec(about)?)?;
        fs::rename(&new, &path)
    };
    write().map_err(failed("write", &path))
}

/// Names in a directory of our own.
fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed("read the directory", dir))? {
        let entry = entry.map_err(failed("read the directory", dir))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}
