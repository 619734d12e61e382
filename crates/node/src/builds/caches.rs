//! Directories that outlive builds: what `RUN --mount=type=cache` finds.
//!
//! ```text
//!   <root>/build-caches/<name made of the id>/<number>/data         what a step sees
//!                                                     /about.json   whose it is, when it was used, how large it is
//!                      /new-<unique>                              one that is being made or seeded
//!                      /gone-<unique>                             one on its way out
//! ```
//!
//! An id has one directory, and further ones where steps that want theirs alone run at a time; they are used again later.
//! A step gets all of its caches at once or waits with none, so that no two steps wait for each other; those that want the
//! same one alone get it in the order in which they came. What is in use, or is being made, is never removed.
//!
//! What a step that failed or was killed left in its cache is there for the next one: that is what caches are for. A
//! directory is made, filled and only then given its name, so a daemon that ends half-way leaves nothing that counts.
//!
//! Together they are bounded: after each use what was used longest ago goes until the rest fits.

mod choose;
mod place;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_build::runner::Sharing;
use jiff::Timestamp;
use tokio::sync::Notify;

use choose::{Choice, Instance, Key, Waiter, choose};
pub(crate) use place::Error;
use place::{About, Place};

/// Who owns a new cache, and its mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Permission bits.
    pub(crate) mode: u32,
}

/// A cache that a step wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Want {
    pub(crate) id: String,
    pub(crate) sharing: Sharing,
    pub(crate) new: Attributes,
}

/// A cache that everybody shares, of nobody else than who runs the test.
#[cfg(test)]
pub(crate) fn want_cache(id: &str) -> Want {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    Want { id: id.to_owned(), sharing: Sharing::Shared, new: Attributes { uid, gid, mode: 0o755 } }
}

/// A cache as it is shown.
#[cfg(test)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CacheInfo {
    /// Its id. One that several steps had alone at a time is there as often.
    pub(crate) id: String,
    /// When it was made, in seconds since the epoch.
    pub(crate) created: i64,
    /// When it was last used, in seconds since the epoch.
    pub(crate) used: i64,
    /// How large it was after that, in bytes on disk.
    pub(crate) bytes: u64,
    /// Whether a step uses it now.
    pub(crate) in_use: bool,
}

/// Which caches to remove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PruneCaches {
    /// Only those that were not used for so many seconds.
    pub(crate) unused_for: Option<u64>,
    /// Only as many as bring all of them down to so many bytes.
    pub(crate) keep_bytes: Option<u64>,
    /// Only say which.
    pub(crate) dry_run: bool,
}

/// Every cache of this machine; clones are the same.
#[derive(Clone)]
pub(crate) struct Caches(Arc<Shared>);

struct Shared {
    place: Place,
    /// Most bytes that they are to have together.
    bound: u64,
    state: Mutex<State>,
    /// Told when something may have become free.
    freed: Notify,
    /// How many that were given back are being measured or deleted.
    settling: AtomicUsize,
}

#[derive(Default)]
struct State {
    known: BTreeMap<Key, Cache>,
    /// In the order in which they came.
    waiting: Vec<Waiter>,
    tickets: u64,
}

struct Cache {
    about: About,
    users: u32,
    /// Whether its users let nobody else in.
    alone: bool,
    /// Whether it has its name: until then it is being made.
    is_made: bool,
}

impl Caches {
    /// Those that are in `root`, which is on the file system of the layers. Removes what an earlier daemon left half-done.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub(crate) fn open(root: &Path, bound: Option<u64>) -> Result<Caches, Error> {
        let bound = bound.unwrap_or(u64::MAX);
        let place = Place::open(root)?;
        let known = place.read()?.into_iter().map(|(key, about)| {
            let cache = Cache { about, users: 0, alone: false, is_made: true };
            (key, cache)
        });
        let state = State { known: known.collect(), ..State::default() };
        let state = Mutex::new(state);
        let shared = Shared { place, bound, state, freed: Notify::new(), settling: Default::default() };
        Ok(Caches(Arc::new(shared)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics with the lock held half-way through a change.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the caches of one step, each id once, in the order of `wants`; `waits` is told once the id of one that has to
    /// be waited for. A new one is empty, and nobody else gets it until [`Lease::made`].
    ///
    /// # Errors
    /// When a new one cannot be made.
    pub(crate) async fn take(&self, wants: &[Want], waits: impl Fn(&str)) -> Result<Vec<Lease>, Error> {
        let place_in_queue = Ticket::new(self, wants);
        let mut told = false;
        loop {
            let freed = self.0.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            let busy = match self.try_take(place_in_queue.number, wants) {
                Ok(taken) => {
                    drop(place_in_queue);
                    return self.make(taken).await;
                }
                Err(busy) => busy,
            };
            if !std::mem::replace(&mut told, true) {
                waits(&busy);
            }
            freed.await;
        }
    }

    /// All of them, or the id of one that is not to be had now.
    fn try_take(&self, ticket: u64, wants: &[Want]) -> Result<Vec<Lease>, String> {
        let mut state = self.lock();
        let mut chosen: Vec<(Key, &Want, bool)> = Vec::new();
        for want in wants {
            if chosen.iter().any(|(key, ..)| key.id == want.id) {
                continue;
            }
            // A step that names one twice has it twice; the stricter way counts.
            let same = wants.iter().filter(|other| other.id == want.id);
            let sharing = same.map(|want| want.sharing).max_by_key(|sharing| strictness(*sharing));
            let sharing = sharing.unwrap_or_default();
            let instances = state.known.iter().filter(|(key, _)| key.id == want.id).map(|(key, cache)| {
                let Cache { users, alone, is_made, .. } = *cache;
                Instance { number: key.number, users, alone, is_made }
            });
            let number = match choose(sharing, &want.id, instances, ticket, &state.waiting) {
                Choice::Wait => return Err(want.id.clone()),
                Choice::Old(number) | Choice::New(number) => number,
            };
            chosen.push((Key { id: want.id.clone(), number }, want, sharing != Sharing::Shared));
        }
        let now = Timestamp::now().as_second();
        Ok(chosen
            .into_iter()
            .map(|(key, want, alone)| {
                let about = About::new(&key, now);
                let fresh = || Cache { about, users: 0, alone: false, is_made: false };
                let cache = state.known.entry(key.clone()).or_insert_with(fresh);
                cache.users += 1;
                cache.alone = alone;
                let new = (!cache.is_made).then(|| self.0.place.new_path());
                Lease { caches: self.clone(), key, new, attributes: want.new }
            })
            .collect())
    }

    async fn make(&self, taken: Vec<Lease>) -> Result<Vec<Lease>, Error> {
        let make = move || {
            for lease in &taken {
                if let Some(new) = &lease.new {
                    Place::make(new, lease.attributes)?;
                }
            }
            Ok(taken)
        };
        tokio::task::spawn_blocking(make).await.map_err(|_| Error::Ending)?
    }

    /// All of them, by id.
    #[cfg(test)]
    pub(crate) fn list(&self) -> Vec<CacheInfo> {
        let state = self.lock();
        let made = state.known.values().filter(|cache| cache.is_made);
        made.map(|Cache { about, users, .. }| CacheInfo {
            id: about.id.clone(),
            created: about.created,
            used: about.used,
            bytes: about.bytes,
            in_use: *users > 0,
        })
        .collect()
    }

    /// Removes caches that no step uses, those first that were not used for longest; returns their ids and sizes in
    /// bytes. Blocks until their files are gone.
    pub(crate) fn prune(&self, wanted: PruneCaches) -> Vec<(String, u64)> {
        let now = Timestamp::now().as_second();
        let idle_since = wanted.unused_for.map(|seconds| now.saturating_sub_unsigned(seconds));
        let mut state = self.lock();
        let mut total: u64 = state.known.values().map(|cache| cache.about.bytes).sum();
        let mut idle: Vec<(i64, Key)> = state
            .known
            .iter()
            .filter(|(_, cache)| cache.users == 0 && idle_since.is_none_or(|since| cache.about.used <= since))
            .map(|(key, cache)| (cache.about.used, key.clone()))
            .collect();
        idle.sort();
        let (mut going, mut paths, mut in_place) = (Vec::new(), Vec::new(), Vec::new());
        for (_, key) in idle {
            if wanted.keep_bytes.is_some_and(|keep| total <= keep) {
                break;
            }
            let bytes = state.known.get(&key).map_or(0, |cache| cache.about.bytes);
            if !wanted.dry_run {
                // Out of everybody's way while the lock is held: whoever wants it next makes a new one.
                match self.0.place.set_aside(&key) {
                    Ok(path) => {
                        paths.push(path);
                        state.known.remove(&key);
                    }
                    // Some file systems that are full move nothing, and delete all the same. As one that is being made
                    // it is nobody's meanwhile.
                    Err(error) if error.is_full() => {
                        if let Some(cache) = state.known.get_mut(&key) {
                            (cache.users, cache.alone, cache.is_made) = (1, false, false);
                        }
                        in_place.push(key.clone());
                    }
                    Err(error) => {
                        let error = crate::error::chain(&error);
                        tracing::warn!(id = key.id, error, "a cache of builds could not be removed");
                        continue;
                    }
                }
            }
            total = total.saturating_sub(bytes);
            going.push((key.id, bytes));
        }
        drop(state);
        for path in paths {
            Place::delete(&path);
        }
        for key in in_place {
            let deleted = self.0.place.delete_in_place(&key);
            let mut state = self.lock();
            match (deleted, state.known.get_mut(&key)) {
                (Err(error), Some(cache)) => {
                    let error = crate::error::chain(&error);
                    tracing::warn!(id = key.id, error, "a cache of builds could not be removed");
                    (cache.users, cache.is_made) = (0, true);
                    going.retain(|(id, _)| *id != key.id);
                }
                _ => drop(state.known.remove(&key)),
            }
        }
        self.0.freed.notify_waiters();
        going
    }

    /// Measures one that was used, writes that down, and sees to the bound. Blocks.
    fn used(&self, key: &Key) {
        let measured = self.0.place.measure(key);
        // Something nested too deep to be counted is no cache that anybody needs.
        let bytes = measured.unwrap_or_else(|error| {
            let error = crate::error::chain(&error);
            tracing::warn!(id = key.id, error, "a cache of builds cannot be measured, and counts as full");
            self.0.bound.saturating_add(1)
        });
        let about = {
            let mut state = self.lock();
            let Some(cache) = state.known.get_mut(key) else { return };
            (cache.about.bytes, cache.about.used) = (bytes, Timestamp::now().as_second());
            cache.about.clone()
        };
        if let Err(error) = self.0.place.write(key, &about) {
            let error = crate::error::chain(&error);
            tracing::warn!(id = key.id, error, "the use of a cache of builds could not be written down");
        }
        let gone = self.prune(PruneCaches { keep_bytes: Some(self.0.bound), ..PruneCaches::default() });
        if !gone.is_empty() {
            let bytes: u64 = gone.iter().map(|(_, bytes)| bytes).sum();
            tracing::info!(caches = gone.len(), bytes, bound = self.0.bound, "removed caches of builds");
        }
    }
}

fn strictness(sharing: Sharing) -> u8 {
    match sharing {
        Sharing::Shared => 0,
        Sharing::Private => 1,
        Sharing::Locked => 2,
    }
}

/// A place among those who wait.
struct Ticket<'a> {
    caches: &'a Caches,
    number: u64,
}

impl<'a> Ticket<'a> {
    fn new(caches: &'a Caches, wants: &[Want]) -> Ticket<'a> {
        let locked = wants.iter().filter(|want| want.sharing == Sharing::Locked);
        let alone = locked.map(|want| want.id.clone()).collect();
        let mut state = caches.lock();
        state.tickets += 1;
        let number = state.tickets;
        state.waiting.push(Waiter { ticket: number, alone });
        Ticket { caches, number }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.caches.lock().waiting.retain(|waiter| waiter.ticket != self.number);
        // Those behind it may have their turn now.
        self.caches.0.freed.notify_waiters();
    }
}

/// A cache that a step has. Dropping it gives it back, and one that was not [`Lease::made`] away.
pub(crate) struct Lease {
    caches: Caches,
    key: Key,
    /// Where it is while it is being made.
    new: Option<PathBuf>,
    attributes: Attributes,
}

impl Lease {
    /// Its id.
    pub(crate) fn id(&self) -> &str {
        &self.key.id
    }

    /// Whether it is new: empty, and still to be seeded if it is to be.
    pub(super) fn is_new(&self) -> bool {
        self.new.is_some()
    }

    /// The directory. [`Lease::made`] moves it.
    pub(crate) fn dir(&self) -> PathBuf {
        match &self.new {
            Some(new) => Place::data(new),
            None => Place::data(&self.caches.0.place.path(&self.key)),
        }
    }

    /// Gives a new one its name, filled as it is now. Nothing may be mounted from it any more.
    ///
    /// # Errors
    /// When the file system refuses: it is gone with this then.
    pub(crate) fn made(&mut self) -> Result<(), Error> {
        let Some(new) = &self.new else { return Ok(()) };
        let about = About::new(&self.key, Timestamp::now().as_second());
        self.caches.0.place.name(new, &self.key, &about)?;
        self.new = None;
        if let Some(cache) = self.caches.lock().known.get_mut(&self.key) {
            cache.is_made = true;
        }
        self.caches.0.freed.notify_waiters();
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let new = self.new.take();
        {
            let mut state = self.caches.lock();
            if new.is_some() {
                state.known.remove(&self.key);
            } else if let Some(cache) = state.known.get_mut(&self.key) {
                cache.users -= 1;
            }
        }
        self.caches.0.freed.notify_waiters();
        let (caches, key) = (self.caches.clone(), self.key.clone());
        caches.0.settling.fetch_add(1, Ordering::SeqCst);
        let settle = move || {
            match new {
                Some(new) => Place::delete(&new),
                None => caches.used(&key),
            }
            caches.0.settling.fetch_sub(1, Ordering::SeqCst);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(settle)),
            Err(_) => settle(),
        }
    }
}
