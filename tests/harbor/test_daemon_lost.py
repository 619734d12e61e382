"""The daemon is killed under a running trial. scripts/test-harbor.sh runs this against a second daemon, which it kills: once to
start it again (BERTH_TEST_VICTIM=yes), once for good (no)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import harbor

RETURNS = os.environ.get("BERTH_TEST_VICTIM")
if RETURNS is None:
    pytest.skip("needs a daemon to lose (BERTH_TEST_VICTIM)", allow_module_level=True)


@pytest.mark.skipif(RETURNS != "yes", reason="the daemon does not come back this time")
def test_a_daemon_that_is_started_anew_fails_no_trial(jobs: Path, busybox_task: Callable[[str], Path]) -> None:
    job = harbor(jobs, busybox_task("tiny"), agent="agents:CountingAgent")
    assert job.trial.exception is None, job.output
    # Nobody solves the task; but it was verified, and the agent's one command ran once and to its end.
    assert job.trial.reward == 0.0
    assert Path("/run/berth-host/counted").read_text() == "ran\nended\n"


@pytest.mark.skipif(RETURNS != "no", reason="the daemon comes back this time")
def test_a_lost_daemon_is_infrastructure_and_no_reward(jobs: Path, busybox_task: Callable[[str], Path]) -> None:
    job = harbor(jobs, busybox_task("tiny"), "--ek", "reconnect_sec=3", agent="agents:WaitingAgent")
    assert job.trial.exception == "RuntimeRequestError", job.output
    assert job.trial.reward is None
    assert job.trial.result.get("verifier_result") is None
