//! All the processes that an exec started, as one thing that can be killed and counted.
//!
//! With cgroups every exec has cgroups of its own below the sandbox's, which its processes cannot leave. Without them
//! it is the exec's session, found by walking `/proc`; a process that made itself another session gets away, and
//! [`Trees::kind`] says so to the host.
//!
//! The guest is in none of the groups that limit commands. An exec's first process enters them before it is the
//! command; where the sandbox's memory is full of what cannot be freed, it enters the small group beside the limit
//! instead (see [`crate::accounts`]).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use berth_wire::TreeKill;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use crate::Groups;
use crate::accounts::{Accounts, Charged, Counter, Cpu, Memory, Own, open, put};

/// Where the trees of a sandbox are made.
pub(crate) struct Trees {
    roots: Vec<Rc<OwnedFd>>,
    enter: Vec<Rc<OwnedFd>>,
    memory: Option<Memory>,
    v2: bool,
    made: u64,
    /// Trees of finished execs in which something may live on, with the numbers of those.
    lingering: Vec<(Option<u64>, Tree)>,
}

/// One exec's processes.
pub(crate) struct Tree {
    name: String,
    groups: Vec<Group>,
    /// Doors of groups that it shares with others.
    shared: Vec<Rc<OwnedFd>>,
    accounts: Option<Accounts>,
    /// The exec's first process, whose pid is the session's number.
    leader: Option<Pid>,
}

struct Group {
    /// What it is in.
    root: Rc<OwnedFd>,
    dir: OwnedFd,
    door: OwnedFd,
}

impl Trees {
    pub(crate) fn new(groups: Groups) -> Result<Self, Errno> {
        let door = |dir: &OwnedFd| open(dir, door(groups.v2), OFlags::WRONLY).map(Rc::new);
        Ok(Self {
            enter: groups.enter.iter().map(door).collect::<Result<_, _>>()?,
            roots: groups.execs.into_iter().map(Rc::new).collect(),
            memory: groups.memory.and_then(|dir| Memory::new(dir, groups.v2)),
            v2: groups.v2,
            made: 0,
            lingering: Vec::new(),
        })
    }

    pub(crate) fn kind(&self) -> TreeKill {
        if self.roots.is_empty() { TreeKill::ProcessGroup } else { TreeKill::Cgroup }
    }

    /// A new tree without processes.
    pub(crate) fn make(&mut self) -> Result<Tree, Errno> {
        self.made += 1;
        let mut tree = Tree {
            name: format!("x-{}", self.made),
            groups: Vec::new(),
            shared: self.enter.clone(),
            accounts: None,
            leader: None,
        };
        match self.fill(&mut tree) {
            Ok(()) => Ok(tree),
            Err(errno) => {
                tree.remove();
                Err(errno)
            }
        }
    }

    fn fill(&self, tree: &mut Tree) -> Result<(), Errno> {
        let (charged, rescued) = match self.memory.as_ref().map(Memory::choose) {
            Some((charged, rescued)) => (Some(charged), rescued),
            None => (None, false),
        };
        // With version 2 one group limits all, and what is beside it is beside it as a whole.
        let beside = charged.as_ref().filter(|_| self.v2 && rescued).map(|rescue| rescue.dir.clone());
        let roots = beside.map_or_else(|| self.roots.clone(), |rescue| vec![rescue]);
        for root in roots {
            tree.groups.push(Group::make(root, &tree.name, self.v2)?);
        }
        if let (Some(charged), false) = (&charged, self.v2) {
            tree.shared.push(Rc::new(open(&*charged.dir, door(self.v2), OFlags::WRONLY)?));
        }
        tree.accounts = Some(self.accounts(tree, charged, rescued));
        Ok(())
    }

    fn accounts(&self, tree: &Tree, charged: Option<Charged>, rescued: bool) -> Accounts {
        let find = |name: &str| tree.groups.iter().find_map(|group| Counter::open(&group.dir, name));
        let own = if self.v2 {
            Own {
                memory_events: find("memory.events"),
                memory_peak: find("memory.peak"),
                pids_events: find("pids.events"),
                cpu: find("cpu.stat").map(Cpu::V2),
            }
        } else {
            Own {
                pids_events: find("pids.events"),
                cpu: find("cpuacct.usage").map(Cpu::V1),
                ..Own::default()
            }
        };
        Accounts::open(charged, rescued, own, self.v2)
    }

    /// Takes back the tree of finished exec number `of`: now if it is empty, later if something in it lives on.
    pub(crate) fn give_back(&mut self, tree: Tree, of: Option<u64>) {
        if !tree.remove() {
            self.lingering.push((of, tree));
        }
    }

    /// Whether there is something to sweep.
    pub(crate) fn has_lingering(&self) -> bool {
        !self.lingering.is_empty() || self.memory.as_ref().is_some_and(Memory::has_rescue)
    }

    /// Removes the cgroups of trees that have died out meanwhile. True when there are some that the kernel does not let
    /// go of yet.
    pub(crate) fn sweep(&mut self) -> bool {
        let lingering = std::mem::take(&mut self.lingering);
        self.lingering = lingering.into_iter().filter(|(_, tree)| !tree.remove()).collect();
        self.memory.as_ref().is_some_and(Memory::remove_rescue)
    }

    /// For the end of a guest whose end does not end everything by itself.
    pub(crate) fn take_lingering(&mut self) -> Vec<Tree> {
        std::mem::take(&mut self.lingering).into_iter().map(|(_, tree)| tree).collect()
    }

    /// What lives on of exec `number`.
    pub(crate) fn left_of(&self, number: u64) -> Option<&Tree> {
        self.lingering.iter().find(|(of, _)| *of == Some(number)).map(|(_, tree)| tree)
    }

    /// What lives on of any exec.
    pub(crate) fn left(&self) -> impl Iterator<Item = &Tree> {
        self.lingering.iter().map(|(_, tree)| tree)
    }

    pub(crate) fn is_v2(&self) -> bool {
        self.v2
    }
}

impl Group {
    fn make(root: Rc<OwnedFd>, name: &str, v2: bool) -> Result<Self, Errno> {
        rustix::fs::mkdirat(&*root, name, Mode::from_raw_mode(0o755))?;
        let dir = open(&*root, name, OFlags::RDONLY | OFlags::DIRECTORY);
        let opened = dir.and_then(|dir| Ok((open(&dir, door(v2), OFlags::WRONLY)?, dir)));
        match opened {
            Ok((door, dir)) => Ok(Self { root, dir, door }),
            Err(errno) => {
                let _ = rustix::fs::unlinkat(&*root, name, AtFlags::REMOVEDIR);
                Err(errno)
            }
        }
    }
}

impl Tree {
    /// Files to write to on entering.
    pub(crate) fn doors(&self) -> Vec<BorrowedFd<'_>> {
        let shared = self.shared.iter().map(|door| door.as_fd());
        self.groups.iter().map(|group| group.door.as_fd()).chain(shared).collect()
    }

    /// What was counted of it.
    pub(crate) fn accounts(&self) -> Option<&Accounts> {
        self.accounts.as_ref()
    }

    /// Whether nothing is left of its cgroups, all of which are tried. A session needs no removing.
    fn remove(&self) -> bool {
        let left = self.groups.iter().filter(|group| {
            let removed = rustix::fs::unlinkat(&*group.root, &self.name, AtFlags::REMOVEDIR);
            !matches!(removed, Ok(()) | Err(Errno::NOENT))
        });
        left.count() == 0
    }

    /// Says which process was the first.
    pub(crate) fn led_by(&mut self, leader: Pid) {
        self.leader = Some(leader);
    }

    /// Asks every process to end. A stopped one is woken, or it could not.
    pub(crate) fn terminate(&self) {
        for pid in self.members() {
            let _ = kill_process(pid, Signal::TERM);
            let _ = kill_process(pid, Signal::CONT);
        }
    }

    /// Kills every process that is there now, and makes it hard for new ones to appear. To be repeated until
    /// [`Tree::is_empty`]: a process that is being forked can slip through once.
    pub(crate) fn kill(&self, v2: bool) {
        for group in &self.groups {
            if v2 {
                let _ = put(&group.dir, "cgroup.kill", b"1");
            } else {
                let _ = put(&group.dir, "pids.max", b"0");
            }
        }
        for pid in self.members() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Whether no process is left. One that has died and was not reaped does not count.
    pub(crate) fn is_empty(&self) -> bool {
        self.members().is_empty()
    }

    /// Memory that its processes have together now, in bytes, where that is counted.
    pub(crate) fn memory_bytes(&self) -> Option<u64> {
        self.groups.iter().find_map(|group| Counter::open(&group.dir, "memory.current")?.number())
    }

    /// Its processes now.
    pub(crate) fn members(&self) -> Vec<Pid> {
        match (self.groups.first(), self.leader) {
            (Some(group), _) => group.members(),
            (None, Some(leader)) => session_members(leader),
            (None, None) => Vec::new(),
        }
    }
}

impl Group {
    fn members(&self) -> Vec<Pid> {
        // Opened anew each time: in v1 an open file keeps showing the processes of its first read.
        let Ok(file) = open(&self.dir, "cgroup.procs", OFlags::RDONLY) else { return Vec::new() };
        let mut text = String::new();
        let _ = std::io::Read::read_to_string(&mut std::fs::File::from(file), &mut text);
        text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
    }
}

/// The file by which a process of one thread, as one is before its execve(2), enters a group. With version 1 the other
/// one, for whole processes, waits for a grace period of the whole machine; with version 2 there is only that.
fn door(v2: bool) -> &'static str {
    if v2 { "cgroup.procs" } else { "tasks" }
}

/// Processes of the session or the process group that `leader` founded, by `/proc`.
fn session_members(leader: Pid) -> Vec<Pid> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return vec![leader] };
    let pids = processes.filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?));
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        stat.is_ok_and(|stat| is_of_session(&stat, leader))
    })
    .collect()
}

/// proc_pid_stat(5): the name is in parentheses and may hold anything; after it come state, parent, group, session.
fn is_of_session(stat: &str, leader: Pid) -> bool {
    let Some((_, fields)) = stat.rsplit_once(')') else { return false };
    let mut fields = fields.split_ascii_whitespace();
    let alive = fields.next().is_some_and(|state| state != "Z" && state != "X");
    let leader = leader.as_raw_nonzero().get();
    let mut numbers = fields.skip(1).take(2).filter_map(|field| field.parse::<i32>().ok());
    alive && numbers.any(|number| number == leader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_told_by_its_number_whatever_the_name() {
        let leader = Pid::from_raw(42).unwrap();
        assert!(is_of_session("43 (a) S 1 7) S 1 43 42 0", leader));
        assert!(is_of_session("42 (sh) R 1 42 9 0", leader));
        assert!(!is_of_session("42 (sh) Z 1 42 42 0", leader));
        assert!(!is_of_session("44 (42 42) S 42 44 44 42", leader));
        assert!(!is_of_session("nonsense", leader));
    }
}
