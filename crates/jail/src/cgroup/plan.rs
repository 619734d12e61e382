//! From limits to the files to write. Pure.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::facts::{DAEMON_GROUP, Facts, Unified};
use super::{Cgroup, Error};
use crate::spec::CgroupMembership;

/// Over which processor time is shared out, in microseconds.
const CPU_PERIOD_US: u32 = 100_000;
/// The kernel's least quota is 1 ms.
const CPUS_MIN: f64 = 0.01;
/// What the kernel rounds memory limits to.
const PAGE_BYTES: u64 = 4096;
/// Controllers in use with version 1: those that limit, that count, and the one that finds processes.
const V1_CONTROLLERS: [&str; 4] = ["cpu", "cpuacct", "memory", "pids"];
/// Controllers in use with version 2; it counts processor time and finds processes without any.
const V2_CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// What a sandbox may use. Absent: not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Cores.
    pub cpus: Option<f64>,
    /// Bytes of memory, without swap.
    pub memory_bytes: Option<u64>,
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
    /// The groups that they make.
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
}

impl Plan {
    /// What the sandbox's first process joins, and what its guest is given.
    pub fn membership(&self) -> CgroupMembership {
        self.cgroup.membership()
    }
}

/// Plans the groups of one sandbox; `path` is `berth/<instance>/<sandbox>`.
///
/// Version 1 is taken where it has any of the controllers that matter: in a hybrid layout the other version then has
/// none of them.
pub fn plan(limits: &Limits, facts: &Facts, path: &str) -> Result<Plan, Error> {
    check_path(path)?;
    let quota = limits.cpus.map(cpu_quota).transpose()?;
    let limits = Checked { quota, memory: memory(limits)?, pids: pids(limits)? };
    let on_v1 = V1_CONTROLLERS.iter().any(|controller| facts.hierarchy(controller).is_some());
    match &facts.v2 {
        Some(unified) if !on_v1 => plan_v2(&limits, unified, path),
        _ => plan_v1(&limits, facts, path),
    }
}

/// Limits in the units of the files.
struct Checked {
    quota: Option<u64>,
    memory: Option<u64>,
    pids: Option<u64>,
}

impl Checked {
    /// Fails on the first limit for whose controller `has` says no.
    fn require(&self, has: impl Fn(&str) -> bool) -> Result<(), Error> {
        let wanted = [
            ("cpu", "cpus", self.quota.is_some()),
            ("memory", "memory", self.memory.is_some()),
            ("pids", "processes", self.pids.is_some()),
        ];
        match wanted.into_iter().find(|(controller, _, wanted)| *wanted && !has(controller)) {
            Some((controller, limit, _)) => Err(Error::ControllerMissing { controller, limit }),
            None => Ok(()),
        }
    }
}

fn plan_v1(limits: &Checked, facts: &Facts, path: &str) -> Result<Plan, Error> {
    limits.require(|controller| facts.hierarchy(controller).is_some())?;
    let dir_of = |controller: &str| facts.hierarchy(controller).map(|found| found.mount_point.join(path));
    // Without pids, the freezer is the one by which processes are found.
    let finder = dir_of("pids").or_else(|| dir_of("freezer"));
    // Controllers that are mounted together share one directory.
    let dirs: BTreeSet<PathBuf> =
        V1_CONTROLLERS.into_iter().filter_map(dir_of).chain(finder.clone()).collect();
    let mut ops = Vec::new();
    for dir in &dirs {
        ops.extend(dir.parent().map(|parent| Op::Make(parent.to_owned())));
        ops.push(Op::MakeNew(dir.clone()));
    }
    ops.extend(limit_v1(limits, dir_of));
    let cgroup = Cgroup {
        version: Version::V1,
        dirs: dirs.into_iter().collect(),
        memory: dir_of("memory"),
        cpu: dir_of("cpuacct"),
        pids: dir_of("pids"),
        processes: finder,
    };
    Ok(Plan { ops, cgroup })
}

/// A controller that is limited has a directory: [`Checked::require`] saw to it.
fn limit_v1(limits: &Checked, dir_of: impl Fn(&str) -> Option<PathBuf>) -> Vec<Op> {
    let mut ops = Vec::new();
    if let (Some(quota), Some(dir)) = (limits.quota, dir_of("cpu")) {
        ops.push(Op::Write { path: dir.join("cpu.cfs_period_us"), value: CPU_PERIOD_US.to_string() });
        ops.push(Op::Write { path: dir.join("cpu.cfs_quota_us"), value: quota.to_string() });
    }
    if let (Some(bytes), Some(dir)) = (limits.memory, dir_of("memory")) {
        let value = bytes.to_string();
        ops.push(Op::Write { path: dir.join("memory.limit_in_bytes"), value: value.clone() });
        // Memory and swap together: as much as memory alone leaves no swap. Must come second, it may not be less.
        ops.push(Op::WriteIfThere { path: dir.join("memory.memsw.limit_in_bytes"), value });
    }
    if let (Some(pids), Some(dir)) = (limits.pids, dir_of("pids")) {
        ops.push(Op::Write { path: dir.join("pids.max"), value: pids.to_string() });
    }
    ops
}

fn plan_v2(limits: &Checked, unified: &Unified, path: &str) -> Result<Plan, Error> {
    let offers = |controller: &str| unified.controllers.iter().any(|name| name == controller);
    limits.require(offers)?;
    let dir = unified.base.join(path);
    let instance = dir.parent().unwrap_or(&unified.base);
    let mut ops = vec![Op::Make(instance.to_owned())];
    if unified.delegated {
        let daemon = unified.base.join(DAEMON_GROUP);
        ops.push(Op::Make(daemon.clone()));
        ops.push(Op::MoveProcesses { from: unified.base.clone(), to: daemon });
    }
    ops.extend(hand_on(unified, instance));
    ops.push(Op::MakeNew(dir.clone()));
    ops.extend(limit_v2(limits, &dir));
    let cgroup = Cgroup {
        version: Version::V2,
        dirs: vec![dir.clone()],
        memory: offers("memory").then(|| dir.clone()),
        cpu: Some(dir.clone()),
        pids: offers("pids").then(|| dir.clone()),
        processes: Some(dir),
    };
    Ok(Plan { ops, cgroup })
}

/// Enables the controllers from the top down to `instance`: a group can hand on only what it was handed.
fn hand_on(unified: &Unified, instance: &Path) -> Vec<Op> {
    let of = |names: &[String]| -> Vec<&str> {
        V2_CONTROLLERS.into_iter().filter(|controller| names.iter().any(|name| name == controller)).collect()
    };
    let (offered, enabled) = (of(&unified.controllers), of(&unified.enabled));
    let missing: Vec<&str> = offered.iter().copied().filter(|name| !enabled.contains(name)).collect();
    let berth = unified.base.join("berth");
    [(unified.base.as_path(), &missing), (&berth, &offered), (instance, &offered)]
        .into_iter()
        .filter(|(_, controllers)| !controllers.is_empty())
        .map(|(group, controllers)| {
            let value = controllers.iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
            Op::Write { path: group.join("cgroup.subtree_control"), value }
        })
        .collect()
}

fn limit_v2(limits: &Checked, dir: &Path) -> Vec<Op> {
    let write = |file: &str, value: String| Op::Write { path: dir.join(file), value };
    let mut ops = Vec::new();
    if let Some(quota) = limits.quota {
        ops.push(write("cpu.max", format!("{quota} {CPU_PERIOD_US}")));
    }
    if let Some(bytes) = limits.memory {
        ops.push(write("memory.max", bytes.to_string()));
        ops.push(Op::WriteIfThere { path: dir.join("memory.swap.max"), value: "0".to_owned() });
        // One process dies of too much memory, not the whole sandbox: a task may go on and say so.
        ops.push(write("memory.oom.group", "0".to_owned()));
    }
    if let Some(pids) = limits.pids {
        ops.push(write("pids.max", pids.to_string()));
    }
    ops
}

/// Microseconds of processor time in each period.
fn cpu_quota(cpus: f64) -> Result<u64, Error> {
    if !cpus.is_finite() || !(CPUS_MIN..=65_536.0).contains(&cpus) {
        return Err(Error::Cpus { cpus });
    }
    // In range, so the cast is exact; a microsecond is the kernel's own unit.
    Ok((cpus * f64::from(CPU_PERIOD_US)).round() as u64)
}

fn memory(limits: &Limits) -> Result<Option<u64>, Error> {
    match limits.memory_bytes {
        Some(bytes) if bytes == 0 || bytes % PAGE_BYTES != 0 => Err(Error::Memory { bytes }),
        bytes => Ok(bytes),
    }
}

fn pids(limits: &Limits) -> Result<Option<u64>, Error> {
    if limits.pids == Some(0) { Err(Error::Pids) } else { Ok(limits.pids) }
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
    const ALL: Limits = Limits { cpus: Some(1.5), memory_bytes: Some(512 << 20), pids: Some(256) };

    #[test]
    fn all_limits_hybrid() {
        insta::assert_json_snapshot!(plan(&ALL, &hybrid(), PATH).unwrap());
    }

    #[test]
    fn all_limits_classic() {
        insta::assert_json_snapshot!(plan(&ALL, &classic(), PATH).unwrap());
    }

    #[test]
    fn all_limits_unified() {
        insta::assert_json_snapshot!(plan(&ALL, &unified(None), PATH).unwrap());
    }

    #[test]
    fn all_limits_unified_delegated() {
        let facts = unified(Some("/sys/fs/cgroup/system.slice/berth.service".into()));
        insta::assert_json_snapshot!(plan(&ALL, &facts, PATH).unwrap());
    }

    #[test]
    fn no_limits_still_count() {
        insta::assert_json_snapshot!(plan(&Limits::default(), &unified(None), PATH).unwrap());
    }

    #[test]
    fn processes_are_found_by_the_freezer_where_pids_is_missing() {
        let mut facts = hybrid();
        facts.v1.retain(|hierarchy| hierarchy.controllers != ["pids"]);
        let plan = plan(&Limits::default(), &facts, PATH).unwrap();
        assert_eq!(plan.cgroup.processes, Some("/sys/fs/cgroup/freezer/berth/i1/s1".into()));
        assert_eq!(plan.cgroup.pids, None);
    }

    #[test]
    fn a_limit_without_controller_is_refused() {
        let mut facts = hybrid();
        facts.v1.retain(|hierarchy| hierarchy.controllers != ["memory"]);
        let error = plan(&ALL, &facts, PATH).unwrap_err();
        assert_eq!(error.to_string(), "cannot limit memory: this machine offers no memory control group");
        let error = plan(&ALL, &Facts::default(), PATH).unwrap_err();
        assert!(matches!(error, Error::ControllerMissing { controller: "cpu", limit: "cpus" }));
        assert!(plan(&Limits::default(), &Facts::default(), PATH).unwrap().cgroup.dirs.is_empty());
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
    fn impossible_limits_and_paths_are_refused() {
        let refused = |limits: Limits, path: &str| plan(&limits, &hybrid(), path).unwrap_err();
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
