"""Which daemon to speak to, and starting the embedded one where none runs.

``BERTH_HOST`` (or an explicit host) always wins and is never second-guessed. Without one the default socket is tried, and
when nobody listens there the packaged binary is asked to start a daemon; that command is safe against being run by several
processes at once, all of which then share the one daemon.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from berth.errors import DaemonUnreachable, InvalidRequest

DEFAULT_HOST = "unix:///run/berth/berth.sock"
START_TIMEOUT = 60.0
"""How long the embedded daemon may take to start, in seconds."""

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_started: dict[int, Endpoint] = {}
"""The daemon that this process found or started, by process id: a fork asks again."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a daemon listens: a unix socket, or the base URL of an HTTP server."""

    host: str
    socket: str | None
    base_url: str

    @property
    def is_local(self) -> bool:
        """Whether the daemon's paths are this machine's paths, as far as its address tells."""
        return self.socket is not None or urlsplit(self.base_url).hostname in _LOOPBACK


def parse_host(host: str) -> Endpoint:
    """Reads ``unix:///path``, ``tcp://host:port`` or ``http://host:port``."""
    scheme, separator, rest = host.partition("://")
    if scheme == "unix" and rest.startswith("/"):
        return Endpoint(host, rest, "http://berth")
    if separator and scheme in {"tcp", "http"}:
        parts = urlsplit(f"http://{rest}")
        try:
            complete = bool(parts.hostname and parts.port) and parts.path in {"", "/"}
        except ValueError:
            complete = False
        if complete:
            return Endpoint(host, None, f"http://{parts.netloc}")
    raise InvalidRequest(
        f"{host!r} is no address of a daemon; unix:///path, tcp://host:port and http://host:port are", code="bad_host"
    )


def configured(host: str | None = None) -> Endpoint | None:
    """The daemon that the caller or ``BERTH_HOST`` names, if either does."""
    named = host or os.environ.get("BERTH_HOST")
    return parse_host(named) if named else None


def locate(host: str | None = None) -> Endpoint:
    """The daemon to speak to; starts the embedded one where none is named and none listens. Blocks."""
    if endpoint := configured(host):
        return endpoint
    endpoint = _started.get(os.getpid()) or parse_host(DEFAULT_HOST)
    # A data directory that is named must be the running daemon's as well, which the command checks.
    if os.environ.get("BERTH_DATA_DIR") or not _listens(endpoint):
        endpoint = _start_daemon()
    _started[os.getpid()] = endpoint
    return endpoint


def _listens(endpoint: Endpoint) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(endpoint.socket or "")
        except OSError:
            return False
    return True


def find_binary() -> str:
    """The ``berth`` binary: ``BERTH_BINARY``, else the one of this Python environment, else the one of ``PATH``."""
    if named := os.environ.get("BERTH_BINARY"):
        if os.access(named, os.X_OK):
            return named
        raise DaemonUnreachable(f"BERTH_BINARY names {named}, which cannot be executed", code="binary_not_found")
    for directory in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        candidate = directory / "berth"
        if os.access(candidate, os.X_OK):
            return str(candidate)
    if found := shutil.which("berth"):
        return found
    raise DaemonUnreachable(
        "no daemon listens and the berth binary was not found",
        code="binary_not_found",
        hint="install the berth package, set BERTH_BINARY, or set BERTH_HOST to a running daemon",
    )


def _start_daemon() -> Endpoint:
    command = [find_binary(), "daemon", "start", "--json"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise DaemonUnreachable(
            f"{' '.join(command)} did not end within {START_TIMEOUT:.0f} s", code="daemon_start_failed"
        ) from error
    except OSError as error:
        raise DaemonUnreachable(f"cannot run {command[0]}", code="daemon_start_failed") from error
    if done.returncode != 0:
        raise DaemonUnreachable(
            f"the embedded daemon did not start: {_last_words(done.stderr)}",
            code="daemon_start_failed",
            hint="`berth doctor` tells what this machine lacks",
        )
    try:
        return parse_host(json.loads(done.stdout)["host"])
    except (ValueError, KeyError, TypeError) as error:
        raise DaemonUnreachable(
            f"{' '.join(command)} did not say where the daemon listens: {done.stdout.strip()!r}",
            code="daemon_start_failed",
        ) from error


def _last_words(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return "; ".join(lines[-3:]) or "no reason given"
