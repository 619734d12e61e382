//! What one build brings from elsewhere: each thing once, by the network of a sandbox of the build's own.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use berth_build::runner::{Fetched, Remote, RunnerError};
use berth_sandbox::Machine;
use tokio::sync::OnceCell;

use super::runner::{Builder, Opening};
use crate::admission::Grant;
use crate::fetch::Proxies;

type Cell = Arc<OnceCell<Arc<Fetched>>>;

/// What was brought, or is being.
#[derive(Default)]
pub(super) struct Remotes {
    fetched: Mutex<HashMap<Remote, Cell>>,
    /// A sandbox with nothing in it, for its network. Started when something is to be fetched.
    door: OnceCell<Door>,
}

struct Door {
    machine: Arc<dyn Machine>,
    /// What is set aside for it.
    _grant: Grant,
}

impl Builder {
    /// Fetches, or waits for who does already.
    pub(super) async fn bring(&self, remote: &Remote) -> Result<Arc<Fetched>, RunnerError> {
        let cell = {
            let mut fetched = self.remotes.fetched.lock().unwrap_or_else(PoisonError::into_inner);
            fetched.entry(remote.clone()).or_default().clone()
        };
        let fetched = cell.get_or_try_init(|| async {
            let door = self.remotes.door.get_or_try_init(|| self.open_door()).await?;
            let (fetcher, proxies) = (&self.node.0.fetcher, &self.settings.proxies);
            let fetched = fetcher.fetch(door.machine.as_ref(), proxies, remote, self.sink.clone()).await?;
            Ok::<_, RunnerError>(Arc::new(fetched))
        });
        fetched.await.cloned()
    }

    async fn open_door(&self) -> Result<Door, RunnerError> {
        let wants = crate::resources::assumed(&self.node.0.limits);
        let grant = self.node.0.admission.commit(wants);
        let opening = Opening { public_network: self.settings.public_network, ..Opening::default() };
        Ok(Door { machine: self.start(&[], opening).await?, _grant: grant })
    }
}

/// The proxies that a build's arguments name, as BuildKit's predefined ones; where they name none, those of the daemon.
pub(super) fn proxies(build_args: &BTreeMap<String, String>) -> Proxies {
    let from = |of: &dyn Fn(&str) -> Option<String>| {
        let find = |name: &str| {
            let value = of(name).or_else(|| of(&name.to_uppercase()));
            value.filter(|value| !value.is_empty())
        };
        Proxies { http: find("http_proxy"), https: find("https_proxy"), none: find("no_proxy") }
    };
    let own = from(&|name| build_args.get(name).cloned());
    if own != Proxies::default() {
        return own;
    }
    from(&|name| std::env::var(name).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_s_own_proxies_count_before_the_daemon_s() {
        let args = |name: &str| BTreeMap::from([(name.to_owned(), "http://proxy:1".to_owned())]);
        for name in ["http_proxy", "HTTP_PROXY"] {
            let found = proxies(&args(name));
            assert_eq!((found.http.as_deref(), found.https), (Some("http://proxy:1"), None));
        }
    }
}
