"""The suite runs in a sandbox that has Harbor and the daemon's socket; see scripts/test-harbor.sh."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import berth
from harness import TASKS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if {"BERTH_HOST", "BERTH_TEST_EMBEDDED"} & os.environ.keys():
        return  # A daemon that is named must be there.
    try:
        with berth.Client("unix:///run/berth/berth.sock") as client:
            client.version()
    except berth.BerthError as error:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=f"no daemon: {error}"))


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


@pytest.fixture
def client() -> Iterator[berth.Client]:
    with berth.Client() as connected:
        yield connected


@pytest.fixture
def busybox_task(tmp_path: Path) -> Iterator[object]:
    """Copies a task of tasks/ and adds the static binary that its Dockerfile copies."""
    binary = shutil.which("busybox")
    if binary is None:
        pytest.skip("no static busybox here (Debian package busybox-static)")

    def copy(name: str) -> Path:
        task = tmp_path / name
        shutil.copytree(TASKS / name, task)
        shutil.copy2(binary, task / "environment/busybox")
        return task

    yield copy
