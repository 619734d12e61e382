//! Base images from a Debian mirror, for machines that reach no registry.
//!
//! `mmdebstrap` does it in a third of `debootstrap`'s time and is taken where both are there. Either runs in mount and process
//! namespaces of its own, so that whatever it mounts and starts ends with it, also when the caller goes away.
//!
//! The image is Debian's `minbase`: essential packages and apt. Unlike in the official images documentation stays, and
//! package lists and caches are removed as in them. `/etc/apt/sources.list` names the mirror that was used.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use berth_types::error::Kind;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;

use crate::apt_sources::{KNOWN_SUITES, Mirror, machine_mirror};
use crate::digest::Hashing;
use crate::error::Error;
use crate::image::Image;
use crate::images::{Images, complete_config};
use crate::import::import_rootfs;
use crate::ingest::take_stock;
use crate::layer::pack::{Tidy, pack};
use crate::progress::{Reporter, say};
use crate::reference::{Reference, Version};
use crate::store::{Store, StoreError};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const PATH_ENV: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Says that an image was made here.
const LABEL: &str = "berth.bootstrap";
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);
/// Lines of the tool's output that an error carries.
const TAIL: usize = 20;

/// What to make.
#[derive(Clone, Debug)]
pub struct BootstrapOptions {
    /// `debian:SUITE`; also the reference of the result.
    pub reference: String,
    /// Mirror URL; the one of the machine's own apt configuration when absent.
    pub mirror: Option<String>,
    /// Further packages to install.
    pub packages: Vec<String>,
}

/// Why there is no image from a mirror.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The reference is for something else than Debian.
    #[error("{reference} cannot be bootstrapped: only debian:SUITE can, for example debian:bookworm")]
    NotDebian {
        /// The reference.
        reference: String,
    },
    /// The machine's own apt configuration names no Debian mirror.
    #[error("no Debian mirror is known: the machine's apt configuration names none, and none was given")]
    NoMirror,
    /// The mirror is not a URL that can be put in an image.
    #[error(
        "{mirror:?} cannot be a mirror: expected an http:// or https:// URL without user and password, which would end up in the image"
    )]
    BadMirror {
        /// As given.
        mirror: String,
    },
    /// Something that is no package name.
    #[error("{package:?} is not the name of a Debian package")]
    BadPackage {
        /// As given.
        package: String,
    },
    /// The mirror does not have the suite.
    #[error("the mirror has no suite {suite:?}; of those known here it has {}", if available.is_empty() { "none".to_owned() } else { available.join(", ") })]
    UnknownSuite {
        /// The suite.
        suite: String,
        /// Suites that it has, of those that Berth knows by name.
        available: Vec<String>,
    },
    /// The mirror does not answer.
    #[error("the Debian mirror {mirror} cannot be reached")]
    MirrorAway {
        /// Its URL.
        mirror: String,
        /// Cause.
        #[source]
        source: reqwest::Error,
    },
    /// The mirror answers strangely.
    #[error("the Debian mirror answered HTTP status {status} for {url}")]
    MirrorStatus {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
    },
    /// Neither tool is installed.
    #[error("neither mmdebstrap nor debootstrap is installed")]
    NoTool,
    /// The keys that sign Debian are missing.
    #[error("the keys that Debian is signed with are missing: {path}")]
    NoKeyring {
        /// Where they should be.
        path: PathBuf,
    },
    /// The tool could not be started.
    #[error("cannot run {tool}")]
    Run {
        /// Its name.
        tool: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The tool failed.
    #[error("{tool} failed ({status}); its last words:\n{}", output.join("\n"))]
    Failed {
        /// Its name.
        tool: &'static str,
        /// How it ended.
        status: String,
        /// Its last lines.
        output: Vec<String>,
    },
    /// What the tool left cannot be cleaned.
    #[error("cannot prepare {path} in the new root file system")]
    Clean {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

impl BootstrapError {
    pub(crate) fn facts(&self) -> (&'static str, Kind) {
        match self {
            Self::NotDebian { .. } | Self::BadMirror { .. } | Self::BadPackage { .. } => {
                ("bad_bootstrap", Kind::User)
            }
            Self::UnknownSuite { .. } => ("unknown_suite", Kind::NotFound),
            Self::NoMirror | Self::NoTool | Self::NoKeyring { .. } => ("bootstrap_unprepared", Kind::Config),
            Self::MirrorAway { .. } | Self::MirrorStatus { .. } => ("mirror_unreachable", Kind::Unavailable),
            Self::Run { .. } | Self::Failed { .. } | Self::Clean { .. } => {
                ("bootstrap_failed", Kind::Unavailable)
            }
        }
    }

    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NoMirror => Some("give one with --mirror URL".into()),
            Self::NoTool => Some("apt-get install mmdebstrap".into()),
            Self::NoKeyring { .. } => Some("apt-get install debian-archive-keyring".into()),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tool {
    Mmdebstrap,
    Debootstrap,
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::Mmdebstrap => "mmdebstrap",
            Self::Debootstrap => "debootstrap",
        }
    }
}

/// Everything that decides the tool's command line.
struct Plan {
    suite: String,
    mirror: String,
    /// Lines for `/etc/apt/sources.list`.
    sources: Vec<String>,
    packages: Vec<String>,
}

impl Images {
    /// Makes an image from a Debian mirror. Takes minutes with `debootstrap`, less with `mmdebstrap`; both are told by the
    /// reporter line by line.
    pub async fn bootstrap(&self, options: BootstrapOptions, reporter: Reporter) -> Result<Image, Error> {
        self.bootstrap_inner(options, reporter).await.map_err(|error| error.at(self.store().root()))
    }

    async fn bootstrap_inner(&self, options: BootstrapOptions, reporter: Reporter) -> Result<Image, Error> {
        let reference: Reference = options.reference.parse()?;
        let suite = suite_of(&reference)?;
        let mirror = mirror_of(options.mirror)?;
        options.packages.iter().try_for_each(|package| check_package(package))?;
        if !Path::new(KEYRING).exists() {
            return Err(BootstrapError::NoKeyring { path: KEYRING.into() }.into());
        }
        let tool = find_tool()?;
        let sources = probe(&suite, &mirror).await?;
        let plan = Plan { suite, mirror: mirror.main, sources, packages: options.packages };
        let scratch = self.blocking(|store| Ok(store.scratch()?)).await?;
        let target = scratch.path().join(if tool == Tool::Mmdebstrap { "root.tar" } else { "root" });
        say(&reporter, format!("{} makes a minimal Debian {} from {}", tool.name(), plan.suite, plan.mirror));
        run(tool, arguments(tool, &plan, &target), scratch.path(), &reporter).await?;
        let config = image_config(&plan.suite);
        self.blocking(move |store| match tool {
            Tool::Mmdebstrap => import_rootfs(store, &target, &reference, config, &reporter),
            Tool::Debootstrap => adopt_root(store, &scratch, &target, &plan, &reference, config),
        })
        .await
    }
}

fn suite_of(reference: &Reference) -> Result<String, BootstrapError> {
    match (reference.registry(), reference.repository(), reference.version()) {
        ("docker.io", "library/debian", Version::Tag(tag)) => Ok(tag.clone()),
        _ => Err(BootstrapError::NotDebian { reference: reference.to_string() }),
    }
}

fn mirror_of(given: Option<String>) -> Result<Mirror, BootstrapError> {
    let mirror = match given {
        Some(main) => Mirror { main: main.trim_end_matches('/').to_owned(), security: None },
        None => machine_mirror(Path::new("/etc/apt")).ok_or(BootstrapError::NoMirror)?,
    };
    let http = mirror.main.starts_with("http://") || mirror.main.starts_with("https://");
    match http && !mirror.main.contains(['@', ' ', '\n', '[']) {
        true => Ok(mirror),
        false => Err(BootstrapError::BadMirror { mirror: mirror.main }),
    }
}

fn check_package(package: &str) -> Result<(), BootstrapError> {
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.');
    let bytes = package.as_bytes();
    let first = bytes.first().is_some_and(u8::is_ascii_alphanumeric);
    match bytes.len() >= 2 && first && bytes.iter().all(|b| fine(*b)) {
        true => Ok(()),
        false => Err(BootstrapError::BadPackage { package: package.to_owned() }),
    }
}

fn find_tool() -> Result<Tool, BootstrapError> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from(&PATH_ENV["PATH=".len()..]));
    let installed = |tool: &Tool| std::env::split_paths(&path).any(|dir| dir.join(tool.name()).is_file());
    [Tool::Mmdebstrap, Tool::Debootstrap].into_iter().find(installed).ok_or(BootstrapError::NoTool)
}

/// Makes sure that the mirror has the suite, and finds its companions. Returns the lines of `sources.list`.
async fn probe(suite: &str, mirror: &Mirror) -> Result<Vec<String>, BootstrapError> {
    let away = |source| BootstrapError::MirrorAway { mirror: mirror.main.clone(), source };
    let client = reqwest::Client::builder().timeout(PROBE_TIMEOUT).build().map_err(away)?;
    if !has_suite(&client, &mirror.main, suite).await? {
        let mut available = Vec::new();
        for known in KNOWN_SUITES {
            if has_suite(&client, &mirror.main, known).await? {
                available.push((*known).to_owned());
            }
        }
        return Err(BootstrapError::UnknownSuite { suite: suite.to_owned(), available });
    }
    let mut sources = vec![source_line(&mirror.main, suite)];
    let updates = format!("{suite}-updates");
    if has_suite(&client, &mirror.main, &updates).await? {
        sources.push(source_line(&mirror.main, &updates));
    }
    let fixes = format!("{suite}-security");
    if let Some(security) = &mirror.security
        && has_suite(&client, security, &fixes).await?
    {
        sources.push(source_line(security, &fixes));
    }
    Ok(sources)
}

fn source_line(mirror: &str, suite: &str) -> String {
    format!("deb [signed-by={KEYRING}] {mirror} {suite} main")
}

async fn has_suite(client: &reqwest::Client, mirror: &str, suite: &str) -> Result<bool, BootstrapError> {
    let url = format!("{mirror}/dists/{suite}/InRelease");
    let answer = client.get(&url).send().await;
    let answer = answer.map_err(|source| BootstrapError::MirrorAway { mirror: mirror.to_owned(), source })?;
    match answer.status().as_u16() {
        200 => Ok(true),
        404 | 410 => Ok(false),
        status => Err(BootstrapError::MirrorStatus { url, status }),
    }
}

/// The tool's command line, the namespaces around it included.
fn arguments(tool: Tool, plan: &Plan, target: &Path) -> Vec<OsString> {
    let mut words: Vec<OsString> = [
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--",
        tool.name(),
        "--variant=minbase",
    ]
    .iter()
    .map(OsString::from)
    .collect();
    words.push(format!("--keyring={KEYRING}").into());
    if !plan.packages.is_empty() {
        words.push(format!("--include={}", plan.packages.join(",")).into());
    }
    if tool == Tool::Mmdebstrap {
        words.extend(["--mode=root", "--format=tar"].map(OsString::from));
        // These are the host's own, copied for the duration.
        words.push("--customize-hook=rm -f \"$1/etc/hostname\" \"$1/etc/resolv.conf\"".into());
    }
    words.push(plan.suite.clone().into());
    words.push(target.into());
    match tool {
        Tool::Mmdebstrap => words.extend(plan.sources.iter().map(OsString::from)),
        Tool::Debootstrap => words.push(plan.mirror.clone().into()),
    }
    words
}

async fn run(
    tool: Tool,
    arguments: Vec<OsString>,
    scratch: &Path,
    reporter: &Reporter,
) -> Result<(), BootstrapError> {
    let failed = |source| BootstrapError::Run { tool: tool.name(), source };
    let mut child = Command::new("unshare")
        .args(arguments)
        .env("TMPDIR", scratch)
        .env("LC_ALL", "C.UTF-8")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // With it goes its process namespace, and so everything it started.
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let tail = Arc::new(std::sync::Mutex::new(VecDeque::new()));
    let streams = (child.stdout.take(), child.stderr.take());
    let (_, _, status) =
        tokio::join!(forward(streams.0, &tail, reporter), forward(streams.1, &tail, reporter), child.wait());
    let status = status.map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    let output = tail.lock().map(|tail| tail.iter().cloned().collect()).unwrap_or_default();
    Err(BootstrapError::Failed { tool: tool.name(), status: status.to_string(), output })
}

async fn forward(
    stream: Option<impl AsyncRead + Unpin>,
    tail: &std::sync::Mutex<VecDeque<String>>,
    reporter: &Reporter,
) {
    let Some(stream) = stream else { return };
    let mut lines = BufReader::new(stream).split(b'\n');
    // The end of the output, however it comes, is no failure of its own: the exit status tells.
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if line.is_empty() {
            continue;
        }
        if let Ok(mut tail) = tail.lock() {
            tail.push_back(line.clone());
            if tail.len() > TAIL {
                tail.pop_front();
            }
        }
        say(reporter, line);
    }
}

fn image_config(suite: &str) -> Map<String, Value> {
    let mut config = Map::new();
    config.insert("created".into(), jiff::Timestamp::now().to_string().into());
    config.insert(
        "config".into(),
        json!({ "Env": [PATH_ENV], "Cmd": ["bash"], "Labels": { LABEL: format!("debian {suite} minbase") } }),
    );
    config
}

/// What mmdebstrap does by itself and debootstrap leaves undone: sources, and nothing of the host or of the installation.
fn adopt_root(
    store: &Arc<Store>,
    scratch: &TempDir,
    root: &Path,
    plan: &Plan,
    reference: &Reference,
    config: Map<String, Value>,
) -> Result<Image, Error> {
    for (dir, suffix) in
        [("var/lib/apt/lists", ""), ("var/cache/apt/archives", ".deb"), ("var/cache/apt", ".bin")]
    {
        empty(&root.join(dir), suffix)?;
    }
    for file in ["etc/hostname", "etc/resolv.conf", "var/log/bootstrap.log"] {
        let path = root.join(file);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(BootstrapError::Clean { path, source }.into());
            }
            _ => {}
        }
    }
    let path = root.join("etc/apt/sources.list");
    let text = plan.sources.join("\n") + "\n";
    std::fs::write(&path, text).map_err(|source| BootstrapError::Clean { path, source })?;
    // Renamed out of the scratch directory, which is then removed with the rest of it.
    let layer_dir = scratch.path().join("layer");
    std::fs::rename(root, &layer_dir).map_err(|source| StoreError::Rename {
        from: root.to_owned(),
        to: layer_dir.clone(),
        source,
    })?;
    let (_, diff_id, _) = pack(&layer_dir, Tidy::Yes, Hashing::new(io::sink()))?.finish();
    let facts = take_stock(&layer_dir, "the new root file system")?;
    let layer = store.commit_layer(&layer_dir, &diff_id, facts, None)?;
    let config = complete_config(config, &[layer.diff_id]);
    Ok(store.put_image(config, &[reference.to_string()])?)
}

/// Removes what is in a directory, as far as names end in `suffix`.
fn empty(dir: &Path, suffix: &str) -> Result<(), BootstrapError> {
    let failed = |source| BootstrapError::Clean { path: dir.to_owned(), source };
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.file_name().to_string_lossy().ends_with(suffix) {
            continue;
        }
        let is_dir = entry.file_type().map_err(failed)?.is_dir();
        let removed =
            if is_dir { std::fs::remove_dir_all(entry.path()) } else { std::fs::remove_file(entry.path()) };
        removed.map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            suite: "trixie".into(),
            mirror: "http://mirror.example/debian".into(),
            sources: vec![source_line("http://mirror.example/debian", "trixie")],
            packages: vec!["python3".into(), "curl".into()],
        }
    }

    #[test]
    fn command_lines() {
        let words = |tool| {
            let words = arguments(tool, &plan(), Path::new("/scratch/root"));
            words.into_iter().map(|w| w.into_string().unwrap()).collect::<Vec<_>>()
        };
        insta::assert_json_snapshot!("mmdebstrap", words(Tool::Mmdebstrap));
        insta::assert_json_snapshot!("debootstrap", words(Tool::Debootstrap));
    }

    #[test]
    fn refuses_what_it_cannot_make() {
        for reference in ["ubuntu:noble", "me/debian:x", "r.example/library/debian:bookworm"] {
            let error = suite_of(&reference.parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains("debian:SUITE"));
        }
        assert_eq!(suite_of(&"debian:sid".parse().unwrap()).unwrap(), "sid");
        for mirror in ["ftp://m/debian", "http://u:p@m/debian", "http://m/debian sid main"] {
            assert!(mirror_of(Some(mirror.into())).is_err(), "{mirror}");
        }
        for package in ["", "x", "--evil", "A", "a,b", "a b"] {
            assert!(check_package(package).is_err(), "{package}");
        }
        assert!(check_package("libstdc++6").is_ok());
    }
}
