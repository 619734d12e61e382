//! Who may start, and when: what is set aside for sandboxes, and the queue of those for whom there is no room.
//!
//! ```text
//!   create ──► Ledger ──┬── never fits ──► error at once
//!                       ├── room ────────► Grant (given back when dropped) + Permit (one of the starts under way)
//!                       └── queue, first come first served ──► the same, later
//! ```
//!
//! Two things must hold before a start. Everything that is *set aside* (requests, or limits divided by an
//! overcommitment that the configuration names) stays below what the machine has, so that a burst of requests cannot
//! promise the same memory twice. And what is *measured* at that moment (memory that is available, whether processes
//! stall for it, free disk) has room for one more, so that what others use on the machine counts too. How many starts
//! run at once follows how long they take ([`pace`]).
//!
//! The ledger is pure: it is told what was measured and answers who may go. Whoever is first in the queue holds up
//! the others, however small: else a large sandbox would never get its turn.

mod ledger;
mod meter;
mod pace;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use berth_types::sandbox::{Committed, QueuePlace, WaitsFor};
use berth_types::system::{CpuStock, Starts, Stock};
use tokio::sync::{Notify, oneshot};

pub(crate) use ledger::{Ledger, Shortage};
#[cfg(test)]
pub(crate) use meter::Reading;
pub(crate) use meter::{HostMeter, Meter};

/// How long a measurement is good for. What was admitted since counts as in use.
const FRESH: Duration = Duration::from_millis(50);

/// How often a queue is looked at while nothing ends: what others on the machine use may have become less.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Why a request was not admitted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Refusal {
    /// It can never be, on this machine.
    NeverFits(Shortage),
    /// There was no room within the time that the request allows.
    NoRoom {
        /// What was missing for the first in the queue.
        waits_for: WaitsFor,
        /// The request's place when it gave up.
        position: u64,
    },
    /// The disk is full: waiting alone does not mend that.
    DiskFull {
        /// Bytes that are free.
        free: u64,
        /// Bytes that are kept for others beside them.
        reserve: u64,
    },
    /// It was taken out of the queue, because the sandbox was deleted.
    Withdrawn,
}

/// The ledger of this machine, and those who wait.
pub(crate) struct Admission {
    state: Mutex<State>,
    meter: Box<dyn Meter>,
    wake: Notify,
}

struct State {
    ledger: Ledger,
    read_at: Option<Instant>,
    waiting: HashMap<u64, oneshot::Sender<Admitted>>,
}

/// What is set aside for one sandbox. Given back by [`Grant::release`], or when dropped.
pub(crate) struct Grant {
    admission: Arc<Admission>,
    committed: Mutex<Option<Committed>>,
}

/// One of the starts under way.
pub(crate) struct Permit {
    admission: Arc<Admission>,
    began: Instant,
    open: bool,
}

/// Both of them.
pub(crate) struct Admitted {
    pub(crate) grant: Grant,
    pub(crate) permit: Permit,
}

impl Admission {
    pub(crate) fn new(ledger: Ledger, meter: Box<dyn Meter>) -> Arc<Admission> {
        let state = State { ledger, read_at: None, waiting: HashMap::new() };
        let admission = Admission { state: Mutex::new(state), meter, wake: Notify::new() };
        admission.refresh(&mut admission.lock());
        Arc::new(admission)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics with the lock held half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Measures anew, unless that was done just now.
    fn refresh(&self, state: &mut State) {
        if state.read_at.is_none_or(|at| at.elapsed() >= FRESH) {
            state.ledger.measured(self.meter.read());
            state.read_at = Some(Instant::now());
        }
    }

    /// Asks for room. Calls `queued` once if it has to be waited for. Dropping the future gives the place back.
    pub(crate) async fn admit(
        self: &Arc<Self>,
        id: &str,
        wants: Committed,
        longest: Option<Duration>,
        queued: impl FnOnce(),
    ) -> Result<Admitted, Refusal> {
        let (place, mut receiver) = self.enter(id, wants)?;
        self.pump();
        if let Ok(admitted) = receiver.try_recv() {
            return Ok(admitted);
        }
        if longest == Some(Duration::ZERO) {
            return Err(place.gave_up());
        }
        queued();
        self.wake.notify_one();
        let answer = match longest {
            None => receiver.await,
            Some(longest) => match tokio::time::timeout(longest, receiver).await {
                Ok(answer) => answer,
                Err(_) => return Err(place.gave_up()),
            },
        };
        answer.map_err(|_| Refusal::Withdrawn)
    }

    fn enter(
        self: &Arc<Self>,
        id: &str,
        wants: Committed,
    ) -> Result<(Place, oneshot::Receiver<Admitted>), Refusal> {
        let mut state = self.lock();
        self.refresh(&mut state);
        if let Some((free, reserve)) = state.ledger.disk_is_full() {
            return Err(Refusal::DiskFull { free, reserve });
        }
        let (sender, receiver) = oneshot::channel();
        let ticket = state.ledger.enter(id, wants).map_err(Refusal::NeverFits)?;
        state.waiting.insert(ticket, sender);
        Ok((Place { admission: self.clone(), ticket }, receiver))
    }

    /// Whether there will ever be room.
    pub(crate) fn fits_ever(&self, wants: &Committed) -> Result<(), Shortage> {
        self.lock().ledger.fits_ever(wants)
    }

    /// Sets aside for what cannot wait, because it holds something that others wait for: a step of a build.
    pub(crate) fn commit(self: &Arc<Self>, wants: Committed) -> Grant {
        self.lock().ledger.commit(wants);
        self.grant(wants)
    }

    fn grant(self: &Arc<Self>, committed: Committed) -> Grant {
        Grant { admission: self.clone(), committed: Mutex::new(Some(committed)) }
    }

    /// Lets those in for whom there is room now.
    fn pump(self: &Arc<Self>) {
        let mut let_in = Vec::new();
        {
            let mut state = self.lock();
            self.refresh(&mut state);
            while let Some((ticket, committed)) = state.ledger.next() {
                let permit = Permit { admission: self.clone(), began: Instant::now(), open: true };
                let admitted = Admitted { grant: self.grant(committed), permit };
                let_in.push((state.waiting.remove(&ticket), admitted));
            }
        }
        // Outside the lock: whoever has gone away gives back what he was let in with, by dropping it.
        for (sender, admitted) in let_in {
            match sender {
                Some(sender) => drop(sender.send(admitted)),
                None => drop(admitted),
            }
        }
    }

    /// Takes a sandbox out of the queue; false when it is not in it (any more).
    pub(crate) fn withdraw(self: &Arc<Self>, id: &str) -> bool {
        let sender = {
            let mut state = self.lock();
            let ticket = state.ledger.withdraw_id(id);
            ticket.map(|ticket| state.waiting.remove(&ticket))
        };
        self.pump();
        sender.is_some()
    }

    /// A sandbox's place in the queue.
    pub(crate) fn place(&self, id: &str) -> Option<QueuePlace> {
        self.lock().ledger.place(id)
    }

    /// Looks at the queue from time to time for as long as there is one; returns how many wait.
    pub(crate) async fn look_again(self: &Arc<Self>) -> u64 {
        if self.lock().ledger.queued() == 0 {
            self.wake.notified().await;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        self.pump();
        self.lock().ledger.queued()
    }

    /// Memory, disk, processors and starts, for people.
    pub(crate) fn show(&self) -> (Stock, Stock, CpuStock, Starts) {
        let mut state = self.lock();
        self.refresh(&mut state);
        state.ledger.show()
    }
}

/// A place in the queue, given back when dropped.
struct Place {
    admission: Arc<Admission>,
    ticket: u64,
}

impl Place {
    fn gave_up(&self) -> Refusal {
        let state = self.admission.lock();
        let place = state.ledger.place_of(self.ticket);
        let place = place.unwrap_or(QueuePlace { position: 1, waits_for: WaitsFor::Starts });
        Refusal::NoRoom { waits_for: place.waits_for, position: place.position }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let waited = {
            let mut state = self.admission.lock();
            state.waiting.remove(&self.ticket);
            state.ledger.withdraw(self.ticket)
        };
        if waited {
            self.admission.pump();
        }
    }
}

impl Grant {
    /// Gives it back; a second time does nothing.
    pub(crate) fn release(&self) {
        let committed = self.committed.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(committed) = committed {
            self.admission.lock().ledger.give_back(committed);
            self.admission.pump();
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.release();
    }
}

impl Permit {
    /// The start has succeeded: how long it took says how many may run at once.
    pub(crate) fn succeeded(mut self) {
        self.close(Some(self.began.elapsed()));
    }

    fn close(&mut self, took: Option<Duration>) {
        if std::mem::take(&mut self.open) {
            self.admission.lock().ledger.started(took);
            self.admission.pump();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        // A start that failed or was given up says nothing about how long starts take.
        self.close(None);
    }
}

#[cfg(test)]
mod tests;
