//! Running `nft`, in the network namespace of the calling thread.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::Refusal;
use crate::ruleset;

const SBIN: [&str; 2] = ["/usr/sbin/nft", "/sbin/nft"];

/// The `nft` program.
#[derive(Clone, Debug)]
pub(crate) struct Nft {
    program: PathBuf,
}

impl Nft {
    /// `program` where one is given. Else where Debian keeps it, as /usr/sbin is not in the `PATH` of every service and
    /// shell; else whatever `PATH` has.
    pub(crate) fn find(program: Option<&Path>) -> Self {
        let usual = || SBIN.into_iter().map(Path::new).find(|path| path.exists());
        Self { program: program.or_else(usual).unwrap_or(Path::new("nft")).to_owned() }
    }

    /// Loads `ruleset`, all of it or nothing.
    pub(crate) fn load(&self, ruleset: &str) -> Result<(), Refusal> {
        self.run("load the ruleset", &["-f", "-"], ruleset).map(drop)
    }

    /// Deletes table `inet name`; one that is not there is no error.
    pub(crate) fn delete_table(&self, name: &str) -> Result<(), Refusal> {
        self.load(&ruleset::delete(name))
    }

    /// All chains of all tables, without their rules.
    pub(crate) fn list_chains(&self) -> Result<String, Refusal> {
        self.run("list chains", &["list", "chains"], "")
    }

    fn run(&self, action: &'static str, args: &[&str], input: &str) -> Result<String, Refusal> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => Refusal::NftMissing { program: self.program.clone() },
            _ => Refusal::NftRun { action, source },
        };
        let mut child = Command::new(&self.program)
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
}
