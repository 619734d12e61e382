//! Running `nft`, in the network namespace of the calling thread.

use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use crate::error::Refusal;

/// Loads `ruleset`, all of it or nothing.
pub(crate) fn load(ruleset: &str) -> Result<(), Refusal> {
    run("load the ruleset", &["-f", "-"], ruleset).map(drop)
}

/// Deletes table `inet name`; one that is not there is no error.
pub(crate) fn delete_table(name: &str) -> Result<(), Refusal> {
    load(&format!("table inet {name} {{}}\ndelete table inet {name}\n"))
}

/// All chains of all tables, without their rules.
pub(crate) fn list_chains() -> Result<String, Refusal> {
    run("list chains", &["list", "chains"], "")
}

fn run(action: &'static str, args: &[&str], input: &str) -> Result<String, Refusal> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Refusal::NftMissing,
        _ => Refusal::NftRun { action, source },
    };
    let mut child = Command::new(program())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A child that died before reading says why on stderr, which says more than the broken pipe does.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let line = stderr.lines().find(|l| !l.trim().is_empty()).unwrap_or("no reason given");
        return Err(Refusal::NftRefused { action, stderr: line.trim().to_owned() });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Debian keeps `nft` in /usr/sbin, which is not in the `PATH` of every service and shell.
fn program() -> &'static str {
    let sbin = ["/usr/sbin/nft", "/sbin/nft"];
    sbin.into_iter().find(|path| std::path::Path::new(path).exists()).unwrap_or("nft")
}
