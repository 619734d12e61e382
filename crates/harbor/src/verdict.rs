//! What a trial came to, and whose doing it was.
//!
//! The names are Harbor's, because Harbor decides by an exception's *name* whether a trial is graded or retried; an
//! unknown name would be graded as if the agent had failed. So every failure here has a name of that table.
//!
//! ```text
//! reward            the verifier spoke; an agent that ran out of time may have earned one too
//! task failed       verifier or agent failed by themselves: counts as no reward
//! infrastructure    the sandbox, its image or the daemon failed: nothing is known about the agent
//! cancelled         the user ended it
//! ```

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Number;

use berth_client::Error as ClientError;
use berth_types::image::BuildFailure;

/// Rewards by name, as the verifier gave them: a `1` stays an integer.
pub type Rewards = BTreeMap<String, Number>;

/// Ways in which a trial can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Failure {
    /// Building or starting took longer than the task allows.
    EnvironmentStartTimeout,
    /// The image could not be built or fetched.
    SandboxBuildFailed,
    /// The task's readiness check never passed.
    Healthcheck,
    /// The daemon could not be reached, lost the sandbox, or refused a call.
    RuntimeRequest,
    /// The tests could not be put into the sandbox.
    AddTestsDir,
    /// The verifier's files could not be fetched.
    DownloadVerifierDir,
    /// The agent reached its limit; the verifier still runs.
    AgentTimeout,
    /// The verifier reached its limit.
    VerifierTimeout,
    /// The verifier wrote no reward.
    RewardFileNotFound,
    /// The verifier's reward file is empty.
    RewardFileEmpty,
    /// The verifier's reward cannot be read.
    VerifierOutputParse,
    /// The user ended the job.
    Cancelled,
}

/// Whose doing a [`Failure`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The agent used up its time: a reward given after it stands.
    Agent,
    /// The task's verifier.
    Verifier,
    /// Sandbox, image or daemon.
    Infrastructure,
    /// The user.
    User,
}

impl Failure {
    /// Name of Harbor's exception.
    pub fn harbor_name(self) -> &'static str {
        match self {
            Failure::EnvironmentStartTimeout => "EnvironmentStartTimeoutError",
            Failure::SandboxBuildFailed => "SandboxBuildFailedError",
            Failure::Healthcheck => "HealthcheckError",
            Failure::RuntimeRequest => "RuntimeRequestError",
            Failure::AddTestsDir => "AddTestsDirError",
            Failure::DownloadVerifierDir => "DownloadVerifierDirError",
            Failure::AgentTimeout => "AgentTimeoutError",
            Failure::VerifierTimeout => "VerifierTimeoutError",
            Failure::RewardFileNotFound => "RewardFileNotFoundError",
            Failure::RewardFileEmpty => "RewardFileEmptyError",
            Failure::VerifierOutputParse => "VerifierOutputParseError",
            Failure::Cancelled => "CancelledError",
        }
    }

    /// Whose doing it is.
    pub fn blame(self) -> Blame {
        match self {
            Failure::AgentTimeout => Blame::Agent,
            Failure::VerifierTimeout
            | Failure::RewardFileNotFound
            | Failure::RewardFileEmpty
            | Failure::VerifierOutputParse => Blame::Verifier,
            Failure::Cancelled => Blame::User,
            _ => Blame::Infrastructure,
        }
    }
}

/// A [`Failure`] that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    /// What failed.
    pub failure: Failure,
    /// One paragraph for a person.
    pub message: String,
    /// The chain of causes, one a line; empty when the message says all.
    pub causes: Vec<String>,
    /// When.
    pub occurred_at: Timestamp,
}

impl Exception {
    /// A failure that has no deeper cause.
    pub fn new(failure: Failure, message: impl Into<String>) -> Self {
        Self { failure, message: message.into(), causes: Vec::new(), occurred_at: Timestamp::now() }
    }

    /// A failure with an error behind it.
    pub fn caused(failure: Failure, message: impl Into<String>, source: &dyn std::error::Error) -> Self {
        let mut causes = vec![source.to_string()];
        let mut next = source.source();
        while let Some(cause) = next {
            causes.push(cause.to_string());
            next = cause.source();
        }
        let message = format!("{}: {}", message.into(), causes.join(": "));
        Self { causes, ..Self::new(failure, message) }
    }

    /// A call to the daemon that failed while the sandbox was in use.
    pub(crate) fn of_call(doing: &str, error: &ClientError) -> Self {
        Self::caused(Failure::RuntimeRequest, doing, error)
    }

    /// An image that could not be had: by the image's own fault, or because the daemon was away.
    pub(crate) fn of_image(doing: &str, error: &ClientError) -> Self {
        let Some(answer) = error.api() else { return Self::of_call(doing, error) };
        let mut exception = Self::caused(Failure::SandboxBuildFailed, doing, error);
        let failure = answer.details.clone().and_then(|facts| serde_json::from_value(facts).ok());
        if let ("build_failed", Some(failure)) = (answer.code.as_str(), failure) {
            exception.message = describe_build(&failure);
        }
        exception
    }

    /// What Harbor's `exception_traceback` and `exception.txt` hold.
    pub fn trace(&self) -> String {
        let mut text = format!("{}: {}\n", self.failure.harbor_name(), self.message);
        for cause in &self.causes {
            text.push_str("  caused by: ");
            text.push_str(cause);
            text.push('\n');
        }
        text
    }
}

fn describe_build(failure: &BuildFailure) -> String {
    let BuildFailure { step, steps, instruction, file, line, .. } = failure;
    let mut text = format!("build failed at step {step} of {steps} ({file}:{line}): {instruction}");
    if let Some(code) = failure.exit_code {
        text.push_str(&format!("\nexit code {code}"));
    }
    if !failure.output_tail.is_empty() {
        text.push_str("\nlast lines of its output:");
        for line in &failure.output_tail {
            text.push_str("\n  ");
            text.push_str(line);
        }
    }
    text
}

/// What a trial came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The verifier's word.
    Reward(Rewards),
    /// No reward, by the agent's or the verifier's own doing: graded, as nothing.
    TaskFailed(Failure),
    /// No reward, and none of the agent's doing: never graded.
    Infrastructure(Failure),
    /// The user ended it.
    Cancelled,
}

impl Verdict {
    /// The verdict on what was recorded. Without a failure a verifier has always spoken, if only with no rewards.
    pub fn of(rewards: Option<&Rewards>, failure: Option<Failure>) -> Self {
        match (failure.map(|failure| (failure, failure.blame())), rewards) {
            (None | Some((_, Blame::Agent)), Some(rewards)) => Verdict::Reward(rewards.clone()),
            (Some((failure, Blame::Agent | Blame::Verifier)), _) => Verdict::TaskFailed(failure),
            (Some((failure, Blame::Infrastructure)), _) => Verdict::Infrastructure(failure),
            (Some((_, Blame::User)), _) => Verdict::Cancelled,
            (None, None) => Verdict::TaskFailed(Failure::RewardFileNotFound),
        }
    }

    /// The mean-relevant number: the only reward, or none.
    pub fn single_reward(&self) -> Option<f64> {
        match self {
            Verdict::Reward(rewards) if rewards.len() == 1 => rewards.values().next()?.as_f64(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_infrastructure_failure_is_never_a_reward() {
        let rewards = Rewards::from([("reward".to_owned(), Number::from(1))]);
        assert_eq!(Verdict::of(Some(&rewards), None), Verdict::Reward(rewards.clone()));
        assert_eq!(
            Verdict::of(Some(&rewards), Some(Failure::AgentTimeout)),
            Verdict::Reward(rewards.clone())
        );
        for failure in [Failure::RuntimeRequest, Failure::SandboxBuildFailed, Failure::AddTestsDir] {
            assert_eq!(Verdict::of(Some(&rewards), Some(failure)), Verdict::Infrastructure(failure));
        }
        let failure = Failure::RewardFileEmpty;
        assert_eq!(Verdict::of(None, Some(failure)), Verdict::TaskFailed(failure));
        assert_eq!(Verdict::of(None, Some(Failure::Cancelled)), Verdict::Cancelled);
    }

    #[test]
    fn a_failed_build_names_step_instruction_and_output() {
        let failure = BuildFailure {
            step: 3,
            steps: 5,
            instruction: "RUN make".to_owned(),
            file: "Dockerfile".to_owned(),
            line: 7,
            exit_code: Some(2),
            output_tail: vec!["make: *** no targets".to_owned()],
            stage: None,
            excerpt: None,
        };
        insta::assert_snapshot!(describe_build(&failure), @r"
        build failed at step 3 of 5 (Dockerfile:7): RUN make
        exit code 2
        last lines of its output:
          make: *** no targets
        ");
    }
}
