"""The daemon dies under a running trial. scripts/test-harbor.sh runs this against a second daemon, which it kills."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import harbor

if "BERTH_TEST_VICTIM" not in os.environ:
    pytest.skip("needs a daemon to lose (BERTH_TEST_VICTIM)", allow_module_level=True)


def test_a_lost_daemon_is_infrastructure_and_no_reward(jobs: Path, busybox_task: Callable[[str], Path]) -> None:
    job = harbor(jobs, busybox_task("tiny"), agent="agents:WaitingAgent")
    assert job.trial.exception == "RuntimeRequestError", job.output
    assert job.trial.reward is None
    assert job.trial.result.get("verifier_result") is None
