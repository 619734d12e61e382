//! What a container is shown of its limits, in place of the machine: which files, and what they say.
//!
//! ```text
//!   /proc/cpuinfo                     a text, made once         limit of processors
//!   /sys/devices/system/cpu/online    a text, made once         limit of processors
//!   /proc/stat                        served by the guest       limit of processors
//!   /proc/meminfo                     served by the guest       limit of memory
//! ```
//!
//! A served file is a FUSE mount of its own whose root is a regular file: mounting it takes no answer, so the first
//! process can do it before it becomes the guest, which answers from then on. A text is a file of the container's
//! `/dev` that loses its name there as soon as it is mounted elsewhere.
//!
//! The guest also answers system calls that tell the same; see `docs/decisions/0012-what-a-sandbox-sees-of-its-limits.md`.
//!
//! Only a limit that makes a difference is shown: one at or above what the machine has leaves the machine's files.
//! Without FUSE the served ones stay the machine's, which [`Host::fuse`] says and doctor with it.

use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree};
use serde::{Deserialize, Serialize};

use berth_sys::mount::{Attributes, set_attributes};

use crate::capability::Capability;
use crate::perform::{At, Failure};
use crate::plan::Op;

/// Where FUSE connections are opened.
pub const FUSE_DEVICE: &str = "/dev/fuse";
/// Name of a text while it has one.
const TEXT: &str = "/dev/.berth-view";
/// Files that the list of processors stands in for. Not `possible`: numbers of processors that programs are told by
/// the kernel (getcpu(2), rseq(2)) go up to it, and per-processor allocators size their tables by it.
const LIST_FILES: [&str; 1] = ["/sys/devices/system/cpu/online"];
const CPUINFO: &str = "/proc/cpuinfo";
/// Served files: path, argument for the connection, argument for the machine's own file.
const MEMINFO: [&str; 3] = ["/proc/meminfo", "--meminfo-fd", "--machine-meminfo-fd"];
const STAT: [&str; 3] = ["/proc/stat", "--stat-fd", "--machine-stat-fd"];

/// What the machine has. To be found out once: reading `cpuinfo` takes milliseconds on large machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The processors that this process may use, in order.
    pub processors: Vec<u32>,
    /// `/proc/cpuinfo`.
    pub cpuinfo: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Why files cannot be served, if so.
    pub fuse: Result<(), String>,
    /// Whether the kernel lets system calls be answered.
    pub calls: bool,
}

/// Why [`Host::detect`] failed.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// A file does not tell.
    #[error("{} does not tell {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should tell.
        what: &'static str,
    },
}

/// What a container is shown. The default is the machine as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Views {
    /// Its processors.
    #[serde(default)]
    pub processors: Option<Processors>,
    /// Host path of the control group that its limit of memory is of.
    #[serde(default)]
    pub memory_group: Option<PathBuf>,
    /// Whether `/proc/meminfo` and `/proc/stat` are among what is shown.
    #[serde(default)]
    pub served: bool,
    /// Whether the guest answers system calls.
    #[serde(default)]
    pub calls: bool,
}

/// Processors that a container is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Processors {
    /// Their numbers as the kernel lists them: `0-3,8`.
    pub list: String,
    /// `/proc/cpuinfo`; absent where the machine's has a form that is not known.
    #[serde(default)]
    pub cpuinfo: Option<String>,
}

/// Limits that may be worth showing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits<'a> {
    /// Processors, possibly a fraction, which is shown rounded up.
    pub cpus: Option<f64>,
    /// Bytes of memory, and the host path of the control group that has that limit.
    pub memory: Option<(u64, &'a Path)>,
    /// Whether the guest is told of a limit of the disk ([`crate::spec::GuestSettings`]), and how much of it is used.
    pub storage: bool,
}

impl Host {
    /// Of this machine.
    pub fn detect() -> Result<Self, DetectError> {
        let read = |path: &str| {
            let path = PathBuf::from(path);
            std::fs::read_to_string(&path).map_err(|source| DetectError::Read { path, source })
        };
        let content = |path: &str, what| DetectError::Content { path: path.into(), what };
        // Longer than any mask. The kernel leaves out processors that are not running.
        let mask = berth_sys::notify::affinity(0, 8192)
            .map_err(|source| DetectError::Read { path: "the own processor mask".into(), source })?;
        let meminfo = read("/proc/meminfo")?;
        let total =
            meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
        let total = total.and_then(|total| total.parse::<u64>().ok());
        Ok(Self {
            processors: numbers(&mask),
            cpuinfo: read(CPUINFO)?,
            memory_bytes: total.ok_or_else(|| content("/proc/meminfo", "the memory"))?.saturating_mul(1024),
            fuse: open_fuse().map(drop).map_err(|error| error.to_string()),
            calls: berth_sys::notify::is_there(),
        })
    }
}

fn open_fuse() -> Result<std::os::fd::OwnedFd, rustix::io::Errno> {
    rustix::fs::openat(CWD, FUSE_DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// Finds out what to show of `limits` on `host`.
pub fn views(limits: &Limits<'_>, host: &Host) -> Views {
    let processors = limits.cpus.and_then(|cpus| processors(cpus, host));
    let memory = limits.memory.filter(|(bytes, _)| *bytes < host.memory_bytes);
    let any = processors.is_some() || memory.is_some();
    Views {
        processors,
        memory_group: memory.map(|(_, dir)| dir.to_owned()),
        served: any && host.fuse.is_ok(),
        calls: (any || limits.storage) && host.calls,
    }
}

fn processors(cpus: f64, host: &Host) -> Option<Processors> {
    // Beyond any number of processors for what is beyond u32, and 0 for what is no number.
    let count = cpus.ceil().max(1.0) as usize;
    let shown = host.processors.get(..count).filter(|shown| shown.len() < host.processors.len())?;
    Some(Processors { list: list(shown), cpuinfo: cpuinfo(&host.cpuinfo, shown) })
}

/// Numbers of the bits that are set.
fn numbers(mask: &[u8]) -> Vec<u32> {
    let bits = (0_u32..).zip(mask).flat_map(|(index, byte)| {
        (0..8).filter(move |bit| byte & (1 << bit) != 0).map(move |bit| index * 8 + bit)
    });
    bits.collect()
}

/// In the kernel's form, `0-3,8`.
fn list(numbers: &[u32]) -> String {
    let runs = numbers.chunk_by(|one, next| one + 1 == *next);
    let texts: Vec<String> = runs
        .filter_map(|run| match run {
            [] => None,
            [only] => Some(only.to_string()),
            [first, .., last] => Some(format!("{first}-{last}")),
        })
        .collect();
    texts.join(",")
}

/// The paragraphs of these processors, and those that are of none. Without the lines that tell a frequency of the
/// moment: the text is made once.
fn cpuinfo(machine: &str, shown: &[u32]) -> Option<String> {
    let number = |paragraph: &str| -> Option<u32> {
        let (key, value) = paragraph.lines().next()?.split_once(':')?;
        if key.trim() == "processor" { value.trim().parse().ok() } else { None }
    };
    let (mut text, mut found) = (String::new(), 0);
    for paragraph in machine.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()) {
        match number(paragraph) {
            Some(number) if shown.contains(&number) => found += 1,
            Some(_) => continue,
            None => {}
        }
        for line in paragraph.lines().filter(|line| !line.starts_with("cpu MHz")) {
            text.push_str(line);
            text.push('\n');
        }
        text.push('\n');
    }
    (found == shown.len()).then_some(text)
}

impl Views {
    /// Which files are served.
    fn served(&self) -> impl Iterator<Item = [&'static str; 3]> {
        let meminfo = self.memory_group.as_ref().map(|_| MEMINFO);
        let stat = self.processors.as_ref().map(|_| STAT);
        meminfo.into_iter().chain(stat).filter(|_| self.served)
    }

    /// Operations while the host's files have names.
    pub(crate) fn open(&self) -> Vec<Op> {
        let pass =
            |dir: &PathBuf| Op::PassFile { path: dir.clone(), argument: "--memory-group-fd".to_owned() };
        let tell = |processors: &Processors| Op::TellGuest(vec![format!("--processors={}", processors.list)]);
        let calls = self.calls || self.served;
        let told = self.processors.iter().filter(|_| calls).map(tell);
        let passed = self.memory_group.iter().filter(|_| calls).map(pass);
        let connections = self.served().map(|[_, connection, _]| Op::OpenView(connection.to_owned()));
        told.chain(passed).chain(connections).collect()
    }

    /// Operations once the container's own /proc, /sys and /dev are there.
    pub(crate) fn mount(&self) -> Vec<Op> {
        let mut ops = Vec::new();
        for [path, connection, machine] in self.served() {
            ops.push(Op::PassFile { path: path.into(), argument: machine.to_owned() });
            ops.push(Op::MountView { target: path.into(), connection: connection.to_owned() });
        }
        if let Some(Processors { list, cpuinfo }) = &self.processors {
            let list = Text { text: format!("{list}\n"), targets: LIST_FILES.map(PathBuf::from).to_vec() };
            let cpuinfo = cpuinfo.clone().map(|text| Text { text, targets: vec![CPUINFO.into()] });
            ops.extend([Some(list), cpuinfo].into_iter().flatten().map(Op::MountText));
        }
        ops
    }

    /// What the guest is to have until it has taken over: to install its filter, and to reach whoever it answers. It
    /// keeps only the second, in one thread; nothing that it starts has either.
    pub(crate) fn guest_capabilities(&self) -> Vec<Capability> {
        if self.calls { vec![Capability::SYS_ADMIN, Capability::SYS_PTRACE] } else { Vec::new() }
    }
}

/// A file that never changes, and what it stands in for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// What it says.
    pub text: String,
    /// Files; those that are not there are left out.
    pub targets: Vec<PathBuf>,
}

/// Opens a connection.
pub(crate) fn connect() -> Result<std::os::fd::OwnedFd, Failure> {
    open_fuse().at("open", FUSE_DEVICE)
}

/// Mounts a served file. The kernel's first question waits in the connection until the guest reads it.
pub(crate) fn mount_view(target: &Path, connection: &std::os::fd::OwnedFd) -> Result<(), Failure> {
    use std::os::fd::AsRawFd;
    let fd = connection.as_raw_fd();
    // With default_permissions the kernel asks for the attributes, and so the size, before the first open.
    let options = format!("fd={fd},rootmode=100444,user_id=0,group_id=0,allow_other,default_permissions");
    let options = crate::perform::c_string(&options, target)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("berth", target, "fuse", flags, options.as_c_str()).at("mount a view at", target)
}

/// Mounts a text.
pub(crate) fn mount_text(text: &Text) -> Result<(), Failure> {
    use std::os::fd::AsFd;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(CWD, TEXT, flags, Mode::from_raw_mode(0o444)).at("make", TEXT)?;
    let written = std::io::Write::write_all(&mut std::fs::File::from(file), text.text.as_bytes());
    written.at("write", TEXT)?;
    for target in &text.targets {
        if !target.exists() {
            continue;
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, TEXT, flags).at("open", TEXT)?;
        let attributes = Attributes { read_only: true, no_suid: true, no_dev: true, no_exec: true };
        set_attributes(tree.as_fd(), attributes, false).at("restrict", TEXT)?;
        move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .at("mount a view at", target)?;
    }
    rustix::fs::unlinkat(CWD, TEXT, AtFlags::empty()).at("remove", TEXT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO_X86: &str = "processor\t: 0\nvendor_id\t: X\ncpu MHz\t\t: 2445.406\nbogomips\t: 4890.81\n\n\
                               processor\t: 1\nvendor_id\t: X\ncpu MHz\t\t: 2445.406\nbogomips\t: 4890.81\n\n\
                               processor\t: 4\nvendor_id\t: X\ncpu MHz\t\t: 2445.406\nbogomips\t: 4890.81\n\n";

    fn host() -> Host {
        Host {
            processors: vec![0, 1, 4],
            cpuinfo: CPUINFO_X86.to_owned(),
            memory_bytes: 8 << 30,
            fuse: Ok(()),
            calls: true,
        }
    }

    fn memory(bytes: u64) -> Option<(u64, &'static Path)> {
        Some((bytes, Path::new("/sys/fs/cgroup/berth/i/s/tasks")))
    }

    #[test]
    fn limits_become_views() {
        let limits = Limits { cpus: Some(1.5), memory: memory(1 << 30), storage: false };
        let views = views(&limits, &host());
        insta::assert_json_snapshot!((&views, views.open(), views.mount()));
    }

    #[test]
    fn what_makes_no_difference_is_not_shown() {
        for cpus in [2.1, 3.0, 64.0, f64::INFINITY] {
            let limits = Limits { cpus: Some(cpus), memory: memory(8 << 30), storage: false };
            assert_eq!(views(&limits, &host()), Views::default());
        }
        let none = Views::default();
        assert!(none.open().is_empty() && none.mount().is_empty() && none.guest_capabilities().is_empty());
    }

    #[test]
    fn a_fraction_is_a_whole_processor() {
        for (cpus, list) in [(0.01, "0"), (1.0, "0"), (1.01, "0-1")] {
            let views = views(&Limits { cpus: Some(cpus), ..Limits::default() }, &host());
            assert_eq!(views.processors.unwrap().list, list);
        }
    }

    #[test]
    fn without_fuse_the_served_files_stay_the_machines() {
        let host = Host { fuse: Err("no".to_owned()), ..host() };
        let views = views(&Limits { cpus: Some(1.0), memory: memory(1 << 30), storage: false }, &host);
        let mounts = views.mount();
        assert!(mounts.iter().all(|op| matches!(op, Op::MountText(_))), "{mounts:?}");
        assert!(views.calls && !views.open().iter().any(|op| matches!(op, Op::OpenView(_))));
    }

    #[test]
    fn a_limit_of_the_disk_alone_is_told_by_calls() {
        let views = views(&Limits { storage: true, ..Limits::default() }, &host());
        assert_eq!(views, Views { calls: true, ..Views::default() });
        assert_eq!(views.guest_capabilities().len(), 2);
    }

    #[test]
    fn a_cpuinfo_of_unknown_form_is_left() {
        assert_eq!(cpuinfo("processor 0: version = FF\n", &[0]), None);
        let arm =
            "processor\t: 0\nBogoMIPS\t: 50.00\n\nprocessor\t: 1\nBogoMIPS\t: 50.00\n\nHardware\t: Board\n";
        assert_eq!(cpuinfo(arm, &[0]).unwrap(), "processor\t: 0\nBogoMIPS\t: 50.00\n\nHardware\t: Board\n\n");
    }

    #[test]
    fn lists_are_as_the_kernel_writes_them() {
        for (mask, text) in
            [(&[1_u8][..], "0"), (&[15], "0-3"), (&[0b1_0011], "0-1,4"), (&[0, 0b11, 1], "8-9,16")]
        {
            assert_eq!(list(&numbers(mask)), text);
        }
    }

    #[test]
    fn this_machine_is_understood() {
        let host = Host::detect().unwrap();
        assert!(!host.processors.is_empty() && host.memory_bytes > 1 << 20);
    }
}
