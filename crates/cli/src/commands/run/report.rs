//! What is told of a job at its end.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use berth_harbor::job::Timings;
use berth_harbor::{JobOutcome, TrialOutcome, Verdict};
use serde::Serialize;
use serde_json::Number;

use crate::output::table;
use crate::progress::printable;

/// What `berth run --json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    job: String,
    dir: PathBuf,
    cancelled: bool,
    seconds: f64,
    /// Mean of each reward over the graded trials.
    means: BTreeMap<String, f64>,
    trials: Vec<Trial>,
}

#[derive(Debug, Serialize)]
struct Trial {
    name: String,
    task: String,
    dir: PathBuf,
    /// `reward`, `task_failed`, `infrastructure` or `cancelled`.
    verdict: &'static str,
    rewards: Option<BTreeMap<String, Number>>,
    exception: Option<Exception>,
    agent_exit_code: Option<i32>,
    seconds: Seconds,
}

#[derive(Debug, Serialize)]
struct Exception {
    /// Harbor's name of it.
    name: &'static str,
    message: String,
}

#[derive(Debug, Serialize)]
struct Seconds {
    environment_setup: Option<f64>,
    agent_setup: Option<f64>,
    agent_execution: Option<f64>,
    verifier: Option<f64>,
    total: f64,
}

impl From<&JobOutcome> for Report {
    fn from(outcome: &JobOutcome) -> Self {
        Report {
            job: outcome.name.clone(),
            dir: outcome.dir.clone(),
            cancelled: outcome.cancelled,
            seconds: outcome.duration.as_secs_f64(),
            means: outcome.means.clone(),
            trials: outcome.trials.iter().map(Trial::from).collect(),
        }
    }
}

impl From<&TrialOutcome> for Trial {
    fn from(trial: &TrialOutcome) -> Self {
        let Timings { environment_setup, agent_setup, agent_execution, verifier } = trial.timings;
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        Trial {
            name: trial.name.clone(),
            task: trial.task.clone(),
            dir: trial.dir.clone(),
            verdict: match trial.verdict {
                Verdict::Reward(_) => "reward",
                Verdict::TaskFailed(_) => "task_failed",
                Verdict::Infrastructure(_) => "infrastructure",
                Verdict::Cancelled => "cancelled",
            },
            rewards: match &trial.verdict {
                Verdict::Reward(rewards) => Some(rewards.clone()),
                _ => None,
            },
            exception: trial.exception.as_ref().map(|exception| Exception {
                name: exception.failure.harbor_name(),
                message: exception.message.clone(),
            }),
            agent_exit_code: trial.agent_exit_code,
            seconds: Seconds {
                environment_setup: seconds(environment_setup),
                agent_setup: seconds(agent_setup),
                agent_execution: seconds(agent_execution),
                verifier: seconds(verifier),
                total: trial.duration.as_secs_f64(),
            },
        }
    }
}

/// One trial's result in a few words.
pub(super) fn verdict(trial: &TrialOutcome) -> String {
    match &trial.verdict {
        Verdict::Reward(rewards) => {
            let one = rewards.len() == 1;
            let rewards = rewards.iter().map(|(name, value)| match (one, name.as_str()) {
                (true, "reward") => value.to_string(),
                _ => format!("{name}={value}"),
            });
            rewards.collect::<Vec<_>>().join(" ")
        }
        Verdict::TaskFailed(failure) => failure.harbor_name().to_owned(),
        Verdict::Infrastructure(failure) => format!("infrastructure: {}", failure.harbor_name()),
        Verdict::Cancelled => "cancelled".to_owned(),
    }
}

/// The table of trials, the means, and where the results lie.
pub(super) fn render(outcome: &JobOutcome) -> String {
    let rows = outcome.trials.iter().map(|trial| {
        let Timings { environment_setup, agent_setup: _, agent_execution, verifier } = trial.timings;
        let phases = [environment_setup, agent_execution, verifier, Some(trial.duration)].map(seconds);
        [vec![trial.name.clone(), verdict(trial)], phases.to_vec()].concat()
    });
    let mut text = table(&["TRIAL", "REWARD", "ENVIRONMENT", "AGENT", "VERIFIER", "TOTAL"], rows);
    text.push('\n');
    for (name, mean) in &outcome.means {
        text.push_str(&format!("\nmean {name}: {mean:.3}"));
    }
    text.push_str(&format!(
        "\n{} trials in {}, results in {}",
        outcome.trials.len(),
        seconds(Some(outcome.duration)),
        outcome.dir.display()
    ));
    text
}

/// What went wrong in which trial; empty when nothing did.
pub(super) fn render_failures(outcome: &JobOutcome) -> String {
    let mut lines = Vec::new();
    for trial in &outcome.trials {
        let Some(exception) = &trial.exception else { continue };
        lines.push(format!("{}: {}", trial.name, exception.failure.harbor_name()));
        lines.extend(exception.message.lines().map(|line| format!("  {}", printable(line))));
    }
    lines.join("\n")
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use berth_harbor::Failure;
    use berth_harbor::verdict::Exception;
    use jiff::Timestamp;

    use super::*;

    fn trial(name: &str, verdict: Verdict, exception: Option<Exception>) -> TrialOutcome {
        TrialOutcome {
            name: name.into(),
            task: "demo".into(),
            dir: PathBuf::from("jobs/j").join(name),
            verdict,
            exception,
            agent_exit_code: Some(0),
            timings: Timings {
                environment_setup: Some(Duration::from_millis(40)),
                agent_setup: None,
                agent_execution: Some(Duration::from_millis(1234)),
                verifier: None,
            },
            duration: Duration::from_millis(1500),
        }
    }

    fn outcome() -> JobOutcome {
        let rewards = |pairs: &[(&str, f64)]| {
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), Number::from_f64(*value).unwrap()))
                .collect()
        };
        let lost = Exception {
            failure: Failure::RuntimeRequest,
            message: "a command was lost\nthe daemon went away".into(),
            causes: Vec::new(),
            occurred_at: Timestamp::UNIX_EPOCH,
        };
        let failure = Failure::RuntimeRequest;
        JobOutcome {
            id: "00000000-0000-0000-0000-000000000000".parse().unwrap(),
            name: "j".into(),
            dir: "jobs/j".into(),
            trials: vec![
                trial("demo__aaaaaaa", Verdict::Reward(rewards(&[("reward", 1.0)])), None),
                trial("demo__bbbbbbb", Verdict::Reward(rewards(&[("a", 0.5), ("b", 2.0)])), None),
                trial("demo__ccccccc", Verdict::TaskFailed(Failure::RewardFileNotFound), None),
                trial("demo__ddddddd", Verdict::Infrastructure(failure), Some(lost)),
            ],
            means: [("reward".to_owned(), 0.5)].into(),
            cancelled: false,
            duration: Duration::from_secs(3),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn the_table_tells_rewards_from_failures_and_whose_they_are() {
        insta::assert_snapshot!(render(&outcome()));
    }

    #[test]
    fn failures_are_told_in_full() {
        insta::assert_snapshot!(render_failures(&outcome()), @r"
        demo__ddddddd: RuntimeRequestError
          a command was lost
          the daemon went away
        ");
    }

    #[test]
    fn json_has_the_same() {
        insta::assert_json_snapshot!(Report::from(&outcome()));
    }

    #[test]
    fn only_an_infrastructure_failure_fails_the_command() {
        let mut outcome = outcome();
        let code = |outcome: &JobOutcome| format!("{:?}", super::super::exit_code(outcome));
        assert_eq!(code(&outcome), format!("{:?}", std::process::ExitCode::from(69)));
        outcome.trials.pop();
        assert_eq!(code(&outcome), format!("{:?}", std::process::ExitCode::SUCCESS));
        outcome.cancelled = true;
        assert_eq!(code(&outcome), format!("{:?}", std::process::ExitCode::from(130)));
    }
}
