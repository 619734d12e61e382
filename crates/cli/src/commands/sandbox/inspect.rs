//! `berth sandbox inspect SANDBOX`.

use berth_types::sandbox::{Capabilities, CapabilitySet, Limit, NetworkMode, Sandbox, Usage};
use clap::Args;
use jiff::Timestamp;

use super::ls::state;
use crate::Session;
use crate::failure::Failure;
use crate::output::{age, size, table};

/// Arguments of `berth sandbox inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Id or name
    sandbox: String,
}

impl Inspect {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        let sandbox = session.client().await?.sandbox(&self.sandbox).await?;
        session.output.result(&sandbox, |sandbox| render(sandbox, Timestamp::now()))
    }
}

fn render(sandbox: &Sandbox, now: Timestamp) -> String {
    let facts = facts(sandbox, now).into_iter().map(|(name, value)| vec![name.to_owned(), value]);
    // Without a header: every line says what it is.
    let facts = table(&["SANDBOX", &sandbox.id], facts);
    let used = table(&["", "USED", "PEAK", "LIMIT", "SET ASIDE"], used(sandbox));
    format!("{facts}\n\n{used}")
}

fn facts(sandbox: &Sandbox, now: Timestamp) -> Vec<(&'static str, String)> {
    let labels: Vec<String> = sandbox.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let known = |value: &Option<String>| value.clone().unwrap_or_default();
    let user = if sandbox.user.is_empty() { "root" } else { &sandbox.user };
    let mut facts = vec![
        ("name", if sandbox.name == sandbox.id { String::new() } else { sandbox.name.clone() }),
        ("state", state(sandbox)),
        ("reason", sandbox.reason_code.map(|code| word(&code)).unwrap_or_default()),
        ("image", sandbox.image.clone()),
        ("made", format!("{} ago", age(&sandbox.created_at, now))),
        ("expires", known(&sandbox.expires_at)),
        ("lease", known(&sandbox.lease)),
        ("labels", labels.join(",")),
        ("network", network(sandbox.network).to_owned()),
        ("commands run", format!("as {user} in {}", sandbox.workdir)),
        ("root inside", root(sandbox)),
        ("start", start(sandbox)),
        ("limits met", sandbox.usage.as_ref().map_or(String::new(), limits_met)),
    ];
    facts.retain(|(_, value)| !value.is_empty());
    facts
}

fn network(mode: NetworkMode) -> &'static str {
    match mode {
        NetworkMode::Public => "public",
        NetworkMode::NoNetwork => "none",
    }
}

/// As the API calls it.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn root(sandbox: &Sandbox) -> String {
    let who = if sandbox.user_namespace {
        "an unprivileged user of the machine"
    } else {
        "root of the machine (no user namespace)"
    };
    let capabilities = match &sandbox.capabilities {
        Capabilities::Set(CapabilitySet::Default) => "default capabilities".to_owned(),
        Capabilities::Set(CapabilitySet::None) => "no capabilities".to_owned(),
        Capabilities::Only(names) => format!("capabilities {}", names.join(", ")),
    };
    format!("{who}, {capabilities}")
}

fn start(sandbox: &Sandbox) -> String {
    let Some(total) = sandbox.start_ms else { return String::new() };
    let mut parts = vec![format!("{total} ms")];
    if let Some(phases) = &sandbox.start_phases {
        parts.push(format!(
            "(disk {}, network {}, groups {}, launch {}, guest {})",
            phases.disk_ms, phases.network_ms, phases.cgroups_ms, phases.launch_ms, phases.guest_ms
        ));
    }
    if let Some(queued) = sandbox.queued_ms {
        parts.push(format!("after {queued} ms in the queue"));
    }
    parts.join(" ")
}

fn limits_met(usage: &Usage) -> String {
    let mut met: Vec<&str> = usage
        .limits_hit
        .iter()
        .map(|limit| match limit {
            Limit::Memory => "memory",
            Limit::Pids => "processes",
            Limit::Disk => "disk",
        })
        .collect();
    let kills = usage.oom_kills.filter(|kills| *kills > 0);
    let kills = kills.map(|kills| format!("{kills} processes killed for want of memory"));
    met.extend(kills.as_deref());
    if met.is_empty() { "none".to_owned() } else { met.join(", ") }
}

/// What is not known, or not limited, is left empty.
fn used(sandbox: &Sandbox) -> Vec<Vec<String>> {
    let usage = sandbox.usage.clone().unwrap_or_default();
    let bytes = |value: Option<u64>| value.map(size).unwrap_or_default();
    let number = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
    let limit = |name: &str, value: String| {
        let is_default = sandbox.resource_defaults.iter().any(|default| default == name);
        if is_default && !value.is_empty() { format!("{value} (default)") } else { value }
    };
    let mb = |value: Option<u64>| bytes(value.and_then(|mb| mb.checked_mul(1 << 20)));
    let (resources, aside) = (&sandbox.resources, sandbox.committed);
    let enforced = if sandbox.storage_enforced { "" } else { " (not enforced)" };
    let storage = limit("storage_mb", mb(resources.storage_mb));
    let storage = if storage.is_empty() { storage } else { format!("{storage}{enforced}") };
    let cores = |value: Option<f64>| value.map(|cores| format!("{cores} cores")).unwrap_or_default();
    let cpu = usage.cpu_seconds.map(|seconds| format!("{seconds:.2} s")).unwrap_or_default();
    vec![
        vec![
            "memory".into(),
            bytes(usage.memory_bytes),
            bytes(usage.memory_peak_bytes),
            limit("memory_mb", mb(resources.memory_mb)),
            bytes(aside.map(|aside| aside.memory_bytes)),
        ],
        vec![
            "disk".into(),
            bytes(usage.disk_bytes),
            String::new(),
            storage,
            bytes(aside.map(|aside| aside.disk_bytes)),
        ],
        vec![
            "files".into(),
            number(usage.disk_inodes),
            String::new(),
            limit("storage_inodes", number(resources.storage_inodes)),
            String::new(),
        ],
        vec![
            "processors".into(),
            cpu,
            String::new(),
            limit("cpus", cores(resources.cpus)),
            cores(aside.map(|aside| aside.cpus)),
        ],
        vec![
            "processes".into(),
            number(usage.pids),
            String::new(),
            limit("pids", number(resources.pids)),
            String::new(),
        ],
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_is_shown_with_what_it_uses_and_what_it_met() {
        let sandbox: Sandbox = serde_json::from_value(serde_json::json!({
            "id": "01a1", "name": "web", "group": "01a1", "state": "lost", "labels": {"job": "j1"},
            "reason": "its first process was killed by signal 9", "reason_code": "out_of_memory",
            "image": "sha256:0123456789abcdef", "storage_enforced": true, "network": "no-network",
            "resources": {"memory_mb": 128, "storage_mb": 10240, "pids": 64, "cpus": 0.5},
            "resource_defaults": ["storage_mb"], "user_namespace": true, "capabilities": "none",
            "committed": {"memory_bytes": 67_108_864, "disk_bytes": 4_194_304, "cpus": 0.25},
            "workdir": "/app", "user": "", "created_at": "2026-01-01T00:00:00Z", "start_ms": 4.5, "queued_ms": 120.25,
            "expires_at": "2026-01-01T01:00:00Z",
            "start_phases": {"disk_ms": 0.5, "network_ms": 0.25, "cgroups_ms": 0.25, "launch_ms": 2.5, "guest_ms": 1.0},
            "usage": {"memory_bytes": 1_048_576, "memory_peak_bytes": 134_217_728, "oom_kills": 2, "cpu_seconds": 1.5,
                      "pids": 3, "disk_bytes": 65536, "limits_hit": ["memory", "pids"]},
        }))
        .unwrap();
        insta::assert_snapshot!(render(&sandbox, "2026-01-01T00:05:00Z".parse().unwrap()));
    }
}
