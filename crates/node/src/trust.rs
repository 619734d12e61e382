//! Certificates that a company's network wants trusted beside the public ones: `ca_bundle` of the configuration.
//!
//! A machine whose network intercepts TLS has a certificate of its own authority. With `ca_bundle` builds and sandboxes
//! find, at [`PATH`], the certificates that this machine trusts and those of the bundle in one file, read only, and variables
//! that tell the usual tools of it, each where neither image nor request sets it. The file is a mount: it is part of no layer,
//! no image config and no key, and an image that was built with it knows nothing of it.
//!
//! It is off by default, and never half on: a bundle that cannot be read or holds no certificate keeps the daemon from
//! starting.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_sandbox::Bind;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Where builds and sandboxes find it.
pub(crate) const PATH: &str = "/run/berth/ca-bundle.pem";

/// Variables that name it: OpenSSL, curl, Python's requests and pip, Node.js, git, cargo, the AWS tools.
const VARIABLES: [&str; 8] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
];

/// Where distributions keep the certificates that they trust, the first that is there counts: Debian and Alpine, Fedora,
/// openSUSE, Alpine again.
const ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Longest bundle that is read, in bytes: some forty times all public authorities together.
const MAX_BUNDLE: u64 = 10 << 20;

/// A bundle of certificates cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It cannot be read.
    #[error("cannot read the certificates in {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is no PEM.
    #[error("{path} is not PEM")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// One of its certificates is none.
    #[error("certificate {number} in {path} is none")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Which one, from 1.
        number: usize,
        /// What is wrong with it.
        #[source]
        source: rustls::Error,
    },
    /// There is none in it.
    #[error("{path} holds no certificate")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The merged file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// It.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What one kind of sandbox is to trust; nothing special by default.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trust(Option<Arc<PathBuf>>);

impl Trust {
    /// Offers the certificates in `bundle`, merged with the machine's in `dir`/`name`.pem; nothing without one.
    pub(crate) fn of(bundle: Option<&Path>, dir: &Path, name: &str) -> Result<Trust, BundleError> {
        let Some(bundle) = bundle else { return Ok(Trust::default()) };
        let extra = read(bundle)?;
        check(bundle, &extra)?;
        let roots = machine_roots();
        if roots.is_none() {
            tracing::warn!(
                "this machine has no certificates of public authorities: {} is all there is",
                bundle.display()
            );
        }
        let path = dir.join(format!("{name}.pem"));
        write(dir, &path, &merged(roots, &extra))
            .map_err(|source| BundleError::Write { path: path.clone(), source })?;
        Ok(Trust(Some(Arc::new(path))))
    }

    /// The merged file on this machine.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        self.0.as_ref().map(|path| path.to_path_buf())
    }

    /// The file's mount.
    pub(crate) fn bind(&self) -> Option<Bind> {
        let source = self.0.as_ref()?.as_path().to_owned();
        Some(Bind { source, target: PATH.into(), read_only: true })
    }

    /// An environment without what [`Trust::add_to`] added.
    pub(crate) fn without(&self, env: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let is_ours = |name: &str, value: &str| VARIABLES.contains(&name) && value == PATH;
        let others = env.iter().filter(|(name, value)| !is_ours(name, value));
        others.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// Tells tools of it, where they are not told something else.
    pub(crate) fn add_to(&self, env: &mut BTreeMap<String, String>) {
        if self.0.is_none() {
            return;
        }
        for name in VARIABLES {
            env.entry(name.to_owned()).or_insert_with(|| PATH.to_owned());
        }
    }
}

/// What builds trust, and what sandboxes do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trusts {
    pub(crate) builds: Trust,
    pub(crate) sandboxes: Trust,
}

impl Trusts {
    pub(crate) fn of(
        builds: Option<&Path>,
        sandboxes: Option<&Path>,
        data_dir: &Path,
    ) -> Result<Trusts, BundleError> {
        let dir = data_dir.join("ca");
        let builds = Trust::of(builds, &dir, "builds")?;
        Ok(Trusts { builds, sandboxes: Trust::of(sandboxes, &dir, "sandboxes")? })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, BundleError> {
    let failed = |source| BundleError::Read { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > MAX_BUNDLE {
        let problem = format!("it has {length} bytes, more than {MAX_BUNDLE}");
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, problem)));
    }
    std::fs::read(path).map_err(failed)
}

/// A certificate that tools would stumble over is better named now.
fn check(path: &Path, pem: &[u8]) -> Result<(), BundleError> {
    let mut store = RootCertStore::empty();
    let mut number = 0;
    for found in CertificateDer::pem_slice_iter(pem) {
        let found = found.map_err(|source| BundleError::Pem { path: path.to_owned(), source })?;
        number += 1;
        store.add(found).map_err(|source| BundleError::Certificate {
            path: path.to_owned(),
            number,
            source,
        })?;
    }
    if number == 0 { Err(BundleError::Empty { path: path.to_owned() }) } else { Ok(()) }
}

fn machine_roots() -> Option<Vec<u8>> {
    ROOTS.iter().find_map(|path| std::fs::read(path).ok().filter(|pem| !pem.is_empty()))
}

fn merged(roots: Option<Vec<u8>>, extra: &[u8]) -> Vec<u8> {
    let mut all = roots.unwrap_or_default();
    if all.last().is_some_and(|last| *last != b'\n') {
        all.push(b'\n');
    }
    all.extend_from_slice(extra);
    all
}

/// By another file that takes its name: sandboxes that have the old one keep it as it was.
fn write(dir: &Path, path: &Path, pem: &[u8]) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(pem)?;
    // Whoever a command runs as is to read it.
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o444))?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of an authority that was made for this, P-256, until 2126.
    const AUTHORITY: &str = include_str!("trust/authority.pem");

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle.pem");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn a_bundle_is_offered_with_the_machines_own() {
        let (dir, path) = file(AUTHORITY);
        let trust = Trust::of(Some(&path), &dir.path().join("ca"), "builds").unwrap();
        let bind = trust.bind().unwrap();
        assert!(bind.read_only && bind.target == Path::new(PATH));
        let offered = std::fs::read_to_string(&bind.source).unwrap();
        assert!(offered.ends_with(AUTHORITY));
        if let Some(roots) = machine_roots() {
            assert!(offered.as_bytes().starts_with(&roots));
        }
        assert_eq!(std::fs::metadata(&bind.source).unwrap().permissions().mode() & 0o777, 0o444);
        let mut env = BTreeMap::from([("PIP_CERT".to_owned(), "/own".to_owned())]);
        trust.add_to(&mut env);
        assert_eq!((env["PIP_CERT"].as_str(), env["SSL_CERT_FILE"].as_str()), ("/own", PATH));
        assert_eq!(env.len(), VARIABLES.len());
        assert_eq!(trust.without(&env), BTreeMap::from([("PIP_CERT".to_owned(), "/own".to_owned())]));
    }

    #[test]
    fn nothing_is_offered_without_one() {
        let trust = Trust::default();
        let mut env = BTreeMap::new();
        trust.add_to(&mut env);
        assert!(env.is_empty() && trust.bind().is_none());
    }

    #[test]
    fn what_is_no_bundle_is_refused_by_name() {
        let broken = AUTHORITY.replacen("MII", "AAA", 1);
        for (text, part) in [
            ("", "holds no certificate"),
            ("hello", "holds no certificate"),
            ("-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n", "is not PEM"),
            (broken.as_str(), "certificate 1 in"),
        ] {
            let (dir, path) = file(text);
            let error = Trust::of(Some(&path), dir.path(), "builds").unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("bundle.pem"), "{error}");
        }
        let error = Trust::of(Some(Path::new("/does/not/exist.pem")), Path::new("/tmp"), "x").unwrap_err();
        assert!(matches!(error, BundleError::Read { .. }), "{error}");
    }

    #[test]
    fn certificates_are_apart_though_the_first_file_lacks_its_last_line_end() {
        assert_eq!(merged(Some(b"one".to_vec()), b"two"), b"one\ntwo");
        assert_eq!(merged(None, b"two"), b"two");
    }
}
