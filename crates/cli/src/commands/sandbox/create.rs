//! `berth sandbox create IMAGE`.

use berth_types::sandbox::{Capabilities, CreateSandbox, Mount, Resources, Unenforced};
use clap::Args;

use crate::Session;
use crate::arguments::{Network, capabilities, cpus, key_value, mount, seconds_or_none};
use crate::failure::Failure;

/// Arguments of `berth sandbox create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Reference or id of an image of the local store
    image: String,
    /// Name, unique among the living ones
    #[arg(long)]
    name: Option<String>,
    /// Limit of processor time, in cores; fractions are allowed
    #[arg(long, value_parser = cpus)]
    cpus: Option<f64>,
    /// Processor time that is set aside, in cores; at most --cpus
    #[arg(long, value_name = "CPUS", value_parser = cpus)]
    cpu_request: Option<f64>,
    /// Limit of memory, in MB of 2^20 bytes; at least 4
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(4..))]
    memory_mb: Option<u64>,
    /// Memory that is set aside, in MB of 2^20 bytes; at most --memory-mb, a share of it by default
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..))]
    memory_request_mb: Option<u64>,
    /// Limit of writable disk, in MB of 2^20 bytes
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..))]
    storage_mb: Option<u64>,
    /// Limit of files and directories that are written
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(64..))]
    storage_inodes: Option<u64>,
    /// Run without the limits of storage where the daemon's disk engine cannot enforce them
    #[arg(long)]
    allow_unenforced_storage: bool,
    /// Limit of processes and threads
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pids: Option<u64>,
    /// End it after so many seconds
    #[arg(long = "ttl", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    ttl_seconds: Option<u64>,
    /// Wait at most so many seconds for room on the machine, 0 not at all; without end by default
    #[arg(long = "wait", value_name = "SECONDS", value_parser = seconds_or_none)]
    wait_seconds: Option<f64>,
    /// Capabilities of root inside: default, none, or names out of the default set, separated by commas
    #[arg(long, value_name = "CAPABILITIES", value_parser = capabilities)]
    capabilities: Option<Capabilities>,
    /// Whether root inside is an unprivileged user of the machine; by default what the daemon's configuration says
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    user_namespace: Option<bool>,
    /// What it may reach
    #[arg(long, value_enum, default_value_t = Network::Public)]
    network: Network,
    /// Environment variable; may be repeated
    #[arg(long = "env", short, value_name = "KEY=VALUE", value_parser = key_value)]
    env: Vec<(String, String)>,
    /// Working directory of commands; the image's by default
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,
    /// User of commands, by name or number; the image's by default
    #[arg(long, short)]
    user: Option<String>,
    /// Path of the daemon's machine to mount: type=bind,src=/path,dst=/path[,ro]; may be repeated
    #[arg(long, value_name = "MOUNT", value_parser = mount)]
    mount: Vec<Mount>,
    /// Label; may be repeated
    #[arg(long = "label", short, value_name = "KEY=VALUE", value_parser = key_value)]
    labels: Vec<(String, String)>,
    /// Whether set-uid programs gain no privileges; by default so where the image holds none
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    no_new_privileges: Option<bool>,
}

impl Create {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        let wants_storage = self.storage_mb.is_some() || self.storage_inodes.is_some();
        let sandbox = session.client().await?.create_sandbox(&self.into_request()).await?;
        if wants_storage && !sandbox.storage_enforced {
            session.output.warning("the daemon's disk engine does not enforce limits of storage");
        }
        session.output.result(&sandbox, |sandbox| sandbox.id.clone())
    }

    fn into_request(self) -> CreateSandbox {
        CreateSandbox {
            image: self.image,
            name: self.name,
            idempotency_key: None,
            labels: self.labels.into_iter().collect(),
            lease: None,
            resources: Resources {
                cpus: self.cpus,
                cpu_request: self.cpu_request,
                memory_mb: self.memory_mb,
                memory_request_mb: self.memory_request_mb,
                storage_mb: self.storage_mb,
                storage_inodes: self.storage_inodes,
                pids: self.pids,
            },
            network: self.network.into(),
            env: self.env.into_iter().collect(),
            workdir: self.workdir,
            user: self.user,
            mounts: self.mount,
            no_new_privileges: self.no_new_privileges,
            storage_unenforced: if self.allow_unenforced_storage {
                Unenforced::Allow
            } else {
                Unenforced::Refuse
            },
            ttl_seconds: self.ttl_seconds,
            wait_seconds: self.wait_seconds,
            capabilities: self.capabilities.unwrap_or_default(),
            user_namespace: self.user_namespace,
        }
    }
}
