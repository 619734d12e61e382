//! The sandboxes of this machine, in memory: what the store remembers plus what is alive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_sandbox::Machine;
use berth_sandbox::guest::Guest;
use berth_store::SandboxRow;
use berth_types::sandbox::{Limit, Page, Sandbox, SandboxState, Usage};
use berth_types::system::SandboxCounts;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::admission::Grant;
use crate::exec::Execs;

/// Which sandboxes to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only those with all of these labels.
    pub labels: Vec<(String, String)>,
    /// At most so many; 0 means all.
    pub limit: usize,
    /// Only those after this id.
    pub after: Option<String>,
    /// With what each uses.
    pub usage: bool,
}

/// What is alive of a sandbox.
#[derive(Clone)]
pub(crate) struct Live {
    pub(crate) machine: Arc<dyn Machine>,
    /// Environment that every exec starts from: the image's, then the sandbox's.
    pub(crate) env: Arc<BTreeMap<String, String>>,
    /// Keeps the image's layers while the sandbox stands on them.
    pub(crate) _image: Arc<dyn Send + Sync>,
    /// What is set aside for it.
    pub(crate) grant: Arc<Grant>,
    pub(crate) no_new_privileges: bool,
    pub(crate) met: Met,
    /// What the node knows of its execs.
    pub(crate) execs: Execs,
}

impl Live {
    /// The connection to its guest. One that has just broken is waited for some seconds while it is made again.
    pub(crate) async fn guest(&self) -> Guest {
        self.machine.reached().await
    }
}

/// Limits that a sandbox's execs have met: not every machine counts all of them for the sandbox as a whole.
#[derive(Clone, Default)]
pub(crate) struct Met(Arc<Mutex<Hits>>);

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Hits {
    limits: BTreeSet<Limit>,
    machine_disk_full: bool,
}

impl Met {
    /// Those that were written down.
    pub(crate) fn of(hits: Hits) -> Met {
        Met(Arc::new(Mutex::new(hits)))
    }

    pub(crate) fn hits(&self) -> Hits {
        self.lock().clone()
    }

    pub(crate) fn add(&self, limits: &[Limit]) {
        self.lock().limits.extend(limits);
    }

    /// Notes that the machine's disk was full when an exec failed; tells whether that is news.
    pub(crate) fn add_machine_disk_full(&self) -> bool {
        !std::mem::replace(&mut self.lock().machine_disk_full, true)
    }

    /// What is known without asking the machine.
    pub(crate) fn known(&self) -> Usage {
        let met = self.lock();
        Usage {
            limits_hit: met.limits.iter().copied().collect(),
            machine_disk_full: met.machine_disk_full,
            ..Usage::default()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Hits> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a machine uses, with these among the limits that were met.
    pub(crate) async fn usage_of(&self, machine: &dyn Machine) -> Usage {
        let mut usage = machine.usage().await;
        let met = self.lock();
        let limits: BTreeSet<Limit> = met.limits.iter().chain(&usage.limits_hit).copied().collect();
        usage.limits_hit = limits.into_iter().collect();
        usage.machine_disk_full |= met.machine_disk_full;
        drop(met);
        usage
    }
}

/// One sandbox.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) row: SandboxRow,
    pub(crate) live: Option<Live>,
    /// When its time is up.
    pub(crate) expires_at: Option<Timestamp>,
}

impl Entry {
    pub(crate) fn sandbox(&self) -> &Sandbox {
        &self.row.sandbox
    }

    /// Whether it was deleted but for its row in the database.
    pub(crate) fn is_down(&self) -> bool {
        self.sandbox().state == SandboxState::Stopping && self.live.is_none()
    }
}

/// Every sandbox by id. Ids are UUIDs v7, so their order is that of creation.
#[derive(Default)]
pub(crate) struct Registry {
    entries: Mutex<BTreeMap<String, Entry>>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        // No code panics with the lock held half-way through a change.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `row` in, unless its name is taken by a sandbox that has not ended.
    pub(crate) fn insert(&self, row: SandboxRow) -> Result<(), Error> {
        let mut entries = self.lock();
        let same_key = |entry: &&Entry| {
            row.idempotency_key.is_some() && entry.row.idempotency_key == row.idempotency_key
        };
        if let Some(other) = entries.values().find(same_key) {
            return Err(Error::SandboxBusy { id: other.sandbox().id.clone() });
        }
        let name = &row.sandbox.name;
        if let Some(other) = entries.values().find(|entry| entry.sandbox().name == *name && !ended(entry)) {
            return Err(Error::NameTaken { name: name.clone(), holder: other.sandbox().id.clone() });
        }
        entries.insert(row.sandbox.id.clone(), Entry { row, live: None, expires_at: None });
        Ok(())
    }

    /// The sandbox with this id, or else the youngest of that name.
    pub(crate) fn find(&self, id_or_name: &str) -> Result<Entry, Error> {
        let entries = self.lock();
        let by_name = || entries.values().rev().find(|entry| entry.sandbox().name == id_or_name);
        let found = entries.get(id_or_name).or_else(by_name);
        found.cloned().ok_or_else(|| Error::SandboxNotFound { id: id_or_name.to_owned() })
    }

    /// The sandbox that a request with this key made.
    pub(crate) fn find_key(&self, key: &str) -> Option<Entry> {
        let entries = self.lock();
        entries.values().find(|entry| entry.row.idempotency_key.as_deref() == Some(key)).cloned()
    }

    /// Changes a sandbox and returns it as it is then; `None` when it is not there (any more).
    pub(crate) fn update(&self, id: &str, change: impl FnOnce(&mut Entry)) -> Option<Entry> {
        let mut entries = self.lock();
        let entry = entries.get_mut(id)?;
        change(entry);
        Some(entry.clone())
    }

    pub(crate) fn remove(&self, id: &str) -> Option<Entry> {
        self.lock().remove(id)
    }

    /// Those that `wanted` says yes to, oldest first.
    pub(crate) fn select(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        self.lock().values().filter(|entry| wanted(entry)).cloned().collect()
    }

    pub(crate) fn page(&self, filter: &Filter) -> Page<Sandbox> {
        let entries = self.lock();
        let mut items: Vec<Sandbox> = entries
            .values()
            .map(Entry::sandbox)
            .filter(|sandbox| filter.after.as_ref().is_none_or(|after| sandbox.id > *after))
            .filter(|sandbox| filter.labels.iter().all(|(key, value)| sandbox.labels.get(key) == Some(value)))
            .take(if filter.limit == 0 { usize::MAX } else { filter.limit + 1 })
            .cloned()
            .collect();
        let more = filter.limit != 0 && items.len() > filter.limit;
        if more {
            items.truncate(filter.limit);
        }
        let next = if more { items.last().map(|last| last.id.clone()) } else { None };
        Page { items, next }
    }

    /// How many there are in each state.
    pub(crate) fn count(&self) -> SandboxCounts {
        let mut counts = SandboxCounts::default();
        for entry in self.lock().values() {
            *match entry.sandbox().state {
                SandboxState::Queued => &mut counts.queued,
                SandboxState::Starting => &mut counts.starting,
                SandboxState::Running => &mut counts.running,
                SandboxState::Stopping => &mut counts.stopping,
                SandboxState::Lost | SandboxState::Ended => &mut counts.remembered,
            } += 1;
        }
        counts
    }

    /// Whether any sandbox waits, runs, is being made or is being taken down.
    pub(crate) fn any_alive(&self) -> bool {
        self.lock().values().any(|entry| !ended(entry))
    }
}

fn ended(entry: &Entry) -> bool {
    matches!(entry.sandbox().state, SandboxState::Lost | SandboxState::Ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, name: &str, state: SandboxState) -> SandboxRow {
        let sandbox = serde_json::from_value(serde_json::json!({
            "id": id, "name": name, "group": id, "state": state, "image": "", "labels": {"job": id[..1]},
            "resources": {}, "storage_enforced": false, "network": "public", "workdir": "/", "user": "",
            "created_at": "",
        }))
        .unwrap();
        SandboxRow { sandbox, idempotency_key: None, ended_at: None, resume: None }
    }

    #[test]
    fn a_name_is_free_again_once_its_sandbox_has_ended() {
        let registry = Registry::default();
        registry.insert(row("1", "box", SandboxState::Running)).unwrap();
        assert!(matches!(
            registry.insert(row("2", "box", SandboxState::Starting)),
            Err(Error::NameTaken { holder, .. }) if holder == "1"
        ));
        registry.update("1", |entry| entry.row.sandbox.state = SandboxState::Lost);
        registry.insert(row("2", "box", SandboxState::Starting)).unwrap();
        assert_eq!(registry.find("box").unwrap().sandbox().id, "2");
        assert_eq!(registry.find("1").unwrap().sandbox().id, "1");
        assert!(registry.any_alive());
    }

    #[test]
    fn pages_follow_each_other() {
        let registry = Registry::default();
        for id in ["a1", "a2", "a3", "b1"] {
            registry.insert(row(id, id, SandboxState::Running)).unwrap();
        }
        let labels = vec![("job".to_owned(), "a".to_owned())];
        let first = registry.page(&Filter { labels: labels.clone(), limit: 2, ..Filter::default() });
        assert_eq!(first.next.as_deref(), Some("a2"));
        let second = registry.page(&Filter { labels, limit: 2, after: first.next, usage: false });
        assert_eq!(second.items.len(), 1);
        assert_eq!(second.next, None);
        assert_eq!(registry.page(&Filter::default()).items.len(), 4);
    }
}
