//! What the guest changes about its own process at the start, and gives back to the commands it runs.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, Resource, Rlimit};

use crate::tty::Terminals;

const OOM_SCORE: &str = "/proc/self/oom_score_adj";
/// What commands are for the out-of-memory killer, where they were not more: taken before the guest, and when the whole
/// machine is short, before its services. Raising it needs no right; taking it back reaches what the guest started with.
const COMMAND_OOM_SCORE: i32 = 500;
/// A group that no command gets by default, and no number in particular (`nogroup`).
const OTHER_GROUP: u32 = 65534;

/// What a command gets instead of the guest's own settings, and what the guest took hold of for it before any ran.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surroundings {
    /// Its out-of-memory score.
    pub(crate) oom_score_adj: Option<i32>,
    /// The limits of open files that it was started with.
    pub(crate) open_files: Option<(u64, u64)>,
    /// What they can have at most, as a mask of capability numbers; all of the guest's own when `None`.
    pub(crate) capabilities: Option<u64>,
    /// The guest's executable, which has no path in the sandbox; absent where there is no /proc to find it by.
    pub(crate) image: Option<&'static OwnedFd>,
    /// Where terminals come from.
    pub(crate) terminals: &'static Terminals,
}

/// All of it is best effort: a sandbox without it is weaker, not wrong.
pub(crate) fn prepare(capabilities: Option<u64>) -> Surroundings {
    // Processes of the sandbox must not look into PID 1's memory or descriptors, whoever they run as.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    // Executed from memory it would be called after its descriptor; whoever runs `ps` should see what it is.
    let _ = rustix::thread::set_name(c"berth-guest");
    be_no_match();
    // Modes are always given in full.
    rustix::process::umask(Mode::empty());
    let oom_score_adj = lower_oom_score().map(|original| original.max(COMMAND_OOM_SCORE));
    Surroundings {
        oom_score_adj,
        open_files: raise_open_files(),
        capabilities,
        // Both for as long as the guest runs.
        image: own_image().map(|image| &*Box::leak(Box::new(image))),
        terminals: Box::leak(Box::new(Terminals::find())),
    }
}

/// By a descriptor it can be executed whatever becomes of /proc, and by users who could not follow the link there.
fn own_image() -> Option<OwnedFd> {
    rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// prlimit(2) and the like let a process at another one whose ids are all the same as its own, and the number of any
/// thread will do. A real group apart keeps root in the sandbox out, who would need `CAP_SYS_RESOURCE` then; what the
/// guest may do follows the effective one.
fn be_no_match() {
    let own = rustix::process::getegid();
    let _ = rustix::thread::set_thread_res_gid(rustix::thread::Gid::from_raw(OTHER_GROUP), own, own);
}

/// Losing PID 1 loses the sandbox, so the out-of-memory killer should take commands first.
fn lower_oom_score() -> Option<i32> {
    let original = std::fs::read_to_string(OOM_SCORE).ok()?.trim().parse().ok()?;
    // Without CAP_SYS_RESOURCE the score goes no lower than where it has been.
    for score in [-1000, -900, -500, -100] {
        if score < original && std::fs::write(OOM_SCORE, score.to_string()).is_ok() {
            break;
        }
    }
    Some(original)
}

/// Two pipes per exec: the guest may need more descriptors than the soft limit gives a command.
fn raise_open_files() -> Option<(u64, u64)> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let (current, maximum) = (limit.current?, limit.maximum?);
    let raised = Rlimit { current: Some(maximum), maximum: Some(maximum) };
    rustix::process::setrlimit(Resource::Nofile, raised).ok()?;
    Some((current, maximum))
}
