"""Where the suite's commands run: in a Berth sandbox, through the Python client, or in a podman container as the reference.

Both are given the same few operations, so that a test which needs no more runs against either.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import berth

IMAGE = os.environ.get("BERTH_TEST_IMAGE", "debian:bookworm")
"""Debian's smallest, of the store of either."""

FULL = os.environ.get("BERTH_FULL") == "1"
"""Whether sizes are those of the contract, rather than those that fit a run of minutes."""

SETUP = """
useradd --create-home --shell /bin/bash --uid 1000 alice
groupadd --gid 2000 crew && usermod --append --groups crew alice
"""


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: bytes
    err: bytes


class World(Protocol):
    """One sandbox or container."""

    def run(
        self,
        command: str | list[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
    ) -> Ran: ...

    def upload_dir(self, source: Path, target: str) -> None: ...

    def upload_file(self, source: Path, target: str) -> None: ...

    def download_dir(self, source: str, target: Path) -> None: ...

    def download_file(self, source: str, target: Path) -> None: ...


class BerthWorld:
    """A Berth sandbox."""

    def __init__(self, box: berth.Sandbox) -> None:
        self.box = box

    def run(
        self,
        command: str | list[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
    ) -> Ran:
        done = self.box.exec_bytes(command, env=env, cwd=cwd, user=user)
        return Ran(done.exit_code, done.stdout, done.stderr + (done.message or "").encode())

    def upload_dir(self, source: Path, target: str) -> None:
        report = self.box.upload_dir(source, target)
        assert not report.refused, report

    def upload_file(self, source: Path, target: str) -> None:
        self.box.upload_file(source, target)

    def download_dir(self, source: str, target: Path) -> None:
        self.box.download_dir(source, target)

    def download_file(self, source: str, target: Path) -> None:
        self.box.download_file(source, target)


class PodmanWorld:
    """A podman container, driven by its command line. BERTH_TEST_PODMAN holds the command with its storage's flags."""

    def __init__(self) -> None:
        self.podman = os.environ["BERTH_TEST_PODMAN"].split()
        self.name = f"berth-conformance-{uuid.uuid4().hex[:8]}"
        # Its own defaults are above what a root without CAP_SYS_RESOURCE may set.
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"]
        run = [
            "run",
            "--detach",
            "--init",
            "--network",
            "none",
            *limits,
            "--env",
            "PERSISTENT=sandbox",
            "--env",
            "BOTH=sandbox",
        ]
        self._podman([*run, "--name", self.name, IMAGE, "sleep", "infinity"])

    def close(self) -> None:
        self._podman(["rm", "--force", "--time", "0", self.name])

    def _podman(self, arguments: list[str]) -> None:
        done = subprocess.run([*self.podman, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
        if done.returncode:
            raise OSError(f"podman {arguments[0]}: {done.stderr.decode(errors='replace')}")

    def run(
        self,
        command: str | list[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
    ) -> Ran:
        options = [word for key, value in (env or {}).items() for word in ("--env", f"{key}={value}")]
        options += ["--workdir", cwd] if cwd else []
        options += ["--user", user] if user else []
        argv = ["bash", "-c", command] if isinstance(command, str) else command
        done = subprocess.run(
            [*self.podman, "exec", *options, self.name, *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def upload_dir(self, source: Path, target: str) -> None:
        self.run(["mkdir", "-p", target])
        self._podman(["cp", f"{source}/.", f"{self.name}:{target}"])

    def upload_file(self, source: Path, target: str) -> None:
        self._podman(["cp", str(source), f"{self.name}:{target}"])

    def download_dir(self, source: str, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        self._podman(["cp", f"{self.name}:{source}/.", str(target)])

    def download_file(self, source: str, target: Path) -> None:
        self._podman(["cp", f"{self.name}:{source}", str(target)])
