//! The ledger: what is set aside, for whom, and who is next. No clock, no I/O.

use std::collections::VecDeque;
use std::time::Duration;

use berth_types::sandbox::{Committed, QueuePlace, WaitsFor};
use berth_types::system::{CpuStock, Starts, Stock};

use super::meter::Reading;
use super::pace::Pace;

/// Share of the last ten seconds, in percent, from which on stalls for memory hold up starts. Only where memory is
/// also low: a sandbox that runs into its own limit makes the machine's figure rise as well.
const STALLED: f64 = 10.0;

/// Part of the memory below which it is low.
const LOW: u64 = 8;

/// Part of the disk below which it is full, and at most so many bytes.
const FULL: (u64, u64) = (100, 64 << 20);

/// Why a request never fits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shortage {
    /// Of what there is too little.
    pub(crate) what: WaitsFor,
    /// What would be set aside: bytes, or cores.
    pub(crate) asked: f64,
    /// The most that can be: bytes, or cores.
    pub(crate) has: f64,
}

struct Waiting {
    ticket: u64,
    id: String,
    wants: Committed,
}

/// See the module above.
pub(crate) struct Ledger {
    cpus: u64,
    memory_reserve: Option<u64>,
    reading: Reading,
    committed: Committed,
    /// Set aside since the reading, and so not to be seen in it.
    since: Committed,
    starts: u64,
    pace: Pace,
    queue: VecDeque<Waiting>,
    tickets: u64,
}

impl Ledger {
    /// For a machine with so many processors, that keeps so many bytes of memory for itself; absent means a part of what
    /// there is. What it keeps of the disk is the disk engine's to say.
    pub(crate) fn new(cpus: u64, memory_reserve: Option<u64>) -> Ledger {
        Ledger {
            cpus,
            memory_reserve,
            reading: Reading::default(),
            committed: Committed::default(),
            since: Committed::default(),
            starts: 0,
            pace: Pace::new(cpus),
            queue: VecDeque::new(),
            tickets: 0,
        }
    }

    pub(crate) fn measured(&mut self, reading: Reading) {
        self.reading = reading;
        self.since = Committed::default();
    }

    fn memory_reserve(&self) -> u64 {
        let part = |total: u64| (total / 20).max(256 << 20).min(total / 4);
        self.memory_reserve.unwrap_or_else(|| self.reading.memory_total.map_or(0, part))
    }

    /// What can be set aside in all.
    fn memory_room(&self) -> Option<u64> {
        self.reading.memory_total.map(|total| total.saturating_sub(self.memory_reserve()))
    }

    /// The disk engine has its reserve left out already.
    fn disk_room(&self) -> Option<u64> {
        self.reading.disk_total
    }

    /// Bytes that are free and those that are kept beside them, where there is next to nothing free.
    pub(crate) fn disk_is_full(&self) -> Option<(u64, u64)> {
        let full = (self.reading.disk_total? / FULL.0).min(FULL.1);
        let free = self.reading.disk_free.filter(|free| *free < full)?;
        Some((free, self.reading.disk_reserve.unwrap_or(0)))
    }

    /// Takes a place at the end of the queue, unless there will never be room.
    pub(crate) fn enter(&mut self, id: &str, wants: Committed) -> Result<u64, Shortage> {
        self.fits_ever(&wants)?;
        self.tickets += 1;
        self.queue.push_back(Waiting { ticket: self.tickets, id: id.to_owned(), wants });
        Ok(self.tickets)
    }

    /// Whether there will ever be room.
    pub(crate) fn fits_ever(&self, wants: &Committed) -> Result<(), Shortage> {
        let short = |what, asked: f64, has: f64| Err(Shortage { what, asked, has });
        match (self.memory_room(), self.disk_room()) {
            (Some(room), _) if wants.memory_bytes > room => {
                short(WaitsFor::Memory, wants.memory_bytes as f64, room as f64)
            }
            (_, Some(room)) if wants.disk_bytes > room => {
                short(WaitsFor::Disk, wants.disk_bytes as f64, room as f64)
            }
            _ if wants.cpus > self.cpus as f64 => short(WaitsFor::Cpus, wants.cpus, self.cpus as f64),
            _ => Ok(()),
        }
    }

    /// What the first in the queue waits for; `None` where it may start.
    fn missing(&self, wants: &Committed) -> Option<WaitsFor> {
        let exceeds = |room: Option<u64>, committed: u64, wants: u64| {
            room.is_some_and(|room| committed.saturating_add(wants) > room)
        };
        if exceeds(self.memory_room(), self.committed.memory_bytes, wants.memory_bytes) {
            return Some(WaitsFor::Memory);
        }
        if exceeds(self.disk_room(), self.committed.disk_bytes, wants.disk_bytes) {
            return Some(WaitsFor::Disk);
        }
        // Sums of decimal fractions are not exact.
        if wants.cpus > 0.0 && self.committed.cpus + wants.cpus > self.cpus as f64 + 1e-6 {
            return Some(WaitsFor::Cpus);
        }
        if self.memory_is_short(wants) {
            return Some(WaitsFor::MemoryInUse);
        }
        let needed = self.since.disk_bytes + wants.disk_bytes;
        if self.reading.disk_free.is_some_and(|free| free < needed) {
            return Some(WaitsFor::DiskInUse);
        }
        (self.starts >= self.pace.limit()).then_some(WaitsFor::Starts)
    }

    fn memory_is_short(&self, wants: &Committed) -> bool {
        let Some(available) = self.reading.memory_available else { return false };
        let needed = self.memory_reserve() + self.since.memory_bytes + wants.memory_bytes;
        let low = self.reading.memory_total.is_some_and(|total| available < total / LOW);
        available < needed || (low && self.reading.memory_stalled.is_some_and(|share| share >= STALLED))
    }

    /// Lets the first in, if there is room for it; its start counts as under way from now.
    pub(crate) fn next(&mut self) -> Option<(u64, Committed)> {
        if self.missing(&self.queue.front()?.wants).is_some() {
            return None;
        }
        let Waiting { ticket, wants, .. } = self.queue.pop_front()?;
        self.commit(wants);
        self.starts += 1;
        Some((ticket, wants))
    }

    /// Sets aside, whether there is room or not.
    pub(crate) fn commit(&mut self, wants: Committed) {
        for sum in [&mut self.committed, &mut self.since] {
            sum.memory_bytes = sum.memory_bytes.saturating_add(wants.memory_bytes);
            sum.disk_bytes = sum.disk_bytes.saturating_add(wants.disk_bytes);
            sum.cpus += wants.cpus;
        }
    }

    /// A sandbox is gone.
    pub(crate) fn give_back(&mut self, had: Committed) {
        // What it used shows in the next reading; until then it is taken off what was let in since the last.
        for sum in [&mut self.committed, &mut self.since] {
            sum.memory_bytes = sum.memory_bytes.saturating_sub(had.memory_bytes);
            sum.disk_bytes = sum.disk_bytes.saturating_sub(had.disk_bytes);
            sum.cpus = (sum.cpus - had.cpus).max(0.0);
        }
    }

    /// A start is over; `took` where it succeeded.
    pub(crate) fn started(&mut self, took: Option<Duration>) {
        if let Some(took) = took {
            self.pace.observe(took, self.starts);
        }
        self.starts = self.starts.saturating_sub(1);
    }

    /// Gives a place up; false when it is no longer in the queue.
    pub(crate) fn withdraw(&mut self, ticket: u64) -> bool {
        let before = self.queue.len();
        self.queue.retain(|waiting| waiting.ticket != ticket);
        self.queue.len() < before
    }

    /// Gives a sandbox's place up, and tells its ticket.
    pub(crate) fn withdraw_id(&mut self, id: &str) -> Option<u64> {
        let ticket = self.queue.iter().find(|waiting| waiting.id == id)?.ticket;
        self.withdraw(ticket);
        Some(ticket)
    }

    pub(crate) fn place(&self, id: &str) -> Option<QueuePlace> {
        self.place_where(|waiting| waiting.id == id)
    }

    pub(crate) fn place_of(&self, ticket: u64) -> Option<QueuePlace> {
        self.place_where(|waiting| waiting.ticket == ticket)
    }

    fn place_where(&self, is: impl Fn(&Waiting) -> bool) -> Option<QueuePlace> {
        let index = self.queue.iter().position(is)?;
        let first = self.queue.front()?;
        // None missing: it is about to be let in.
        let waits_for = self.missing(&first.wants).unwrap_or(WaitsFor::Starts);
        Some(QueuePlace { position: index as u64 + 1, waits_for })
    }

    pub(crate) fn queued(&self) -> u64 {
        self.queue.len() as u64
    }

    pub(crate) fn show(&self) -> (Stock, Stock, CpuStock, Starts) {
        let free = |room: Option<u64>, committed: u64| room.map(|room| room.saturating_sub(committed));
        let memory = Stock {
            total_bytes: self.reading.memory_total,
            reserved_bytes: self.memory_reserve(),
            committed_bytes: self.committed.memory_bytes,
            free_bytes: free(self.memory_room(), self.committed.memory_bytes),
            available_bytes: self.reading.memory_available,
        };
        let disk = Stock {
            total_bytes: self.reading.disk_total,
            reserved_bytes: self.reading.disk_reserve.unwrap_or(0),
            committed_bytes: self.committed.disk_bytes,
            free_bytes: free(self.disk_room(), self.committed.disk_bytes),
            available_bytes: self.reading.disk_free,
        };
        let starts = Starts {
            running: self.starts,
            limit: self.pace.limit(),
            latency_ms: self.pace.latency().map(round),
            undisturbed_ms: self.pace.undisturbed().map(round),
        };
        (memory, disk, CpuStock { total: self.cpus, committed: self.committed.cpus }, starts)
    }
}

/// To microseconds.
fn round(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}
