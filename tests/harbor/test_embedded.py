"""Nobody starts a daemon: the provider does, once, however many ask. embedded.sh runs this where none is."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import berth
import pytest
from berth._endpoint import find_binary
from harness import launch

if "BERTH_TEST_EMBEDDED" not in os.environ:
    pytest.skip("needs a machine without a daemon (BERTH_TEST_EMBEDDED)", allow_module_level=True)


def daemons() -> list[int]:
    """The processes that serve."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = entry.read_bytes().split(b"\0")
        except OSError:
            continue  # It has ended.
        if len(arguments) > 1 and arguments[0].endswith(b"berth") and arguments[1] == b"serve":
            found.append(int(entry.parent.name))
    return found


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([find_binary(), *arguments], capture_output=True, text=True, timeout=60)


def test_harbors_start_one_daemon_between_them(jobs: Path, busybox_task: Callable[[str], Path]) -> None:
    assert "BERTH_HOST" not in os.environ
    assert cli("daemon", "status").returncode == 69
    task = busybox_task("scratch")
    # Several Harbors at the same moment, then one that finds the daemon there.
    several = [launch(jobs, task) for _ in range(3)]
    assert [running.wait().rewards for running in several] == [[1.0]] * 3, [one.path for one in several]
    (daemon,) = daemons()
    assert launch(jobs, task).wait().rewards == [1.0]
    assert daemons() == [daemon]
    with berth.Client() as client:
        assert client.version().pid == daemon
        assert not list(client.sandboxes())
    assert cli("daemon", "stop").returncode == 0
    assert not daemons()


def test_a_daemon_that_was_killed_is_started_anew(jobs: Path) -> None:
    with berth.Client() as client:
        first = client.version().pid
    assert daemons() == [first]
    os.kill(first, 9)
    while daemons():
        time.sleep(0.05)
    done = subprocess.run(
        [os.fspath(Path(find_binary()).parent / "python"), "-c", "import berth; print(berth.Client().version().pid)"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert daemons() == [int(done.stdout)] != [first]
    assert cli("daemon", "stop").returncode == 0
