//! The agent's phase: the task's own solution, nothing, or a command of the user's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use berth_client::limits;
use berth_types::exec::{ExecStatus, ExitReason};
use tokio::time::{Instant, timeout};

use super::{AGENT_LOGS, Ended, GRACE, Run, Trial, close, duration};
use crate::env::Platform;
use crate::job::Agent;
use crate::observer::Phase;
use crate::record::{self, Timing};
use crate::verdict::{Exception, Failure};

/// The variable that holds the instruction, for a command agent.
const INSTRUCTION: &str = "BERTH_INSTRUCTION";

/// Where a command's output grows: outside of what is later filled from the sandbox, which may hold the same name.
const OUTPUT_PART: &str = ".command.txt.part";

/// A script that runs, its output going into a file of the sandbox.
pub(super) fn script(path: &str, output: &str) -> String {
    format!("({path}) > {output} 2>&1")
}

impl<P: Platform> Trial<'_, P> {
    pub(super) async fn run_agent(&mut self) -> Result<(), Exception> {
        self.enter(Phase::AgentExecution);
        self.facts.agent_execution = Some(Timing::start());
        let limit = self.plan.task.task.config.agent.timeout_sec.map(|seconds| self.limit(seconds));
        let deadline = limit.map(|seconds| Instant::now() + duration(seconds));
        let running = self.agent(deadline);
        let ended = match limit {
            None => running.await,
            // Uploads count too; the grace is for the sandbox to end the command by itself.
            Some(seconds) => {
                timeout(duration(seconds).saturating_add(GRACE * 3), running).await.unwrap_or_else(|_| {
                    let message =
                        "the agent's phase did not end at its limit, and the daemon does not answer";
                    Err(Exception::new(Failure::RuntimeRequest, message))
                })
            }
        };
        close(&mut self.facts.agent_execution);
        match ended? {
            None => Ok(()),
            Some(Ended::Exited(status)) => {
                self.log.line(&format!("agent: {}", self.describe(&status)));
                self.facts.agent_exit = Some(status);
                Ok(())
            }
            Some(Ended::TimedOut) => {
                let seconds = limit.unwrap_or_default();
                let message = format!("agent execution timed out after {seconds} seconds");
                Err(Exception::new(Failure::AgentTimeout, message))
            }
        }
    }

    async fn agent(&self, deadline: Option<Instant>) -> Result<Option<Ended>, Exception> {
        match &self.job.agent {
            Agent::Nop => Ok(None),
            Agent::Oracle => self.oracle(deadline).await.map(Some),
            Agent::Command(command) => self.command(command, deadline).await.map(Some),
        }
    }

    async fn oracle(&self, deadline: Option<Instant>) -> Result<Ended, Exception> {
        let solution = self.plan.task.task.dir.join("solution");
        self.upload_scripts(&solution, "solve.sh", "/solution", Failure::RuntimeRequest).await?;
        let mut env = BTreeMap::from([("DEBIAN_FRONTEND".to_owned(), "noninteractive".to_owned())]);
        env.extend(self.plan.task.solution_env.clone());
        let run = Run {
            id: "agent",
            command: script("/solution/solve.sh", "/logs/agent/oracle.txt"),
            env,
            user: self.plan.task.task.config.agent.user.as_deref(),
            deadline,
        };
        // What the shell itself says, for example that it cannot write the log.
        self.exec(run, &mut |data| self.log.line(&String::from_utf8_lossy(data))).await
    }

    async fn command(&self, command: &str, deadline: Option<Instant>) -> Result<Ended, Exception> {
        let path = self.plan.dir.join(OUTPUT_PART);
        let unwritable = |error: &io::Error| {
            Exception::caused(Failure::RuntimeRequest, "cannot keep the agent's output", error)
        };
        let mut file = File::create(&path).map_err(|error| unwritable(&error))?;
        let mut written = Ok(());
        let instruction = self.plan.task.task.instruction.clone();
        let run = Run {
            id: "agent",
            command: command.to_owned(),
            env: BTreeMap::from([(INSTRUCTION.to_owned(), instruction)]),
            user: self.plan.task.task.config.agent.user.as_deref(),
            deadline,
        };
        let ended = self
            .exec(run, &mut |data| {
                if written.is_ok() {
                    written = file.write_all(data);
                }
            })
            .await;
        written.map_err(|error| unwritable(&error))?;
        ended
    }

    /// Upload a directory and see to it that the script in it can be run.
    pub(super) async fn upload_scripts(
        &self,
        dir: &Path,
        name: &str,
        target: &str,
        failure: Failure,
    ) -> Result<(), Exception> {
        let sandbox = self.sandbox_id()?;
        let what = format!("cannot upload {}", dir.display());
        let uploaded = self.job.platform.upload_dir(sandbox, dir, target).await;
        let report = uploaded.map_err(|error| not_uploaded(failure, what.as_str(), &error))?;
        self.check_upload(report, failure, target)?;
        let unreadable = |error: io::Error| Exception::caused(failure, what.as_str(), &error);
        if let Some(tar) = executable_copy(&dir.join(name), name).map_err(unreadable)? {
            let uploaded = self.job.platform.upload_tar(sandbox, tar, target).await;
            let report = uploaded.map_err(|error| not_uploaded(failure, what.as_str(), &error))?;
            self.check_upload(report, failure, target)?;
        }
        Ok(())
    }

    /// How a command ended, and which limits of the sandbox it met: whoever gave it too little is to see that.
    pub(super) fn describe(&self, status: &ExecStatus) -> String {
        let mut text = describe(status);
        if let Some(met) =
            self.sandbox.as_ref().and_then(|sandbox| limits::met(status, Some(&sandbox.resources)))
        {
            text.push_str("; ");
            text.push_str(&met);
        }
        text
    }

    /// Put what this side knows of the agent beside its logs, here and in the sandbox (the verifier may look at it).
    pub(super) async fn add_agent_files(&self) -> io::Result<()> {
        let agent_dir = self.plan.dir.join("agent");
        let mut names = Vec::new();
        let part = self.plan.dir.join(OUTPUT_PART);
        if part.exists() {
            std::fs::rename(&part, agent_dir.join("command.txt"))?;
            names.push("command.txt");
        }
        if let Some(status) = &self.facts.agent_exit
            && (status.exit_code != 0 || matches!(self.job.agent, Agent::Command(_)))
        {
            record::write(&agent_dir.join("exit-code.txt"), status.exit_code.to_string().as_bytes())?;
            names.push("exit-code.txt");
        }
        let Some(sandbox) = self.sandbox.as_ref().filter(|_| !names.is_empty()) else { return Ok(()) };
        let staging = tempfile::tempdir_in(&self.plan.dir)?;
        for name in names {
            std::fs::hard_link(agent_dir.join(name), staging.path().join(name))?;
        }
        let uploaded = self.job.platform.upload_dir(&sandbox.id, staging.path(), AGENT_LOGS).await;
        if let Err(error) = uploaded {
            self.log.line(&Exception::of_call("cannot put the agent's files back", &error).trace());
        }
        Ok(())
    }
}

/// An agent that has filled the disk so that the tests have no room on it has earned nothing. Taken for a failure of the
/// machine it would not be graded, and an agent that cannot solve its task could choose that.
fn not_uploaded(failure: Failure, what: &str, error: &berth_client::Error) -> Exception {
    let full = error.api().is_some_and(|answer| answer.code == "sandbox_disk_full");
    match failure {
        Failure::AddTestsDir if full => {
            let what = format!("the sandbox's disk is full at its limit, so no test could run: {what}");
            Exception::caused(Failure::RewardFileNotFound, what, error)
        }
        _ => Exception::caused(failure, what, error),
    }
}

/// A tar with the script alone, made executable; nothing when it is so already.
///
/// In place of a `chmod` in the sandbox, which the image may not have.
fn executable_copy(path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let mode = path.metadata()?.permissions().mode();
    if mode & 0o111 == 0o111 {
        return Ok(None);
    }
    let content = std::fs::read(path)?;
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode((mode | 0o111) & 0o7777);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, name, content.as_slice())?;
    builder.into_inner().map(Some)
}

/// How a command ended, for the log.
fn describe(status: &ExecStatus) -> String {
    let mut text = format!("exit code {}", status.exit_code);
    match (status.reason, status.signal) {
        (ExitReason::Signaled, Some(signal)) => text.push_str(&format!(", by signal {signal}")),
        (ExitReason::OutOfMemory, _) => text.push_str(", out of memory"),
        (ExitReason::NotStarted, _) => text.push_str(", not started"),
        (ExitReason::Killed, _) => text.push_str(", killed from outside"),
        _ => {}
    }
    if let Some(message) = &status.message {
        text.push_str(": ");
        text.push_str(message);
    }
    text
}

#[cfg(test)]
mod tests {
    use berth_types::error::{ApiError, Kind};

    use super::*;

    #[test]
    fn a_full_disk_is_no_failure_of_the_machine() {
        let told = |failure, code: &str| {
            let source = Box::new(ApiError::new(Kind::Capacity, code, "x: no room"));
            let error = berth_client::Error::Api { operation: "copy".into(), source };
            not_uploaded(failure, "cannot upload tests", &error)
        };
        let full = told(Failure::AddTestsDir, "sandbox_disk_full");
        assert_eq!(full.failure, Failure::RewardFileNotFound);
        assert!(full.message.contains("disk is full at its limit"), "{}", full.message);
        assert_eq!(told(Failure::AddTestsDir, "disk_full").failure, Failure::AddTestsDir);
        assert_eq!(told(Failure::RuntimeRequest, "sandbox_disk_full").failure, Failure::RuntimeRequest);
    }
}
