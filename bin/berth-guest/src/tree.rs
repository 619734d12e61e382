//! All the processes that an exec started, as one thing that can be killed.
//!
//! With cgroups every exec has a cgroup of its own below the sandbox's, which its processes cannot leave. Without them
//! it is the exec's session, found by walking `/proc`; a process that made itself another session gets away, and
//! [`Trees::kind`] says so to the host.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_wire::TreeKill;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

/// Where the trees of a sandbox are made.
pub(crate) struct Trees {
    roots: Vec<OwnedFd>,
    v2: bool,
    made: u64,
    /// Trees of finished execs in which something may live on.
    lingering: Vec<Tree>,
}

/// One exec's processes.
pub(crate) struct Tree {
    name: String,
    groups: Vec<Group>,
    /// The exec's first process, whose pid is the session's number.
    leader: Option<Pid>,
}

struct Group {
    dir: OwnedFd,
    procs: OwnedFd,
}

impl Trees {
    pub(crate) fn new(roots: Vec<OwnedFd>, v2: bool) -> Self {
        Self { roots, v2, made: 0, lingering: Vec::new() }
    }

    pub(crate) fn kind(&self) -> TreeKill {
        if self.roots.is_empty() { TreeKill::ProcessGroup } else { TreeKill::Cgroup }
    }

    /// A new tree without processes.
    pub(crate) fn make(&mut self) -> Result<Tree, Errno> {
        self.made += 1;
        let mut tree = Tree { name: format!("x-{}", self.made), groups: Vec::new(), leader: None };
        for root in &self.roots {
            match Group::make(root, &tree.name) {
                Ok(group) => tree.groups.push(group),
                Err(errno) => {
                    self.remove(&tree);
                    return Err(errno);
                }
            }
        }
        Ok(tree)
    }

    /// Takes back the tree of a finished exec: now if it is empty, later if something in it lives on.
    pub(crate) fn give_back(&mut self, tree: Tree) {
        if !self.remove(&tree) {
            self.lingering.push(tree);
        }
    }

    pub(crate) fn has_lingering(&self) -> bool {
        !self.lingering.is_empty()
    }

    /// Removes the cgroups of trees that have died out meanwhile.
    pub(crate) fn sweep(&mut self) {
        let lingering = std::mem::take(&mut self.lingering);
        self.lingering = lingering.into_iter().filter(|tree| !self.remove(tree)).collect();
    }

    /// For the end of a guest whose end does not end everything by itself.
    pub(crate) fn take_lingering(&mut self) -> Vec<Tree> {
        std::mem::take(&mut self.lingering)
    }

    /// Whether nothing is left of the tree's cgroups.
    fn remove(&self, tree: &Tree) -> bool {
        // A session needs no removing.
        self.roots.iter().all(|root| {
            matches!(rustix::fs::unlinkat(root, &tree.name, AtFlags::REMOVEDIR), Ok(()) | Err(Errno::NOENT))
        })
    }

    pub(crate) fn is_v2(&self) -> bool {
        self.v2
    }
}

impl Group {
    fn make(root: &OwnedFd, name: &str) -> Result<Self, Errno> {
        rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o755))?;
        let dir = open(root, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let procs = open(&dir, "cgroup.procs", OFlags::WRONLY)?;
        Ok(Self { dir, procs })
    }
}

fn open(dir: &OwnedFd, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, name, flags | OFlags::CLOEXEC, Mode::empty())
}

impl Tree {
    /// Files to write to on entering.
    pub(crate) fn doors(&self) -> Vec<BorrowedFd<'_>> {
        self.groups.iter().map(|group| group.procs.as_fd()).collect()
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

    fn members(&self) -> Vec<Pid> {
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

fn put(dir: &OwnedFd, name: &str, value: &[u8]) -> Result<(), Errno> {
    rustix::io::write(&open(dir, name, OFlags::WRONLY)?, value).map(drop)
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
