//! The verifier's phase: tests up, run, logs down, reward.

use berth_client::Error as ClientError;
use berth_types::exec::ExitReason;
use berth_types::files::FsRequest;
use tokio::time::{Instant, timeout};

use super::agent::script;
use super::{Ended, GRACE, RECOVERY, Run, Trial, VERIFIER_LOGS, close, duration};
use crate::env::Platform;
use crate::observer::Phase;
use crate::record::Timing;
use crate::reward;
use crate::verdict::{Exception, Failure, Rewards};

/// What a trial says whose tests did not pass on a machine without room.
const TESTS_ON_FULL_MACHINE: &str =
    "the tests did not pass, and the disk of the daemon's machine is full; it may not be the task's doing";

impl<P: Platform> Trial<'_, P> {
    pub(super) async fn run_verifier(&mut self) -> Result<(), Exception> {
        self.enter(Phase::Verifier);
        self.facts.verifier = Some(Timing::start());
        let limit = self.limit(self.plan.task.task.config.verifier.timeout_sec);
        let deadline = Instant::now() + duration(limit);
        let verified = timeout(duration(limit).saturating_add(GRACE * 3), self.verify(deadline, limit)).await;
        close(&mut self.facts.verifier);
        let rewards = verified.unwrap_or_else(|_| {
            let message = "the verifier's phase did not end at its limit, and the daemon does not answer";
            Err(Exception::new(Failure::RuntimeRequest, message))
        })?;
        self.facts.rewards = Some(rewards);
        Ok(())
    }

    async fn verify(&self, deadline: Instant, limit: f64) -> Result<Rewards, Exception> {
        self.remove_old_rewards().await?;
        let tests = self.plan.task.task.dir.join("tests");
        self.upload_scripts(&tests, "test.sh", "/tests", Failure::AddTestsDir).await?;
        let run = Run {
            id: "verifier",
            command: script("/tests/test.sh", "/logs/verifier/test-stdout.txt"),
            env: self.plan.task.verifier_env.clone(),
            user: self.plan.task.task.config.verifier.user.as_deref(),
            deadline: Some(deadline),
        };
        let mut shell_says = Vec::new();
        let ended = self.exec(run, &mut |data| shell_says.extend_from_slice(data)).await?;
        let target = self.plan.dir.join("verifier");
        let Ended::Exited(status) = ended else {
            // Its output so far is what whoever looks for the reason needs.
            let _ = timeout(RECOVERY, self.download(VERIFIER_LOGS, &target)).await;
            let message = format!("verifier execution timed out after {limit} seconds");
            return Err(Exception::new(Failure::VerifierTimeout, message));
        };
        // Like Harbor: the reward counts, not the exit code.
        let says = String::from_utf8_lossy(&shell_says);
        self.log.line(&format!("verifier: {} {}", self.describe(&status), says.trim()));
        self.download(VERIFIER_LOGS, &target).await.map_err(|error| no_directory(&error))?;
        let note = match status.reason {
            ExitReason::NotStarted => {
                Some(format!("the test script did not start: {}", self.describe(&status)))
            }
            _ if status.exit_code != 0 => {
                Some(format!("the test script ended with {}", self.describe(&status)))
            }
            _ => None,
        };
        let rewards = reward::read(&target, note.as_deref());
        let whole = |rewards: &Rewards| rewards.values().all(|reward| reward.as_f64() >= Some(1.0));
        if !rewards.as_ref().is_ok_and(whole) {
            self.refuse_on_full_machine().await?;
        }
        rewards
    }

    /// Test scripts exit with 0 whatever their tests say, so the script's end does not tell of a full machine.
    async fn refuse_on_full_machine(&self) -> Result<(), Exception> {
        let full = self.job.platform.machine_disk_full(self.sandbox_id()?).await;
        match full.map_err(|error| Exception::of_call("cannot ask for the machine's disk", &error))? {
            true => Err(Exception::new(Failure::RuntimeRequest, TESTS_ON_FULL_MACHINE)),
            false => Ok(()),
        }
    }

    /// An agent could have left a reward of its own.
    async fn remove_old_rewards(&self) -> Result<(), Exception> {
        let paths = ["reward.txt", "reward.json"].map(|name| format!("{VERIFIER_LOGS}/{name}")).to_vec();
        let removed = self.job.platform.fs(self.sandbox_id()?, &FsRequest::Remove { paths }).await;
        removed.map(|_| ()).map_err(|error| Exception::of_call("cannot remove old rewards", &error))
    }
}

/// Whoever removed the directory, or put something else in its place, leaves no reward. Taken for a failure of the
/// machine it would not be graded, and an agent that cannot solve its task could choose that.
fn no_directory(error: &ClientError) -> Exception {
    let failure = match error.api().map(|answer| answer.code.as_str()) {
        Some("path_not_found" | "not_a_directory") => Failure::RewardFileNotFound,
        _ => Failure::DownloadVerifierDir,
    };
    Exception::caused(failure, "cannot download the verifier's directory", error)
}

#[cfg(test)]
mod tests {
    use berth_types::error::{ApiError, Kind};

    use super::*;

    #[test]
    fn a_directory_that_is_gone_is_no_failure_of_the_machine() {
        for (code, kind, expected) in [
            ("path_not_found", Kind::NotFound, Failure::RewardFileNotFound),
            ("not_a_directory", Kind::Conflict, Failure::RewardFileNotFound),
            ("sandbox_not_found", Kind::NotFound, Failure::DownloadVerifierDir),
            ("sandbox_lost", Kind::Unavailable, Failure::DownloadVerifierDir),
        ] {
            let source = Box::new(ApiError::new(kind, code, "no"));
            let error = ClientError::Api { operation: "copy".into(), source };
            assert_eq!(no_directory(&error).failure, expected, "{code}");
        }
    }
}
