//! Answers to the system calls by which programs ask how much there is: processors, memory, room on the root.
//!
//! Whoever asks is stopped meanwhile, but its other threads are not, nor is it certain that it lives: what is opened of
//! it by its pid is its own only if it is still waiting *afterwards*, and its memory is reached through a descriptor
//! opened so, never again by pid.
//!
//! A path is looked up with the rights of whoever asks, without leaving the root's own mount; where that fails for any
//! reason the kernel is let to answer, so an error is always the kernel's own.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_sys::notify::{
    self as calls, ALLOW, ARCHITECTURE, ASK, Call, FSTATFS, LookingAs, SCHED_GETAFFINITY, STATFS, SYSINFO,
};
use berth_sys::seccomp::Instruction;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

use crate::Error;
use crate::link::system;
use crate::views::{Counts, Sources, directory, lowest, whole};

/// Longest path, its NUL included: `PATH_MAX`.
const PATH_MAX: usize = 4096;

/// `BPF_LD | BPF_W | BPF_ABS`, `BPF_JMP | BPF_JEQ | BPF_K`, `BPF_RET | BPF_K`.
const LOAD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// Offsets in `struct seccomp_data`.
const NUMBER_OFFSET: u32 = 0;
const ARCHITECTURE_OFFSET: u32 = 4;

/// The filter for what `sources` make a difference to. Calls of other architectures pass: they are another filter's.
pub(crate) fn filter(sources: &Sources) -> Vec<Instruction> {
    let mut asked = Vec::new();
    if !sources.processors.is_empty() {
        asked.push(SCHED_GETAFFINITY);
    }
    if sources.memory.is_some() {
        asked.push(SYSINFO);
    }
    if sources.storage.is_some() {
        asked.extend([STATFS, FSTATFS]);
    }
    let mut program = vec![
        Instruction::new(LOAD, ARCHITECTURE_OFFSET),
        Instruction::jump(JUMP_IF_EQUAL, ARCHITECTURE, 1, 0),
        Instruction::new(RETURN, ALLOW),
        Instruction::new(LOAD, NUMBER_OFFSET),
    ];
    for call in asked {
        program.push(Instruction::jump(JUMP_IF_EQUAL, call, 0, 1));
        program.push(Instruction::new(RETURN, ASK));
    }
    program.push(Instruction::new(RETURN, ALLOW));
    program
}

/// What is known for the answers.
pub(crate) struct Calls {
    sources: Sources,
    proc: OwnedFd,
    root: OwnedFd,
    root_mount: u64,
}

/// Why the kernel is to answer: nobody needs to know more.
struct LetThrough;

impl From<Errno> for LetThrough {
    fn from(_: Errno) -> Self {
        Self
    }
}

impl From<std::io::Error> for LetThrough {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

/// What a call is to return, and what it writes where before.
struct Answer {
    value: i64,
    address: u64,
    bytes: Vec<u8>,
}

impl Calls {
    pub(crate) fn new(sources: Sources) -> Result<Self, Error> {
        let open = |path| directory(path).map_err(|errno| system("open a directory for the views", errno));
        let root = open("/")?;
        let root_mount = mount_of(&root).map_err(|errno| system("look at the root", errno))?;
        Ok(Self { sources, proc: open("/proc")?, root, root_mount })
    }

    pub(crate) fn processors(&self) -> &[u32] {
        &self.sources.processors
    }

    /// What the memory group counts now; `machine` is the machine's own /proc/meminfo.
    pub(crate) fn memory(&self, machine: Option<&OwnedFd>) -> Result<Counts, Errno> {
        let group = self.sources.memory.as_ref().ok_or(Errno::NOENT)?;
        group.read(machine.ok_or(Errno::NOENT)?)
    }

    /// Answers one call that waits, if any does.
    pub(crate) fn answer(&self, listener: BorrowedFd<'_>, machine: Option<&OwnedFd>) {
        let Ok(Some(call)) = calls::receive(listener) else { return };
        let answered = self.prepare(&call, machine).and_then(|answer| {
            self.write(listener, &call, &answer)?;
            Ok(answer.value)
        });
        // An error here says that the thread has been killed meanwhile.
        let _ = match answered {
            Ok(value) => calls::answer(listener, &call, value),
            Err(LetThrough) => calls::let_through(listener, &call),
        };
    }

    fn prepare(&self, call: &Call, machine: Option<&OwnedFd>) -> Result<Answer, LetThrough> {
        let [first, second, third, ..] = call.arguments;
        match call.number {
            SCHED_GETAFFINITY => self.affinity(call, first, second, third),
            SYSINFO => {
                let bytes = calls::sysinfo(&self.memory(machine)?.figures())?;
                Ok(Answer { value: 0, address: first, bytes })
            }
            STATFS => {
                let path = self.path(call, first)?;
                let file = self.look_up(call, &path)?;
                self.statfs(&file, second)
            }
            // Descriptors are ints; of the register only that half counts.
            FSTATFS => {
                let link = format!("{}/fd/{}", call.pid, first as i32);
                let file =
                    rustix::fs::openat(&self.proc, link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
                self.statfs(&file, second)
            }
            _ => Err(LetThrough),
        }
    }

    /// As many processors as there are to be shown, the lowest of those that the thread may use: all of them where it
    /// has been given fewer. Asked of the kernel for the same thread and length, so lengths are the kernel's.
    fn affinity(&self, call: &Call, pid: u64, len: u64, address: u64) -> Result<Answer, LetThrough> {
        // Both are 32 bits wide to the kernel.
        let (pid, len) = (pid as i32, len as u32);
        let mut bytes = calls::affinity(if pid == 0 { call.pid } else { pid }, len as usize)?;
        lowest(&mut bytes, self.sources.processors.len());
        let value = i64::try_from(bytes.len()).map_err(|_| LetThrough)?;
        Ok(Answer { value, address, bytes })
    }

    fn statfs(&self, file: &OwnedFd, address: u64) -> Result<Answer, LetThrough> {
        let storage = self.sources.storage.as_ref().ok_or(LetThrough)?;
        if mount_of(file)? != self.root_mount {
            return Err(LetThrough);
        }
        let mut used = 0u64;
        for file in &storage.used {
            let counted: u64 = whole(file)?.trim().parse().map_err(|_| LetThrough)?;
            used = used.saturating_add(counted);
        }
        let bytes = calls::statfs(self.root.as_fd(), storage.limit, used)?;
        Ok(Answer { value: 0, address, bytes })
    }

    /// What is at `path` for the thread that waits, if it is on the root's own mount.
    fn look_up(&self, call: &Call, path: &[u8]) -> Result<OwnedFd, LetThrough> {
        let ids = self.file_ids(call)?;
        let found = open_below(&self.start(call, path)?, path, ids)?;
        match (found, own_link(path)) {
            (Err(Errno::XDEV), Some(path)) => Ok(open_below(&self.start(call, &path)?, &path, ids)??),
            (found, _) => Ok(found?),
        }
    }

    fn file_ids(&self, call: &Call) -> Result<(u32, u32), LetThrough> {
        let status = rustix::fs::openat(
            &self.proc,
            format!("{}/status", call.pid),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let status = whole(&status)?;
        file_id(&status, "Uid:").zip(file_id(&status, "Gid:")).ok_or(LetThrough)
    }

    /// Where `path` begins for the thread that waits.
    fn start(&self, call: &Call, path: &[u8]) -> Result<OwnedFd, LetThrough> {
        let link = format!("{}/{}", call.pid, if is_absolute(path) { "root" } else { "cwd" });
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
        let start = rustix::fs::openat(&self.proc, link, flags, Mode::empty())?;
        if mount_of(&start)? == self.root_mount { Ok(start) } else { Err(LetThrough) }
    }

    /// The path at `address`, without its NUL.
    fn path(&self, call: &Call, address: u64) -> Result<Vec<u8>, LetThrough> {
        let memory = self.open_memory(call, OFlags::RDONLY)?;
        let mut bytes = vec![0; PATH_MAX];
        let len = rustix::io::pread(&memory, &mut bytes, address)?;
        let end = bytes[..len].iter().position(|byte| *byte == 0).filter(|end| *end > 0);
        bytes.truncate(end.ok_or(LetThrough)?);
        Ok(bytes)
    }

    fn write(&self, listener: BorrowedFd<'_>, call: &Call, answer: &Answer) -> Result<(), LetThrough> {
        let memory = self.open_memory(call, OFlags::WRONLY)?;
        // Still waiting, so it was its memory that was opened; and everything that was learnt by its pid was of it.
        if !calls::is_waiting(listener, call) {
            return Err(LetThrough);
        }
        let len = rustix::io::pwrite(&memory, &answer.bytes, answer.address)?;
        if len == answer.bytes.len() { Ok(()) } else { Err(LetThrough) }
    }

    fn open_memory(&self, call: &Call, access: OFlags) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(&self.proc, format!("{}/mem", call.pid), access | OFlags::CLOEXEC, Mode::empty())
    }
}

fn is_absolute(path: &[u8]) -> bool {
    path.first() == Some(&b'/')
}

/// With the rights of `ids`, without leaving the mount of `start`.
fn open_below(
    start: &OwnedFd,
    path: &[u8],
    (uid, gid): (u32, u32),
) -> Result<Result<OwnedFd, Errno>, LetThrough> {
    let within = if is_absolute(path) { ResolveFlags::IN_ROOT } else { ResolveFlags::empty() };
    let resolve = within | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    let _looking = LookingAs::new(uid, gid)?;
    Ok(rustix::fs::openat2(start, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve))
}

/// The path that one by a process's own links to its root and working directory stands for.
fn own_link(path: &[u8]) -> Option<Vec<u8>> {
    let path = path.strip_prefix(b"/proc/self/")?;
    if let Some(rest) = path.strip_prefix(b"root") {
        return (rest.is_empty() || is_absolute(rest)).then(|| [b"/", rest].concat());
    }
    let rest = path.strip_prefix(b"cwd")?;
    (rest.is_empty() || is_absolute(rest)).then(|| [b".", rest].concat())
}

/// Without asking the file system, which may be one that this very thread serves.
fn mount_of(file: &OwnedFd) -> Result<u64, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    Ok(rustix::fs::statx(file, "", flags, StatxFlags::MNT_ID)?.stx_mnt_id)
}

/// The fourth number of a line of ids in /proc/<pid>/status: that for files.
fn file_id(status: &str, line: &str) -> Option<u32> {
    let ids = status.lines().find_map(|text| text.strip_prefix(line))?;
    ids.split_ascii_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_makes_a_difference_is_asked() {
        let asked = |sources: &Sources| {
            filter(sources).iter().filter(|step| step.operand == ASK && step.code == RETURN).count()
        };
        assert_eq!(asked(&Sources::default()), 0);
        assert_eq!(asked(&Sources { processors: vec![0], ..Sources::default() }), 1);
    }

    #[test]
    fn own_links_are_paths() {
        let own = |path: &str| own_link(path.as_bytes()).map(|path| String::from_utf8(path).unwrap());
        assert_eq!(own("/proc/self/root").unwrap(), "/");
        assert_eq!(own("/proc/self/root/a").unwrap(), "//a");
        assert_eq!(own("/proc/self/cwd").unwrap(), ".");
        assert_eq!(own("/proc/self/cwd/a").unwrap(), "./a");
        for other in ["/proc/self/rooted", "/proc/self/cwds", "/proc/self/exe", "/proc/1/root", "/"] {
            assert_eq!(own(other), None, "{other}");
        }
    }

    #[test]
    fn ids_for_files_are_the_fourth() {
        assert_eq!(file_id("Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n", "Gid:"), Some(8));
        assert_eq!(file_id("Uid:\t1\n", "Uid:"), None);
    }
}
