//! Terminals of the sandbox's own `/dev/pts`.
//!
//! Whoever is root in the sandbox may put anything at `/dev/ptmx` and `/dev/pts`. So the file system of terminals is
//! taken hold of before anything of the sandbox runs, both ends of a terminal come from there without any other path,
//! and no terminal ever becomes the guest's own.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use berth_wire::{Failure, FailureCode, TerminalSize};
use rustix::fs::{CWD, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::Pid;
use rustix::pty::OpenptFlags;
use rustix::termios::{InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Winsize};

use crate::failure;

const DIRECTORY: &str = "/dev/pts";
/// `DEVPTS_SUPER_MAGIC`, `linux/magic.h`.
const DEVPTS: u32 = 0x1cd1;
/// The group that may write to terminals of others (wall(1), mesg(1)), on every distribution; devpts gives it to each
/// where it was mounted so.
const TTY_GROUP: u32 = 5;
/// Read and write for the user, write for that group.
const WITH_GROUP: u32 = 0o620;
/// As that, where the group is another one.
const ALONE: u32 = 0o600;

/// Where terminals come from.
#[derive(Debug)]
pub(crate) struct Terminals {
    /// The root of the file system of terminals; absent where there is none.
    root: Option<OwnedFd>,
}

/// Both ends of a new terminal, with numbers above the standard ones.
#[derive(Debug)]
pub(crate) struct Terminal {
    /// The guest's end; does not block. Reading gives `EIO` once everybody has closed the other.
    pub(crate) master: OwnedFd,
    /// The command's end: its standard input, output and error. The guest's copy is to be closed when it was started.
    pub(crate) slave: OwnedFd,
}

impl Terminals {
    /// Takes hold of `/dev/pts`; to be called before anything of the sandbox runs.
    pub(crate) fn find() -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat2(CWD, DIRECTORY, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).ok();
        let is_devpts =
            |dir: &OwnedFd| rustix::fs::fstatfs(dir).is_ok_and(|stat| stat.f_type as u32 == DEVPTS);
        Self { root: root.filter(is_devpts) }
    }

    /// Makes a terminal of `size` for the user `uid`.
    pub(crate) fn open(&self, size: TerminalSize, uid: u32) -> failure::Result<Terminal> {
        let Some(root) = &self.root else {
            return Err(failure::because(FailureCode::Refused, "the sandbox has no /dev/pts", None));
        };
        make(root, size, uid).map_err(|(operation, errno)| {
            let failure = Failure { path: None, ..failure::at(operation, b"", errno) };
            // Terminals, not bytes, are at an end.
            if errno == Errno::NOSPC { Failure { code: FailureCode::Limit, ..failure } } else { failure }
        })
    }
}

type Step<T> = Result<T, (&'static str, Errno)>;

fn make(root: &OwnedFd, size: TerminalSize, uid: u32) -> Step<Terminal> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let master = rustix::fs::openat2(root, "ptmx", flags, Mode::empty(), within);
    let master = master.and_then(above_stdio).map_err(|errno| ("make a terminal", errno))?;
    rustix::pty::unlockpt(&master).map_err(|errno| ("unlock a terminal", errno))?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).and_then(above_stdio);
    let slave = slave.map_err(|errno| ("open a terminal", errno))?;
    resize(&master, size).map_err(|errno| ("set the size of a terminal", errno))?;
    expect_utf8(&slave).map_err(|errno| ("set up a terminal", errno))?;
    give_to(&slave, uid).map_err(|errno| ("change the owner of a terminal", errno))?;
    Ok(Terminal { master, slave })
}

/// Erasing takes whole characters away, not single bytes of them.
fn expect_utf8(slave: &OwnedFd) -> Result<(), Errno> {
    let mut modes = rustix::termios::tcgetattr(slave)?;
    modes.input_modes |= InputModes::IUTF8;
    rustix::termios::tcsetattr(slave, OptionalActions::Now, &modes)
}

fn give_to(slave: &OwnedFd, uid: u32) -> Result<(), Errno> {
    match rustix::fs::fchown(slave, Some(Uid::from_raw(uid)), None::<Gid>) {
        // No such user can be in this sandbox: the command's start fails on it, and says so better.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno),
    }
    let with_group = rustix::fs::fstat(slave)?.st_gid == TTY_GROUP;
    rustix::fs::fchmod(slave, Mode::from_raw_mode(if with_group { WITH_GROUP } else { ALONE }))
}

/// Tells a terminal its size, and those who run in its foreground that it changed (SIGWINCH).
pub(crate) fn resize(master: impl AsFd, size: TerminalSize) -> Result<(), Errno> {
    let TerminalSize { rows, cols } = size;
    rustix::termios::tcsetwinsize(master, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 })
}

/// The process group in the foreground of a terminal; none where nobody has it as his own.
pub(crate) fn foreground(master: impl AsFd) -> Option<Pid> {
    // PID 1 is the guest; it is in no terminal's session, but kill(2) of its group would be that of everybody's.
    rustix::termios::tcgetpgrp(master).ok().filter(|group| *group != Pid::INIT)
}

/// What to write to a terminal so that its reader sees the end of its input; `None` where it reads bytes as they come,
/// and no byte means an end.
pub(crate) fn end_of_input(master: impl AsFd) -> Option<u8> {
    let modes = rustix::termios::tcgetattr(master).ok()?;
    let end = modes.special_codes[SpecialCodeIndex::VEOF];
    (modes.local_modes.contains(LocalModes::ICANON) && end != 0).then_some(end)
}

fn above_stdio(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    if fd.as_raw_fd() > 2 { Ok(fd) } else { fcntl_dupfd_cloexec(&fd, 3) }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use berth_sys::spawn::{Ids, Progress, SpawnSpec, Spawned, spawn};
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::fs::FileType;
    use rustix::process::{Signal, WaitOptions, kill_process_group, waitpid};

    use super::*;

    const SIZE: TerminalSize = TerminalSize { rows: 33, cols: 101 };

    fn open(uid: u32) -> Option<Terminal> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: needs root, for whom alone /dev/pts/ptmx is on an ordinary machine");
            return None;
        }
        Some(Terminals::find().open(SIZE, uid).unwrap())
    }

    fn run(terminal: &Terminal, uid: u32, script: &str) -> Spawned {
        let ids = Ids { uid, gid: uid, groups: vec![] };
        let slave = terminal.slave.as_fd();
        spawn(&SpawnSpec {
            programs: &[c"/bin/sh".to_owned()],
            image: None,
            argv: &["sh", "-c", script].map(|arg| CString::new(arg).unwrap()),
            env: &[c"PATH=/usr/bin:/bin".to_owned()],
            cwd: c"/",
            ids: &ids,
            stdio: [slave; 3],
            controlling_terminal: true,
            cgroups: &[],
            oom_score_adj: None,
            open_files: None,
            no_new_privs: true,
            capabilities: None,
        })
        .unwrap()
    }

    /// Everything until nobody has the other end any more, or until `mark`.
    fn read_until(master: &OwnedFd, mark: Option<&str>) -> String {
        let mut text = String::new();
        let mut bytes = [0; 4096];
        while !mark.is_some_and(|mark| text.contains(mark)) {
            poll(&mut [PollFd::new(master, PollFlags::IN)], None).unwrap();
            match rustix::io::read(master, &mut bytes) {
                Ok(len) => text.push_str(&String::from_utf8_lossy(&bytes[..len])),
                Err(Errno::IO) => break,
                Err(errno) => panic!("{errno}"),
            }
        }
        text
    }

    fn end(spawned: &Spawned) -> i32 {
        let (_, status) = waitpid(Some(spawned.pid), WaitOptions::empty()).unwrap().unwrap();
        status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal)).unwrap()
    }

    #[test]
    fn a_command_has_it_as_its_own_from_its_first_instruction() {
        let Some(terminal) = open(65534) else { return };
        let script =
            "stty size; stat -c '%F %u %a' $(tty); echo hi >/dev/tty; ps -o tpgid=,pid= -p $$; exit 5";
        let mut spawned = run(&terminal, 65534, script);
        let Terminal { master, slave } = terminal;
        let stat = rustix::fs::fstat(&slave).unwrap();
        assert_eq!(FileType::from_raw_mode(stat.st_mode), FileType::CharacterDevice);
        drop(slave);
        let text = read_until(&master, None);
        assert_eq!(end(&spawned), 5);
        assert_eq!(spawned.poll().unwrap(), Progress::Running { program: 0 });
        let mode = if stat.st_gid == TTY_GROUP { "620" } else { "600" };
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("33 101"), "{text}");
        assert_eq!(lines.next(), Some(format!("character special file 65534 {mode}").as_str()), "{text}");
        assert_eq!(lines.next(), Some("hi"), "{text}");
        let groups: Vec<i32> =
            lines.next().unwrap().split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        assert_eq!(groups, [spawned.pid.as_raw_nonzero().get(); 2], "{text}");
    }

    #[test]
    fn whoever_is_in_the_foreground_learns_of_a_new_size_and_of_signals() {
        let Some(terminal) = open(0) else { return };
        let script = "trap 'stty size' WINCH; trap 'echo int; exit 3' INT; echo ready; \
                      while :; do sleep 0.05; done";
        let spawned = run(&terminal, 0, script);
        let Terminal { master, slave } = terminal;
        drop(slave);
        read_until(&master, Some("ready"));
        resize(&master, TerminalSize { rows: 5, cols: 6 }).unwrap();
        let text = read_until(&master, Some("5 6"));
        assert!(text.contains("5 6"), "{text}");
        let group = foreground(&master).unwrap();
        assert_eq!(group, spawned.pid);
        kill_process_group(group, Signal::INT).unwrap();
        assert!(read_until(&master, None).contains("int"));
        assert_eq!(end(&spawned), 3);
        assert_eq!(foreground(&master), None);
    }

    #[test]
    fn the_end_of_input_is_what_its_reader_takes_for_it() {
        let Some(terminal) = open(0) else { return };
        let spawned = run(&terminal, 0, "cat; echo over; stty raw -echo; echo raw; sleep 0.3");
        let Terminal { master, slave } = terminal;
        drop(slave);
        rustix::io::write(&master, b"line\n").unwrap();
        let end_byte = end_of_input(&master).unwrap();
        rustix::io::write(&master, &[end_byte]).unwrap();
        let text = read_until(&master, Some("raw"));
        assert!(text.contains("line\r\nline\r\nover"), "{text:?}");
        assert_eq!(end_of_input(&master), None);
        assert_eq!(end(&spawned), 0);
    }

    #[test]
    fn hanging_up_reaches_who_runs_on_it() {
        let Some(terminal) = open(0) else { return };
        let spawned = run(&terminal, 0, "echo ready; sleep 60");
        let Terminal { master, slave } = terminal;
        drop(slave);
        read_until(&master, Some("ready"));
        drop(master);
        assert_eq!(end(&spawned), 128 + Signal::HUP.as_raw());
    }

    #[test]
    fn no_terminals_are_no_panic() {
        let failure = Terminals { root: None }.open(SIZE, 0).unwrap_err();
        assert_eq!(failure.code, FailureCode::Refused);
    }
}
