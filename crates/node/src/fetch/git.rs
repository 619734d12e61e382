//! A tree of a git repository, by the machine's git.
//!
//! The child is an unprivileged user in a view of its own ([`super::view`]), knows no configuration but what is said here, runs
//! no hooks, asks nobody for a password and speaks only HTTP and git's own protocol, submodules included. It dies with
//! whoever waits for it, and so does all that it started.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use berth_build::runner::RunnerError;
use berth_types::progress::Progress;
use reqwest::Url;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::view::{View, own_dir};
use super::{Options, Proxies, infrastructure, shown, user};
use crate::images::Sink;

/// Who fetches where the sandbox has no ids of its own: nobody.
const NOBODY: u32 = 65_534;
/// Most bytes of an answer of git's, the list of a repository's references mostly.
const MAX_ANSWER: u64 = 64 << 20;
/// Most bytes of complaints that are kept.
const MAX_COMPLAINT: u64 = 64 << 10;
/// How often it is looked how much there is.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Fewest digits of a commit that tell it from others.
const MIN_DIGITS: usize = 7;
/// Complaints that are about what was asked for, and not about the way there.
const USERS: [&str; 10] = [
    "could not read username",
    "could not read password",
    "authentication failed",
    "not found",
    "access denied or repository not exported",
    "does not appear to be a git repository",
    "returned error: 401",
    "returned error: 403",
    "returned error: 404",
    "not allowed",
];

/// What is wanted.
pub(super) struct Want {
    pub(super) url: Url,
    pub(super) reference: Option<String>,
    pub(super) subdir: Option<String>,
    pub(super) keep_git_dir: bool,
    pub(super) checksum: Option<String>,
}

impl Want {
    /// Refuses what git could take for something else, or keep.
    pub(super) fn check(&self) -> Result<(), RunnerError> {
        if let Some(reference) = self.reference.as_deref().filter(|text| !is_reference(text)) {
            return Err(user(format!("{reference:?} is no name of a branch, tag or commit")));
        }
        if self.keep_git_dir && self.url.password().is_some() {
            return Err(user(
                "a repository whose .git is kept cannot have a password in its URL: it would be kept too",
            ));
        }
        let checksum = self.checksum.as_deref();
        if let Some(checksum) = checksum.filter(|text| !is_hex(text) || text.len() < MIN_DIGITS) {
            return Err(user(format!(
                "{checksum:?} is no checksum of a commit: {MIN_DIGITS} or more hexadecimal digits"
            )));
        }
        Ok(())
    }
}

/// Which commit is wanted, and what to ask the server for.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    /// Its full name; a commit's own where it is wanted by that.
    asked: String,
    /// The tag's object, if it is by one.
    tag: Option<String>,
}

/// What has been fetched.
pub(super) struct Tree {
    /// Where, relative to the view's directory.
    pub(super) path: PathBuf,
    /// The commit, and what of it.
    pub(super) digest: String,
}

/// Fetches it into the view's directory.
pub(super) async fn fetch(
    options: &Options,
    view: View,
    proxies: &Proxies,
    want: Want,
    sink: &Sink,
) -> Result<Tree, RunnerError> {
    let name = shown(&want.url);
    let git = Git::new(options, view, proxies, &want)?;
    let work = async {
        (sink)(Progress::Message { text: format!("fetching {name}") });
        let commit = git.check_out(&want).await?;
        git.submodules().await?;
        Ok::<_, RunnerError>(commit)
    };
    let commit = tokio::time::timeout(options.git_timeout, work).await.map_err(|_| {
        RunnerError::Infrastructure {
            message: format!("fetching {name} took more than {} s", options.git_timeout.as_secs()),
            source: None,
        }
    })??;
    settle(&git.tree, want.keep_git_dir)
        .map_err(|e| infrastructure("cannot take over what git has fetched", e))?;
    let below = below(&git.tree, want.subdir.as_deref(), &name)?;
    let marks = [
        want.subdir.as_deref().map(|dir| format!(":{}", plain(dir))),
        want.keep_git_dir.then(|| "+git".into()),
    ];
    let digest = std::iter::once(commit).chain(marks.into_iter().flatten()).collect();
    Ok(Tree { path: Path::new(TREE).join(below), digest })
}

/// Name of the tree's directory.
const TREE: &str = "tree";

struct Git {
    view: View,
    tree: PathBuf,
    home: PathBuf,
    url: String,
    name: String,
    user: u32,
    max_bytes: u64,
    proxies: Vec<(&'static str, String)>,
}

impl Git {
    fn new(options: &Options, view: View, proxies: &Proxies, want: &Want) -> Result<Git, RunnerError> {
        let user = NOBODY;
        let (tree, home) = (own_dir(&view, TREE, user)?, own_dir(&view, "home", user)?);
        let variables =
            [("http_proxy", &proxies.http), ("https_proxy", &proxies.https), ("no_proxy", &proxies.none)];
        let proxies =
            variables.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect();
        let mut url = want.url.clone();
        // Ours, or none: what comes after it is no part of a repository's place.
        url.set_fragment(None);
        let (name, max_bytes) = (shown(&url), options.max_bytes);
        Ok(Git { view, tree, home, url: url.into(), name, user, max_bytes, proxies })
    }

    async fn check_out(&self, want: &Want) -> Result<String, RunnerError> {
        self.run(&["init", "-q", "--template="]).await?;
        let found = match want.reference.as_deref() {
            Some(commit) if is_commit(commit) => Found { asked: commit.to_ascii_lowercase(), tag: None },
            reference => self.find(reference).await?,
        };
        self.bring(&found).await?;
        let commit =
            self.run(&["rev-parse", "--verify", "-q", &format!("{}^{{commit}}", self.head(&found))]).await?;
        let commit = commit.trim().to_owned();
        if let Some(checksum) = want.checksum.as_deref().map(str::to_ascii_lowercase) {
            let tag = found.tag.as_deref().unwrap_or_default();
            if !commit.starts_with(&checksum) && !tag.starts_with(&checksum) {
                let reference = want.reference.as_deref().unwrap_or("the default branch");
                return Err(user(format!("{reference} of {} is commit {commit}, not {checksum}", self.name)));
            }
        }
        self.run(&["checkout", "-q", "--force", "--detach", &commit]).await?;
        if want.keep_git_dir {
            self.run(&["config", "remote.origin.url", &self.url]).await?;
        }
        Ok(commit)
    }

    /// Which reference of the server's is meant.
    async fn find(&self, reference: Option<&str>) -> Result<Found, RunnerError> {
        let listed = self.run(&["ls-remote", "--", "origin"]).await?;
        choose(&listed, reference).ok_or_else(|| match reference {
            Some(reference) => user(format!("{} has no branch, tag or commit {reference:?}", self.name)),
            None => user(format!("{} has no default branch: it is empty", self.name)),
        })
    }

    /// What a found reference is called once it is here.
    fn head<'a>(&self, found: &'a Found) -> &'a str {
        if is_commit(&found.asked) { &found.asked } else { "FETCH_HEAD" }
    }

    /// Brings a commit and as little else as the server can do.
    async fn bring(&self, found: &Found) -> Result<(), RunnerError> {
        let shallow = ["fetch", "-q", "--no-tags", "--depth=1", "--", "origin", &found.asked];
        let refused = match self.try_run(&shallow).await? {
            Ok(_) => return Ok(()),
            Err(complaint) => complaint,
        };
        let text = refused.to_ascii_lowercase();
        if text.contains("shallow") || text.contains("dumb http") {
            // Servers of files alone have all or nothing.
            let whole = ["fetch", "-q", "--no-tags", "--", "origin", &found.asked];
            if !is_commit(&found.asked) {
                return self.run(&whole).await.map(drop);
            }
        } else if !is_commit(&found.asked) {
            return Err(self.failed(&shallow, &refused));
        }
        // Not every server gives a commit that no reference names; one of its branches may have it.
        let all = [
            "fetch",
            "-q",
            "--",
            "origin",
            "+refs/heads/*:refs/remotes/origin/*",
            "+refs/tags/*:refs/tags/*",
        ];
        self.run(&all).await?;
        match self.try_run(&["cat-file", "-e", &format!("{}^{{commit}}", found.asked)]).await? {
            Ok(_) => Ok(()),
            Err(_) => Err(user(format!("{} has no commit {}", self.name, found.asked))),
        }
    }

    /// All of them, and theirs.
    async fn submodules(&self) -> Result<(), RunnerError> {
        if fs::symlink_metadata(self.tree.join(".gitmodules")).is_err() {
            return Ok(());
        }
        let shallow = ["submodule", "update", "-q", "--init", "--recursive", "--depth=1"];
        match self.try_run(&shallow).await? {
            Ok(_) => Ok(()),
            Err(complaint) if is_users(&complaint) => Err(self.failed(&shallow, &complaint)),
            // A commit that is no tip, of a server that gives only those.
            Err(_) => self.run(&["submodule", "update", "-q", "--init", "--recursive"]).await.map(drop),
        }
    }

    async fn run(&self, arguments: &[&str]) -> Result<String, RunnerError> {
        self.try_run(arguments).await?.map_err(|complaint| self.failed(arguments, &complaint))
    }

    /// The inner error is what git complains about.
    async fn try_run(&self, arguments: &[&str]) -> Result<Result<String, String>, RunnerError> {
        let mut child = self.command(arguments).spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => RunnerError::Infrastructure {
                message: "this machine has no git, by which repositories are fetched: install it".to_owned(),
                source: None,
            },
            _ => infrastructure("cannot start git", error),
        })?;
        let mut group = Group::of(&child);
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let (mut answer, mut complaint) = (Vec::new(), Vec::new());
        let over = async {
            let read = async {
                if let Some(out) = out {
                    out.take(MAX_ANSWER + 1).read_to_end(&mut answer).await?;
                }
                io::Result::Ok(())
            };
            let complain = async {
                if let Some(mut err) = err {
                    (&mut err).take(MAX_COMPLAINT).read_to_end(&mut complaint).await?;
                    tokio::io::copy(&mut err, &mut tokio::io::sink()).await?;
                }
                io::Result::Ok(())
            };
            tokio::try_join!(read, complain)?;
            child.wait().await
        };
        let status = tokio::select! {
            status = over => status.map_err(|error| infrastructure("cannot wait for git", error))?,
            error = self.outgrown() => return Err(error),
        };
        group.0 = None;
        if answer.len() as u64 > MAX_ANSWER {
            return Err(user(format!("{} has more references than can be looked at", self.name)));
        }
        let complaint = self.told(&String::from_utf8_lossy(&complaint));
        if status.success() {
            return Ok(Ok(String::from_utf8_lossy(&answer).into_owned()));
        }
        let complaint = if complaint.is_empty() { status.to_string() } else { complaint };
        Ok(Err(complaint))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = std::process::Command::new("git");
        let settings =
            ["core.hooksPath=/dev/null", "core.fsmonitor=false", "protocol.file.allow=never", "gc.auto=0"];
        command
            .args(settings.iter().flat_map(|setting| ["-c", setting]))
            .args(arguments)
            .env_clear()
            .envs(self.proxies.iter().map(|(name, value)| (name, value)))
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", &self.home)
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "/bin/false")
            .env("SSH_ASKPASS", "/bin/false")
            .env("GIT_ALLOW_PROTOCOL", "http:https:git")
            // The server's place, with what may be secret in it, is said here and kept nowhere.
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "remote.origin.url")
            .env("GIT_CONFIG_VALUE_0", &self.url)
            .current_dir(&self.tree)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .uid(self.user)
            .gid(self.user)
            .process_group(0);
        if let Some(path) = &self.view.ca_bundle {
            command.env("GIT_SSL_CAINFO", path);
        }
        let mut command = Command::from(command);
        command.kill_on_drop(true);
        command
    }

    fn failed(&self, arguments: &[&str], complaint: &str) -> RunnerError {
        let what = arguments.first().copied().unwrap_or_default();
        let message = format!("git {what} of {} failed: {}", self.name, complaint.trim());
        match is_users(complaint) {
            true => user(message),
            false => RunnerError::Infrastructure { message, source: None },
        }
    }

    /// Complaints without what is secret in the URL.
    fn told(&self, complaint: &str) -> String {
        complaint.replace(&self.url, &self.name)
    }

    /// Resolves when there is more than there may be.
    async fn outgrown(&self) -> RunnerError {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let dir = self.tree.clone();
            let bytes = tokio::task::spawn_blocking(move || bytes_below(&dir)).await.unwrap_or(0);
            if bytes > self.max_bytes {
                let (name, max) = (&self.name, self.max_bytes);
                return user(format!(
                    "{name} has more than the {max} bytes that a fetched repository may have"
                ));
            }
        }
    }
}

/// A child's group of processes, which dies with this.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &tokio::process::Child) -> Group {
        Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Not waited for by now, so nobody else has its number.
        if let Some(pid) = self.0 {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// Of `git ls-remote`'s list, what a name means: a reference by its full name, then a branch, then a tag.
fn choose(listed: &str, reference: Option<&str>) -> Option<Found> {
    let lines = || listed.lines().filter_map(|line| line.split_once('\t'));
    let named = |name: &str| lines().find(|(_, found)| *found == name).map(|(object, _)| object.to_owned());
    let found = |asked: String| {
        let object = named(&asked)?;
        let tag = named(&format!("{asked}^{{}}")).map(|_| object);
        Some(Found { asked, tag })
    };
    let Some(reference) = reference else { return found("HEAD".to_owned()) };
    let bare = |prefix: &str| reference.strip_prefix(prefix).unwrap_or(reference).to_owned();
    let names = [
        (reference == "HEAD").then(|| "HEAD".to_owned()),
        Some(format!("refs/{}", bare("refs/"))),
        Some(format!("refs/heads/{}", bare("refs/heads/"))),
        Some(format!("refs/tags/{}", bare("refs/tags/"))),
    ];
    names.into_iter().flatten().find_map(found)
}

fn is_users(complaint: &str) -> bool {
    let text = complaint.to_ascii_lowercase();
    USERS.iter().any(|sign| text.contains(sign))
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && is_hex(text)
}

/// git-check-ref-format(1), as far as it keeps a name from being anything else.
fn is_reference(text: &str) -> bool {
    let odd = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
    !text.is_empty()
        && !text.starts_with('-')
        && !text.contains("..")
        && !text.contains("@{")
        && !text.contains(odd)
}

/// The part of the tree that is wanted, relative to it. Links in it lead nowhere else.
fn below(tree: &Path, subdir: Option<&str>, name: &str) -> Result<PathBuf, RunnerError> {
    let Some(subdir) = subdir.map(plain).filter(|dir| !dir.is_empty()) else { return Ok(PathBuf::new()) };
    let missing = || user(format!("{name} has no directory {subdir:?}"));
    let root = tree.canonicalize().map_err(|e| infrastructure("cannot look at what git has fetched", e))?;
    let found = root.join(&subdir).canonicalize().map_err(|_| missing())?;
    match found.strip_prefix(&root) {
        Ok(below) if found.is_dir() => Ok(below.to_owned()),
        _ => Err(missing()),
    }
}

/// Without slashes around it.
fn plain(dir: &str) -> String {
    dir.split('/').filter(|name| !name.is_empty() && *name != ".").collect::<Vec<_>>().join("/")
}

/// Gives all files to root, and takes out what is git's own unless it is to be kept. No link is followed.
fn settle(tree: &Path, keep_git_dir: bool) -> io::Result<()> {
    let mut open = vec![tree.to_owned()];
    while let Some(dir) = open.pop() {
        std::os::unix::fs::lchown(&dir, Some(0), Some(0))?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if entry.file_name() == ".git" && !keep_git_dir {
                if kind.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
            } else if kind.is_dir() {
                open.push(path);
            } else {
                std::os::unix::fs::lchown(&path, Some(0), Some(0))?;
            }
        }
    }
    Ok(())
}

/// How much is on disk there, about: files may come and go meanwhile.
fn bytes_below(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let (mut open, mut bytes) = (vec![dir.to_owned()], 0_u64);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(facts) = fs::symlink_metadata(entry.path()) else { continue };
            bytes = bytes.saturating_add(facts.blocks().saturating_mul(512));
            if facts.is_dir() {
                open.push(entry.path());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "1111\tHEAD\n1111\trefs/heads/main\n2222\trefs/heads/both\n3333\trefs/pull/7/head\n\
                          4444\trefs/tags/both\n5555\trefs/tags/v1\n6666\trefs/tags/v1^{}\n";

    #[test]
    fn a_name_means_a_full_one_then_a_branch_then_a_tag() {
        let asked = |reference| choose(LISTED, reference).map(|found| found.asked);
        assert_eq!(asked(None).as_deref(), Some("HEAD"));
        assert_eq!(asked(Some("main")).as_deref(), Some("refs/heads/main"));
        assert_eq!(asked(Some("both")).as_deref(), Some("refs/heads/both"));
        assert_eq!(asked(Some("tags/both")).as_deref(), Some("refs/tags/both"));
        assert_eq!(asked(Some("refs/pull/7/head")).as_deref(), Some("refs/pull/7/head"));
        assert_eq!(asked(Some("pull/7/head")).as_deref(), Some("refs/pull/7/head"));
        let tag = choose(LISTED, Some("v1")).unwrap();
        assert_eq!(tag, Found { asked: "refs/tags/v1".into(), tag: Some("5555".into()) });
        assert_eq!(asked(Some("mai")), None);
        assert_eq!(choose("", None), None);
    }

    #[test]
    fn what_git_could_misread_is_refused() {
        let want = |reference: &str, checksum: Option<&str>| Want {
            url: "https://u:p@x/y.git".parse().unwrap(),
            reference: Some(reference.to_owned()),
            subdir: None,
            keep_git_dir: false,
            checksum: checksum.map(str::to_owned),
        };
        for bad in ["", "--upload-pack=x", "a..b", "a b", "a:b", "x^{}", "a\nb", "@{-1}"] {
            assert!(want(bad, None).check().is_err(), "{bad}");
        }
        for bad in ["12345", "main", "sha256:00"] {
            assert!(want("main", Some(bad)).check().is_err(), "{bad}");
        }
        want("feature/x-1.2", Some("1234567")).check().unwrap();
        assert!(Want { keep_git_dir: true, ..want("main", None) }.check().is_err());
    }

    #[test]
    fn a_directory_of_the_tree_is_found_and_none_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("file"), "").unwrap();
        std::os::unix::fs::symlink("/etc", tree.join("out")).unwrap();
        std::os::unix::fs::symlink("a/b", tree.join("in")).unwrap();
        let found = |subdir| below(&tree, Some(subdir), "x").ok();
        assert_eq!(below(&tree, None, "x").unwrap(), PathBuf::new());
        assert_eq!(found("/a/b/"), Some("a/b".into()));
        assert_eq!(found("in"), Some("a/b".into()));
        for bad in ["out", "..", "a/../..", "file", "missing"] {
            assert_eq!(found(bad), None, "{bad}");
        }
    }
}
