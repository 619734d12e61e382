//! The threads of a network, and the state that they share with its handles.
//!
//! ```text
//!   attach ──▶ shelf has one ──────────────────────────▶ slot, without waiting for any thread
//!         └──▶ waiting ──▶ a maker (of two) makes it ──▶ slot
//!                          makers with nobody waiting: at most one fills the shelves
//!   drop of a slot ──▶ doomed ──▶ the keeper removes the link, then the address rests
//! ```
//!
//! Removing takes a thread of its own because of the kernel: it makes and connects a namespace in 1 to 2 ms, but whoever
//! removes a link waits 15 to 30 ms for readers of it (RCU) to be gone, without holding the lock that making needs.
//! At most one maker fills, so that the other one is there for whoever comes meanwhile; and one that has filled gives
//! its slot to whoever waits by then. None of the threads has a lower priority than the others: they hold the kernel's
//! lock over all links (RTNL) in turn, and a holder that is not scheduled keeps everybody waiting.
//!
//! The keeper starts the network, in the calling thread's namespace, and ends it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::Mode;
use crate::addresses::Addresses;
use crate::error::Error;
use crate::host::{Host, Started};
use crate::making::{Lease, Made, make};
use crate::names::Names;
use crate::netlink::Netlink;
use crate::network::{Options, PoolSizes};
use crate::shelf::{PoolCounts, Shelf};
use crate::slot::Slot;

/// Threads that make slots: one that fills and one that serves.
const MAKERS: usize = 2;
/// How long nothing is filled after a failure, which the next attach meets and reports if it lasts.
const RETRY: Duration = Duration::from_secs(10);

/// How long a link is left to go with its namespace, before it is removed by name: the kernel takes many at once with
/// theirs, and has most of that work twice where it is asked as well.
const GRACE: Duration = Duration::from_millis(50);
/// The same at the end of the network, where nothing is lost by looking often whether they are gone.
const LAST_GRACE: Duration = Duration::from_millis(200);

type Reply<T> = oneshot::Sender<Result<T, Error>>;
type Answer<T> = oneshot::Receiver<Result<T, Error>>;

/// Starts a network; the answer comes when it has started.
pub(crate) fn spawn(names: Names, options: Options) -> Result<Answer<(Arc<Door>, Started)>, Error> {
    let (reply, started) = oneshot::channel();
    let body = move || match Keeper::start(names, &options) {
        Ok((keeper, outcome)) => {
            // With nobody waiting the door is closed by this, and the keeper ends at once.
            drop(reply.send(Ok((Arc::new(Door(Arc::clone(&keeper.shared))), outcome))));
            keeper.run();
        }
        Err(error) => drop(reply.send(Err(error))),
    };
    thread::Builder::new().name("berth-net".to_owned()).spawn(body).map_err(Error::Spawn)?;
    Ok(started)
}

/// What a [`Network`](crate::Network) and its slots hold: the network ends with the last of them.
pub(crate) struct Door(Arc<Shared>);

/// A slot, or the promise of one.
pub(crate) enum Taken {
    Ready(Slot),
    Waiting(Answer<Slot>),
}

impl Door {
    /// Takes a slot that is ready, or has one made.
    pub(crate) fn take(self: &Arc<Self>, mode: Mode) -> Result<Taken, Error> {
        let mut state = self.0.lock();
        if state.phase != Phase::Open {
            return Err(Error::Stopped);
        }
        let made = state.shelf(mode).take();
        let taken = match made {
            Some(made) => Taken::Ready(self.slot(made)),
            None => {
                let (reply, slot) = oneshot::channel();
                state.waiting.push_back(Request { mode, reply, door: Arc::clone(self) });
                Taken::Waiting(slot)
            }
        };
        drop(state);
        self.0.work.notify_one();
        Ok(taken)
    }

    /// A slot's end: its link goes, then its address rests.
    pub(crate) fn give_back(&self, number: u32) {
        self.0.lock().doom(number);
        self.0.chores.notify_one();
    }

    /// Begins the network's end. Nothing is answered where it has ended already.
    pub(crate) fn shut_down(&self, reply: Reply<()>) {
        let mut state = self.0.lock();
        if state.phase != Phase::Ended {
            state.goodbyes.push(reply);
        }
        drop(state);
        self.0.close();
    }

    /// Figures of the slots that are kept ready.
    pub(crate) fn counts(&self, mode: Mode) -> PoolCounts {
        self.0.lock().shelf(mode).counts()
    }

    fn slot(self: &Arc<Self>, made: Made) -> Slot {
        let resolv_conf = Arc::clone(&self.0.resolv_conf);
        Slot::new(made, Arc::clone(self), resolv_conf)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What the threads and the handles share.
struct Shared {
    names: Names,
    mtu: u32,
    resolv_conf: Arc<str>,
    state: Mutex<State>,
    /// Something for the makers.
    work: Condvar,
    /// Something for the keeper.
    chores: Condvar,
}

struct State {
    phase: Phase,
    waiting: VecDeque<Request>,
    isolated: Shelf<Made>,
    connected: Shelf<Made>,
    /// None where the machine cannot do `public`.
    addresses: Option<Addresses>,
    /// Links that are there or may be, by slot number.
    links: BTreeMap<u32, String>,
    /// Slots whose links are to be removed, and since when there are any.
    doomed: Vec<u32>,
    doomed_at: Instant,
    filling: Option<Mode>,
    serving: usize,
    /// When shelves that are not empty may be filled on.
    rested_at: Instant,
    /// When filling may be tried again after a failure.
    retry_at: Instant,
    goodbyes: Vec<Reply<()>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Nothing is handed out any more, and what there is is being removed.
    Closing,
    Ended,
}

/// Somebody who waits for a slot.
struct Request {
    mode: Mode,
    reply: Reply<Slot>,
    door: Arc<Door>,
}

/// What a maker does next, and with which lease.
struct Job {
    purpose: Purpose,
    lease: Option<Lease>,
}

enum Purpose {
    Serve(Request),
    /// There is no address for it.
    Refuse(Request, Error),
    Fill(Mode),
}

impl Shared {
    fn new(host: &Host, pool: &PoolSizes) -> Self {
        let now = Instant::now();
        let public = host.public.as_ref();
        let state = State {
            phase: Phase::Open,
            waiting: VecDeque::new(),
            isolated: Shelf::new(pool.isolated, pool.most, now),
            connected: Shelf::new(pool.connected, pool.most, now),
            addresses: public.map(|p| Addresses::new(p.range)),
            links: BTreeMap::new(),
            doomed: Vec::new(),
            doomed_at: now,
            filling: None,
            serving: 0,
            rested_at: now,
            retry_at: now,
            goodbyes: Vec::new(),
        };
        Self {
            names: host.names.clone(),
            mtu: public.map_or(0, |p| p.mtu),
            resolv_conf: public.map_or_else(|| "".into(), |p| Arc::clone(&p.resolv_conf)),
            state: Mutex::new(state),
            work: Condvar::new(),
            chores: Condvar::new(),
        }
    }

    /// No slot may be dropped while this is held, as it would wait for itself.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Closing;
        }
        // Who waits hears that the network has stopped. Their doors must not be dropped under the lock.
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        drop(waiting);
        self.work.notify_all();
        self.chores.notify_all();
    }

    /// Makes slots until the network closes.
    fn make_slots(&self, host: &mut Netlink) {
        while let Some(job) = self.next_job() {
            let Job { purpose, lease } = job;
            let make = |host| make(host, lease.as_ref(), self.mtu);
            match purpose {
                Purpose::Serve(request) => {
                    let made = make(host);
                    self.served(request, lease, made);
                }
                Purpose::Refuse(Request { reply, .. }, error) => drop(reply.send(Err(error))),
                Purpose::Fill(mode) => {
                    let begun = Instant::now();
                    let made = make(host);
                    self.filled(mode, lease, made, begun);
                }
            }
        }
    }

    /// Waits for something to make.
    fn next_job(&self) -> Option<Job> {
        let mut state = self.lock();
        while state.phase == Phase::Open {
            let now = Instant::now();
            if let Some(job) = state.next_job(&self.names, now) {
                return Some(job);
            }
            let until = state.fills_at(now);
            state = wait(&self.work, state, until, now);
        }
        None
    }

    fn served(&self, request: Request, lease: Option<Lease>, made: Result<Made, Error>) {
        let mut state = self.lock();
        state.serving -= 1;
        if made.is_err() {
            state.doom_lease(lease);
            self.chores.notify_one();
        }
        drop(state);
        let Request { reply, door, .. } = request;
        // A slot that nobody waits for any more is dropped, which undoes it.
        drop(reply.send(made.map(|made| door.slot(made))));
    }

    fn filled(&self, mode: Mode, lease: Option<Lease>, made: Result<Made, Error>, begun: Instant) {
        let now = Instant::now();
        let mut state = self.lock();
        state.filling = None;
        // As long as it took: a machine that is busy is left alone for longer.
        state.rested_at = now + now.duration_since(begun);
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                state.retry_at = now + RETRY;
                state.doom_lease(lease);
                self.chores.notify_one();
                tracing::warn!(error = &error as &dyn std::error::Error, "no slot made ahead of demand");
                return;
            }
        };
        let Some(request) = state.next_waiting(mode) else {
            state.shelf(mode).put(made);
            return;
        };
        drop(state);
        let Request { reply, door, .. } = request;
        drop(reply.send(Ok(door.slot(made))));
    }
}

impl State {
    fn shelf(&mut self, mode: Mode) -> &mut Shelf<Made> {
        match mode {
            Mode::NoNetwork => &mut self.isolated,
            Mode::Public => &mut self.connected,
        }
    }

    fn next_job(&mut self, names: &Names, now: Instant) -> Option<Job> {
        self.serve(names, now).or_else(|| self.fill(names, now))
    }

    fn serve(&mut self, names: &Names, now: Instant) -> Option<Job> {
        let request = self.waiting.pop_front()?;
        let lease = match request.mode {
            Mode::NoNetwork => None,
            Mode::Public => match self.lease(names, now) {
                // The last address is in the slot that is being made, which will be this one's.
                None if self.filling == Some(Mode::Public) => {
                    self.waiting.push_front(request);
                    return None;
                }
                None => return Some(self.refuse(request)),
                lease => lease,
            },
        };
        self.serving += 1;
        Some(Job { purpose: Purpose::Serve(request), lease })
    }

    fn fill(&mut self, names: &Names, now: Instant) -> Option<Job> {
        if !self.may_fill() || now < self.retry_at {
            return None;
        }
        for mode in [Mode::Public, Mode::NoNetwork] {
            let rested_at = self.rested_at;
            let shelf = self.shelf(mode);
            if !shelf.lacks() || (!shelf.is_empty() && now < rested_at) {
                continue;
            }
            let lease = match mode {
                Mode::NoNetwork => None,
                // Without a free address it is for the next event to try again.
                Mode::Public => match self.lease(names, now) {
                    None => continue,
                    lease => lease,
                },
            };
            self.filling = Some(mode);
            return Some(Job { purpose: Purpose::Fill(mode), lease });
        }
        None
    }

    fn may_fill(&self) -> bool {
        self.filling.is_none() && self.serving == 0 && self.waiting.is_empty()
    }

    /// When there will be something to fill; never, where that takes another event.
    fn fills_at(&self, now: Instant) -> Option<Instant> {
        let lacking = self.connected.lacks() || self.isolated.lacks();
        let at = self.rested_at.max(self.retry_at);
        (lacking && self.may_fill() && at > now).then_some(at)
    }

    fn lease(&mut self, names: &Names, now: Instant) -> Option<Lease> {
        let (number, address) = self.addresses.as_mut()?.take(now)?;
        let link = names.link(number);
        self.links.insert(number, link.clone());
        Some(Lease { number, address, link })
    }

    fn next_waiting(&mut self, mode: Mode) -> Option<Request> {
        let at = self.waiting.iter().position(|r| r.mode == mode)?;
        self.waiting.remove(at)
    }

    fn refuse(&self, request: Request) -> Job {
        let error = match &self.addresses {
            Some(addresses) => {
                let (attached, resting) = addresses.counts();
                Error::NoFreeAddress { range: addresses.range(), attached, resting }
            }
            None => Error::Stopped,
        };
        Job { purpose: Purpose::Refuse(request, error), lease: None }
    }

    fn doom(&mut self, number: u32) {
        if self.doomed.is_empty() {
            self.doomed_at = Instant::now();
        }
        self.doomed.push(number);
    }

    fn doom_lease(&mut self, lease: Option<Lease>) {
        if let Some(lease) = lease {
            self.doom(lease.number);
        }
    }

    /// Slots whose links have had the time to go.
    fn overdue(&mut self, now: Instant) -> Vec<u32> {
        if now < self.doomed_at + GRACE { Vec::new() } else { std::mem::take(&mut self.doomed) }
    }

    /// When the keeper has something to do; never, where that takes another event.
    fn chores_at(&self) -> Option<Instant> {
        let overdue_at = (!self.doomed.is_empty()).then(|| self.doomed_at + GRACE);
        let settle_at = [self.connected.settles_at(), self.isolated.settles_at()];
        settle_at.into_iter().flatten().chain(overdue_at).min()
    }

    /// Slots that are too many by now; their links are doomed.
    fn settle(&mut self, now: Instant) -> Vec<Made> {
        let mut surplus = self.connected.settle(now);
        surplus.append(&mut self.isolated.settle(now));
        for made in &surplus {
            self.doom_lease(made.lease.clone());
        }
        surplus
    }
}

/// Waits for news, or until a time has come.
fn wait<'a>(
    news: &Condvar,
    state: MutexGuard<'a, State>,
    until: Option<Instant>,
    now: Instant,
) -> MutexGuard<'a, State> {
    match until {
        None => news.wait(state).unwrap_or_else(PoisonError::into_inner),
        Some(until) => {
            let patience = until.saturating_duration_since(now);
            news.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0
        }
    }
}

/// The thread that starts a network, removes links, and ends it.
struct Keeper {
    shared: Arc<Shared>,
    host: Host,
    makers: Vec<JoinHandle<()>>,
}

impl Keeper {
    fn start(names: Names, options: &Options) -> Result<(Self, Started), Error> {
        let (host, started) = Host::prepare(names, options)?;
        let shared = Arc::new(Shared::new(&host, &options.pool));
        let mut keeper = Self { shared, host, makers: Vec::new() };
        for _ in 0..MAKERS {
            match keeper.maker() {
                Ok(maker) => keeper.makers.push(maker),
                Err(error) => {
                    // What counts is the first failure; the table is replaced at the next start.
                    keeper.shared.close();
                    let _ = keeper.end();
                    return Err(error);
                }
            }
        }
        Ok((keeper, started))
    }

    fn maker(&self) -> Result<JoinHandle<()>, Error> {
        let shared = Arc::clone(&self.shared);
        let mut host = Netlink::open().map_err(|source| Error::ReadHost { what: "tables", source })?;
        let body = move || shared.make_slots(&mut host);
        thread::Builder::new().name("berth-net-make".to_owned()).spawn(body).map_err(Error::Spawn)
    }

    fn run(mut self) {
        while let Some((surplus, doomed)) = self.next_chore() {
            drop(surplus);
            for number in doomed {
                self.remove(number);
            }
        }
        let outcome = self.end();
        let mut state = self.shared.lock();
        state.phase = Phase::Ended;
        let mut goodbyes = std::mem::take(&mut state.goodbyes).into_iter();
        drop(state);
        match (goodbyes.next(), outcome) {
            (Some(reply), outcome) => drop(reply.send(outcome)),
            (None, Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "network not fully removed");
            }
            (None, Ok(())) => {}
        }
    }

    /// Waits for something to remove.
    fn next_chore(&self) -> Option<(Vec<Made>, Vec<u32>)> {
        let mut state = self.shared.lock();
        while state.phase == Phase::Open {
            let now = Instant::now();
            let surplus = state.settle(now);
            let doomed = state.overdue(now);
            if !surplus.is_empty() || !doomed.is_empty() {
                return Some((surplus, doomed));
            }
            let until = state.chores_at();
            state = wait(&self.shared.chores, state, until, now);
        }
        None
    }

    fn remove(&mut self, number: u32) {
        let Some(link) = self.shared.lock().links.get(&number).cloned() else { return };
        if let Err(error) = self.host.remove_link(&link) {
            // The link dies with its namespace at the latest; until then the address must stay taken.
            tracing::warn!(error = &error as &dyn std::error::Error, link, "link of a sandbox not removed");
            return;
        }
        let mut state = self.shared.lock();
        state.links.remove(&number);
        if let Some(addresses) = &mut state.addresses {
            addresses.give_back(number, Instant::now());
        }
    }

    fn end(&mut self) -> Result<(), Error> {
        for maker in self.makers.drain(..) {
            // One that panicked has said so, and what it was making is removed with the rest.
            let _ = maker.join();
        }
        let mut state = self.shared.lock();
        let mut kept = state.isolated.clear();
        kept.append(&mut state.connected.clear());
        for made in &kept {
            state.doom_lease(made.lease.clone());
        }
        let mut links = std::mem::take(&mut state.links);
        let doomed = std::mem::take(&mut state.doomed);
        drop(state);
        drop(kept);
        let going: Vec<_> = doomed.iter().filter_map(|number| links.remove(number)).collect();
        let mut removed: Vec<_> = links.values().map(|link| self.host.remove_link(link)).collect();
        self.host.wait_for_end(&going, LAST_GRACE);
        removed.extend(going.iter().map(|link| self.host.remove_link(link)));
        // Last, as a sandbox that still has a link must not be without rules.
        let deleted = self.host.remove_table();
        removed.into_iter().collect::<Result<(), _>>()?;
        deleted
    }
}
