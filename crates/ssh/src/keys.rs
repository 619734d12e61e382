//! The door's keys: what it is known by, who may come in, and a key for the owner of the machine.
//!
//! All are in one directory, in OpenSSH's formats, readable by their owner alone: `host_ed25519` and `client_ed25519`,
//! each with its `.pub`, and `authorized_keys`. That is read again at each attempt to come in, so a change counts at
//! once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use russh::keys::key::safe_rng;
use russh::keys::ssh_key::{self, LineEnding};
use russh::keys::{Algorithm, HashAlg, PrivateKey, PublicKey};

const HOST: &str = "host_ed25519";
const CLIENT: &str = "client_ed25519";
const AUTHORIZED: &str = "authorized_keys";

/// Longest file of keys that is read.
const MAX_LEN: u64 = 1 << 20;

/// The directory with the keys.
#[derive(Clone, Debug)]
pub struct Keys {
    dir: PathBuf,
}

/// A key that opens the door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizedKey {
    /// `SHA256:…`, as `ssh-keygen -l` shows it.
    pub fingerprint: String,
    /// `ssh-ed25519`, …
    pub algorithm: String,
    /// What its owner wrote beside it.
    pub comment: String,
}

/// Why keys could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or the directory.
    #[error("{operation} {path}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What is in a file is no key.
    #[error("{path} holds no key")]
    Key {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: ssh_key::Error,
    },
    /// A line of `authorized_keys` is not understood: options before a key are not supported either. Nobody is let in by
    /// such a file.
    #[error("line {line} of {path} is no public key, or one with options, which are not supported")]
    Line {
        /// The path.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// Why.
        #[source]
        source: ssh_key::Error,
    },
    /// What was to be added is no public key.
    #[error("this is no public key in OpenSSH's format")]
    PublicKey(#[source] ssh_key::Error),
    /// What was to be added is the half that stays with its owner.
    #[error("this is a private key; the public one is in the file beside it that ends in .pub")]
    Private,
    /// What was to be added is more than one line, or nothing.
    #[error("{lines} lines in place of one public key")]
    Lines {
        /// How many there are that are not empty.
        lines: usize,
    },
    /// Signatures by such a key cannot be checked.
    #[error("keys of the kind {algorithm} are not supported; ssh-ed25519, ecdsa-sha2-* and ssh-rsa are")]
    Algorithm {
        /// What it is.
        algorithm: String,
    },
    /// A key could not be made.
    #[error("make a key")]
    Make(#[source] ssh_key::Error),
}

impl Keys {
    /// The keys in `dir`, which is made when it is not there.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, Error> {
        let dir = dir.into();
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(|source| Error::File { operation: "make", path: dir.clone(), source })?;
        Ok(Self { dir })
    }

    /// The key that this machine is known by; made at first.
    ///
    /// # Errors
    /// [`Error`].
    pub fn host(&self) -> Result<PrivateKey, Error> {
        self.read_or_make(HOST, "berth")
    }

    /// The line for a client's `known_hosts`.
    ///
    /// # Errors
    /// As [`Keys::host`].
    pub fn known_hosts_line(&self, host: &str, port: u16) -> Result<String, Error> {
        let key = self.host()?;
        let public = PublicKey::new(key.public_key().key_data().clone(), "");
        let text = public.to_openssh().map_err(Error::Make)?;
        let host = if port == 22 { host.to_owned() } else { format!("[{host}]:{port}") };
        Ok(format!("{host} {}", text.trim_end()))
    }

    /// The path of a private key for the owner of the machine. It is made at first, and opens the door.
    ///
    /// # Errors
    /// [`Error`].
    pub fn client(&self) -> Result<PathBuf, Error> {
        let path = self.dir.join(CLIENT);
        // One that was taken out of the list stays out.
        if self.load(CLIENT)?.is_none() {
            let key = make("the owner of this machine")?;
            // First, or an end between the two would leave a key behind that seems to have been taken out.
            self.authorize(key.public_key())?;
            save(&path, &key)?;
        }
        Ok(path)
    }

    /// Whether the key for the owner of the machine is there and opens the door: it may have been taken out.
    ///
    /// # Errors
    /// As [`Keys::authorized`].
    pub fn client_may_enter(&self) -> Result<bool, Error> {
        self.load(CLIENT)?.map_or(Ok(false), |key| self.may_enter(key.public_key()))
    }

    /// Who may come in.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Line`].
    pub fn authorized(&self) -> Result<Vec<AuthorizedKey>, Error> {
        Ok(self.read_authorized()?.iter().map(describe).collect())
    }

    /// Lets in whoever has the other half of this public key, a line of OpenSSH's format. One that may come in already
    /// is no error.
    ///
    /// # Errors
    /// [`Error::PublicKey`], [`Error::Private`], [`Error::Lines`], [`Error::Algorithm`], and as [`Keys::authorized`].
    pub fn add(&self, line: &str) -> Result<AuthorizedKey, Error> {
        let key = parse(line)?;
        self.authorize(&key)?;
        Ok(describe(&key))
    }

    /// Lets the key of this fingerprint in no more. False when it is not in the list. Who is in already stays.
    ///
    /// # Errors
    /// As [`Keys::authorized`].
    pub fn remove(&self, fingerprint: &str) -> Result<bool, Error> {
        let mut keys = self.read_authorized()?;
        let before = keys.len();
        keys.retain(|key| describe(key).fingerprint != fingerprint);
        if keys.len() == before {
            return Ok(false);
        }
        self.write_authorized(&keys)?;
        Ok(true)
    }

    /// Whether this key opens the door.
    ///
    /// # Errors
    /// As [`Keys::authorized`].
    pub fn may_enter(&self, key: &PublicKey) -> Result<bool, Error> {
        Ok(self.read_authorized()?.iter().any(|known| known.key_data() == key.key_data()))
    }

    fn authorize(&self, key: &PublicKey) -> Result<(), Error> {
        let mut keys = self.read_authorized()?;
        if keys.iter().any(|known| known.key_data() == key.key_data()) {
            return Ok(());
        }
        keys.push(key.clone());
        self.write_authorized(&keys)
    }

    fn read_authorized(&self) -> Result<Vec<PublicKey>, Error> {
        let path = self.dir.join(AUTHORIZED);
        let text = match read(&path) {
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(Vec::new());
            }
            other => other?,
        };
        let mut keys = Vec::new();
        for (line, text) in (1..).zip(text.lines().map(str::trim)) {
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let key = PublicKey::from_openssh(text);
            keys.push(key.map_err(|source| Error::Line { path: path.clone(), line, source })?);
        }
        Ok(keys)
    }

    fn write_authorized(&self, keys: &[PublicKey]) -> Result<(), Error> {
        let path = self.dir.join(AUTHORIZED);
        let mut text = String::new();
        for key in keys {
            let line = key.to_openssh().map_err(|source| Error::Key { path: path.clone(), source })?;
            text.push_str(line.trim_end());
            text.push('\n');
        }
        write(&path, text.as_bytes())
    }

    fn read_or_make(&self, name: &str, comment: &str) -> Result<PrivateKey, Error> {
        if let Some(key) = self.load(name)? {
            return Ok(key);
        }
        let key = make(comment)?;
        save(&self.dir.join(name), &key)?;
        Ok(key)
    }

    /// Nothing where there is no such file.
    fn load(&self, name: &str) -> Result<Option<PrivateKey>, Error> {
        let path = self.dir.join(name);
        match read(&path) {
            Ok(text) => match PrivateKey::from_openssh(text.as_bytes()) {
                Ok(key) => Ok(Some(key)),
                Err(source) => Err(Error::Key { path, source }),
            },
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// One public key, of a kind that can open the door.
fn parse(text: &str) -> Result<PublicKey, Error> {
    if text.contains("PRIVATE KEY") {
        return Err(Error::Private);
    }
    let lines = text.lines().filter(|line| !line.trim().is_empty()).count();
    if lines != 1 {
        return Err(Error::Lines { lines });
    }
    let key = PublicKey::from_openssh(text.trim()).map_err(Error::PublicKey)?;
    match key.algorithm() {
        Algorithm::Ed25519 | Algorithm::Ecdsa { .. } | Algorithm::Rsa { .. } => Ok(key),
        other => Err(Error::Algorithm { algorithm: other.to_string() }),
    }
}

fn make(comment: &str) -> Result<PrivateKey, Error> {
    let mut key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).map_err(Error::Make)?;
    key.set_comment(comment);
    Ok(key)
}

fn save(path: &Path, key: &PrivateKey) -> Result<(), Error> {
    let private = key.to_openssh(LineEnding::LF).map_err(Error::Make)?;
    let public = key.public_key().to_openssh().map_err(Error::Make)?;
    write(&path.with_extension("pub"), format!("{}\n", public.trim_end()).as_bytes())?;
    // Last: with it the key is there.
    write(path, private.as_bytes())
}

fn describe(key: &PublicKey) -> AuthorizedKey {
    AuthorizedKey {
        fingerprint: key.fingerprint(HashAlg::Sha256).to_string(),
        algorithm: key.algorithm().to_string(),
        comment: key.comment().as_str_lossy().to_owned(),
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let failed = |source| Error::File { operation: "read", path: path.to_owned(), source };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    let len = file.take(MAX_LEN + 1).read_to_string(&mut text).map_err(failed)?;
    if len as u64 > MAX_LEN { Err(failed(io::ErrorKind::FileTooLarge.into())) } else { Ok(text) }
}

/// Replaces a file as a whole, for its owner alone.
fn write(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let failed = |source| Error::File { operation: "write", path: path.to_owned(), source };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let _ = fs::remove_file(&temporary);
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(failed)?;
    file.write_all(contents).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_made_once_and_for_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(dir.path().join("ssh")).unwrap();
        let host = keys.host().unwrap();
        let client = keys.client().unwrap();
        assert_eq!(keys.host().unwrap(), host);
        assert_eq!(keys.client().unwrap(), client);
        assert!(keys.client_may_enter().unwrap());
        for entry in fs::read_dir(dir.path().join("ssh")).unwrap() {
            let mode = entry.as_ref().unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{entry:?}");
        }
        let listed = keys.authorized().unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(
            (&*listed[0].algorithm, &*listed[0].comment),
            ("ssh-ed25519", "the owner of this machine")
        );
        let line = keys.known_hosts_line("localhost", 2200).unwrap();
        assert!(line.starts_with("[localhost]:2200 ssh-ed25519 AAAA"), "{line}");
    }

    #[test]
    fn keys_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(dir.path()).unwrap();
        let other = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap();
        assert!(!keys.may_enter(other.public_key()).unwrap());
        let line = other.public_key().to_openssh().unwrap();
        let added = keys.add(&line).unwrap();
        assert_eq!(keys.add(&format!("{line} again\n")).unwrap().fingerprint, added.fingerprint);
        assert_eq!(keys.authorized().unwrap().len(), 1);
        assert!(keys.may_enter(other.public_key()).unwrap());
        // One that was taken out stays out, also when the owner's is asked for again.
        keys.client().unwrap();
        let owners = keys.authorized().unwrap().pop().unwrap();
        assert!(keys.remove(&owners.fingerprint).unwrap());
        assert!(!keys.remove(&owners.fingerprint).unwrap());
        keys.client().unwrap();
        assert_eq!(keys.authorized().unwrap(), [added]);
        assert!(!keys.client_may_enter().unwrap());
    }

    #[test]
    fn what_is_no_public_key_is_told_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(dir.path()).unwrap();
        let other = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap();
        let line = other.public_key().to_openssh().unwrap();
        assert!(matches!(keys.add("ssh-ed25519 nonsense"), Err(Error::PublicKey(_))));
        assert!(matches!(keys.add(&format!("restrict {line}")), Err(Error::PublicKey(_))));
        assert!(matches!(keys.add(" \n"), Err(Error::Lines { lines: 0 })));
        assert!(matches!(keys.add(&format!("{line}\n{line}")), Err(Error::Lines { lines: 2 })));
        let private = other.to_openssh(LineEnding::LF).unwrap();
        assert!(matches!(keys.add(&private), Err(Error::Private)));
        // Of a key on a token, made up: its point is any that is valid.
        let Some(point) = other.public_key().key_data().ed25519() else { panic!("an Ed25519 key") };
        let data = ssh_key::public::KeyData::SkEd25519(ssh_key::public::SkEd25519::new(*point, "ssh:"));
        let token = PublicKey::new(data, "").to_openssh().unwrap();
        assert!(matches!(keys.add(&token), Err(Error::Algorithm { .. })), "{token}");
        assert_eq!(keys.authorized().unwrap(), []);
    }

    #[test]
    fn a_list_that_is_not_understood_lets_nobody_in() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(dir.path()).unwrap();
        let other = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap();
        let line = other.public_key().to_openssh().unwrap();
        let list = |text: String| fs::write(dir.path().join(AUTHORIZED), text).unwrap();
        list(format!("# mine\n\n{line}\n"));
        assert!(keys.may_enter(other.public_key()).unwrap());
        list(format!("{line}\nfrom=\"10.0.0.1\" {line}\n"));
        assert!(matches!(keys.may_enter(other.public_key()), Err(Error::Line { line: 2, .. })));
        list(format!("{line}\nrubbish\n"));
        assert!(matches!(keys.may_enter(other.public_key()), Err(Error::Line { line: 2, .. })));
    }
}
