//! `berth`: the daemon, the command line, and the helper that makes sandboxes, in one executable.

mod config;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use berth_cli::{Action, Cli, Context};

/// The sandbox's first process, as a static executable; see `build.rs`.
static GUEST: &[u8] = include_bytes!(env!("BERTH_GUEST"));

fn main() -> ExitCode {
    // Before anything else, while this process is surely single-threaded: the launcher forks.
    if std::env::args_os().nth(1).is_some_and(|arg| arg == berth_jail::LAUNCHER_ARG) {
        return berth_jail::launcher_main();
    }
    berth_sys::heap::reuse();
    let cli = match Cli::parse_from_args(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors and go to stdout; clap knows which and where.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let action = cli.action();
    // Only now: every thread that is made later shares the namespace of the one that made it.
    let own_mounts = match action {
        Action::Serve(_) => serve::own_mounts(),
        _ => Ok(()),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return ExitCode::from(70);
        }
    };
    let context = Context { binary: own_path(), local_doctor: serve::local_doctor };
    let code = match action {
        Action::Serve(args) => runtime.block_on(serve::serve(args, own_mounts)),
        Action::OpenApi => {
            print!("{}", berth_daemon::openapi_document());
            ExitCode::SUCCESS
        }
        Action::ShowConfig(args) => serve::show_config(&args),
        Action::Client(cli) => runtime.block_on(berth_cli::run(cli, context)),
    };
    // A blocking read of a terminal's stdin can still be under way; nothing of worth waits for it.
    runtime.shutdown_background();
    code
}

/// Path by which this executable can be started again.
fn own_path() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"))
}
