//! What `ADD` brings from elsewhere: files by HTTP, trees of git repositories.
//!
//! ```text
//!   fetch ──► a thread in the network of a build's sandbox ──┬── http    a file, kept by digest in `cache`
//!             (names by that sandbox's servers)              └── git     a tree, by the machine's git as a child
//! ```
//!
//! A Dockerfile says where to connect to, so nothing here connects from the daemon's own network: what the sandbox cannot
//! reach, nobody reaches for it. See `docs/decisions/0018-fetching.md`.
//!
//! How it fails: [`RunnerError::User`] for what the server refuses or the Dockerfile has wrong (404, a checksum that differs,
//! no such branch), [`RunnerError::Infrastructure`] for what may be otherwise next time (no connection, 5xx, a full disk).
//! Passwords and queries of URLs are in no message.

mod cache;
mod git;
mod http;
mod names;
#[cfg(test)]
mod tests;
mod view;

use std::error::Error as StdError;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_build::runner::{Fetched, Remote, RunnerError};
use berth_sandbox::{Machine, NetworkDoor};
use futures_util::future::BoxFuture;
use reqwest::Url;
use tokio_util::sync::CancellationToken;

use crate::images::Sink;

/// How much is fetched, and where it is kept.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Directory of what is fetched, for this alone; made where it is not there.
    pub(crate) dir: PathBuf,
    /// Most bytes of one file, and of one repository with its tree.
    pub(crate) max_bytes: u64,
    /// Most bytes of files that are kept for the next build; those not used for longest go first.
    pub(crate) cache_bytes: u64,
    /// All certificates (PEM) to trust; absent: the machine's.
    pub(crate) ca_bundle: Option<PathBuf>,
    /// Longest that a repository may take.
    pub(crate) git_timeout: Duration,
}

impl Options {
    /// 10 GiB a file, 20 GiB of files kept, half an hour a repository.
    pub(crate) fn new(dir: PathBuf) -> Options {
        let git_timeout = Duration::from_secs(30 * 60);
        Options { dir, max_bytes: 10 << 30, cache_bytes: 20 << 30, ca_bundle: None, git_timeout }
    }
}

/// By way of whom. As the variables of these names have it; nobody where absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Proxies {
    /// `http_proxy`.
    pub(crate) http: Option<String>,
    /// `https_proxy`.
    pub(crate) https: Option<String>,
    /// `no_proxy`.
    pub(crate) none: Option<String>,
}

/// Fetches; clones are the same one.
#[derive(Clone)]
pub(crate) struct Fetcher(Arc<Inner>);

struct Inner {
    options: Options,
    cache: cache::Cache,
}

impl Fetcher {
    /// Opens the directory, and clears what an earlier daemon left half-done.
    ///
    /// # Errors
    /// When it cannot be made or read.
    pub(crate) fn open(options: Options) -> io::Result<Fetcher> {
        let cache = cache::Cache::open(&options.dir, options.cache_bytes)?;
        // An error says that there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Fetcher(Arc::new(Inner { options, cache })))
    }

    /// Fetches by the network of `machine`, a sandbox of the build, which must live as long. Dropping it ends everything of
    /// it.
    pub(crate) async fn fetch(
        &self,
        machine: &dyn Machine,
        proxies: &Proxies,
        remote: &Remote,
        sink: Sink,
    ) -> Result<Fetched, RunnerError> {
        let door = machine.network().ok_or_else(|| {
            infrastructure(
                "the sandbox that the build fetches by has no network",
                io::Error::other("it has ended"),
            )
        })?;
        self.fetch_by(door, proxies, remote, sink).await
    }

    /// The same, by any network.
    async fn fetch_by(
        &self,
        door: NetworkDoor,
        proxies: &Proxies,
        remote: &Remote,
        sink: Sink,
    ) -> Result<Fetched, RunnerError> {
        if door.resolv_conf.is_empty() {
            return Err(user("this build has no network, so it can fetch nothing"));
        }
        let (inner, proxies) = (Arc::clone(&self.0), proxies.clone());
        match remote.clone() {
            Remote::Url { url, checksum } => {
                let url = parse(&url, &["http", "https"])?;
                let resolv_conf = door.resolv_conf.clone();
                let work = move || -> Later<Fetched> {
                    Box::pin(async move {
                        let names = names::Names::of(&resolv_conf)?;
                        let want = http::Want { url, checksum };
                        http::fetch(&inner.options, &inner.cache, names, &proxies, want, &sink).await
                    })
                };
                inside(door, (), work).await
            }
            Remote::Git { url, reference, subdir, keep_git_dir, checksum } => {
                let url = parse(&url, &["http", "https", "git"])?;
                let want = git::Want { url, reference, subdir, keep_git_dir, checksum };
                want.check()?;
                let scratch =
                    inner.cache.scratch_dir().map_err(|e| infrastructure("cannot make a directory", e))?;
                let (path, scratch) = (scratch.path().to_owned(), Arc::new(scratch));
                let (dir, resolv_conf) = (path.clone(), door.resolv_conf.clone());
                let work = move || -> Later<git::Tree> {
                    Box::pin(async move {
                        let view = view::enter(&dir, &resolv_conf, inner.options.ca_bundle.as_deref())?;
                        git::fetch(&inner.options, view, &proxies, want, &sink).await
                    })
                };
                let tree = inside(door, Arc::clone(&scratch), work).await?;
                Ok(Fetched {
                    path: path.join(tree.path),
                    digest: tree.digest,
                    name: None,
                    modified: None,
                    keep: Box::new(scratch),
                })
            }
        }
    }
}

type Later<T> = BoxFuture<'static, Result<T, RunnerError>>;

/// Does something on a thread of its own in another network, with a runtime of its own: whatever it starts, threads and
/// processes alike, is in that network too. Ends it when dropped; `keep` goes when nothing of it is left, and not on that
/// thread, which may see other files than the daemon by then.
async fn inside<T: Send + 'static>(
    door: NetworkDoor,
    keep: impl Send + 'static,
    work: impl FnOnce() -> Later<T> + Send + 'static,
) -> Result<T, RunnerError> {
    let stop = CancellationToken::new();
    let _stops = stop.clone().drop_guard();
    let run = move || {
        let answer = berth_sys::netns::run_in(door.netns.as_fd(), || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let answer = runtime.block_on(async {
                tokio::select! {
                    answer = work() => Some(answer),
                    () = stop.cancelled() => None,
                }
            });
            // Its threads may look a name up that nobody waits for any more.
            runtime.shutdown_background();
            Ok(answer)
        });
        drop(keep);
        answer
    };
    let answer = tokio::task::spawn_blocking(run).await;
    let answer = answer.map_err(|e| infrastructure("fetching was cut off", e))?;
    let answer = answer.map_err(|e| infrastructure("cannot enter the build's network", e))?;
    answer.unwrap_or_else(|| {
        Err(infrastructure("fetching was cut off", io::Error::other("nobody waits for it")))
    })
}

/// A URL of one of these schemes.
fn parse(text: &str, schemes: &[&str]) -> Result<Url, RunnerError> {
    let url = text.parse::<Url>().map_err(|error| user(format!("{error}: not a URL to fetch from")))?;
    if !schemes.contains(&url.scheme()) {
        let scheme = url.scheme();
        return Err(user(format!("cannot fetch by {scheme}: {} can be", schemes.join(", "))));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(user(format!("{} names no host", shown(&url))));
    }
    Ok(url)
}

/// A URL as it may be told: without password, query and fragment.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Neither fails where there is a host.
    let _ = (url.set_password(None), url.set_username(""));
    url.into()
}

fn user(message: impl Into<String>) -> RunnerError {
    RunnerError::User { message: message.into(), source: None }
}

fn infrastructure(message: impl Into<String>, source: impl StdError + Send + Sync + 'static) -> RunnerError {
    RunnerError::Infrastructure { message: message.into(), source: Some(Box::new(source)) }
}
