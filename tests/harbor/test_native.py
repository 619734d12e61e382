"""Harbor reads what `berth run` wrote: its models, and its viewer. scripts/test-harbor.sh makes the jobs, in native/."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import ENVIRONMENT, HERE

NATIVE = HERE.parent.parent / "native"
VALIDATOR = HERE / "validate_layout.py"

if not NATIVE.is_dir():
    pytest.skip("no jobs of `berth run` here (scripts/test-harbor.sh makes them)", allow_module_level=True)


@pytest.mark.parametrize("job", ["oracle", "nop", "command", "faults"])
def test_harbors_models_read_all_of_it(job: str) -> None:
    done = subprocess.run([sys.executable, VALIDATOR, NATIVE / job], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "TrialResult" in done.stdout


@pytest.fixture(scope="module")
def viewer() -> Iterator[str]:
    """`harbor view`, and its address."""
    command = [str(Path(sys.executable).parent / "harbor"), "view", str(NATIVE), "--no-build"]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        said = ""
        for line in process.stdout or ():
            said += line
            if running := re.search(r"Uvicorn running on (http://127\.0\.0\.1:\d+)", line):
                break
        else:
            raise AssertionError(f"harbor view ended:\n{said}")
        yield running[1]
    finally:
        process.terminate()
        process.wait(30)


def ask(viewer: str, path: str) -> Any:
    with urllib.request.urlopen(f"{viewer}/api/{path}", timeout=30) as answer:
        return json.load(answer)


def test_harbor_view_opens_the_jobs(viewer: str) -> None:
    jobs = {job["name"]: job for job in ask(viewer, "jobs")["items"]}
    assert {name: (job["n_total_trials"], job["n_completed_trials"]) for name, job in jobs.items()} == {
        "oracle": (3, 3),
        "nop": (1, 1),
        "command": (1, 1),
        "faults": (2, 2),
    }


def test_harbor_view_opens_a_trial(viewer: str) -> None:
    rewards = {}
    for path in NATIVE.glob("*/*/result.json"):
        trial = ask(viewer, f"jobs/{path.parent.parent.name}/trials/{path.parent.name}")
        result = trial["verifier_result"]
        rewards.setdefault(path.parent.parent.name, []).append(result and result["rewards"]["reward"])
    assert rewards == {"oracle": [1.0] * 3, "nop": [0.0], "command": [0.0], "faults": [None, None]}
    name = next(NATIVE.glob("oracle/*/result.json")).parent.name
    output = ask(viewer, f"jobs/oracle/trials/{name}/verifier-output")
    assert output["stdout"] is not None
    files = ask(viewer, f"jobs/oracle/trials/{name}/files")
    assert {"result.json", "trial.log"} <= {file["path"] for file in files}
