//! Whether this machine can run containers, and what to do where it cannot.

mod user_namespaces;

use std::io;
use std::path::Path;

use rustix::thread::CapabilitySet;
use serde::Serialize;

use crate::capability::Capability;
use crate::cgroup;
use crate::guest_image::executable_memory_file;

pub use self::user_namespaces::user_namespaces;

/// Namespaces that every container has, by the name of their files below `/proc/self/ns`.
const NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
/// Controllers without which a limit cannot be kept.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// mount_setattr(2), the youngest call that has no substitute here.
const KERNEL_MIN: (u32, u32) = (5, 12);

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Short name.
    pub name: &'static str,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do, where something is to be done.
    pub hint: Option<String>,
}

/// How a [`Finding`] stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// In order.
    Ok,
    /// Works, with something missing.
    Warn,
    /// Containers cannot run.
    Fail,
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, state: State::Ok, found: found.into(), hint: None }
    }

    fn bad(name: &'static str, state: State, found: impl Into<String>, hint: &str) -> Self {
        Self { name, state, found: found.into(), hint: Some(hint.to_owned()) }
    }
}

/// Looks at everything that needs no launcher (see [`user_namespaces`] for the rest); changes nothing.
pub fn doctor() -> Vec<Finding> {
    vec![
        root(),
        capabilities(),
        kernel(),
        namespaces(),
        overlay(),
        clone3(),
        memory_file(),
        seccomp(),
        cgroups(),
        views(),
    ]
}

fn root() -> Finding {
    let uid = rustix::process::geteuid().as_raw();
    if uid == 0 {
        return Finding::ok("root", "yes");
    }
    Finding::bad("root", State::Fail, format!("user id {uid}"), "run as root, for example with sudo")
}

fn capabilities() -> Finding {
    const NAME: &str = "capabilities";
    const NEEDED: [(CapabilitySet, &str); 4] = [
        (CapabilitySet::SYS_ADMIN, "SYS_ADMIN"),
        (CapabilitySet::NET_ADMIN, "NET_ADMIN"),
        (CapabilitySet::SETPCAP, "SETPCAP"),
        (CapabilitySet::MKNOD, "MKNOD"),
    ];
    let effective = match rustix::thread::capabilities(None) {
        Ok(sets) => sets.effective,
        Err(error) => return Finding::bad(NAME, State::Fail, error.to_string(), "see capget(2)"),
    };
    let missing: Vec<&str> =
        NEEDED.iter().filter(|(bit, _)| !effective.contains(*bit)).map(|(_, name)| *name).collect();
    if !missing.is_empty() {
        let hint = "run as full root; in a container, run that one privileged";
        return Finding::bad(NAME, State::Fail, format!("missing: {}", missing.join(", ")), hint);
    }
    let has = |capability: &Capability| effective.bits() & (1 << capability.number()) != 0;
    let not_to_give: Vec<String> =
        Capability::defaults().into_iter().filter(|capability| !has(capability)).map(String::from).collect();
    if not_to_give.is_empty() {
        return Finding::ok(NAME, "all that are needed");
    }
    let hint = "root in sandboxes will lack them too; run as full root";
    Finding::bad(NAME, State::Warn, format!("missing: {}", not_to_give.join(", ")), hint)
}

fn kernel() -> Finding {
    let (release, version) = kernel_version();
    if version >= KERNEL_MIN {
        return Finding::ok("kernel", release);
    }
    Finding::bad("kernel", State::Fail, release, "Linux 5.12 or newer is needed")
}

/// The release as it is called, and its first two numbers.
fn kernel_version() -> (String, (u32, u32)) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    (release, version)
}

fn namespaces() -> Finding {
    let missing: Vec<&str> =
        NAMESPACES.into_iter().filter(|name| !Path::new("/proc/self/ns").join(name).exists()).collect();
    if missing.is_empty() {
        return Finding::ok("namespaces", NAMESPACES.join(", "));
    }
    let hint = "use a kernel with all namespaces (CONFIG_*_NS)";
    Finding::bad("namespaces", State::Fail, format!("missing: {}", missing.join(", ")), hint)
}

fn overlay() -> Finding {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay") {
        return Finding::ok("overlayfs", "yes");
    }
    // A module that is loaded at the first mount is not listed before.
    let hint = "modprobe overlay";
    Finding::bad("overlayfs", State::Warn, "not loaded, or not there", hint)
}

fn clone3() -> Finding {
    if berth_sys::process::clone3_is_there() {
        return Finding::ok("clone3", "yes");
    }
    let hint = "Linux 5.3 or newer is needed; in a container, a seccomp filter may forbid it";
    Finding::bad("clone3", State::Fail, "refused", hint)
}

fn memory_file() -> Finding {
    match executable_memory_file() {
        Ok(_) => Finding::ok("executable memory files", "yes"),
        Err(error) => {
            let hint = "sysctl -w vm.memfd_noexec=0";
            Finding::bad("executable memory files", State::Fail, error.to_string(), hint)
        }
    }
}

fn seccomp() -> Finding {
    const NAME: &str = "system call filter";
    if let Err(error) = crate::seccomp::programs() {
        return Finding::bad(NAME, State::Fail, error.to_string(), "use an x86-64 or 64-bit ARM machine");
    }
    if berth_sys::seccomp::filters_are_there() {
        return Finding::ok(NAME, "yes");
    }
    let hint = "use a kernel with CONFIG_SECCOMP_FILTER, 4.14 or newer; in a container, allow seccomp(2)";
    Finding::bad(NAME, State::Fail, "not there", hint)
}

fn cgroups() -> Finding {
    const NAME: &str = "cgroups";
    let facts = match cgroup::Facts::detect() {
        Ok(facts) => facts,
        Err(error) => return Finding::bad(NAME, State::Fail, error.to_string(), "mount /proc"),
    };
    let on_v1 =
        facts.v1.iter().any(|found| found.controllers.iter().any(|name| CONTROLLERS.contains(&&**name)));
    let offers = |name: &str| match (&facts.v2, on_v1) {
        (Some(unified), false) => unified.controllers.iter().any(|offered| offered == name),
        _ => facts.hierarchy(name).is_some(),
    };
    let version = if on_v1 || facts.v2.is_none() { "version 1" } else { "version 2" };
    let missing: Vec<&str> = CONTROLLERS.into_iter().filter(|name| !offers(name)).collect();
    if missing.is_empty() {
        return Finding::ok(NAME, format!("{version}: {}", CONTROLLERS.join(", ")));
    }
    let disabled = missing.iter().any(|name| facts.disabled.iter().any(|off| off == name));
    let hint = if disabled {
        "remove cgroup_disable= from the kernel's command line; until then these limits are refused"
    } else {
        "mount the missing controllers; until then these limits are refused"
    };
    Finding::bad(NAME, State::Warn, format!("{version}, missing: {}", missing.join(", ")), hint)
}

/// Whether limits show inside. Nothing but what is shown depends on it.
fn views() -> Finding {
    const NAME: &str = "limits shown inside";
    if !berth_sys::notify::is_there() {
        let found = "nproc and sysinfo(2) in sandboxes tell of the whole machine";
        return Finding::bad(
            NAME,
            State::Warn,
            found,
            "use a kernel with seccomp user notification, 5.5 or newer",
        );
    }
    if let Err(error) = crate::views::connect() {
        let cause = io::Error::from_raw_os_error(error.errno);
        let found = format!(
            "/proc/meminfo and /proc/stat in sandboxes are the machine's: cannot open {}: {cause}",
            crate::views::FUSE_DEVICE
        );
        return Finding::bad(NAME, State::Warn, found, "modprobe fuse; in a container, give it /dev/fuse");
    }
    let capabilities = rustix::thread::capabilities(None);
    if capabilities.is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_PTRACE)) {
        return Finding::ok(NAME, "processors, memory, disk");
    }
    let found = "without user namespaces, nproc and sysinfo(2) tell of the whole machine to all but root";
    Finding::bad(NAME, State::Warn, found, "run with CAP_SYS_PTRACE, or with user namespaces")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_complaint_comes_with_a_hint() {
        for finding in doctor() {
            assert_eq!(finding.state == State::Ok, finding.hint.is_none(), "{finding:?}");
        }
    }
}
