//! Whether a job did its work: read from the files that it left in Harbor's layout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

/// The part of a trial's `result.json` that matters here.
#[derive(Deserialize)]
struct TrialResult {
    started_at: jiff::Timestamp,
    verifier: Option<Phase>,
    verifier_result: Option<VerifierResult>,
    exception_info: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Phase {
    finished_at: Option<jiff::Timestamp>,
}

#[derive(Deserialize)]
struct VerifierResult {
    rewards: Option<BTreeMap<String, f64>>,
}

/// Makes sure that `dir` holds `expected` trials, all with reward 1 and no exception. Returns the seconds from each
/// trial's start to its verdict; what a trial takes beyond is the end of its environment.
pub(super) fn check(dir: &Path, expected: usize) -> anyhow::Result<Vec<f64>> {
    let files = result_files(dir).with_context(|| format!("reading {}", dir.display()))?;
    anyhow::ensure!(
        files.len() == expected,
        "{} holds {} results, not {expected}",
        dir.display(),
        files.len()
    );
    files.iter().map(|file| verdict(file).with_context(|| file.display().to_string())).collect()
}

/// The trials' files, one directory below the job's own.
fn result_files(job: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(job)? {
        let file = entry?.path().join("result.json");
        if file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn verdict(file: &Path) -> anyhow::Result<f64> {
    parse(&std::fs::read(file)?)
}

fn parse(json: &[u8]) -> anyhow::Result<f64> {
    let result: TrialResult = serde_json::from_slice(json).context("not a trial's result")?;
    if let Some(exception) = result.exception_info {
        anyhow::bail!("the trial failed: {exception}");
    }
    let rewards = result.verifier_result.and_then(|v| v.rewards).context("no rewards")?;
    anyhow::ensure!(rewards.get("reward") == Some(&1.0), "rewards are {rewards:?}, not 1");
    let finished = result.verifier.and_then(|v| v.finished_at).context("the verifier never finished")?;
    Ok(finished.duration_since(result.started_at).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(reward: &str, exception: &str) -> String {
        format!(
            r#"{{"started_at": "2026-01-02T03:04:05.5Z", "finished_at": "2026-01-02T03:04:15.5Z", "task_name": "x",
            "verifier": {{"started_at": "2026-01-02T03:04:06Z", "finished_at": "2026-01-02T03:04:07Z"}},
            "verifier_result": {reward}, "exception_info": {exception}}}"#
        )
    }

    #[test]
    fn only_a_reward_of_one_counts() {
        let fine = result(r#"{"rewards": {"reward": 1.0}}"#, "null");
        assert_eq!(parse(fine.as_bytes()).unwrap(), 1.5);
        let told = |reward, exception| parse(result(reward, exception).as_bytes()).unwrap_err().to_string();
        let refusals = [
            told(r#"{"rewards": {"reward": 0.0}}"#, "null"),
            told(r#"{"rewards": {}}"#, "null"),
            told("null", "null"),
            told(r#"{"rewards": {"reward": 1.0}}"#, r#"{"exception_type": "X"}"#),
        ];
        insta::assert_snapshot!(refusals.join("\n"), @r#"
        rewards are {"reward": 0.0}, not 1
        rewards are {}, not 1
        no rewards
        the trial failed: {"exception_type":"X"}
        "#);
    }

    #[test]
    fn trials_are_counted() {
        let dir = std::env::temp_dir().join(format!("xtask-rewards-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("a")).unwrap();
        std::fs::write(dir.join("result.json"), "the job's own").unwrap();
        std::fs::write(dir.join("a/result.json"), result(r#"{"rewards": {"reward": 1}}"#, "null")).unwrap();
        let (one, two) = (check(&dir, 1), check(&dir, 2));
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(one.unwrap(), [1.5]);
        assert!(two.unwrap_err().to_string().ends_with("holds 1 results, not 2"));
    }
}
