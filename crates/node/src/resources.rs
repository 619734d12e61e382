//! From what a request asks for to what is in force: defaults, limits for the driver, and what is set aside. Pure.

use berth_sandbox::Limits;
use berth_types::sandbox::{Committed, CreateSandbox, Resources, Unenforced};

use crate::Error;

/// MB in bytes, as in Harbor's task format.
pub(crate) const MB: u64 = 1 << 20;

/// How the node limits sandboxes and what it sets aside for them.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitPolicy {
    /// Limit of storage in MB of a sandbox that asks for none, where the disk engine enforces it; 0 means none.
    pub default_storage_mb: u64,
    /// Limit of processes of a sandbox that asks for none; 0 means none.
    pub default_pids: u64,
    /// Whether limits of storage are waived where the disk engine cannot enforce them.
    pub allow_unenforced_storage: bool,
    /// Limits of memory are divided by this for what is set aside; at least 1.
    pub memory_overcommit: f64,
    /// Limits of storage are divided by this for what is set aside; at least 1.
    pub storage_overcommit: f64,
    /// Set aside for a sandbox without limit or request of memory, in MB.
    pub assumed_memory_mb: u64,
    /// Set aside for a sandbox that asks for no storage, in MB.
    pub assumed_storage_mb: u64,
    /// Memory that is kept for the machine itself, in MB; a twentieth, at least 256 and at most a quarter of it all, when
    /// absent.
    pub memory_reserve_mb: Option<u64>,
}

impl Default for LimitPolicy {
    fn default() -> LimitPolicy {
        LimitPolicy {
            default_storage_mb: 10_240,
            // Far above what a build with one job a processor, a database and a browser take together; a fork bomb
            // meets it within milliseconds.
            default_pids: 4096,
            allow_unenforced_storage: false,
            // Limits are set for the worst moment of the worst task; most sandboxes never come near theirs.
            memory_overcommit: 2.0,
            storage_overcommit: 8.0,
            assumed_memory_mb: 16,
            assumed_storage_mb: 4,
            memory_reserve_mb: None,
        }
    }
}

/// What a request comes to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settled {
    /// As the sandbox shows it.
    pub(crate) resources: Resources,
    /// Names of its fields that are defaults.
    pub(crate) defaults: Vec<String>,
    pub(crate) storage_enforced: bool,
    /// For the driver.
    pub(crate) limits: Limits,
    /// To be set aside.
    pub(crate) wants: Committed,
}

/// Limits of storage that the disk engine holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Enforces {
    pub(crate) bytes: bool,
    pub(crate) inodes: bool,
}

/// Settles a request that `request::check` has let through.
///
/// # Errors
/// [`Error::StorageUnenforced`] where the request asks for a limit of storage that nobody would enforce.
pub(crate) fn settle(
    request: &CreateSandbox,
    policy: &LimitPolicy,
    engine: Enforces,
) -> Result<Settled, Error> {
    let asked = &request.resources;
    let unenforced = unenforced(asked, engine);
    let waived = unenforced != Resources::default();
    let allowed = policy.allow_unenforced_storage || request.storage_unenforced == Unenforced::Allow;
    if waived && !allowed {
        return Err(Error::StorageUnenforced { resources: Box::new(unenforced) });
    }
    let mut resources = asked.clone();
    let mut defaults = Vec::new();
    if resources.pids.is_none() && policy.default_pids > 0 {
        resources.pids = Some(policy.default_pids);
        defaults.push("pids".to_owned());
    }
    if engine.bytes && resources.storage_mb.is_none() && policy.default_storage_mb > 0 {
        resources.storage_mb = Some(policy.default_storage_mb);
        defaults.push("storage_mb".to_owned());
    }
    let storage_enforced = !waived && (resources.storage_mb.is_some() || resources.storage_inodes.is_some());
    let limits = limits(&resources, engine);
    let wants = wants(asked, policy);
    Ok(Settled { resources, defaults, storage_enforced, limits, wants })
}

fn limits(resources: &Resources, engine: Enforces) -> Limits {
    let bytes = |mb: u64| mb.saturating_mul(MB);
    Limits {
        cpus: resources.cpus,
        cpu_request: resources.cpu_request,
        memory_bytes: resources.memory_mb.map(bytes),
        memory_request_bytes: resources.memory_request_mb.map(bytes),
        storage_bytes: resources.storage_mb.filter(|_| engine.bytes).map(bytes),
        storage_inodes: resources.storage_inodes.filter(|_| engine.inodes),
        pids: resources.pids,
    }
}

/// What is set aside. Of storage only what was asked for: a default is a fence, not a claim.
fn wants(asked: &Resources, policy: &LimitPolicy) -> Committed {
    let share = |mb: u64, overcommit: f64| ((mb * MB) as f64 / overcommit.max(1.0)).ceil() as u64;
    let memory = match (asked.memory_request_mb, asked.memory_mb) {
        (Some(request), _) => request * MB,
        (None, Some(limit)) => share(limit, policy.memory_overcommit),
        (None, None) => policy.assumed_memory_mb * MB,
    };
    let disk =
        asked.storage_mb.map_or(policy.assumed_storage_mb * MB, |mb| share(mb, policy.storage_overcommit));
    Committed { memory_bytes: memory, disk_bytes: disk, cpus: asked.cpu_request.unwrap_or(0.0) }
}

/// What is set aside for a sandbox of a build that only lends files, or takes some.
pub(crate) fn assumed(policy: &LimitPolicy) -> Committed {
    wants(&Resources::default(), policy)
}

/// What limits of a build's steps come to: those for the driver, and what is set aside for each step.
///
/// # Errors
/// [`Error::StorageUnenforced`] for a limit of storage that nobody would enforce, unless the policy waives those.
pub(crate) fn settle_step(
    resources: &Resources,
    policy: &LimitPolicy,
    engine: Enforces,
) -> Result<(Limits, Committed), Error> {
    let unenforced = unenforced(resources, engine);
    if unenforced != Resources::default() && !policy.allow_unenforced_storage {
        return Err(Error::StorageUnenforced { resources: Box::new(unenforced) });
    }
    Ok((limits(resources, engine), wants(resources, policy)))
}

/// What of the limits of storage the engine does not enforce.
fn unenforced(asked: &Resources, engine: Enforces) -> Resources {
    Resources {
        storage_mb: asked.storage_mb.filter(|_| !engine.bytes),
        storage_inodes: asked.storage_inodes.filter(|_| !engine.inodes),
        ..Resources::default()
    }
}

/// What was asked for, of resources in force.
pub(crate) fn without_defaults(resources: &Resources, defaults: &[String]) -> Resources {
    let is_default = |name: &str| defaults.iter().any(|default| default == name);
    let mut asked = resources.clone();
    if is_default("pids") {
        asked.pids = None;
    }
    if is_default("storage_mb") {
        asked.storage_mb = None;
    }
    asked
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Enforces = Enforces { bytes: true, inodes: true };
    const NONE: Enforces = Enforces { bytes: false, inodes: false };

    fn asking(resources: Resources) -> CreateSandbox {
        CreateSandbox { image: "debian".into(), resources, ..Default::default() }
    }

    #[test]
    fn defaults_are_named_and_can_be_taken_off_again() {
        let policy = LimitPolicy::default();
        let request = asking(Resources { memory_mb: Some(512), ..Default::default() });
        let settled = settle(&request, &policy, ALL).unwrap();
        assert_eq!(settled.resources.storage_mb, Some(10_240));
        assert_eq!(settled.resources.pids, Some(4096));
        assert_eq!(settled.defaults, ["pids", "storage_mb"]);
        assert!(settled.storage_enforced);
        assert_eq!(settled.limits.storage_bytes, Some(10_240 * MB));
        assert_eq!(without_defaults(&settled.resources, &settled.defaults), request.resources);
        // A default of storage is a fence: nothing more is set aside for it.
        assert_eq!(settled.wants.disk_bytes, 4 * MB);
    }

    #[test]
    fn storage_that_nobody_enforces_is_refused_or_shown_as_such() {
        let mut request = asking(Resources { storage_mb: Some(1024), ..Default::default() });
        let mut policy = LimitPolicy::default();
        assert!(matches!(settle(&request, &policy, NONE), Err(Error::StorageUnenforced { .. })));
        policy.allow_unenforced_storage = true;
        let settled = settle(&request, &policy, NONE).unwrap();
        assert!(!settled.storage_enforced);
        assert_eq!(settled.limits.storage_bytes, None);
        policy.allow_unenforced_storage = false;
        request.storage_unenforced = Unenforced::Allow;
        assert!(settle(&request, &policy, NONE).is_ok());
        // Where nobody asks, the plain engine is no matter.
        let settled = settle(&asking(Resources::default()), &policy, NONE).unwrap();
        assert_eq!((settled.resources.storage_mb, settled.storage_enforced), (None, false));
    }

    #[test]
    fn files_that_the_engine_does_not_count_are_refused_or_shown_as_such() {
        let btrfs = Enforces { bytes: true, inodes: false };
        let asked = Resources { storage_mb: Some(64), storage_inodes: Some(100), ..Default::default() };
        let mut request = asking(asked);
        let error = settle(&request, &LimitPolicy::default(), btrfs).unwrap_err();
        assert!(error.to_string().contains("(100 files)"), "{error}");
        request.storage_unenforced = Unenforced::Allow;
        let settled = settle(&request, &LimitPolicy::default(), btrfs).unwrap();
        assert!(!settled.storage_enforced);
        assert_eq!((settled.limits.storage_bytes, settled.limits.storage_inodes), (Some(64 * MB), None));
        assert!(settle(&request, &LimitPolicy::default(), ALL).unwrap().storage_enforced);
    }

    #[test]
    fn eight_tasks_of_two_gib_fit_on_a_machine_of_24() {
        let request = asking(Resources {
            memory_mb: Some(2048),
            storage_mb: Some(10_240),
            cpus: Some(1.0),
            ..Default::default()
        });
        let wants = settle(&request, &LimitPolicy::default(), ALL).unwrap().wants;
        assert_eq!((wants.memory_bytes, wants.disk_bytes, wants.cpus), (1024 * MB, 1280 * MB, 0.0));
        assert!(8 * wants.memory_bytes < (24 << 30) - (24 << 30) / 20);
        let strict = LimitPolicy { memory_overcommit: 1.0, ..LimitPolicy::default() };
        assert_eq!(settle(&request, &strict, ALL).unwrap().wants.memory_bytes, 2048 * MB);
    }

    #[test]
    fn a_step_sets_its_own_limits_aside_and_has_none_that_nobody_enforces() {
        let policy = LimitPolicy::default();
        let asked = Resources { memory_mb: Some(2048), storage_mb: Some(80), ..Default::default() };
        let (limits, wants) = settle_step(&asked, &policy, ALL).unwrap();
        assert_eq!((limits.memory_bytes, limits.storage_bytes), (Some(2048 * MB), Some(80 * MB)));
        assert_eq!((wants.memory_bytes, wants.disk_bytes), (1024 * MB, 10 * MB));
        assert!(matches!(settle_step(&asked, &policy, NONE), Err(Error::StorageUnenforced { .. })));
        let waives = LimitPolicy { allow_unenforced_storage: true, ..policy.clone() };
        assert_eq!(settle_step(&asked, &waives, NONE).unwrap().0.storage_bytes, None);
        assert_eq!(settle_step(&Resources::default(), &policy, NONE).unwrap().1, assumed(&policy));
    }

    #[test]
    fn a_request_is_set_aside_in_full() {
        let request = asking(Resources {
            memory_mb: Some(2048),
            memory_request_mb: Some(1536),
            cpu_request: Some(0.5),
            ..Default::default()
        });
        let settled = settle(&request, &LimitPolicy::default(), ALL).unwrap();
        assert_eq!(settled.wants.memory_bytes, 1536 * MB);
        assert_eq!(settled.wants.cpus, 0.5);
        assert_eq!(settled.limits.memory_request_bytes, Some(1536 * MB));
    }
}
