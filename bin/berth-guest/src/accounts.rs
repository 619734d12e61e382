//! What the kernel counts in control groups: the headroom of a sandbox, and what one exec met and used.
//!
//! The counters differ between the versions. With version 2 an exec's own group counts its memory; with version 1 only
//! the sandbox's does (a memory group takes 0.1 ms to make and outlives its directory while a page of it is cached), so
//! that kills are then told by what changed meanwhile. What is not counted stays absent.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};

use berth_wire::{ExecUsage, Limit};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

/// Memory that a command needs to start and say something; with less left it is started beside the limit. Of a small
/// limit it is an eighth.
const HEADROOM: u64 = 8 << 20;
/// Memory of commands that run beside a full sandbox, all together.
const RESCUE_BYTES: u64 = 32 << 20;
/// Processes of those, all together, where memory and processes are limited by one group.
const RESCUE_PIDS: &str = "32";
/// The same, and what is left in memory there of commands that are over: at most.
const RESCUE_MOST: u64 = 128 << 20;
/// Limits above it mean none: version 1 shows the largest number of whole pages.
const NO_LIMIT: u64 = 1 << 62;

const COMMANDS: &str = "commands";
const RESCUE: &str = "rescue";
/// `read` of a short file takes one call.
const SHORT: usize = 4096;

/// A file of numbers, kept open: each read counts anew.
pub(crate) struct Counter(OwnedFd);

impl Counter {
    pub(crate) fn open(dir: impl AsFd, name: &str) -> Option<Self> {
        open(dir, name, OFlags::RDONLY).ok().map(Self)
    }

    fn text(&self) -> Option<String> {
        let mut buffer = vec![0; SHORT];
        let len = rustix::io::pread(&self.0, &mut buffer, 0).ok()?;
        buffer.truncate(len);
        String::from_utf8(buffer).ok()
    }

    pub(crate) fn number(&self) -> Option<u64> {
        self.text()?.trim().parse().ok()
    }

    /// The number after `key` in lines of key and number.
    fn keyed(&self, key: &str) -> Option<u64> {
        keyed(&self.text()?, key)
    }
}

fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

pub(crate) fn open(dir: impl AsFd, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, name, flags | OFlags::CLOEXEC, Mode::empty())
}

pub(crate) fn put(dir: impl AsFd, name: &str, value: &[u8]) -> Result<(), Errno> {
    rustix::io::write(&open(dir, name, OFlags::WRONLY)?, value).map(drop)
}

/// The sandbox's memory, as its groups count it.
pub(crate) struct Memory {
    /// The sandbox's own group.
    dir: OwnedFd,
    v2: bool,
    limit: Option<u64>,
    usage: Counter,
    stat: Counter,
    commands: Charged,
    /// Whether there is a group beside the limit.
    has_rescue: Cell<bool>,
    /// Held by the execs that are in it, or about to enter it.
    rescue: RefCell<Weak<OwnedFd>>,
}

/// A group in which execs are charged for memory.
#[derive(Clone)]
pub(crate) struct Charged {
    pub(crate) dir: Rc<OwnedFd>,
    /// With its count of kills.
    events: Rc<Counter>,
    v2: bool,
    /// Kills that were the end of an exec's first process, and told as that.
    claimed: Rc<Cell<u64>>,
}

impl Memory {
    /// `None` where memory is not counted.
    pub(crate) fn new(dir: OwnedFd, v2: bool) -> Option<Self> {
        let commands = open(&dir, COMMANDS, OFlags::RDONLY | OFlags::DIRECTORY).ok()?;
        let (usage, limit) = if v2 {
            ("memory.current", "memory.max")
        } else {
            ("memory.usage_in_bytes", "memory.limit_in_bytes")
        };
        let usage = Counter::open(&commands, usage)?;
        let limit = Counter::open(&commands, limit)?.number().filter(|limit| *limit < NO_LIMIT);
        let stat = Counter::open(&commands, "memory.stat")?;
        let has_rescue = Cell::new(false);
        Some(Self {
            limit,
            usage,
            stat,
            commands: Charged::new(commands, v2)?,
            v2,
            dir,
            has_rescue,
            rescue: RefCell::default(),
        })
    }

    /// The group for the next exec, and whether that is the one beside the limit.
    pub(crate) fn choose(&self) -> (Charged, bool) {
        if !self.is_full() {
            return (self.commands.clone(), false);
        }
        // Where it cannot be made a full group is better than no exec: the kernel may find something to kill.
        match self.rescue() {
            Some(rescue) => (rescue, true),
            None => (self.commands.clone(), false),
        }
    }

    /// Whether less is left than a command needs to start, with all that could be freed.
    fn is_full(&self) -> bool {
        let (Some(limit), Some(usage)) = (self.limit, self.usage.number()) else { return false };
        let (left, least) = (limit.saturating_sub(usage), HEADROOM.min(limit / 8));
        left < least && left + self.reclaimable() < least
    }

    /// Page cache, and what version 2 tells of the kernel's caches. Files in memory are neither.
    fn reclaimable(&self) -> u64 {
        let Some(text) = self.stat.text() else { return 0 };
        let names: &[&str] = if self.v2 {
            &["active_file", "inactive_file", "slab_reclaimable"]
        } else {
            &["total_active_file", "total_inactive_file"]
        };
        names.iter().filter_map(|name| keyed(&text, name)).sum()
    }

    /// A group beside the limit; a new one if nothing runs in the one there was: what files in memory were charged to
    /// that one goes to the sandbox's own, which has a limit too.
    fn rescue(&self) -> Option<Charged> {
        let charged = match self.rescue.borrow().upgrade() {
            Some(dir) => {
                self.widen_rescue(&dir);
                Charged::of(dir, self.v2)
            }
            None => self.new_rescue(),
        }?;
        *self.rescue.borrow_mut() = Rc::downgrade(&charged.dir);
        Some(charged)
    }

    fn new_rescue(&self) -> Option<Charged> {
        self.remove_rescue();
        match rustix::fs::mkdirat(&self.dir, RESCUE, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let dir = open(&self.dir, RESCUE, OFlags::RDONLY | OFlags::DIRECTORY).ok()?;
                self.widen_rescue(&dir);
                return Charged::new(dir, self.v2);
            }
            Err(_) => return None,
        }
        self.has_rescue.set(true);
        let dir = open(&self.dir, RESCUE, OFlags::RDONLY | OFlags::DIRECTORY).ok()?;
        if self.limit_rescue(&dir).is_err() {
            // Without its limits it is not to be used.
            let _ = rustix::fs::unlinkat(&self.dir, RESCUE, AtFlags::REMOVEDIR);
            return None;
        }
        Charged::new(dir, self.v2)
    }

    /// Whether there is a group beside the limit, to be removed when nothing runs in it any more.
    pub(crate) fn has_rescue(&self) -> bool {
        self.has_rescue.get()
    }

    /// Removes the group beside the limit if it can be. True when it is to be tried again soon: for a moment after its
    /// last process was reaped the kernel may still count it as one of the group.
    pub(crate) fn remove_rescue(&self) -> bool {
        // Who is about to enter it must find it.
        if !self.has_rescue.get() || self.rescue.borrow().strong_count() > 0 {
            return false;
        }
        let removed = rustix::fs::unlinkat(&self.dir, RESCUE, AtFlags::REMOVEDIR);
        if removed != Err(Errno::BUSY) {
            self.has_rescue.set(false);
            return false;
        }
        let dir = open(&self.dir, RESCUE, OFlags::RDONLY | OFlags::DIRECTORY);
        dir.is_ok_and(|dir| !self.is_inhabited(&dir))
    }

    fn is_inhabited(&self, dir: &OwnedFd) -> bool {
        if self.v2 {
            return Counter::open(dir, "cgroup.events").and_then(|events| events.keyed("populated"))
                != Some(0);
        }
        Counter::open(dir, "cgroup.procs").and_then(|processes| processes.text()) != Some(String::new())
    }

    /// What other commands there have in memory, or left, is not to be the next one's lack, where something still runs
    /// in the group or the kernel does not let go of it yet. Best effort.
    fn widen_rescue(&self, dir: &OwnedFd) {
        let (usage, limits) = if self.v2 {
            ("memory.current", &["memory.max"][..])
        } else {
            ("memory.usage_in_bytes", &["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"][..])
        };
        let Some(used) = Counter::open(dir, usage).and_then(|usage| usage.number()) else { return };
        let bytes = (used + RESCUE_BYTES / 2).clamp(RESCUE_BYTES, RESCUE_MOST).to_string();
        for limit in limits {
            let _ = put(dir, limit, bytes.as_bytes());
        }
    }

    fn limit_rescue(&self, dir: &OwnedFd) -> Result<(), Errno> {
        let bytes = &RESCUE_BYTES.to_string().into_bytes()[..];
        // Kernels without swap accounting lack the second file, those without the controller the rest.
        let if_there = |answer: Result<(), Errno>| if answer == Err(Errno::NOENT) { Ok(()) } else { answer };
        if !self.v2 {
            put(dir, "memory.limit_in_bytes", bytes)?;
            return if_there(put(dir, "memory.memsw.limit_in_bytes", bytes));
        }
        put(dir, "memory.max", bytes)?;
        if_there(put(dir, "memory.swap.max", b"0"))?;
        if_there(put(dir, "pids.max", RESCUE_PIDS.as_bytes()))?;
        match Counter::open(&*self.commands.dir, "cpu.max").and_then(|quota| quota.text()) {
            Some(quota) => put(dir, "cpu.max", quota.trim().as_bytes()),
            None => Ok(()),
        }
    }
}

impl Charged {
    fn new(dir: OwnedFd, v2: bool) -> Option<Self> {
        Self::of(Rc::new(dir), v2)
    }

    fn of(dir: Rc<OwnedFd>, v2: bool) -> Option<Self> {
        let events = Counter::open(&dir, if v2 { "memory.events" } else { "memory.oom_control" })?;
        Some(Self { dir, events: Rc::new(events), v2, claimed: Rc::default() })
    }

    fn kills(&self) -> Option<u64> {
        self.events.keyed("oom_kill")
    }

    /// How often memory was wanted, and none was left nor could be freed. Version 1 counts only kills.
    fn shortages(&self) -> Option<u64> {
        if self.v2 { self.events.keyed("oom") } else { self.kills() }
    }
}

/// One exec's accounts.
pub(crate) struct Accounts {
    charged: Option<Charged>,
    before: Before,
    /// Its own groups: of memory and processor time (version 2), of processes, of processor time (version 1).
    own: Own,
    /// Where forks above the limit are counted for the sandbox, with version 2.
    pids: Option<Counter>,
    pub(crate) rescued: bool,
}

#[derive(Default)]
struct Before {
    kills: Option<u64>,
    claimed: u64,
    shortages: Option<u64>,
    forks_refused: Option<u64>,
}

#[derive(Default)]
pub(crate) struct Own {
    pub(crate) memory_events: Option<Counter>,
    pub(crate) memory_peak: Option<Counter>,
    pub(crate) pids_events: Option<Counter>,
    pub(crate) cpu: Option<Cpu>,
}

pub(crate) enum Cpu {
    /// `cpu.stat`.
    V2(Counter),
    /// `cpuacct.usage`, in nanoseconds.
    V1(Counter),
}

impl Accounts {
    /// Opened before the exec's first process is there.
    pub(crate) fn open(charged: Option<Charged>, rescued: bool, own: Own, v2: bool) -> Self {
        let pids =
            charged.as_ref().filter(|_| v2).and_then(|charged| Counter::open(&*charged.dir, "pids.events"));
        let before = Before {
            kills: charged.as_ref().and_then(Charged::kills),
            claimed: charged.as_ref().map_or(0, |charged| charged.claimed.get()),
            shortages: charged.as_ref().and_then(Charged::shortages),
            forks_refused: pids.as_ref().and_then(|pids| pids.keyed("max")),
        };
        Self { charged, before, own, pids, rescued }
    }

    /// What was counted since.
    pub(crate) fn usage(&self) -> ExecUsage {
        let own_kills = self.own.memory_events.as_ref().and_then(|events| events.keyed("oom_kill"));
        let meanwhile = |now: Option<u64>, before: Option<u64>| Some(now?.saturating_sub(before?));
        let charged = self.charged.as_ref();
        let oom_kills = own_kills.or(meanwhile(charged.and_then(Charged::kills), self.before.kills));
        let shortages = meanwhile(charged.and_then(Charged::shortages), self.before.shortages);
        let own_forks = self.own.pids_events.as_ref().and_then(|events| events.keyed("max"));
        let forks =
            meanwhile(self.pids.as_ref().and_then(|pids| pids.keyed("max")), self.before.forks_refused);
        let met = |counts: [Option<u64>; 2]| counts.into_iter().flatten().any(|count| count > 0);
        let limits = [(Limit::Memory, met([oom_kills, shortages])), (Limit::Pids, met([own_forks, forks]))];
        ExecUsage {
            oom_kills,
            limits_hit: limits.into_iter().filter(|(_, met)| *met).map(|(limit, _)| limit).collect(),
            peak_memory_bytes: self.own.memory_peak.as_ref().and_then(Counter::number),
            cpu_usec: self.cpu_usec(),
            rescued: self.rescued,
        }
    }

    /// Processor time so far, in microseconds.
    pub(crate) fn cpu_usec(&self) -> Option<u64> {
        match self.own.cpu.as_ref()? {
            Cpu::V2(stat) => stat.keyed("usage_usec"),
            Cpu::V1(usage) => usage.number().map(|nanoseconds| nanoseconds / 1000),
        }
    }

    /// Whether a first process that SIGKILL ended was killed for want of memory. Where kills are counted by sandbox,
    /// each is the end of one exec at most.
    pub(crate) fn claim_kill(&self, usage: &ExecUsage) -> bool {
        let kills = usage.oom_kills.unwrap_or(0);
        let Some(charged) = self.charged.as_ref().filter(|_| self.own.memory_events.is_none()) else {
            return kills > 0;
        };
        let claimed = charged.claimed.get().saturating_sub(self.before.claimed);
        let mine = kills > claimed;
        charged.claimed.set(charged.claimed.get() + u64::from(mine));
        mine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_only_as_a_whole() {
        let text = "oom 3\noom_kill 7\noom_group_kill 0\n";
        assert_eq!(keyed(text, "oom"), Some(3));
        assert_eq!(keyed(text, "oom_kill"), Some(7));
        assert_eq!(keyed(text, "kill"), None);
    }
}
