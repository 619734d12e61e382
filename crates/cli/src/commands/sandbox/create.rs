//! `berth sandbox create IMAGE`.

use berth_types::sandbox::{CreateSandbox, Mount, Resources};
use clap::Args;

use crate::Session;
use crate::arguments::{Network, cpus, key_value, mount};
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
    /// Limit of memory, in MB of 2^20 bytes
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(6..))]
    memory_mb: Option<u64>,
    /// Limit of writable disk, in MB of 2^20 bytes
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..))]
    storage_mb: Option<u64>,
    /// Limit of processes and threads
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pids: Option<u64>,
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
        let wants_storage = self.storage_mb.is_some();
        let sandbox = session.client().await?.create_sandbox(&self.into_request()).await?;
        if wants_storage && !sandbox.storage_enforced {
            session.output.warning("the daemon's disk engine does not enforce --storage-mb");
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
                memory_mb: self.memory_mb,
                storage_mb: self.storage_mb,
                pids: self.pids,
            },
            network: self.network.into(),
            env: self.env.into_iter().collect(),
            workdir: self.workdir,
            user: self.user,
            mounts: self.mount,
            no_new_privileges: self.no_new_privileges,
        }
    }
}
