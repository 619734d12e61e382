"""Whole trials by Harbor's own command line, with the rewards that any honest provider gives."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable
from pathlib import Path

import berth
import pytest
from harness import ENVIRONMENT, PROVIDER, SQUARE, TASKS, harbor, launch


def own_sandboxes(client: berth.Client, trial: str) -> list[str]:
    return [box.id for box in client.sandboxes(limit=1000) if trial in box.labels.get("harbor.session", "")]


@pytest.mark.parametrize(("agent", "reward"), [("oracle", 1.0), ("nop", 0.0)])
def test_square(jobs: Path, client: berth.Client, agent: str, reward: float) -> None:
    job = harbor(jobs, SQUARE, agent=agent)
    assert job.code == 0, job.output
    assert job.rewards == [reward], job.output
    assert job.trial.exception is None
    assert "berth: image resolution: key=" in job.trial.log
    assert not own_sandboxes(client, job.trial.path.name)
    assert all(path.stat().st_uid == 0 for path in job.path.rglob("*"))


def test_twenty_of_twenty(jobs: Path) -> None:
    job = harbor(jobs, SQUARE, "-k", "20", "-n", "8")
    assert job.rewards == [1.0] * 20, job.output


def test_deprecated_option_and_kwargs(jobs: Path) -> None:
    job = harbor(jobs, SQUARE, "--environment-import-path", PROVIDER, "--ek", "mode=auto", provider=False)
    assert job.rewards == [1.0], job.output


def test_forced_build(jobs: Path) -> None:
    assert harbor(jobs, SQUARE, "--force-build").rewards == [1.0]


def test_python_api(jobs: Path) -> None:
    script = f"""
        import asyncio
        from harbor.job import Job
        from harbor.models.job.config import JobConfig
        from harbor.models.trial.config import AgentConfig, EnvironmentConfig, TaskConfig

        async def main():
            config = JobConfig(
                job_name="api",
                jobs_dir={str(jobs)!r},
                n_concurrent_trials=2,
                agents=[AgentConfig(name="oracle")],
                environment=EnvironmentConfig(import_path={PROVIDER!r}, type=None, kwargs={{"mode": "auto"}}),
                tasks=[TaskConfig(path={str(SQUARE)!r})],
            )
            job = await Job.create(config)
            await job.run()

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = (json.loads(path.read_text()) for path in jobs.glob("api/*/result.json"))
    assert result["verifier_result"]["rewards"] == {"reward": 1.0}


def test_two_harbors_share_the_daemon(jobs: Path) -> None:
    both = [launch(jobs, SQUARE, "-k", "4", "-n", "4") for _ in range(2)]
    assert [running.wait().rewards for running in both] == [[1.0] * 4] * 2


@pytest.mark.parametrize("choice", ["use_oci_image_build=false", "boot=replay"])
def test_a_replay_builds_in_every_trial(jobs: Path, choice: str) -> None:
    job = harbor(jobs, TASKS / "needs-package", "--ek", choice)
    assert job.rewards == [1.0], job.output
    assert " replayed steps=" in job.trial.log
    assert "-> sha256:" not in job.trial.log


def test_the_usual_way_by_the_name_that_others_have(jobs: Path) -> None:
    job = harbor(jobs, SQUARE, "--ek", "use_oci_image_build=true")
    assert job.rewards == [1.0], job.output
    assert "berth: image resolution: key=" in job.trial.log


def test_packages_of_the_run_are_installed_once(jobs: Path) -> None:
    packages = ["--ek", 'preinstall_packages=["bc"]']
    first, second = (harbor(jobs, TASKS / "wants-package", *packages) for _ in range(2))
    assert [*first.rewards, *second.rewards] == [1.0, 1.0], first.output + second.output
    assert " hit steps=" in second.trial.log
    assert harbor(jobs, TASKS / "wants-package").rewards == [0.0]


def test_a_new_task_is_built_once_however_many_trials_want_it(jobs: Path, tmp_path: Path) -> None:
    task = tmp_path / "new"
    shutil.copytree(SQUARE, task)
    dockerfile = task / "environment/Dockerfile"
    dockerfile.write_text(dockerfile.read_text() + f"RUN sleep 1; echo {uuid.uuid4()}\n")
    both = [launch(jobs, task, "-k", "8", "-n", "8") for _ in range(2)]
    trials = [trial for running in both for trial in running.wait().trials]
    assert [trial.reward for trial in trials] == [1.0] * 16
    logs = [trial.log for trial in trials]
    assert sum(" miss steps=" in log for log in logs) == 1, logs


@pytest.mark.parametrize(("agent", "reward"), [("oracle", 1.0), ("nop", 0.0)])
def test_a_package_that_the_dockerfile_installs(jobs: Path, agent: str, reward: float) -> None:
    job = harbor(jobs, TASKS / "needs-package", agent=agent)
    assert job.rewards == [reward], job.output


def test_no_network(jobs: Path) -> None:
    job = harbor(jobs, TASKS / "offline")
    assert job.rewards == [1.0], job.output


@pytest.mark.parametrize("name", ["tiny", "scratch"])
def test_images_without_bash(jobs: Path, busybox_task: Callable[[str], Path], name: str) -> None:
    job = harbor(jobs, busybox_task(name))
    assert job.rewards == [1.0], job.output
    assert "the image has no bash" in job.trial.log


def test_kept_sandboxes(jobs: Path, client: berth.Client) -> None:
    job = harbor(jobs, SQUARE, "--no-delete")
    assert job.rewards == [1.0], job.output
    (kept,) = own_sandboxes(client, job.trial.path.name)
    box = client.sandbox(kept)
    try:
        assert box.info.lease is None
        assert f"berth sandbox exec {box.name} -- sh" in job.trial.log
        assert box.exec("cat /tmp/answer.txt").stdout == "4\n"
    finally:
        box.delete()
