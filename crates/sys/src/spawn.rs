//! Starting a command from a program that has threads.
//!
//! fork(2) of a process with threads leaves a copy in which only async-signal-safe calls may be made: no allocation, no
//! lock. So everything is prepared here before the fork, and the copy ([`crate::exec_child`]) only makes system calls.
//! How far it got comes back through a pipe that execve(2) closes, so the caller need not wait for it: [`Spawned::poll`]
//! can be asked whenever the pipe is readable.
//!
//! Also here, since the same caller needs them: SIGCHLD as a descriptor, and descriptors that were inherited by number.

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use rustix::thread::{Gid, Uid};

use crate::{checked, exec_child};

/// Who the command runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// A command, with all that it keeps of this process.
#[derive(Debug)]
pub struct SpawnSpec<'a> {
    /// Paths to try in this order, as execvp(3) does: the next one after `ENOENT`, `ENOTDIR` and `EACCES`.
    pub programs: &'a [CString],
    /// An open executable that is run in place of `programs`; no script, since the descriptor closes by then.
    /// execveat(2), Linux 3.19.
    pub image: Option<BorrowedFd<'a>>,
    /// Arguments, the program's own name first.
    pub argv: &'a [CString],
    /// The whole environment, `NAME=value` each.
    pub env: &'a [CString],
    /// Working directory; entered with the rights of this process, or with those of `ids` where only those suffice.
    pub cwd: &'a CStr,
    /// Who it runs as.
    pub ids: &'a Ids,
    /// Its standard input, output and error; numbers above 2. Nothing else is passed on.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Whether its standard input is a terminal, which becomes that of its session. ioctl_tty(2), `TIOCSCTTY`.
    pub controlling_terminal: bool,
    /// Files `tasks` (version 1) or `cgroup.procs` (version 2), open for writing, of the cgroups it enters before anything
    /// of it runs.
    pub cgroups: &'a [BorrowedFd<'a>],
    /// Its score for the out-of-memory killer; this process's own when `None`. Best effort.
    pub oom_score_adj: Option<i32>,
    /// Its soft and hard limit of open files; this process's own when `None`.
    pub open_files: Option<(u64, u64)>,
    /// Whether set-id bits and file capabilities are without effect (prctl(2), `PR_SET_NO_NEW_PRIVS`).
    pub no_new_privs: bool,
    /// Capabilities that it, and what it starts, can have at most: a bit for each number. As this process when `None`.
    pub capabilities: Option<u64>,
}

/// Which step towards the command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Entering a cgroup.
    Cgroup,
    /// Resetting signals, session, terminal, limits or descriptors.
    Prepare,
    /// Taking on user and groups.
    Ids,
    /// Entering the working directory.
    Cwd,
    /// execve(2).
    Exec,
}

/// What is known of a command that was spawned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It has not come as far as execve(2).
    Pending,
    /// It runs, or has run.
    Running {
        /// Index into [`SpawnSpec::programs`]; 0 with an image.
        program: usize,
    },
    /// It could not be started; its process has ended, or is about to.
    Failed {
        /// The step.
        step: Step,
        /// The errno.
        errno: i32,
        /// Index into [`SpawnSpec::programs`] of the last one tried, for [`Step::Exec`].
        program: usize,
    },
}

/// A process that was asked to become the command. The caller reaps it.
#[derive(Debug)]
pub struct Spawned {
    /// Its pid.
    pub pid: Pid,
    /// Becomes readable when [`Spawned::poll`] has news; not blocking.
    pub report: OwnedFd,
    received: Vec<u8>,
}

/// Everything the copy needs, where it can reach it without allocating.
pub(crate) struct Plan<'a> {
    pub(crate) spec: &'a SpawnSpec<'a>,
    pub(crate) argv: Vec<*const c_char>,
    pub(crate) env: Vec<*const c_char>,
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) groups: Vec<Gid>,
    pub(crate) oom_score_adj: Option<String>,
    pub(crate) report: OwnedFd,
}

/// Forks and lets the copy become the command. The command starts with default signal dispositions, nothing blocked,
/// umask 022 and a session of its own.
///
/// fork(2), execve(2), setsid(2).
pub fn spawn(spec: &SpawnSpec<'_>) -> io::Result<Spawned> {
    let nothing = spec.programs.is_empty() && spec.image.is_none();
    if nothing || spec.stdio.iter().any(|fd| fd.as_raw_fd() <= 2) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let (report, child_report) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setfl(&report, OFlags::NONBLOCK)?;
    let plan = Plan {
        spec,
        argv: null_terminated(spec.argv),
        env: null_terminated(spec.env),
        uid: Uid::from_raw(spec.ids.uid),
        gid: Gid::from_raw(spec.ids.gid),
        groups: spec.ids.groups.iter().map(|gid| Gid::from_raw(*gid)).collect(),
        oom_score_adj: spec.oom_score_adj.map(|score| score.to_string()),
        report: child_report,
    };
    // SAFETY: the copy only runs `exec_child::run`, which makes system calls on what `plan` prepared, allocates
    // nothing, takes no lock, and never returns.
    let answer = unsafe { libc::fork() };
    if answer == 0 {
        exec_child::run(&plan);
    }
    checked(answer.into())?;
    let pid = Pid::from_raw(answer).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok(Spawned { pid, report, received: Vec::new() })
}

fn null_terminated(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

impl Spawned {
    /// How far the command has come. Anything but [`Progress::Pending`] is final.
    pub fn poll(&mut self) -> io::Result<Progress> {
        let mut bytes = [0; 512];
        loop {
            match rustix::io::read(&self.report, &mut bytes) {
                Ok(0) => return Ok(self.conclude()),
                Ok(len) => self.received.extend_from_slice(&bytes[..len]),
                Err(rustix::io::Errno::AGAIN) => return Ok(Progress::Pending),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The pipe is closed: the command runs unless the last message says otherwise. A copy that was killed before
    /// execve(2) looks like one that runs; its exit status tells.
    fn conclude(&self) -> Progress {
        let (messages, _) = self.received.as_chunks::<{ exec_child::MESSAGE_LEN }>();
        let mut program = 0;
        for message in messages {
            match exec_child::read_message(*message) {
                exec_child::Message::Trying(index) => program = index,
                exec_child::Message::Failed(step, errno) => return Progress::Failed { step, errno, program },
            }
        }
        Progress::Running { program }
    }
}

/// Blocks SIGCHLD in this thread and those it starts, and gives a descriptor that is readable while one is pending;
/// not blocking, close-on-exec. signalfd(2), Linux 2.6.27.
pub fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: sigset_t is plain old data, for which all zeroes is a value.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is ours and valid for writes.
    unsafe { libc::sigemptyset(&raw mut set) };
    // SAFETY: as above.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) };
    // SAFETY: `set` is an initialised set; the old one is not asked for.
    let answer = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if answer != 0 {
        return Err(io::Error::from_raw_os_error(answer));
    }
    // SAFETY: `set` is an initialised set.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
    checked(fd.into())?;
    // SAFETY: signalfd has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Numbers that [`inherited`] has given away.
static INHERITED: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// Takes ownership of a descriptor that this process inherited under a number agreed on beforehand, and marks it
/// close-on-exec. Each number can be taken once; the standard ones cannot be.
///
/// To be called before anything else opens descriptors: a number that was not inherited may by then be another file's.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    let mut taken = INHERITED.lock().map_err(|_| io::Error::from_raw_os_error(libc::EBUSY))?;
    if number <= 2 || taken.contains(&number) {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: fcntl with F_SETFD touches no memory; it fails when the number is not open.
    let answer = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    checked(answer.into())?;
    taken.push(number);
    // SAFETY: the descriptor is open, and as an inherited one that was not taken before, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd};

    use rustix::process::{WaitOptions, waitpid};

    use super::*;

    fn run(programs: &[&str], argv: &[&str], cwd: &str) -> (Progress, i32, String) {
        run_bounded(programs, argv, cwd, None)
    }

    fn run_bounded(
        programs: &[&str],
        argv: &[&str],
        cwd: &str,
        capabilities: Option<u64>,
    ) -> (Progress, i32, String) {
        let c = |text: &str| CString::new(text).unwrap();
        let programs: Vec<_> = programs.iter().map(|text| c(text)).collect();
        let argv: Vec<_> = argv.iter().map(|text| c(text)).collect();
        let cwd = c(cwd);
        let null = std::fs::File::open("/dev/null").unwrap();
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let ids = own_ids();
        let mut spawned = spawn(&SpawnSpec {
            programs: &programs,
            argv: &argv,
            capabilities,
            ..plain(&[c("A=b")], &cwd, &ids, [null.as_fd(), write.as_fd(), write.as_fd()])
        })
        .unwrap();
        drop(write);
        let (_, status) = waitpid(Some(spawned.pid), WaitOptions::empty()).unwrap().unwrap();
        let mut output = String::new();
        io::Read::read_to_string(&mut std::fs::File::from(read), &mut output).unwrap();
        (spawned.poll().unwrap(), status.exit_status().unwrap(), output)
    }

    /// With nothing to run yet.
    fn plain<'a>(
        env: &'a [CString],
        cwd: &'a CStr,
        ids: &'a Ids,
        stdio: [BorrowedFd<'a>; 3],
    ) -> SpawnSpec<'a> {
        SpawnSpec {
            programs: &[],
            image: None,
            argv: &[],
            env,
            cwd,
            ids,
            stdio,
            controlling_terminal: false,
            cgroups: &[],
            oom_score_adj: None,
            open_files: None,
            no_new_privs: true,
            capabilities: None,
        }
    }

    fn own_ids() -> Ids {
        Ids {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            groups: vec![],
        }
    }

    #[test]
    fn runs_the_first_program_that_is_there() {
        let script = "echo $A $PWD; exit 7";
        let (progress, code, output) = run(&["/nowhere/sh", "/bin/sh"], &["sh", "-c", script], "/usr");
        assert_eq!(progress, Progress::Running { program: 1 });
        assert_eq!((code, output.as_str()), (7, "b /usr\n"));
    }

    #[test]
    fn says_which_step_failed() {
        let (progress, _, _) = run(&["/nowhere/sh"], &["sh"], "/");
        assert_eq!(progress, Progress::Failed { step: Step::Exec, errno: libc::ENOENT, program: 0 });
        let (progress, _, _) = run(&["/nowhere", "/etc/passwd"], &["x"], "/");
        assert_eq!(progress, Progress::Failed { step: Step::Exec, errno: libc::EACCES, program: 1 });
        let (progress, _, _) = run(&["/bin/sh"], &["sh"], "/nowhere");
        assert_eq!(progress, Progress::Failed { step: Step::Cwd, errno: libc::ENOENT, program: 0 });
    }

    #[test]
    fn a_command_never_starts_in_a_directory_that_only_a_descriptor_leads_to() {
        let dir = std::fs::File::open("/usr").unwrap();
        let link = std::env::temp_dir().join(format!("berth-spawn-{}", std::process::id()));
        let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for cwd in [path.as_str(), "/proc/self/root", link.to_str().unwrap()] {
            let (progress, _, _) = run(&["/bin/sh"], &["sh"], cwd);
            assert_eq!(
                progress,
                Progress::Failed { step: Step::Cwd, errno: libc::ELOOP, program: 0 },
                "{cwd}"
            );
        }
        std::fs::remove_file(link).unwrap();
    }

    #[test]
    fn root_has_no_more_capabilities_than_it_may() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: needs root");
            return;
        }
        let script = "grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status | tr -d '\\n\\t'";
        for (mask, hex) in [(0, "0000000000000000"), (0b1000_0001, "0000000000000081")] {
            let (_, _, output) = run_bounded(&["/bin/sh"], &["sh", "-c", script], "/", Some(mask));
            assert_eq!(output, format!("CapPrm:{hex}CapEff:{hex}CapBnd:{hex}"));
        }
    }

    #[test]
    fn an_open_executable_runs_whoever_may_not_reach_its_path() {
        let image = rustix::fs::open("/bin/sh", OFlags::PATH | OFlags::CLOEXEC, rustix::fs::Mode::empty());
        let (image, null) = (image.unwrap(), std::fs::File::open("/dev/null").unwrap());
        let argv = ["sh", "-c", "exit 9"].map(|arg| CString::new(arg).unwrap());
        let ids = if rustix::process::geteuid().is_root() {
            Ids { uid: 65534, gid: 65534, groups: vec![] }
        } else {
            own_ids()
        };
        let mut spawned = spawn(&SpawnSpec {
            image: Some(image.as_fd()),
            argv: &argv,
            ..plain(&[], c"/", &ids, [null.as_fd(); 3])
        })
        .unwrap();
        let (_, status) = waitpid(Some(spawned.pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(9));
        assert_eq!(spawned.poll().unwrap(), Progress::Running { program: 0 });
    }

    #[test]
    fn standard_input_that_is_no_terminal_is_not_made_one() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let ids = own_ids();
        let mut spawned = spawn(&SpawnSpec {
            programs: &[c"/bin/true".to_owned()],
            argv: &[c"true".to_owned()],
            controlling_terminal: true,
            ..plain(&[], c"/", &ids, [null.as_fd(); 3])
        })
        .unwrap();
        waitpid(Some(spawned.pid), WaitOptions::empty()).unwrap();
        let failed = Progress::Failed { step: Step::Prepare, errno: libc::ENOTTY, program: 0 };
        assert_eq!(spawned.poll().unwrap(), failed);
    }

    #[test]
    fn an_inherited_number_is_taken_once() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let number =
            rustix::io::fcntl_dupfd_cloexec(&file, 400).map(std::os::fd::IntoRawFd::into_raw_fd).unwrap();
        let _owned = inherited(number).unwrap();
        assert!(inherited(number).is_err());
        assert!(inherited(1).is_err());
        assert!(inherited(9999).is_err());
    }
}
