"""Running Harbor's own command line, and reading what it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TASKS = HERE / "tasks"
SQUARE = HERE.parent.parent / "examples/tasks/square-2"
PROVIDER = "berth.harbor:BerthEnvironment"

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
    # Harbor's own traffic is none of ours.
    "HARBOR_TELEMETRY": "off",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "NO_COLOR": "1",
    "COLUMNS": "200",
}


@dataclass
class Trial:
    """One trial's directory."""

    path: Path

    @cached_property
    def result(self) -> dict[str, Any]:
        return json.loads((self.path / "result.json").read_text())

    @property
    def reward(self) -> float | None:
        rewards = (self.result.get("verifier_result") or {}).get("rewards") or {}
        return rewards.get("reward")

    @property
    def exception(self) -> str | None:
        return (self.result.get("exception_info") or {}).get("exception_type")

    @property
    def message(self) -> str:
        return (self.result.get("exception_info") or {}).get("exception_message") or ""

    @property
    def log(self) -> str:
        return (self.path / "trial.log").read_text()


@dataclass
class Job:
    """A finished `harbor run`."""

    code: int
    output: str
    path: Path

    @property
    def trials(self) -> list[Trial]:
        return [Trial(path.parent) for path in sorted(self.path.glob("*/result.json"))]

    @property
    def trial(self) -> Trial:
        assert len(self.trials) == 1, self.output
        return self.trials[0]

    @property
    def rewards(self) -> list[float | None]:
        return [trial.reward for trial in self.trials]


@dataclass
class Running:
    """A `harbor run` under way."""

    process: subprocess.Popen[str]
    path: Path

    def wait(self, timeout: float = 600) -> Job:
        try:
            output, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            output, _ = self.process.communicate()
            raise AssertionError(f"harbor did not end within {timeout} s:\n{output}") from None
        return Job(self.process.returncode, output, self.path)


def launch(jobs: Path, task: Path, *arguments: str, agent: str = "oracle", provider: bool = True) -> Running:
    """Starts `harbor run` on a task."""
    name = f"job-{uuid.uuid4().hex[:8]}"
    command = [str(Path(sys.executable).parent / "harbor"), "run", "-p", str(task), "-a", agent]
    command += ["-o", str(jobs), "--job-name", name, "--yes", "--debug"]
    command += ["-e", PROVIDER] if provider else []
    process = subprocess.Popen(
        [*command, *arguments],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Running(process, jobs / name)


def harbor(jobs: Path, task: Path, *arguments: str, agent: str = "oracle", provider: bool = True) -> Job:
    """Runs `harbor run` on a task to its end."""
    return launch(jobs, task, *arguments, agent=agent, provider=provider).wait()
