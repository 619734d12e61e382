"""The wheel: the binary it carries, and what importing costs."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import berth
from berth._endpoint import find_binary


def test_the_wheel_carries_the_binary() -> None:
    binary = Path(sys.executable).parent / "berth"
    assert binary.is_file()
    files = {file.name: file for file in importlib.metadata.files("berth") or []}
    assert files["berth"].locate().resolve() == binary.resolve()
    assert Path(find_binary()) == binary
    done = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["berth", importlib.metadata.version("berth")]
    assert importlib.metadata.version("berth") == berth.__version__


def test_the_wheel_is_typed_and_has_the_extra() -> None:
    assert (Path(berth.__file__).parent / "py.typed").is_file()
    requirements = importlib.metadata.requires("berth") or []
    assert any(line.startswith("harbor") and "extra" in line for line in requirements)
    assert [line.partition(">")[0] for line in requirements if "extra" not in line] == ["httpx"]


def test_the_binary_speaks_to_the_same_daemon(client: berth.Client) -> None:
    done = subprocess.run([find_binary(), "version", "--json"], capture_output=True, text=True, check=True)
    assert client.version().version in json.dumps(json.loads(done.stdout))
