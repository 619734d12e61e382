"""What goes wrong must be told as what it is: the task's fault, the agent's, or ours."""

from __future__ import annotations

from pathlib import Path

from harness import SQUARE, TASKS, harbor


def test_an_agent_that_fails(jobs: Path) -> None:
    trial = harbor(jobs, SQUARE, agent="agents:FailingAgent").trial
    assert trial.exception == "NonZeroAgentExitCodeError"
    assert "exit 3" in trial.message
    assert "to stdout" in trial.message
    assert "to stderr" in trial.message
    assert trial.reward == 0.0


def test_an_agent_that_outstays_its_time_leaves_nothing(jobs: Path) -> None:
    trial = harbor(jobs, TASKS / "leftovers", agent="agents:OutstayingAgent").trial
    assert trial.exception == "AgentTimeoutError"
    assert trial.reward == 1.0, (trial.path / "verifier/test-stdout.txt").read_text()


def test_a_verifier_without_reward(jobs: Path) -> None:
    trial = harbor(jobs, TASKS / "no-reward").trial
    assert trial.exception == "RewardFileNotFoundError"
    assert trial.reward is None
    assert "no reward from here" in (trial.path / "verifier/test-stdout.txt").read_text()


def test_a_build_that_fails(jobs: Path) -> None:
    trial = harbor(jobs, TASKS / "broken-build").trial
    assert trial.exception == "SandboxBuildFailedError"
    assert "step 3 of 4 failed with exit code 3 (Dockerfile, line 3): RUN for n in" in trial.message
    assert "line 80" in trial.message
    assert "line 31\n" in trial.message
    assert "line 30\n" not in trial.message
    assert trial.reward is None


def test_a_dockerfile_that_cannot_be_read(jobs: Path, tmp_path: Path) -> None:
    import shutil

    task = tmp_path / "malformed"
    shutil.copytree(TASKS / "no-reward", task)
    (task / "environment/Dockerfile").write_text("FROM debian:bookworm\nRUNN true\n")
    trial = harbor(jobs, task).trial
    assert trial.exception == "SandboxBuildFailedError"
    assert "Dockerfile" in trial.message
    assert "2" in trial.message
    assert "RUNN" in trial.message


def test_no_definition(jobs: Path) -> None:
    job = harbor(jobs, TASKS / "no-definition")
    assert job.code != 0
    assert "FileNotFoundError" in job.output
    assert "no-definition/environment" in job.output.replace("\n", "")
    assert not job.trials


def test_unknown_keys(jobs: Path) -> None:
    job = harbor(jobs, SQUARE, "--ek", "pul=always")
    assert job.code != 0
    assert "unknown --ek key 'pul' (did you mean 'pull'?)" in " ".join(job.output.split())
    assert not job.trials


def test_no_daemon(jobs: Path, monkeypatch: object) -> None:
    import harness

    before = dict(harness.ENVIRONMENT)
    harness.ENVIRONMENT["BERTH_HOST"] = "unix:///nowhere.sock"
    try:
        job = harbor(jobs, SQUARE)
    finally:
        harness.ENVIRONMENT.update(before)
    assert job.code != 0
    assert "berth: no daemon answers at unix:///nowhere.sock" in job.output
    assert "Traceback" not in job.output
    assert not job.trials
