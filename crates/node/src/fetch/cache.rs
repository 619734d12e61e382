//! Files that were fetched, by digest, and what is known of the URLs that they came from.
//!
//! ```text
//!   <dir>/files/<sha256>          the bytes
//!   <dir>/urls/<sha256 of URL>    JSON: digest, and what the server is to be asked by next time
//!   <dir>/tmp/                    what is being fetched, and names of files in use; cleared at every start
//! ```
//!
//! A file in use has a second name, so it may be removed here at any time. A URL whose file is gone is one that was never
//! fetched.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tempfile::{NamedTempFile, TempDir, TempPath};

/// Raised with every change of [`Known`]; an older one is no one.
const FORMAT: u32 = 1;
/// Longest description of a URL, in bytes; headers are shorter.
const MAX_KNOWN: u64 = 256 << 10;

/// What is known of a URL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Known {
    format: u32,
    /// SHA-256 of the bytes, in hex.
    pub(super) digest: String,
    /// How many bytes.
    pub(super) bytes: u64,
    /// `ETag`.
    pub(super) etag: Option<String>,
    /// `Last-Modified`.
    pub(super) modified: Option<String>,
    /// Name of the file as the server has it.
    pub(super) name: Option<String>,
}

impl Known {
    pub(super) fn new(
        digest: String,
        bytes: u64,
        etag: Option<String>,
        modified: Option<String>,
        name: Option<String>,
    ) -> Known {
        Known { format: FORMAT, digest, bytes, etag, modified, name }
    }
}

pub(super) struct Cache {
    files: PathBuf,
    urls: PathBuf,
    tmp: PathBuf,
    max_bytes: u64,
    /// Held while files are removed.
    sweeping: Mutex<()>,
}

impl Cache {
    pub(super) fn open(dir: &Path, max_bytes: u64) -> io::Result<Cache> {
        let [files, urls, tmp] = ["files", "urls", "tmp"].map(|name| dir.join(name));
        match fs::remove_dir_all(&tmp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        for dir in [&files, &urls, &tmp] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        Ok(Cache { files, urls, tmp, max_bytes, sweeping: Mutex::default() })
    }

    /// A new file to fetch into.
    pub(super) fn scratch(&self) -> io::Result<NamedTempFile> {
        tempfile::Builder::new().prefix("file-").tempfile_in(&self.tmp)
    }

    /// A new directory to fetch into.
    pub(super) fn scratch_dir(&self) -> io::Result<TempDir> {
        tempfile::Builder::new().prefix("tree-").tempdir_in(&self.tmp)
    }

    /// What is known of a URL whose file is here.
    pub(super) fn look(&self, url: &str) -> Option<Known> {
        let path = self.url(url);
        if fs::metadata(&path).ok()?.len() > MAX_KNOWN {
            return None;
        }
        // What cannot be read is fetched again, and written anew.
        let known: Known = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        let whole = fs::metadata(self.file(&known.digest)).is_ok_and(|file| file.len() == known.bytes);
        (known.format == FORMAT && is_hex(&known.digest) && whole).then_some(known)
    }

    /// A second name of a file, which is the caller's. `None` when it has been removed by now.
    pub(super) fn lend(&self, digest: &str) -> io::Result<Option<TempPath>> {
        let file = self.file(digest);
        let lent =
            tempfile::Builder::new().prefix("lent-").make_in(&self.tmp, |path| fs::hard_link(&file, path));
        match lent {
            Ok(lent) => {
                // By that the least used is told.
                let _ = fs::File::open(&file).and_then(|file| file.set_modified(SystemTime::now()));
                Ok(Some(lent.into_temp_path()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Keeps a file that was fetched whole, and makes room for it. It stays the caller's under its own name.
    pub(super) fn keep(&self, url: &str, path: &Path, known: &Known) -> io::Result<()> {
        if known.bytes > self.max_bytes {
            return Ok(());
        }
        let file = self.file(&known.digest);
        // In place of a damaged one, too.
        let link =
            tempfile::Builder::new().prefix("keep-").make_in(&self.tmp, |new| fs::hard_link(path, new))?;
        link.into_temp_path().persist(&file).map_err(|error| error.error)?;
        let mut written = tempfile::Builder::new().prefix("url-").tempfile_in(&self.tmp)?;
        written.write_all(&serde_json::to_vec(known)?)?;
        written.as_file().sync_all()?;
        written.persist(self.url(url)).map_err(|error| error.error)?;
        self.sweep()
    }

    /// Removes files, those not used for longest first, until the rest is within bounds.
    fn sweep(&self) -> io::Result<()> {
        let _alone = self.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.files)? {
            let entry = entry?;
            let facts = entry.metadata()?;
            files.push((facts.modified()?, facts.size(), entry.path()));
        }
        files.sort();
        let mut bytes: u64 = files.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in files {
            if bytes <= self.max_bytes {
                break;
            }
            fs::remove_file(path)?;
            bytes -= size;
        }
        // URLs whose files are gone: they are small, but there is no end of them.
        for entry in fs::read_dir(&self.urls)? {
            let path = entry?.path();
            let known: Option<Known> =
                fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
            if known.is_none_or(|known| !self.file(&known.digest).exists()) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn url(&self, url: &str) -> PathBuf {
        self.urls.join(hex(&Sha256::digest(url.as_bytes())))
    }

    fn file(&self, digest: &str) -> PathBuf {
        self.files.join(digest)
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(cache: &Cache, url: &str, text: &str) -> Known {
        let mut file = cache.scratch().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let known = Known::new(
            hex(&Sha256::digest(text.as_bytes())),
            text.len() as u64,
            Some("\"1\"".into()),
            None,
            None,
        );
        cache.keep(url, file.path(), &known).unwrap();
        known
    }

    #[test]
    fn what_is_kept_is_found_by_its_url_and_after_a_start() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 1000).unwrap();
        assert_eq!(cache.look("http://x/"), None);
        let known = add(&cache, "http://x/", "text");
        assert_eq!(cache.look("http://x/"), Some(known.clone()));
        assert_eq!(cache.look("http://x/?"), None);
        // What a daemon that was killed leaves.
        fs::write(dir.path().join("tmp/half-done"), "te").unwrap();
        let cache = Cache::open(dir.path(), 1000).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
        let lent = cache.lend(&known.digest).unwrap().unwrap();
        assert_eq!(fs::read_to_string(&lent).unwrap(), "text");
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first_and_what_is_in_use_stays_with_its_user() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 10).unwrap();
        let old = |known: &Known, seconds| {
            let file = fs::File::open(cache.file(&known.digest)).unwrap();
            file.set_modified(SystemTime::now() - std::time::Duration::from_secs(seconds)).unwrap();
        };
        let (one, two) = (add(&cache, "1", "1111"), add(&cache, "2", "2222"));
        old(&one, 100);
        old(&two, 50);
        let lent = cache.lend(&two.digest).unwrap().unwrap();
        old(&two, 200);
        add(&cache, "3", "3333");
        assert_eq!((cache.look("1").is_some(), cache.look("2").is_some()), (true, false));
        assert_eq!(fs::read_to_string(&lent).unwrap(), "2222");
        assert!(cache.lend(&two.digest).unwrap().is_none());
        assert_eq!(fs::read_dir(dir.path().join("urls")).unwrap().count(), 2);
        // What never fits is not kept, and throws nothing out.
        add(&cache, "4", "44444444444");
        assert_eq!((cache.look("4").is_some(), cache.look("1").is_some()), (false, true));
    }

    #[test]
    fn damaged_and_foreign_descriptions_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 1000).unwrap();
        let known = add(&cache, "u", "text");
        for text in [
            "",
            "{}",
            "[",
            r#"{"format":1,"digest":"../../x","bytes":4,"etag":null,"modified":null,"name":null}"#,
        ] {
            fs::write(cache.url("u"), text).unwrap();
            assert_eq!(cache.look("u"), None, "{text}");
        }
        add(&cache, "u", "text");
        fs::write(cache.file(&known.digest), "te").unwrap();
        assert_eq!(cache.look("u"), None, "it is shorter than it was");
    }
}
