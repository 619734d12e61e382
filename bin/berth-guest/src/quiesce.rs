//! Killing every process of every exec, also of those that are over.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::execs::Execs;
use crate::tree::{Tree, Trees};

/// How often what is being killed is looked at.
const RECHECK: Duration = Duration::from_millis(5);

/// See the module.
pub(crate) struct Quiesce {
    /// To be answered; nobody where the connection that asked has ended.
    pub(crate) channel: Option<u32>,
    /// Execs that ran when it began.
    running: Vec<u64>,
    seen: HashSet<Pid>,
    kill_at: Instant,
    next: Instant,
}

impl Quiesce {
    /// Asks every process to end.
    pub(crate) fn begin(channel: u32, grace_ms: Option<u64>, execs: &mut Execs, trees: &mut Trees) -> Self {
        let grace = Duration::from_millis(grace_ms.unwrap_or(berth_wire::DEFAULT_GRACE_MS));
        let now = Instant::now();
        let (mut running, mut seen) = (Vec::new(), HashSet::new());
        for (number, entry) in execs.all() {
            let Some(exec) = entry.exec.as_mut().filter(|exec| exec.is_alive()) else { continue };
            seen.extend(exec.tree().members());
            if exec.is_running() {
                seen.insert(exec.pid());
            }
            exec.kill(berth_wire::ExitReason::Killed, grace_ms);
            running.push(number);
        }
        // Also what only output is still waited for of.
        let ended = execs.all().filter_map(|(_, entry)| Some(entry.exec.as_deref()?.tree()));
        for tree in ended.chain(trees.left()) {
            seen.extend(tree.members());
            tree.terminate();
        }
        Self {
            channel: Some(channel),
            running,
            seen,
            kill_at: now.checked_add(grace).unwrap_or(now),
            next: now,
        }
    }

    /// Presses on; gives how many processes there were once all of them are dead.
    pub(crate) fn advance(&mut self, now: Instant, execs: &mut Execs, trees: &mut Trees) -> Option<u64> {
        if now < self.next {
            return None;
        }
        self.next = now + RECHECK;
        self.running.retain(|number| {
            execs.get(*number).and_then(|entry| entry.exec.as_ref()).is_some_and(|exec| exec.is_alive())
        });
        let mut left = !self.running.is_empty();
        let v2 = trees.is_v2();
        let ended = execs.all().filter_map(|(_, entry)| entry.exec.as_deref());
        let ended = ended.filter(|exec| !exec.is_alive()).map(crate::exec::Exec::tree);
        for tree in ended.chain(trees.left()) {
            left |= self.press(tree, now >= self.kill_at, v2);
        }
        trees.sweep();
        (!left).then_some(self.seen.len() as u64)
    }

    /// Whether something is left of a tree.
    fn press(&mut self, tree: &Tree, kill: bool, v2: bool) -> bool {
        let members = tree.members();
        if members.is_empty() {
            return false;
        }
        for pid in &members {
            // One that has come since was not asked yet.
            if self.seen.insert(*pid) && !kill {
                let _ = rustix::process::kill_process(*pid, Signal::TERM);
            }
        }
        if kill {
            tree.kill(v2);
        }
        true
    }

    pub(crate) fn next_timer(&self) -> Instant {
        self.next
    }
}
