"""The conformance suite: one test per item of the contract, which carries its number.

It runs against the daemon that BERTH_HOST names, or, with BERTH_TEST_PODMAN, those of its tests that need no more than a
container has against podman, where the differences that are known (`differences.py`) must show.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import berth
from differences import PODMAN
from world import IMAGE, SETUP, BerthWorld, PodmanWorld, World

IS_PODMAN = "BERTH_TEST_PODMAN" in os.environ


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if IS_PODMAN:
        items[:] = [item for item in items if "world" in item.fixturenames]  # type: ignore[attr-defined]
        for item in items:
            if reason := PODMAN.get(item.originalname):  # type: ignore[attr-defined]
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
    elif "BERTH_HOST" not in os.environ:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="SKIP: no daemon is named by BERTH_HOST"))


@pytest.fixture(scope="session")
def client() -> Iterator[berth.Client]:
    with berth.Client() as connected:
        yield connected


@pytest.fixture(scope="module")
def box(client: berth.Client) -> Iterator[berth.Sandbox]:
    """A sandbox that the tests of a file share."""
    env = {"PERSISTENT": "sandbox", "BOTH": "sandbox"}
    with client.create_sandbox(IMAGE, env=env, network="no-network", allow_unenforced_storage=True) as made:
        assert made.exec(SETUP).exit_code == 0
        yield made


@pytest.fixture
def fresh(client: berth.Client) -> Iterator[berth.Sandbox]:
    """A sandbox of the test's own, for what cannot be mended afterwards."""
    with client.create_sandbox(IMAGE, network="no-network", allow_unenforced_storage=True) as made:
        yield made


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """What can be tried against either."""
    if IS_PODMAN:
        container = PodmanWorld()
        try:
            assert container.run(SETUP).code == 0
            yield container
        finally:
            container.close()
    else:
        yield BerthWorld(request.getfixturevalue("box"))
