"""What a build is asked for, on the client's side: its options, its context by what it holds, and its request's body.

A context is sent only where the daemon says that it needs it. Before, it is told what the context holds: kinds, modes and
digests of all files. Nothing is remembered from one build to the next, so a file that changed is never missed.
"""

from __future__ import annotations

import base64
import concurrent.futures
import hashlib
import json
import os
import posixpath
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from berth import _tar
from berth.errors import BerthError, InvalidRequest
from berth.models import BasePull, Network, Resources

DEFAULT_DOCKERFILE = "Dockerfile"

NEEDED = "context_needed"
"""Code of the daemon's refusal to build from a manifest alone."""

CHANGED = "context_changed"
"""Code of its refusal of a context that is not what its manifest says."""

ATTEMPTS = 3
"""How often a context that changes while it is sent is tried."""

_IGNORE_FILE = ".dockerignore"
_MAX_TEXT = 16 << 20
_PIECE = 1 << 20
_HASHERS = min(4, os.cpu_count() or 1)
_SHARE = 64
"""Files that one hasher is given at a time."""


class BuildSettings(TypedDict, total=False):
    """What a build can be asked for, besides its context."""

    tags: Sequence[str]
    """References to give the image."""
    dockerfile: str | None
    """Path of the Dockerfile in the context."""
    dockerfile_text: str | None
    """The Dockerfile itself; ``dockerfile`` is then its name in messages."""
    target: str | None
    """Stage to build."""
    build_args: Mapping[str, str] | None
    """Values for ``ARG``."""
    no_cache: bool
    """Run every step again."""
    pull: BasePull
    """When the registries of base images are asked."""
    network: Network
    """What ``RUN`` reaches."""
    resources: Resources | None
    """Limits of each step."""
    secrets: Mapping[str, str | bytes] | None
    """What ``RUN --mount=type=secret`` finds, by id."""
    auth: Mapping[str, tuple[str, str]] | None
    """User and password for registries of base images, by host."""
    packages: Sequence[str]
    """Packages of the image's distribution to install on top."""


def options(settings: BuildSettings) -> dict[str, Any]:
    """The settings as the API has them; what is not given is left out."""
    resources, secrets, auth = settings.get("resources"), settings.get("secrets"), settings.get("auth")
    wanted: dict[str, Any] = {
        "tags": list(settings.get("tags", ())),
        "dockerfile": settings.get("dockerfile"),
        "dockerfile_text": settings.get("dockerfile_text"),
        "target": settings.get("target"),
        "build_args": dict(settings.get("build_args") or {}),
        "no_cache": settings.get("no_cache"),
        "pull": settings.get("pull"),
        "network": settings.get("network"),
        "resources": resources.to_json() if resources else None,
        "secrets": {name: _encoded(value) for name, value in (secrets or {}).items()},
        "auth": {host: {"username": user, "password": word} for host, (user, word) in (auth or {}).items()},
        "packages": _packages(settings.get("packages", ())),
    }
    return {key: value for key, value in wanted.items() if value}


def _encoded(value: str | bytes) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def _packages(packages: Sequence[str]) -> list[str]:
    if isinstance(packages, str):
        raise InvalidRequest(f"packages must be a list of names, not {packages!r}", code="bad_request")
    return list(packages)


@dataclass
class Request:
    """A build's request: what to ask first, and what to send where the context is needed."""

    settings: dict[str, Any]
    context: Path | None
    _head: bytes = field(default=b"", init=False)

    def prepare(self, asks_first: bool) -> None:
        """Makes the options; with ``asks_first`` the context is read for them. Blocks."""
        wanted = dict(self.settings)
        if (
            asks_first
            and self.context is not None
            and (found := manifest(self.context, wanted.get("dockerfile"))) is not None
        ):
            wanted["manifest"] = found
        self._head = json.dumps(wanted, separators=(",", ":")).encode()

    @property
    def length(self) -> int:
        """Length of the options at the body's beginning, in bytes."""
        return len(self._head)

    @property
    def asks_first(self) -> bool:
        """Whether there is a manifest to ask with."""
        return self.context is not None and b'"manifest":' in self._head

    def body(self, with_context: bool) -> Iterator[bytes]:
        """The options and, with ``with_context``, the tar."""
        yield self._head
        if with_context:
            yield from _tar.pack(self.context) if self.context is not None else iter([bytes(1024)])

    def may_try_again(self, error: BerthError, attempt: int) -> bool:
        """Whether the context is to be read and sent anew after ``error``."""
        return error.code == CHANGED and self.asks_first and attempt + 1 < ATTEMPTS


def manifest(root: Path, dockerfile: str | None) -> dict[str, Any] | None:
    """What the directory holds, as the API's ``ContextManifest``; None where names or texts are no UTF-8."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a directory")
    entries: list[dict[str, Any]] = []
    files: list[tuple[str, dict[str, Any]]] = []
    try:
        for path, name, facts in _walk(str(root), ""):
            name.encode()
            entry: dict[str, Any] = {"path": name, "mode": stat.S_IMODE(facts.st_mode)}
            entries.append(entry)
            if stat.S_ISREG(facts.st_mode):
                entry |= {"kind": "file", "size": facts.st_size}
                files.append((path, entry))
            elif stat.S_ISDIR(facts.st_mode):
                entry["kind"] = "dir"
            elif stat.S_ISLNK(facts.st_mode):
                entry |= {"kind": "link", "target": os.readlink(path)}
                entry["target"].encode()
            else:
                # As in the tar: left out. A Dockerfile that names it gets to know that it is not there.
                entries.pop()
        _hash(files)
        return {"entries": entries, "texts": _texts(root, dockerfile or DEFAULT_DOCKERFILE)}
    except UnicodeError:
        return None


def _walk(directory: str, prefix: str) -> Iterator[tuple[str, str, os.stat_result]]:
    with os.scandir(directory) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        name = prefix + entry.name
        facts = entry.stat(follow_symlinks=False)
        yield entry.path, name, facts
        if stat.S_ISDIR(facts.st_mode):
            yield from _walk(entry.path, name + "/")


def _hash(files: list[tuple[str, dict[str, Any]]]) -> None:
    shares = [files[at : at + _SHARE] for at in range(0, len(files), _SHARE)]
    if len(shares) <= 1:
        for share in shares:
            _hash_share(share)
        return
    with concurrent.futures.ThreadPoolExecutor(_HASHERS) as hashers:
        for _ in hashers.map(_hash_share, shares):
            pass


def _hash_share(share: list[tuple[str, dict[str, Any]]]) -> None:
    for path, entry in share:
        digest, size = _digest(path)
        # What was read counts, also where the file has grown since it was looked at.
        entry |= {"digest": digest, "size": size}


def _digest(path: str) -> tuple[str, int]:
    hasher, size = hashlib.sha256(), 0
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while piece := os.read(file, _PIECE):
            hasher.update(piece)
            size += len(piece)
    finally:
        os.close(file)
    return hasher.hexdigest(), size


def _texts(root: Path, dockerfile: str) -> dict[str, str]:
    texts = {}
    for name in {posixpath.normpath(dockerfile), f"{posixpath.normpath(dockerfile)}{_IGNORE_FILE}", _IGNORE_FILE}:
        path = root / name
        # A link may lead out of the context, which only the daemon judges.
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= _MAX_TEXT:
            texts[name] = path.read_bytes().decode()
    return texts
