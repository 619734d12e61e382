//! Groups that exist: making, killing, counting, removing.

use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::plan::{COMMANDS, Op, Plan, Reserve, Version};
use super::{Error, Facts};

/// How long killed processes may take to die.
pub(super) const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// How long a group of the dead may stay busy.
const REMOVE_PATIENCE: Duration = Duration::from_secs(2);
/// How often a group is made again that another instance removes.
const MAKE_TRIES: usize = 10;
/// Passes over a group whose processes are moved: each but the last meets only what was forked during the one before.
const MOVE_TRIES: usize = 100;
/// The group that the guest makes for entering a sandbox whose memory is full.
const RESCUE: &str = "rescue";
/// Between two looks.
pub(super) const PAUSE: Duration = Duration::from_millis(2);

/// The groups of one sandbox. Plain data, so it can be stored and found again by another daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cgroup {
    /// Which version.
    pub version: Version,
    /// All directories, one a hierarchy.
    pub dirs: Vec<PathBuf>,
    /// The one that counts all memory of the sandbox; its commands' is counted in `commands` below.
    pub memory: Option<PathBuf>,
    /// The one that counts processor time.
    pub cpu: Option<PathBuf>,
    /// The one that counts processes of commands.
    pub pids: Option<PathBuf>,
    /// The one by which all processes are found and killed. Version 1 without a memory controller has none that holds
    /// the guest too: it is then the commands', and the guest is to be killed by its handle.
    pub processes: Option<PathBuf>,
    /// What is set aside for it in the groups above.
    #[serde(default)]
    pub reserved: Option<Reserve>,
}

/// What a sandbox uses and which limits it met. Absent: not counted on this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes of memory that its commands have now, page cache included: what the limit is about.
    pub memory_bytes: Option<u64>,
    /// The most that those ever were. Version 2 counts it from Linux 5.19 on.
    pub memory_peak_bytes: Option<u64>,
    /// Bytes of memory now with the guest, what it was told to write to file systems in memory, and the group that is
    /// made for entering a full sandbox.
    pub memory_total_bytes: Option<u64>,
    /// Processor time since the start, in microseconds; with the guest's, but not where version 1 has `cpu` and
    /// `cpuacct` mounted together.
    pub cpu_usec: Option<u64>,
    /// Processes and threads of its commands now.
    pub pids: Option<u64>,
    /// The most that those ever were, from Linux 6.6 on.
    pub pids_peak: Option<u64>,
    /// How many processes the kernel killed in it for want of memory.
    pub oom_kills: Option<u64>,
    /// How often its commands met the limit of memory, also where freeing some page cache helped. Version 1 has a
    /// counter for it that newer kernels no longer move.
    pub memory_limit_events: Option<u64>,
    /// How often a process could not be made because of the limit. Version 1 counts it by exec alone, and forgets it
    /// with the exec.
    pub pids_limit_events: Option<u64>,
}

impl Plan {
    /// Makes the groups. After an error nothing of this sandbox is left.
    pub fn create(&self) -> Result<Cgroup, Error> {
        // Kept until all is done; on the way out by an error it takes back what was made.
        let mut made = Made(Vec::new());
        for op in &self.ops {
            apply(op, &mut made.0)?;
        }
        made.0.clear();
        Ok(self.cgroup.clone())
    }
}

/// Directories that go when it does.
struct Made(Vec<PathBuf>);

impl Drop for Made {
    fn drop(&mut self) {
        for dir in self.0.iter().rev() {
            if let Err(error) = std::fs::remove_dir(dir) {
                tracing::warn!(dir = %dir.display(), %error, "cannot remove a half-made control group");
            }
        }
    }
}

fn apply(op: &Op, made: &mut Vec<PathBuf>) -> Result<(), Error> {
    match op {
        Op::Make(path) => make(path),
        Op::MakeNew(path) => make_new(path, made),
        Op::MoveProcesses { from, to } => move_processes(from, to),
        Op::Write { path, value } => write(path, value),
        Op::WriteIfThere { path, value } => {
            if path.exists() {
                write(path, value)
            } else {
                Ok(())
            }
        }
        Op::Reserve(reserve) => change(reserve, |now| now.saturating_add(reserve.bytes)),
        Op::Give { path, owner } => std::os::unix::fs::chown(path, Some(*owner), Some(*owner))
            .map_err(|source| Error::Give { path: path.clone(), owner: *owner, source }),
    }
}

/// Changes what is set aside for the groups above a sandbox's. One at a time, also among daemons: all share the topmost.
pub(super) fn change(reserve: &Reserve, by: impl Fn(u64) -> u64) -> Result<(), Error> {
    let Some(top) = reserve.groups.first() else { return Ok(()) };
    let lock = match std::fs::File::open(top) {
        // With the last sandbox of a daemon that ends, the groups above go too.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(|source| Error::Read { path: top.clone(), source })?,
    };
    let locked = rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive);
    locked.map_err(|error| Error::Read { path: top.clone(), source: error.into() })?;
    for path in reserve.groups.iter().map(|group| group.join("memory.low")) {
        if let Some(text) = read_if_there(&path)? {
            let now = text.trim().parse().map_err(|_| Error::Content { path: path.clone(), text })?;
            write(&path, &by(now).to_string())?;
        }
    }
    Ok(())
}

/// Tries again when `berth` vanishes between being made and being filled: another instance, ending, found it empty.
fn make(path: &Path) -> Result<(), Error> {
    // There for all but the first sandbox: to try to make it would wait for what is made and removed beside it.
    if path.is_dir() {
        return Ok(());
    }
    let mut made = std::fs::create_dir_all(path);
    for _ in 0..MAKE_TRIES {
        match &made {
            Err(error) if error.kind() == io::ErrorKind::NotFound => made = std::fs::create_dir_all(path),
            _ => break,
        }
    }
    made.map_err(|source| Error::Make { path: path.to_owned(), source })
}

fn make_new(path: &Path, made: &mut Vec<PathBuf>) -> Result<(), Error> {
    std::fs::create_dir(path).map_err(|source| Error::Make { path: path.to_owned(), source })?;
    made.push(path.to_owned());
    Ok(())
}

fn move_processes(from: &Path, to: &Path) -> Result<(), Error> {
    // Until it is seen empty: what was forked meanwhile is in the group of its parent, and in an empty one nothing forks.
    for _ in 0..MOVE_TRIES {
        let pids = pids_of(from)?;
        if pids.is_empty() {
            break;
        }
        for pid in pids {
            match write(&to.join("cgroup.procs"), &pid.to_string()) {
                Err(Error::Write { source, .. }) if is(&source, rustix::io::Errno::SRCH) => {}
                answer => answer?,
            }
        }
    }
    Ok(())
}

impl Cgroup {
    /// Kills all processes in it and below, and returns when they are gone. All right when the group is gone.
    pub fn kill_all(&self) -> Result<(), Error> {
        let Some(dir) = &self.processes else { return Ok(()) };
        if !dir.exists() {
            return Ok(());
        }
        let at_once = dir.join("cgroup.kill");
        if self.version == Version::V2 && at_once.exists() {
            write(&at_once, "1")?;
        } else if let Some(pids) = self.pids.as_ref().filter(|pids| pids.exists()) {
            // No new ones while the old ones are being killed.
            write(&pids.join("pids.max"), "0")?;
        }
        kill_until_empty(dir, Instant::now() + KILL_PATIENCE)
    }

    /// Whether its guest is this process, as far as its groups tell; where it has none, they do not tell.
    pub(crate) fn holds_guest(&self, pid: i32) -> Result<bool, Error> {
        let Some(dir) = &self.processes else { return Ok(true) };
        let mut groups = subtree(dir)?;
        if self.version == Version::V1 && self.memory.is_none() {
            // There the guest is in the groups of the instance only.
            groups.extend(dir.parent().map(Path::to_owned));
        }
        for group in groups {
            if pids_of(&group)?.contains(&pid) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes it with everything below. All right when it is gone already; there must be no processes left.
    pub fn remove(&self) -> Result<(), Error> {
        let was_there = self.dirs.iter().any(|dir| dir.exists());
        self.dirs.iter().try_for_each(|dir| remove_tree(dir))?;
        match &self.reserved {
            Some(reserve) if was_there => change(reserve, |now| now.saturating_sub(reserve.bytes)),
            _ => Ok(()),
        }
    }

    /// What it uses now, and what it has met.
    pub fn usage(&self) -> Result<Usage, Error> {
        let v1 = self.version == Version::V1;
        let name = |of_v1, of_v2| if v1 { of_v1 } else { of_v2 };
        let commands = self.memory_of_commands();
        let (commands, all) = (commands.as_deref(), self.memory.as_deref());
        let current = name("memory.usage_in_bytes", "memory.current");
        let cpu_usec = if v1 {
            number(self.cpu.as_deref(), "cpuacct.usage")?.map(|nanoseconds| nanoseconds / 1000)
        } else {
            keyed(self.cpu.as_deref(), "cpu.stat", "usage_usec")?
        };
        Ok(Usage {
            memory_bytes: number(commands, current)?,
            memory_peak_bytes: number(commands, name("memory.max_usage_in_bytes", "memory.peak"))?,
            memory_total_bytes: number(all, current)?,
            cpu_usec,
            pids: number(self.pids.as_deref(), "pids.current")?,
            pids_peak: number(self.pids.as_deref(), "pids.peak")?,
            oom_kills: self.oom_kills()?,
            memory_limit_events: if v1 { None } else { keyed(commands, "memory.events", "max")? },
            pids_limit_events: if v1 { None } else { keyed(self.pids.as_deref(), "pids.events", "max")? },
        })
    }

    /// How many of its processes the kernel killed for lack of memory; `None` where that is not counted.
    pub fn oom_kills(&self) -> Result<Option<u64>, Error> {
        let Some(memory) = &self.memory else { return Ok(None) };
        if self.version == Version::V2 {
            return keyed(Some(memory), "memory.events", "oom_kill");
        }
        // Version 1 counts in each group apart.
        let mut sum = None;
        for group in [memory.clone(), memory.join(COMMANDS), memory.join(RESCUE)] {
            if let Some(count) = keyed(Some(&group), "memory.oom_control", "oom_kill")? {
                sum = Some(sum.unwrap_or(0) + count);
            }
        }
        Ok(sum)
    }

    /// The group whose memory is limited, that of its commands: what a sandbox is to be shown as its memory.
    pub fn memory_of_commands(&self) -> Option<PathBuf> {
        self.memory.as_ref().map(|memory| memory.join(COMMANDS))
    }
}

/// Removes what is left of an instance: its groups, which must hold no processes, and `berth` itself when that is
/// empty then.
pub fn remove_instance(facts: &Facts, instance: &str) -> Result<(), Error> {
    check_instance(instance)?;
    let bases = facts.v1.iter().map(|hierarchy| &hierarchy.mount_point);
    for base in bases.chain(facts.v2.as_ref().map(|unified| &unified.base)) {
        let berth = base.join("berth");
        remove_tree(&berth.join(instance))?;
        match rustix::fs::rmdir(&berth) {
            // Other instances, or the daemon itself, are in it.
            Ok(())
            | Err(rustix::io::Errno::NOENT | rustix::io::Errno::BUSY | rustix::io::Errno::NOTEMPTY) => {}
            Err(error) => return Err(Error::Remove { path: berth, source: error.into() }),
        }
    }
    Ok(())
}

/// Of any other name something would go that is not an instance's: all of them, or the daemon.
pub(super) fn check_instance(instance: &str) -> Result<(), Error> {
    if instance.is_empty() || instance.contains('/') || instance.starts_with('.') || instance == "daemon" {
        return Err(Error::Path { path: format!("berth/{instance}") });
    }
    Ok(())
}

fn kill_until_empty(dir: &Path, deadline: Instant) -> Result<(), Error> {
    loop {
        let left = subtree(dir)?;
        let mut count = 0;
        for group in &left {
            count += kill_listed(group, &|_| false)?;
        }
        if count == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::Survivors { path: dir.to_owned(), count });
        }
        sleep(PAUSE);
    }
}

/// Kills what is listed and not spared, and returns how many that were. A pid can change hands between being read and
/// being used, so a process is opened first, and killed only if its group still lists it then.
pub(super) fn kill_listed(group: &Path, is_spared: &dyn Fn(i32) -> bool) -> Result<usize, Error> {
    let mut listed = pids_of(group)?;
    listed.retain(|pid| !is_spared(*pid));
    let opened: Vec<_> = listed
        .iter()
        .filter_map(|raw| Pid::from_raw(*raw))
        .filter_map(|pid| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?)))
        .collect();
    if opened.is_empty() {
        return Ok(listed.len());
    }
    let still = pids_of(group)?;
    for (pid, pidfd) in opened.iter().filter(|(pid, _)| still.contains(&pid.as_raw_nonzero().get())) {
        match pidfd_send_signal(pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => {
                let pid = pid.as_raw_nonzero().get();
                return Err(Error::Kill { path: group.to_owned(), pid, source: error.into() });
            }
        }
    }
    Ok(listed.len())
}

/// The group and all below it; what vanishes meanwhile is left out.
pub(super) fn subtree(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = vec![dir.to_owned()];
    let mut next = 0;
    while let Some(dir) = found.get(next).cloned() {
        next += 1;
        let entries = match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(|source| Error::Read { path: dir.clone(), source })?,
        };
        let directories =
            entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()));
        found.extend(directories.map(|entry| entry.path()));
    }
    Ok(found)
}

pub(super) fn remove_tree(dir: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + REMOVE_PATIENCE;
    for group in subtree(dir)?.into_iter().rev() {
        loop {
            match rustix::fs::rmdir(&group) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => break,
                // The last of the dead are still being buried.
                Err(rustix::io::Errno::BUSY) if Instant::now() < deadline => sleep(PAUSE),
                Err(error) => return Err(Error::Remove { path: group, source: error.into() }),
            }
        }
    }
    Ok(())
}

fn pids_of(group: &Path) -> Result<Vec<i32>, Error> {
    let path = group.join("cgroup.procs");
    let Some(text) = read_if_there(&path)? else { return Ok(Vec::new()) };
    text.lines()
        .map(|line| line.parse().map_err(|_| Error::Content { path: path.clone(), text: line.to_owned() }))
        .collect()
}

pub(super) fn number(dir: Option<&Path>, file: &str) -> Result<Option<u64>, Error> {
    let Some(path) = dir.map(|dir| dir.join(file)) else { return Ok(None) };
    let Some(text) = read_if_there(&path)? else { return Ok(None) };
    text.trim().parse().map(Some).map_err(|_| Error::Content { path, text })
}

/// The number after `key` in a file of lines of key and number.
fn keyed(dir: Option<&Path>, file: &str, key: &str) -> Result<Option<u64>, Error> {
    let Some(path) = dir.map(|dir| dir.join(file)) else { return Ok(None) };
    let Some(text) = read_if_there(&path)? else { return Ok(None) };
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    match value.map(str::parse) {
        None => Ok(None),
        Some(Ok(number)) => Ok(Some(number)),
        Some(Err(_)) => Err(Error::Content { path, text }),
    }
}

/// A group may vanish between any two looks: the file is gone (`ENOENT`), or open and dead (`ENODEV`).
fn read_if_there(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound || is(&error, rustix::io::Errno::NODEV) => {
            Ok(None)
        }
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

fn write(path: &Path, value: &str) -> Result<(), Error> {
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|source| Error::Write { path: path.to_owned(), value: value.to_owned(), source })
}

fn is(error: &io::Error, errno: rustix::io::Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_looked_for_where_its_version_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let (instance, own) = (dir.path().join("i"), dir.path().join("i/s"));
        std::fs::create_dir_all(own.join("guest")).unwrap();
        std::fs::write(own.join("guest/cgroup.procs"), "7\n").unwrap();
        std::fs::write(instance.join("cgroup.procs"), "8\n9\n").unwrap();
        let cgroup = |version, memory: Option<&PathBuf>| Cgroup {
            version,
            dirs: vec![own.clone()],
            memory: memory.cloned(),
            cpu: None,
            pids: None,
            processes: Some(own.clone()),
            reserved: None,
        };
        let held = |cgroup: &Cgroup| [7, 8, 9, 10].map(|pid| cgroup.holds_guest(pid).unwrap());
        assert_eq!(held(&cgroup(Version::V2, None)), [true, false, false, false]);
        assert_eq!(held(&cgroup(Version::V1, Some(&own))), [true, false, false, false]);
        // Without a memory controller the guest is in the instance's groups alone.
        assert_eq!(held(&cgroup(Version::V1, None)), [true, true, true, false]);
        // Where there are no groups they cannot tell.
        assert!(Cgroup { processes: None, ..cgroup(Version::V2, None) }.holds_guest(10).unwrap());
    }

    #[test]
    fn what_is_set_aside_above_is_the_sum() {
        let dir = tempfile::tempdir().unwrap();
        let groups = vec![dir.path().to_owned(), dir.path().join("i")];
        std::fs::create_dir(&groups[1]).unwrap();
        let file = |group: &Path| group.join("memory.low");
        groups.iter().for_each(|group| std::fs::write(file(group), "0\n").unwrap());
        let shown =
            |group: &Path| std::fs::read_to_string(file(group)).unwrap().trim().parse::<u64>().unwrap();
        let reserve = |bytes| Reserve { groups: groups.clone(), bytes };
        // Ordinary files are not cut by a write: so no number is shorter than the one before it.
        change(&reserve(4096), |now| now + 4096).unwrap();
        change(&reserve(8192), |now| now + 8192).unwrap();
        assert_eq!(groups.iter().map(|group| shown(group)).collect::<Vec<_>>(), [12288, 12288]);
        std::fs::remove_dir_all(dir.path()).unwrap();
        change(&reserve(4096), |now| now - 4096).unwrap();
    }
}
