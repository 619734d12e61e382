//! `berth serve`: put the daemon together, run it, take it apart.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use berth_cli::{ServeArgs, ShowConfigArgs};
use berth_daemon::Address;
use berth_node::Node;
use berth_types::system::DoctorReport;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::Config;

/// An embedded daemon costs some 50 ms to start again, so it need not linger.
const EMBEDDED_IDLE: Duration = Duration::from_secs(120);

/// Exit code for a machine or configuration that does not allow it (sysexits(3), EX_CONFIG).
const EXIT_CONFIG: u8 = 78;

/// Gives this process a mount namespace of its own, so that what the daemon mounts for itself (its disk pool) is in
/// nobody's way and gone with it, however it ends. What the host mounts later still shows here: sandboxes may be given it.
///
/// Call while the process has one thread.
pub(crate) fn own_mounts() -> io::Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    berth_sys::namespace::unshare(berth_sys::namespace::Namespaces::MOUNT)?;
    Ok(mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?)
}

/// Runs the daemon until it is told to stop. `own_mounts` is what became of [`own_mounts`].
pub(crate) async fn serve(args: ServeArgs, own_mounts: io::Result<()>) -> ExitCode {
    start_logging();
    if args.embedded {
        // The command that started us must not take us along with its terminal. Fails only for a process
        // group's leader, which is then not in its parent's group anyway.
        let _ = rustix::process::setsid();
    }
    match run(args, own_mounts).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

/// Prints the configuration that a daemon started here and now would have.
pub(crate) fn show_config(args: &ShowConfigArgs) -> ExitCode {
    let loaded = if args.default { Ok(Config::default()) } else { Config::load(args.config.as_deref()) };
    let shown = loaded.and_then(|mut config| {
        if !args.default {
            config.apply_environment();
        }
        config.show()
    });
    match shown {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

fn start_logging() {
    let filter = EnvFilter::try_from_env("BERTH_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

async fn run(args: ServeArgs, own_mounts: io::Result<()>) -> anyhow::Result<()> {
    let config = Config::load(args.config.as_deref())?;
    let (limits, orphan, keep) = (config.limit_policy(), config.orphan(), config.sandboxes.keep_on_stop);
    let ssh = config.ssh_options();
    let (disk, network, ids) = (config.disk_options(), config.network_options(), config.ids());
    let data_dir = args.data_dir.unwrap_or(config.data_dir);
    let host = args.host.unwrap_or(config.host);
    let address = Address::parse(&host)?;
    refuse_unfit_machine()?;
    own_mounts.context("cannot have a mount namespace of its own")?;
    make_private(&data_dir)?;

    let node = Node::start(berth_node::Options {
        data_dir: data_dir.clone(),
        guest: crate::GUEST,
        registry: config.registry,
        disk,
        network,
        ids,
        limits,
        images: config.images.limits(),
        builds: config.builds.policy(),
        ca_bundle: config.sandboxes.ca_bundle,
        user_namespaces: config.isolation.user_namespaces,
        orphan,
    })
    .await
    .context("cannot start the daemon")?;

    node.keep_sandboxes(keep);
    let stop = CancellationToken::new();
    stop_on_signals(stop.clone(), node.clone())?;
    let idle_exit = args.idle_exit.map(Duration::from_secs).or(args.embedded.then_some(EMBEDDED_IDLE));
    let options = berth_daemon::Options { address: address.clone(), idle_exit, data_dir, ssh };
    let served =
        berth_daemon::serve(node.clone(), options, stop, || tracing::info!(%address, "serving")).await;
    node.stop().await;
    served?;
    tracing::info!("ended");
    Ok(())
}

/// SIGTERM and SIGINT end the daemon as the configuration has it, SIGHUP leaves sandboxes running in any case.
fn stop_on_signals(stop: CancellationToken, node: Node) -> anyhow::Result<()> {
    let mut hang_up = signal(SignalKind::hangup()).context("cannot watch for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for signals")?;
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            _ = hang_up.recv() => {
                node.keep_sandboxes(true);
                "SIGHUP"
            }
        };
        tracing::info!(signal = name, keep_sandboxes = node.keeps_sandboxes(), "told to end");
        stop.cancel();
    });
    Ok(())
}

/// Layers and socket are root's own: what is in an image may be secret.
fn make_private(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(dir)
        .with_context(|| format!("cannot make the data directory {}", dir.display()))?;
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o700))
        .with_context(|| format!("cannot make {} private", dir.display()))
}

/// Fails with every reason and what to do about it when sandboxes cannot run here.
fn refuse_unfit_machine() -> anyhow::Result<()> {
    let unfit: Vec<String> = berth_node::local_doctor()
        .checks
        .into_iter()
        .filter(|check| check.status == berth_types::system::CheckStatus::Fail)
        .map(|check| {
            let hint = check.hint.map(|hint| format!(" (hint: {hint})")).unwrap_or_default();
            format!("{}: {}{hint}", check.name, check.found)
        })
        .collect();
    anyhow::ensure!(unfit.is_empty(), "sandboxes cannot run on this machine: {}", unfit.join("; "));
    Ok(())
}

/// The checks that need no daemon, for `berth doctor`.
pub(crate) fn local_doctor() -> DoctorReport {
    berth_node::local_doctor()
}
