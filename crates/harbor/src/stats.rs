//! A job's statistics, as Harbor counts them.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Number;

use crate::verdict::{Failure, Rewards};

/// `JobStats`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct JobStats {
    n_completed_trials: usize,
    n_errored_trials: usize,
    n_running_trials: usize,
    n_pending_trials: usize,
    n_cancelled_trials: usize,
    n_retries: usize,
    evals: BTreeMap<String, EvalStats>,
    n_input_tokens: Option<u64>,
    n_cache_tokens: Option<u64>,
    n_output_tokens: Option<u64>,
    cost_usd: Option<f64>,
}

/// `AgentDatasetStats`: one agent on one set of tasks.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct EvalStats {
    n_trials: usize,
    n_errors: usize,
    metrics: Vec<BTreeMap<String, f64>>,
    pass_at_k: BTreeMap<usize, f64>,
    reward_stats: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    exception_stats: BTreeMap<&'static str, Vec<String>>,
}

/// What the statistics need to know of a finished trial.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    pub(crate) trial: String,
    pub(crate) task: String,
    /// `agent__dataset`.
    pub(crate) eval: String,
    pub(crate) rewards: Option<Rewards>,
    pub(crate) failure: Option<Failure>,
}

impl JobStats {
    /// Count the finished trials. `pass@k` comes at the end only, as in Harbor.
    pub(crate) fn of(finished: &[Finished], total: usize, running: usize, job_ended: bool) -> Self {
        let mut stats = JobStats {
            n_completed_trials: finished.len(),
            n_running_trials: running,
            n_pending_trials: total.saturating_sub(finished.len() + running),
            ..JobStats::default()
        };
        let mut evals: BTreeMap<&str, Vec<&Finished>> = BTreeMap::new();
        for trial in finished {
            stats.n_errored_trials += usize::from(trial.failure.is_some());
            stats.n_cancelled_trials += usize::from(trial.failure == Some(Failure::Cancelled));
            evals.entry(&trial.eval).or_default().push(trial);
        }
        for (name, trials) in evals {
            stats.evals.insert(name.to_owned(), eval_stats(&trials, job_ended));
        }
        stats
    }
}

fn eval_stats(trials: &[&Finished], job_ended: bool) -> EvalStats {
    let mut stats = EvalStats { metrics: vec![mean(trials)], ..EvalStats::default() };
    for trial in trials {
        if let Some(rewards) = &trial.rewards {
            stats.n_trials += 1;
            for (name, reward) in rewards {
                let by_value = stats.reward_stats.entry(name.clone()).or_default();
                by_value.entry(reward.to_string()).or_default().push(trial.trial.clone());
            }
        }
        if let Some(failure) = trial.failure {
            stats.n_errors += 1;
            stats.exception_stats.entry(failure.harbor_name()).or_default().push(trial.trial.clone());
        }
    }
    if job_ended {
        stats.pass_at_k = pass_at_k(trials);
    }
    stats
}

/// Harbor's default metric. It counts a trial without rewards as 0, whatever the reason; the file says so beside it
/// (`n_errors`). [`crate::job::JobOutcome::means`] leaves failures of the infrastructure out.
fn mean(trials: &[&Finished]) -> BTreeMap<String, f64> {
    let names: Vec<&String> =
        trials.iter().flat_map(|trial| trial.rewards.iter().flatten()).map(|(k, _)| k).collect();
    let distinct: std::collections::BTreeSet<&String> = names.into_iter().collect();
    let average = |value: &dyn Fn(&Rewards) -> Option<f64>| {
        let sum: f64 = trials.iter().filter_map(|trial| value(trial.rewards.as_ref()?)).sum();
        sum / trials.len() as f64
    };
    if distinct.len() <= 1 {
        let only = |rewards: &Rewards| rewards.values().next().and_then(Number::as_f64);
        return BTreeMap::from([("mean".to_owned(), average(&only))]);
    }
    distinct
        .into_iter()
        .map(|name| (name.clone(), average(&|rewards| rewards.get(name).and_then(Number::as_f64))))
        .collect()
}

/// The chance that at least one of k attempts succeeds, averaged over tasks; only for plain 0-or-1 rewards.
fn pass_at_k(trials: &[&Finished]) -> BTreeMap<usize, f64> {
    let mut by_task: BTreeMap<&str, Vec<bool>> = BTreeMap::new();
    for trial in trials {
        let success = match &trial.rewards {
            None => false,
            Some(rewards) => match rewards.values().next().and_then(Number::as_f64) {
                Some(0.0) if rewards.len() == 1 => false,
                Some(1.0) if rewards.len() == 1 => true,
                _ => return BTreeMap::new(),
            },
        };
        by_task.entry(&trial.task).or_default().push(success);
    }
    let fewest = by_task.values().map(Vec::len).min().unwrap_or(0);
    let powers = std::iter::successors(Some(2), |k| Some(k * 2)).take_while(|k| *k <= fewest);
    let fives = (1..=fewest / 5).map(|n| n * 5);
    powers
        .chain(fives)
        .map(|k| {
            let sum: f64 = by_task.values().map(|successes| pass_of_task(successes, k)).sum();
            (k, sum / by_task.len() as f64)
        })
        .collect()
}

fn pass_of_task(successes: &[bool], k: usize) -> f64 {
    let n = successes.len();
    let failed = successes.iter().filter(|success| !**success).count();
    if failed < k {
        return 1.0;
    }
    let all_fail: f64 = (0..k).map(|i| (failed - i) as f64 / (n - i) as f64).product();
    1.0 - all_fail
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(name: &str, reward: Option<f64>, failure: Option<Failure>) -> Finished {
        Finished {
            trial: name.to_owned(),
            task: "demo/square-2".to_owned(),
            eval: "oracle__adhoc".to_owned(),
            rewards: reward
                .map(|reward| Rewards::from([("reward".to_owned(), Number::from_f64(reward).unwrap())])),
            failure,
        }
    }

    #[test]
    fn a_job_is_counted_as_harbor_counts_it() {
        let finished = [
            trial("a", Some(1.0), None),
            trial("b", Some(0.0), Some(Failure::AgentTimeout)),
            trial("c", None, Some(Failure::Cancelled)),
            trial("d", Some(1.0), None),
        ];
        insta::assert_json_snapshot!(JobStats::of(&finished, 6, 1, true));
    }

    #[test]
    fn pass_at_k_is_the_unbiased_estimate() {
        assert_eq!(pass_of_task(&[true, false], 2), 1.0);
        assert_eq!(pass_of_task(&[false, false], 2), 0.0);
        assert!((pass_of_task(&[true, false, false, false], 2) - 0.5).abs() < 1e-12);
    }
}
