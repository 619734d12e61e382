//! From limits to the files to write. Pure.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::facts::{DAEMON_GROUP, Facts, Unified};
use super::{Cgroup, Error};
use crate::spec::{CgroupMembership, CgroupWrite, GuestCgroup};

/// Over which processor time is shared out, in microseconds.
const CPU_PERIOD_US: u32 = 100_000;
/// The kernel's least quota is 1 ms.
const CPUS_MIN: f64 = 0.01;
/// The most cores that can be asked for as a share: above it version 2 has no weights.
const REQUEST_MAX: f64 = 100.0;
/// Memory that a sandbox's guest is given beside the limit: itself, what clients have it write to `/dev/shm` and `/dev`
/// (64 MiB each), the group for entering a full sandbox (32 MiB), and some page cache to work with.
const GUEST_BYTES: u64 = 192 << 20;
/// The group of commands within a sandbox's. (`tasks` is the name of a file in version 1.)
pub(super) const COMMANDS: &str = "commands";
/// The group of the guest within a sandbox's, with version 2.
const GUEST: &str = "guest";
/// The file by which a process of one thread joins a group of version 1. `cgroup.procs` moves all threads of a process,
/// and waits for an RCU grace period of the whole machine before it does; by this one the writer moves itself at once.
const DOOR_V1: &str = "tasks";
/// The same with version 2, where groups that limit have no other.
const DOOR_V2: &str = "cgroup.procs";
/// What the kernel rounds memory limits to.
const PAGE_BYTES: u64 = 4096;
/// Controllers in use with version 1: those that limit, that count, and the one that finds processes.
const V1_CONTROLLERS: [&str; 4] = ["cpu", "cpuacct", "memory", "pids"];
/// Controllers in use with version 2; it counts processor time and finds processes without any.
const V2_CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// What a sandbox may use, and what is to be left to it. Absent: not limited, nothing set aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Cores.
    pub cpus: Option<f64>,
    /// Cores that it gets at least when others want them too, as a weight: twice the request, twice the time.
    pub cpu_request: Option<f64>,
    /// Bytes of memory, swap included.
    pub memory_bytes: Option<u64>,
    /// Bytes that the kernel takes from it only when nobody else has any to spare.
    pub memory_request_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// Which version of control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Version {
    /// A hierarchy for each controller, or for several.
    V1,
    /// One hierarchy.
    V2,
}

/// What makes a sandbox's groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The operations, in order.
    pub ops: Vec<Op>,
    /// What is left to the sandbox's first process.
    pub membership: CgroupMembership,
    /// The groups that come of it.
    pub cgroup: Cgroup,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Make a group, and those above it up to `berth`; there already is all right.
    Make(PathBuf),
    /// Make a group that must not be there yet.
    MakeNew(PathBuf),
    /// Move all processes of one group to another, until none is left.
    MoveProcesses {
        /// Out of here.
        from: PathBuf,
        /// Into here.
        to: PathBuf,
    },
    /// Write to a file of a group.
    Write {
        /// The file.
        path: PathBuf,
        /// What.
        value: String,
    },
    /// Write to a file that kernels without swap accounting lack; there is no swap to limit then.
    WriteIfThere {
        /// The file.
        path: PathBuf,
        /// What.
        value: String,
    },
    /// Add to what is set aside for the groups above a sandbox's: within them it has no more than they have.
    Reserve(Reserve),
    /// Give a group's directory, or one file of it, to a user and group of the host.
    Give {
        /// Directory or file.
        path: PathBuf,
        /// Id of both.
        owner: u32,
    },
}

/// Memory that is set aside for one sandbox in the groups above its own; version 2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reserve {
    /// Those groups, from the top.
    pub groups: Vec<PathBuf>,
    /// How much.
    pub bytes: u64,
}

impl Plan {
    /// What the sandbox's first process joins and does there, and what its guest is given.
    pub fn membership(&self) -> CgroupMembership {
        self.membership.clone()
    }
}

/// Plans the groups of one sandbox; `path` is `berth/<instance>/<sandbox>`, `owner` the id that the guest has on the
/// host, where that is not root's.
///
/// Version 1 is taken where it has any of the controllers that matter: in a hybrid layout the other version then has
/// none of them.
pub fn plan(limits: &Limits, facts: &Facts, path: &str, owner: Option<u32>) -> Result<Plan, Error> {
    check_path(path)?;
    let limits = Checked::new(limits)?;
    let on_v1 = V1_CONTROLLERS.iter().any(|controller| facts.hierarchy(controller).is_some());
    match &facts.v2 {
        Some(unified) if !on_v1 => plan_v2(&limits, unified, path, owner),
        _ => plan_v1(&limits, facts, path, owner),
    }
}

/// Limits in the units of the files.
struct Checked {
    quota: Option<u64>,
    /// Hundredths of a core.
    weight: Option<u64>,
    memory: Option<u64>,
    low: Option<u64>,
    pids: Option<u64>,
}

impl Checked {
    fn new(limits: &Limits) -> Result<Self, Error> {
        Ok(Self {
            quota: limits.cpus.map(cpu_quota).transpose()?,
            weight: limits.cpu_request.map(cpu_weight).transpose()?,
            memory: limits.memory_bytes.map(pages).transpose()?,
            low: limits.memory_request_bytes.map(pages).transpose()?,
            pids: if limits.pids == Some(0) { return Err(Error::Pids) } else { limits.pids },
        })
    }

    /// Fails on the first limit for whose controller `has` says no.
    fn require(&self, has: impl Fn(&str) -> bool) -> Result<(), Error> {
        let wanted = [
            ("cpu", "cpus", self.quota.is_some()),
            ("cpu", "the share of cpus", self.weight.is_some()),
            ("memory", "memory", self.memory.is_some()),
            ("memory", "the share of memory", self.low.is_some()),
            ("pids", "processes", self.pids.is_some()),
        ];
        match wanted.into_iter().find(|(controller, _, wanted)| *wanted && !has(controller)) {
            Some((controller, limit, _)) => Err(Error::ControllerMissing { controller, limit }),
            None => Ok(()),
        }
    }

    /// What the sandbox's own memory group may hold: what commands may, and what the guest is given on top.
    fn memory_with_guest(&self) -> Option<u64> {
        self.memory.map(|bytes| bytes.saturating_add(GUEST_BYTES))
    }
}

/// The directories of version 1.
struct Dirs {
    cpu: Option<PathBuf>,
    /// Only where it is not that of `cpu`.
    cpuacct: Option<PathBuf>,
    memory: Option<PathBuf>,
    /// By which an exec's processes are found: pids, or the freezer where pids is missing.
    finder: Option<PathBuf>,
}

fn plan_v1(limits: &Checked, facts: &Facts, path: &str, owner: Option<u32>) -> Result<Plan, Error> {
    limits.require(|controller| facts.hierarchy(controller).is_some())?;
    let dir_of = |controller: &str| facts.hierarchy(controller).map(|found| found.mount_point.join(path));
    let dirs = Dirs {
        cpu: dir_of("cpu"),
        cpuacct: dir_of("cpuacct").filter(|dir| dir_of("cpu").as_ref() != Some(dir)),
        memory: dir_of("memory"),
        finder: dir_of("pids").or_else(|| dir_of("freezer")),
    };
    // Controllers that are mounted together share one directory.
    let all: BTreeSet<PathBuf> =
        [&dirs.cpu, &dirs.cpuacct, &dirs.memory, &dirs.finder].into_iter().flatten().cloned().collect();
    let mut ops = Vec::new();
    for dir in &all {
        ops.extend(dir.parent().map(|parent| Op::Make(parent.to_owned())));
        ops.push(Op::MakeNew(dir.clone()));
    }
    ops.extend(dirs.memory.as_ref().map(|dir| Op::MakeNew(dir.join(COMMANDS))));
    ops.extend(limit_v1(limits, &dirs, dir_of("pids").as_deref()));
    ops.extend(owner.into_iter().flat_map(|owner| give_v1(&dirs, owner)));
    let cgroup = Cgroup {
        version: Version::V1,
        dirs: all.into_iter().collect(),
        cpu: dir_of("cpuacct"),
        pids: dir_of("pids"),
        processes: dirs.memory.clone().or_else(|| dirs.finder.clone()),
        memory: dirs.memory.clone(),
        reserved: None,
    };
    Ok(Plan { ops, membership: membership_v1(&dirs, &cgroup), cgroup })
}

/// The guest stays in the instance's groups where it would cost the sandbox a directory more to keep it apart; in the
/// sandbox's own where that counts without limiting.
fn membership_v1(dirs: &Dirs, cgroup: &Cgroup) -> CgroupMembership {
    let instance = |dir: &PathBuf| dir.parent().map(Path::to_owned);
    let join: BTreeSet<PathBuf> = [dirs.cpu.as_ref(), dirs.finder.as_ref()]
        .into_iter()
        .filter_map(|dir| instance(dir?))
        .chain(dirs.cpuacct.clone())
        .chain(dirs.memory.clone())
        .map(|dir| dir.join(DOOR_V1))
        .collect();
    let guest = GuestCgroup {
        execs: dirs.finder.iter().chain(&dirs.cpuacct).cloned().collect(),
        enter: dirs.cpu.iter().cloned().collect(),
        memory: dirs.memory.clone(),
        v2: false,
    };
    let guest = (!cgroup.dirs.is_empty()).then_some(guest);
    CgroupMembership { join: join.into_iter().collect(), settle: Vec::new(), guest }
}

/// A controller that is limited has a directory: [`Checked::require`] saw to it.
fn limit_v1(limits: &Checked, dirs: &Dirs, pids_dir: Option<&Path>) -> Vec<Op> {
    let mut ops = Vec::new();
    if let (Some(weight), Some(dir)) = (limits.weight, &dirs.cpu) {
        // In their unit a core is 1024, and 2 the least. Hundredths fit: at most 1.25 % of the least is rounded off.
        let shares = (weight * 1024).div_ceil(100);
        ops.push(Op::Write { path: dir.join("cpu.shares"), value: shares.to_string() });
    }
    if let (Some(quota), Some(dir)) = (limits.quota, &dirs.cpu) {
        ops.push(Op::Write { path: dir.join("cpu.cfs_period_us"), value: CPU_PERIOD_US.to_string() });
        ops.push(Op::Write { path: dir.join("cpu.cfs_quota_us"), value: quota.to_string() });
    }
    if let Some(dir) = &dirs.memory {
        let low = limits.low.map(|bytes| Op::Write {
            path: dir.join("memory.soft_limit_in_bytes"),
            value: bytes.to_string(),
        });
        ops.extend(low);
        ops.extend(memory_v1(limits.memory_with_guest(), dir));
        ops.extend(memory_v1(limits.memory, &dir.join(COMMANDS)));
    }
    if let (Some(pids), Some(dir)) = (limits.pids, pids_dir) {
        ops.push(Op::Write { path: dir.join("pids.max"), value: pids.to_string() });
    }
    ops
}

fn memory_v1(bytes: Option<u64>, dir: &Path) -> Vec<Op> {
    let Some(bytes) = bytes else { return Vec::new() };
    let value = bytes.to_string();
    vec![
        Op::Write { path: dir.join("memory.limit_in_bytes"), value: value.clone() },
        // Memory and swap together: as much as memory alone leaves no swap. Must come second, it may not be less.
        Op::WriteIfThere { path: dir.join("memory.memsw.limit_in_bytes"), value },
    ]
}

/// What the guest makes groups in, and what it has execs enter; no limit of the sandbox is among it.
fn give_v1(dirs: &Dirs, owner: u32) -> Vec<Op> {
    let commands = dirs.memory.as_ref().map(|dir| dir.join(COMMANDS));
    let files = dirs
        .cpu
        .iter()
        .map(|dir| dir.join(DOOR_V1))
        .chain(commands.iter().flat_map(|dir| [dir.join(DOOR_V1), dir.join("memory.force_empty")]));
    let paths = dirs.finder.iter().chain(&dirs.cpuacct).chain(&dirs.memory).cloned().chain(files);
    paths.map(|path| Op::Give { path, owner }).collect()
}

fn plan_v2(limits: &Checked, unified: &Unified, path: &str, owner: Option<u32>) -> Result<Plan, Error> {
    let offered = of_interest(&unified.controllers);
    let offers = |controller: &str| offered.contains(&controller);
    limits.require(offers)?;
    let dir = unified.base.join(path);
    let (instance, commands, guest) =
        (dir.parent().unwrap_or(&unified.base), dir.join(COMMANDS), dir.join(GUEST));
    let mut ops = vec![Op::Make(instance.to_owned())];
    if unified.delegated {
        let daemon = unified.base.join(DAEMON_GROUP);
        ops.push(Op::Make(daemon.clone()));
        ops.push(Op::MoveProcesses { from: unified.base.clone(), to: daemon });
    }
    ops.extend(hand_on(unified, instance));
    ops.extend([&dir, &guest, &commands].map(|dir| Op::MakeNew(dir.clone())));
    ops.extend(share_v2(limits, &dir));
    if let Some(owner) = owner {
        // Whoever moves a process needs the right to the group that is above both of its places.
        let groups = [&dir, &commands].into_iter().flat_map(|dir| [dir.clone(), dir.join(DOOR_V2)]);
        ops.extend(groups.map(|path| Op::Give { path, owner }));
    }
    let above = vec![unified.base.join("berth"), instance.to_owned()];
    let reserved = limits.low.map(|bytes| Reserve { groups: above, bytes });
    // Last: what is made before it is taken back where it fails, and it is not.
    ops.extend(reserved.clone().map(Op::Reserve));
    let mut settle = vec![write_to(&guest, DOOR_V2, "0")];
    if !offered.is_empty() {
        settle.push(write_to(&dir, "cgroup.subtree_control", &enable(&offered)));
        settle.extend(limit_v2(limits, &commands));
        // What is counted for each exec; of processor time version 2 counts that much without.
        let counted: Vec<&str> = offered.iter().copied().filter(|name| *name != "cpu").collect();
        if !counted.is_empty() {
            settle.push(write_to(&commands, "cgroup.subtree_control", &enable(&counted)));
        }
    }
    let cgroup = Cgroup {
        version: Version::V2,
        memory: offers("memory").then(|| dir.clone()),
        cpu: Some(dir.clone()),
        pids: offers("pids").then(|| commands.clone()),
        processes: Some(dir.clone()),
        dirs: vec![dir.clone()],
        reserved: reserved.clone(),
    };
    let guest = GuestCgroup { execs: vec![commands], enter: Vec::new(), memory: Some(dir.clone()), v2: true };
    let membership = CgroupMembership { join: vec![dir.join(DOOR_V2)], settle, guest: Some(guest) };
    Ok(Plan { ops, membership, cgroup })
}

fn of_interest(names: &[String]) -> Vec<&'static str> {
    V2_CONTROLLERS.into_iter().filter(|controller| names.iter().any(|name| name == controller)).collect()
}

fn enable(controllers: &[&str]) -> String {
    controllers.iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ")
}

fn write_to(dir: &Path, file: &str, value: &str) -> CgroupWrite {
    CgroupWrite { path: dir.join(file), value: value.to_owned(), if_there: false }
}

/// Enables the controllers from the top down to `instance`: a group can hand on only what it was handed.
fn hand_on(unified: &Unified, instance: &Path) -> Vec<Op> {
    let (offered, enabled) = (of_interest(&unified.controllers), of_interest(&unified.enabled));
    let missing: Vec<&str> = offered.iter().copied().filter(|name| !enabled.contains(name)).collect();
    let berth = unified.base.join("berth");
    [(unified.base.as_path(), &missing), (&berth, &offered), (instance, &offered)]
        .into_iter()
        .filter(|(_, controllers)| !controllers.is_empty())
        .map(|(group, names)| Op::Write { path: group.join("cgroup.subtree_control"), value: enable(names) })
        .collect()
}

/// What the sandbox is given beside others, and what it may not exceed whatever its guest does.
fn share_v2(limits: &Checked, dir: &Path) -> Vec<Op> {
    let write = |file: &str, value: String| Op::Write { path: dir.join(file), value };
    let mut ops = Vec::new();
    ops.extend(limits.weight.map(|weight| write("cpu.weight", weight.to_string())));
    ops.extend(limits.low.map(|bytes| write("memory.low", bytes.to_string())));
    if let Some(bytes) = limits.memory_with_guest() {
        ops.push(write("memory.max", bytes.to_string()));
        ops.push(Op::WriteIfThere { path: dir.join("memory.swap.max"), value: "0".to_owned() });
    }
    ops
}

/// What its commands may use.
fn limit_v2(limits: &Checked, commands: &Path) -> Vec<CgroupWrite> {
    let mut writes = Vec::new();
    if let Some(quota) = limits.quota {
        writes.push(write_to(commands, "cpu.max", &format!("{quota} {CPU_PERIOD_US}")));
    }
    if let Some(bytes) = limits.low {
        // What is set aside for a group counts below it only where it is set aside again.
        writes.push(write_to(commands, "memory.low", &bytes.to_string()));
    }
    if let Some(bytes) = limits.memory {
        writes.push(write_to(commands, "memory.max", &bytes.to_string()));
        writes.push(CgroupWrite { if_there: true, ..write_to(commands, "memory.swap.max", "0") });
        // One process dies of too much memory, not the whole sandbox: a task may go on and say so.
        writes.push(write_to(commands, "memory.oom.group", "0"));
    }
    if let Some(pids) = limits.pids {
        writes.push(write_to(commands, "pids.max", &pids.to_string()));
    }
    writes
}

/// Microseconds of processor time in each period.
fn cpu_quota(cpus: f64) -> Result<u64, Error> {
    if !cpus.is_finite() || !(CPUS_MIN..=65_536.0).contains(&cpus) {
        return Err(Error::Cpus { cpus });
    }
    // In range, so the cast is exact; a microsecond is the kernel's own unit.
    Ok((cpus * f64::from(CPU_PERIOD_US)).round() as u64)
}

/// Hundredths of a core, which are version 2's weights: 1 to 10000, 100 where nobody asks for anything.
fn cpu_weight(cpus: f64) -> Result<u64, Error> {
    if !cpus.is_finite() || !(CPUS_MIN..=REQUEST_MAX).contains(&cpus) {
        return Err(Error::CpuRequest { cpus });
    }
    Ok((cpus * 100.0).round() as u64)
}

fn pages(bytes: u64) -> Result<u64, Error> {
    if bytes == 0 || !bytes.is_multiple_of(PAGE_BYTES) { Err(Error::Memory { bytes }) } else { Ok(bytes) }
}

fn check_path(path: &str) -> Result<(), Error> {
    let parts: Vec<&str> = path.split('/').collect();
    let plain = |name: &str| !name.is_empty() && !name.starts_with('.') && name != "daemon";
    match parts.as_slice() {
        ["berth", instance, sandbox] if plain(instance) && plain(sandbox) => Ok(()),
        _ => Err(Error::Path { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::tests::{classic, hybrid, unified};
    use super::*;

    const PATH: &str = "berth/i1/s1";
    const ALL: Limits = Limits {
        cpus: Some(1.5),
        cpu_request: Some(0.25),
        memory_bytes: Some(512 << 20),
        memory_request_bytes: Some(128 << 20),
        pids: Some(256),
    };

    #[test]
    fn all_limits_hybrid() {
        insta::assert_json_snapshot!(plan(&ALL, &hybrid(), PATH, None).unwrap());
    }

    #[test]
    fn what_a_guest_in_a_user_namespace_is_given() {
        let given = |facts: &Facts| {
            let plan = plan(&ALL, facts, PATH, Some(1 << 30)).unwrap();
            plan.ops.into_iter().filter(|op| matches!(op, Op::Give { .. })).collect::<Vec<_>>()
        };
        insta::assert_json_snapshot!([given(&hybrid()), given(&classic()), given(&unified(None))]);
    }

    #[test]
    fn all_limits_classic() {
        insta::assert_json_snapshot!(plan(&ALL, &classic(), PATH, None).unwrap());
    }

    #[test]
    fn all_limits_unified() {
        insta::assert_json_snapshot!(plan(&ALL, &unified(None), PATH, None).unwrap());
    }

    #[test]
    fn all_limits_unified_delegated() {
        let facts = unified(Some("/sys/fs/cgroup/system.slice/berth.service".into()));
        insta::assert_json_snapshot!(plan(&ALL, &facts, PATH, None).unwrap());
    }

    #[test]
    fn no_limits_still_count() {
        insta::assert_json_snapshot!(plan(&Limits::default(), &unified(None), PATH, None).unwrap());
    }

    #[test]
    fn processes_are_found_by_the_freezer_where_pids_is_missing() {
        let mut facts = hybrid();
        facts.v1.retain(|hierarchy| hierarchy.controllers != ["pids"]);
        let plan = plan(&Limits::default(), &facts, PATH, None).unwrap();
        let execs = plan.membership.guest.unwrap().execs;
        assert_eq!(execs[0], PathBuf::from("/sys/fs/cgroup/freezer/berth/i1/s1"));
        assert_eq!(plan.cgroup.pids, None);
    }

    #[test]
    fn a_limit_without_controller_is_refused() {
        let mut facts = hybrid();
        facts.v1.retain(|hierarchy| hierarchy.controllers != ["memory"]);
        let error = plan(&ALL, &facts, PATH, None).unwrap_err();
        assert_eq!(error.to_string(), "cannot limit memory: this machine offers no memory control group");
        let error = plan(&ALL, &Facts::default(), PATH, None).unwrap_err();
        assert!(matches!(error, Error::ControllerMissing { controller: "cpu", limit: "cpus" }));
        assert!(plan(&Limits::default(), &Facts::default(), PATH, None).unwrap().cgroup.dirs.is_empty());
    }

    #[test]
    fn quotas_are_exact_to_the_microsecond() {
        assert_eq!(cpu_quota(0.01).unwrap(), 1_000);
        assert_eq!(cpu_quota(0.12345).unwrap(), 12_345);
        assert_eq!(cpu_quota(64.0).unwrap(), 6_400_000);
        for bad in [0.0, -1.0, 0.009, f64::NAN, f64::INFINITY] {
            assert!(cpu_quota(bad).is_err());
        }
    }

    #[test]
    fn shares_are_weights_of_hundredths() {
        assert_eq!(cpu_weight(0.01).unwrap(), 1);
        assert_eq!(cpu_weight(1.0).unwrap(), 100);
        assert_eq!(cpu_weight(100.0).unwrap(), 10_000);
        for bad in [0.0, 0.009, 100.1, f64::NAN] {
            assert!(matches!(cpu_weight(bad), Err(Error::CpuRequest { .. })));
        }
    }

    #[test]
    fn impossible_limits_and_paths_are_refused() {
        let refused = |limits: Limits, path: &str| plan(&limits, &hybrid(), path, None).unwrap_err();
        let memory = Limits { memory_bytes: Some(5000), ..Limits::default() };
        assert!(matches!(refused(memory, PATH), Error::Memory { bytes: 5000 }));
        let pids = Limits { pids: Some(0), ..Limits::default() };
        assert!(matches!(refused(pids, PATH), Error::Pids));
        for path in
            ["berth/i1", "other/i1/s1", "berth/../s1", "berth/i1/s1/x", "berth//s1", "berth/daemon/s1"]
        {
            assert!(matches!(refused(Limits::default(), path), Error::Path { .. }), "{path}");
        }
    }
}
