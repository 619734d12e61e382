//! What the guest changes about its own process at the start, and gives back to the commands it runs.

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit};

const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// What a command gets instead of the guest's own settings.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Surroundings {
    /// The out-of-memory score that the guest was started with.
    pub(crate) oom_score_adj: Option<i32>,
    /// The limits of open files that it was started with.
    pub(crate) open_files: Option<(u64, u64)>,
}

/// All of it is best effort: a sandbox without it is weaker, not wrong.
pub(crate) fn prepare() -> Surroundings {
    // Processes of the sandbox must not look into PID 1's memory or descriptors, whoever they run as.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    // Executed from memory it would be called after its descriptor; whoever runs `ps` should see what it is.
    let _ = rustix::thread::set_name(c"berth-guest");
    // Modes are always given in full.
    rustix::process::umask(Mode::empty());
    Surroundings { oom_score_adj: lower_oom_score(), open_files: raise_open_files() }
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
