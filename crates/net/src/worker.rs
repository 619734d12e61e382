//! The threads of a network, and the state that they share with its handles.
//!
//! ```text
//!   attach ──▶ shelf has one ──────────────────────────▶ slot, without waiting for any thread
//!         └──▶ waiting ──▶ a maker (of two) makes it ──▶ slot
//!                          makers with nobody waiting: at most one fills the shelves
//!   drop of a slot ──▶ doomed ──▶ the keeper sees that the link has gone, then the address rests and the ids go back
//! ```
//!
//! The end of a link takes a thread of its own because of the kernel: it makes and connects a namespace in 1 to 2 ms,
//! but a link is 15 to 30 ms on its way out, until readers of it (RCU) are gone; see [`doomed`](crate::doomed).
//! At most one maker fills, so that the other one is there for whoever comes meanwhile; and one that has filled gives
//! its slot to whoever waits by then. None of the threads has a lower priority than the others: they hold the kernel's
//! lock over all links (RTNL) in turn, and a holder that is not scheduled keeps everybody waiting.
//!
//! The keeper starts the network, in the calling thread's namespace, looks at what is taken over from an earlier one,
//! and ends it.

mod adoption;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::Mode;
use crate::addresses::Addresses;
use crate::doomed::{Doomed, Seen};
use crate::error::Error;
use crate::host::{Host, Started};
use crate::kept::{KeptSlot, Sorted, Unfit};
use crate::maker::{IdLease, NamespaceMaker};
use crate::making::{Lease, Made, Tools, Unmade};
use crate::names::Names;
use crate::network::{Options, SlotSpec};
use crate::shelf::{PoolCounts, Shelf};
use crate::slot::Slot;

use self::adoption::Adoption;

/// Threads that make slots: one that fills and one that serves.
const MAKERS: usize = 2;
/// How long nothing is filled after a failure, which the next attach meets and reports if it lasts.
const RETRY: Duration = Duration::from_secs(10);

/// How long none of the links may go at the end of the network, before they are removed by name.
const LAST_GRACE: Duration = Duration::from_millis(500);

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
    pub(crate) fn take(self: &Arc<Self>, spec: SlotSpec) -> Result<Taken, Error> {
        let SlotSpec { mode, user_namespace } = spec;
        if user_namespace && self.0.maker.is_none() {
            return Err(Error::NoMaker);
        }
        let kept = user_namespace == self.0.maker.is_some();
        let mut state = self.0.lock();
        if state.phase != Phase::Open {
            return Err(Error::Stopped);
        }
        let made = if kept { state.shelf(mode).take() } else { None };
        let taken = match made {
            Some(made) => Taken::Ready(self.slot(made)),
            None => {
                let (reply, slot) = oneshot::channel();
                state.waiting.push_back(Request { mode, kept, reply, door: Arc::clone(self) });
                Taken::Waiting(slot)
            }
        };
        drop(state);
        self.0.work.notify_one();
        Ok(taken)
    }

    /// A slot's end: its link goes, then its address rests and `ids` go back.
    pub(crate) fn give_back(&self, number: u32, ids: Option<IdLease>) {
        self.0.doom(number, ids);
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
    maker: Option<Arc<dyn NamespaceMaker>>,
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
    links: BTreeMap<u32, Tie>,
    /// Slots whose links are to go.
    doomed: Doomed,
    /// Slots of living sandboxes that are to be adopted, by number. Their links are among `links`.
    kept: BTreeMap<u32, KeptSlot>,
    /// Those that cannot be.
    unfit: Vec<(KeptSlot, Unfit)>,
    /// Adoptions that wait for the keeper.
    adoptions: Vec<Adoption>,
    filling: Option<Mode>,
    serving: usize,
    /// When shelves that are not empty may be filled on.
    rested_at: Instant,
    /// When filling may be tried again after a failure.
    retry_at: Instant,
    goodbyes: Vec<Reply<()>>,
    /// What is in use stays when the network ends.
    leaves: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Nothing is handed out any more, and what there is is being removed.
    Closing,
    Ended,
}

/// A link on the host, and what is not free before it is gone.
struct Tie {
    link: String,
    ids: Option<IdLease>,
}

/// A link that is to go: its slot's number and its name.
type Going = (u32, String);

/// Somebody who waits for a slot.
struct Request {
    mode: Mode,
    /// Whether it is of the kind that is kept ready.
    kept: bool,
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
    fn new(host: &Host, options: &Options, kept: Sorted) -> Self {
        let (now, pool) = (Instant::now(), &options.pool);
        let public = host.public.as_ref();
        let mut addresses = public.map(|p| Addresses::new(p.range));
        if let Some(addresses) = &mut addresses {
            kept.links().for_each(|link| addresses.occupy(link.number));
        }
        let links = kept.links().map(|link| (link.number, Tie { link: link.name.clone(), ids: None }));
        let state = State {
            phase: Phase::Open,
            waiting: VecDeque::new(),
            isolated: Shelf::new(pool.isolated, pool.most, now),
            connected: Shelf::new(pool.connected, pool.most, now),
            addresses,
            links: links.collect(),
            doomed: Doomed::new(now),
            kept: kept.fit,
            unfit: kept.unfit,
            adoptions: Vec::new(),
            filling: None,
            serving: 0,
            rested_at: now,
            retry_at: now,
            goodbyes: Vec::new(),
            leaves: false,
        };
        Self {
            names: host.names.clone(),
            mtu: public.map_or(0, |p| p.mtu),
            resolv_conf: public.map_or_else(|| "".into(), |p| Arc::clone(&p.resolv_conf)),
            maker: options.maker.clone(),
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
        let adoptions = std::mem::take(&mut state.adoptions);
        drop(state);
        drop((waiting, adoptions));
        self.work.notify_all();
        self.chores.notify_all();
    }

    /// Makes slots until the network closes.
    fn make_slots(&self, tools: &mut Tools) {
        while let Some(job) = self.next_job() {
            let Job { purpose, lease } = job;
            let mut make = |kept| tools.make(self.maker_of(kept), lease.as_ref());
            match purpose {
                Purpose::Serve(request) => {
                    let made = make(request.kept);
                    self.served(request, lease, made);
                }
                Purpose::Refuse(Request { reply, .. }, error) => drop(reply.send(Err(error))),
                Purpose::Fill(mode) => {
                    let begun = Instant::now();
                    let made = make(true);
                    self.filled(mode, lease, made, begun);
                }
            }
        }
    }

    /// Who makes the namespaces of slots that are kept ready, or of the others, which then have no user namespace.
    fn maker_of(&self, kept: bool) -> Option<&dyn NamespaceMaker> {
        self.maker.as_deref().filter(|_| kept)
    }

    /// Has the keeper see to a link whose namespace is closed.
    fn doom(&self, number: u32, ids: Option<IdLease>) {
        let mut state = self.lock();
        let orphaned = match state.links.get_mut(&number) {
            Some(tie) => std::mem::replace(&mut tie.ids, ids),
            // The network has ended, and has removed every link.
            None => ids,
        };
        state.doomed.add(number, Instant::now());
        drop(state);
        drop(orphaned);
        self.chores.notify_one();
    }

    /// Closes slots that nobody had.
    fn discard(&self, slots: Vec<Made>) {
        for made in slots {
            if let (Some(number), ids) = made.close() {
                self.doom(number, ids);
            }
        }
    }

    /// What is left of a slot that could not be made.
    fn undo(&self, lease: Option<Lease>, unmade: Unmade) -> Error {
        let Unmade { error, user } = unmade;
        let ids = user.map(|user| user.lease);
        if let Some(lease) = lease {
            self.doom(lease.number, ids);
        }
        error
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

    fn served(&self, request: Request, lease: Option<Lease>, made: Result<Made, Unmade>) {
        self.lock().serving -= 1;
        let made = made.map_err(|unmade| self.undo(lease, unmade));
        let Request { reply, door, .. } = request;
        // A slot that nobody waits for any more is dropped, which undoes it.
        drop(reply.send(made.map(|made| door.slot(made))));
    }

    fn filled(&self, mode: Mode, lease: Option<Lease>, made: Result<Made, Unmade>, begun: Instant) {
        let now = Instant::now();
        let mut state = self.lock();
        state.filling = None;
        // As long as it took: a machine that is busy is left alone for longer.
        state.rested_at = now + now.duration_since(begun);
        let made = match made {
            Ok(made) => made,
            Err(unmade) => {
                state.retry_at = now + RETRY;
                drop(state);
                let error = self.undo(lease, unmade);
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
                None if self.filling == Some(Mode::Public) && request.kept => {
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
            if !shelf.lacks() || (!shelf.is_low() && now < rested_at) {
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

    /// When there will be something to fill, of which there was nothing just now; never, where that takes another event.
    fn fills_at(&self, now: Instant) -> Option<Instant> {
        let lacking = self.connected.lacks() || self.isolated.lacks();
        let at = self.rested_at.max(self.retry_at);
        (lacking && self.may_fill() && at > now).then_some(at)
    }

    fn lease(&mut self, names: &Names, now: Instant) -> Option<Lease> {
        let addresses = self.addresses.as_mut()?;
        let (range, (number, address)) = (addresses.range(), addresses.take(now)?);
        let link = names.link(number);
        self.links.insert(number, Tie { link: link.clone(), ids: None });
        Some(Lease { number, address, range, link })
    }

    fn next_waiting(&mut self, mode: Mode) -> Option<Request> {
        let at = self.waiting.iter().position(|r| r.mode == mode && r.kept)?;
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

    /// When the keeper has something to do; never, where that takes another event.
    fn chores_at(&self) -> Option<Instant> {
        let times = [self.connected.settles_at(), self.isolated.settles_at(), self.doomed.look_at()];
        times.into_iter().flatten().min()
    }

    /// Slots that are too many by now.
    fn settle(&mut self, now: Instant) -> Vec<Made> {
        let mut surplus = self.connected.settle(now);
        surplus.append(&mut self.isolated.settle(now));
        surplus
    }

    /// The links that are to go, if it is time to look for them.
    fn overdue(&self, now: Instant) -> Vec<Going> {
        if self.doomed.look_at().is_none_or(|due| now < due) {
            return Vec::new();
        }
        let name = |number| Some((number, self.links.get(&number)?.link.clone()));
        self.doomed.numbers().into_iter().filter_map(name).collect()
    }

    /// The link of slot `number` is gone. Whoever gets the ids must not drop them under the lock.
    fn forget(&mut self, number: u32, now: Instant) -> Option<IdLease> {
        if let Some(addresses) = &mut self.addresses {
            addresses.give_back(number, now);
        }
        self.links.remove(&number)?.ids
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

/// What the keeper is to do.
struct Chores {
    /// Slots that are too many.
    surplus: Vec<Made>,
    /// Links that are to go.
    doomed: Vec<Going>,
    /// Slots that are taken over.
    adoptions: Vec<Adoption>,
}

/// The thread that starts a network, removes links, and ends it.
struct Keeper {
    shared: Arc<Shared>,
    host: Host,
    makers: Vec<JoinHandle<()>>,
}

impl Keeper {
    fn start(names: Names, options: &Options) -> Result<(Self, Started), Error> {
        let (host, started, kept) = Host::prepare(names, options)?;
        let shared = Arc::new(Shared::new(&host, options, kept));
        let mut keeper = Self { shared, host, makers: Vec::new() };
        for _ in 0..MAKERS {
            match keeper.maker() {
                Ok(maker) => keeper.makers.push(maker),
                Err(error) => {
                    // What counts is the first failure; what is kept is there for another attempt.
                    keeper.shared.leave();
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
        let mut tools = Tools::open(shared.mtu)?;
        let body = move || shared.make_slots(&mut tools);
        thread::Builder::new().name("berth-net-make".to_owned()).spawn(body).map_err(Error::Spawn)
    }

    fn run(mut self) {
        while let Some(Chores { surplus, doomed, adoptions }) = self.next_chores() {
            adoptions.into_iter().for_each(|adoption| self.adopt(adoption));
            self.shared.discard(surplus);
            self.look_for(&doomed);
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

    /// Waits for something to do.
    fn next_chores(&self) -> Option<Chores> {
        let mut state = self.shared.lock();
        while state.phase == Phase::Open {
            let now = Instant::now();
            let surplus = state.settle(now);
            let doomed = state.overdue(now);
            let adoptions = std::mem::take(&mut state.adoptions);
            if !surplus.is_empty() || !doomed.is_empty() || !adoptions.is_empty() {
                return Some(Chores { surplus, doomed, adoptions });
            }
            let until = state.chores_at();
            state = wait(&self.shared.chores, state, until, now);
        }
        None
    }

    /// Looks which of the links that are to go have gone, and removes those that do not go by themselves.
    fn look_for(&mut self, doomed: &[Going]) {
        if doomed.is_empty() {
            return;
        }
        let now = Instant::now();
        let gone: BTreeSet<_> =
            doomed.iter().filter(|(_, link)| !self.host.has_link(link)).map(|(number, _)| *number).collect();
        let mut state = self.shared.lock();
        let Seen { gone, held } = state.doomed.seen(now, |number| gone.contains(&number));
        let ids: Vec<_> = gone.into_iter().filter_map(|number| state.forget(number, now)).collect();
        drop(state);
        drop(ids);
        let held = doomed.iter().filter(|(number, _)| held.contains(number));
        held.for_each(|(number, link)| self.remove(*number, link));
    }

    fn remove(&mut self, number: u32, link: &str) {
        if let Err(error) = self.host.remove_link(link) {
            // The link dies with its namespace at the latest; until then the address and the ids must stay taken.
            tracing::warn!(error = &error as &dyn std::error::Error, link, "link of a sandbox not removed");
            return;
        }
        let ids = self.shared.lock().forget(number, Instant::now());
        drop(ids);
    }

    fn end(&mut self) -> Result<(), Error> {
        for maker in self.makers.drain(..) {
            // One that panicked has said so, and what it was making is removed with the rest.
            let _ = maker.join();
        }
        let mut state = self.shared.lock();
        let mut kept = state.isolated.clear();
        kept.append(&mut state.connected.clear());
        drop(state);
        self.shared.discard(kept);
        let mut state = self.shared.lock();
        let mut ties = std::mem::take(&mut state.links);
        let (going, leaves) = (state.doomed.numbers(), state.leaves);
        drop(state);
        let going: Vec<_> = going.iter().filter_map(|number| ties.remove(number)).collect();
        let stays = leaves && !ties.is_empty();
        let mut removed: Vec<_> = match stays {
            true => Vec::new(),
            false => ties.values().map(|tie| self.host.remove_link(&tie.link)).collect(),
        };
        self.host.wait_for_end(going.iter().map(|tie| tie.link.as_str()), LAST_GRACE);
        removed.extend(going.iter().map(|tie| self.host.remove_link(&tie.link)));
        // Last, as a sandbox that still has a link must not be without rules.
        let deleted = if stays { Ok(()) } else { self.host.remove_table() };
        removed.into_iter().collect::<Result<(), _>>()?;
        deleted
    }
}
