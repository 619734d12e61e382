"""What a client of the daemon can ask for, besides commands."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from berth import _calls, _http, _tar, errors
from berth._calls import directory
from berth._endpoint import Endpoint
from berth._sync.execs import Execs
from berth._sync.images import Images
from berth._sync.sandbox import Sandbox
from berth.models import (
    ArchiveReport,
    Capabilities,
    Change,
    Check,
    DirEntry,
    FileStat,
    Lease,
    Mount,
    Network,
    Page,
    Resources,
    SandboxInfo,
    Version,
)


class Client(Execs, Images):
    """Speaks to one daemon; safe to share between threads. See :class:`berth.AsyncClient` for what decides which daemon."""

    def __init__(
        self, host: str | None = None, *, endpoint: Endpoint | None = None, patience: float = _http.PATIENCE
    ) -> None:
        """``patience``: seconds for which a command whose connection was cut is tried to be picked up again."""
        super().__init__(host, endpoint, patience)

    # ---- system and leases

    def version(self) -> Version:
        """The daemon's version."""
        return self.call(_calls.version())

    def doctor(self) -> list[Check]:
        """Whether the daemon's machine is fit."""
        return self.call(_calls.doctor())

    def shutdown(self) -> None:
        """Ends the daemon and every sandbox of it."""
        self.call(_calls.shutdown())

    def create_lease(self, ttl_seconds: int) -> Lease:
        """Makes a lease that lasts ``ttl_seconds`` from now."""
        return self.call(_calls.create_lease(ttl_seconds))

    def renew_lease(self, lease: str, ttl_seconds: int) -> Lease:
        """Makes a lease last ``ttl_seconds`` from now."""
        return self.call(_calls.renew_lease(lease, ttl_seconds))

    def delete_lease(self, lease: str) -> None:
        """Ends a lease and deletes its sandboxes."""
        self.call(_calls.delete_lease(lease))

    # ---- sandboxes

    def create_sandbox(
        self,
        image: str,
        *,
        name: str | None = None,
        idempotency_key: str | None = None,
        labels: Mapping[str, str] | None = None,
        lease: str | None = None,
        resources: Resources | None = None,
        network: Network = "public",
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        mounts: Sequence[Mount] = (),
        no_new_privileges: bool | None = None,
        allow_unenforced_storage: bool = False,
        ttl_seconds: int | None = None,
        wait_seconds: float | None = None,
        capabilities: Capabilities | None = None,
        user_namespace: bool | None = None,
    ) -> Sandbox:
        """Makes a sandbox from an image of the store; returns when it runs."""
        call = _calls.create_sandbox(
            image,
            name=name,
            idempotency_key=idempotency_key,
            labels=labels,
            lease=lease,
            resources=resources,
            network=network,
            env=env,
            workdir=workdir,
            user=user,
            mounts=mounts,
            no_new_privileges=no_new_privileges,
            allow_unenforced_storage=allow_unenforced_storage,
            ttl_seconds=ttl_seconds,
            wait_seconds=wait_seconds,
            capabilities=capabilities,
            user_namespace=user_namespace,
        )
        return Sandbox(self, self.call(call))

    def sandboxes(
        self, *, label: str | None = None, limit: int | None = None, after: str | None = None
    ) -> Page[SandboxInfo]:
        """A page of the sandboxes, oldest first; ``label`` is ``key=value``."""
        return self.call(_calls.list_sandboxes(label, limit, after))

    def sandbox(self, name: str) -> Sandbox:
        """The sandbox of that id or name."""
        return Sandbox(self, self.call(_calls.get_sandbox(name)))

    def delete_sandbox(self, name: str) -> None:
        """Deletes a sandbox, by id or name; one that is gone already is no error."""
        self.call(_calls.delete_sandbox(name))

    def set_ttl(self, name: str, ttl_seconds: int | None) -> SandboxInfo:
        """Lets a sandbox live for so many seconds from now; with ``None`` until it is deleted."""
        return self.call(_calls.set_ttl(name, ttl_seconds))

    def node(self) -> dict[str, Any]:
        """What the daemon's machine has, what of that is set aside, and what runs in the background, as JSON has it."""
        return self.call(_calls.node())

    def set_lease(self, name: str, lease: str | None) -> None:
        """Puts a sandbox under another lease, or under none: it then lives until deleted."""
        self.call(_calls.set_lease(name, lease))

    # ---- files

    def upload_dir(self, sandbox: str, source: Path | str, target: str) -> ArchiveReport:
        """Merges the contents of a directory of this machine into one of the sandbox."""
        return self._upload(_calls.put_archive(sandbox, target), _tar.pack(Path(source)))

    def upload_file(self, sandbox: str, source: Path | str, directory: str, name: str) -> ArchiveReport:
        """Puts a file of this machine into a directory of the sandbox, as ``name``."""
        return self._upload(_calls.put_archive(sandbox, directory), _tar.pack_file(Path(source), name))

    def download_dir(
        self,
        sandbox: str,
        source: str,
        target: Path | str,
        *,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        exclude_files: Sequence[str] = (),
        protect: Sequence[str] = (),
    ) -> _tar.Report:
        """Merges the contents of a directory of the sandbox into one of this machine.

        ``exclude`` are patterns as GNU tar's ``--exclude`` has them. ``include`` and ``exclude_files`` are globs of Python's
        ``fnmatch`` on paths relative to ``source``: with any of these, only regular files that are chosen come. ``protect`` are
        such paths (no globs) that come whatever the others say. A directory that is not there raises
        :class:`~berth.errors.NotFound`, what is no directory :class:`~berth.errors.Conflict`; neither leaves a target.
        """
        path = Path(target)
        call = _calls.get_archive(
            sandbox,
            directory(source),
            exclude=exclude,
            include=include,
            exclude_files=exclude_files,
            protect=protect,
        )
        return self._download(call, lambda stream: _tar.extract(stream, path))

    def download_file(self, sandbox: str, source: str, target: Path | str) -> None:
        """Copies a file of the sandbox, symlinks followed, to ``target``."""
        # An archive does not tell a file from a directory that holds one.
        found = self.stat(sandbox, source)
        if found is not None and found.kind == "dir":
            raise errors.Conflict(f"{source} is a directory", code="is_a_directory")
        path = Path(target)
        self._download(_calls.get_archive(sandbox, source), lambda stream: _tar.extract_file(stream, path))

    def read_file(
        self, sandbox: str, path: str, offset: int = 0, length: int | None = None, *, user: str | None = None
    ) -> bytes:
        """The bytes of a file, symlinks followed, or ``length`` of them from ``offset`` on, fewer at its end; as ``user`` (root
        when absent) may read them."""
        response = self._answer(_calls.read_file(sandbox, path, offset, length, user))
        _http.check(response)
        return response.content

    def write_file(
        self,
        sandbox: str,
        path: str,
        data: bytes,
        *,
        mode: int | None = None,
        owner: str | None = None,
        create_only: bool = False,
    ) -> int:
        """Makes ``data`` the contents of a file, as a whole or not at all; returns how many bytes that was.

        ``mode`` and ``owner`` are those of the file that is replaced, or 0644 and root, when absent. Parents are made. With
        ``create_only`` a path where something is already raises :class:`~berth.errors.Conflict`.
        """
        return self.call(_calls.write_file(sandbox, path, data, mode, owner, create_only))

    def watch(self, sandbox: str, path: str, *, recursive: bool = False) -> Generator[Change]:
        """Changes of a file or directory, or with ``recursive`` of all below it, as they happen; ``ready`` is the first.

        It ends by an error when what is watched is gone, and is not taken up again after a cut, as changes would be missing.
        Whoever leaves it early closes it (``contextlib.closing``).
        """
        response = self._opened(_calls.watch(sandbox, path, recursive))
        lines = _http.Lines()
        try:
            with _http.translated(self.endpoint):
                for data in response.iter_raw():
                    for line in lines.feed(data):
                        yield _http.change(line)
            raise errors.ConnectionLost("the watch ended without a reason", code="connection_lost")
        finally:
            response.close()

    def list_dir(self, sandbox: str, path: str, *, user: str | None = None) -> list[DirEntry]:
        """What is in a directory, sorted by name, as ``user`` (root when absent) sees it."""
        return self.call(_calls.list_dir(sandbox, path, user))

    def stat(self, sandbox: str, path: str, user: str | None = None) -> FileStat | None:
        """What ``path`` is, symlinks followed, as ``user`` (root when absent) sees it; ``None`` when it is not there."""
        return self.call(_calls.stat(sandbox, path, user))

    def mkdir(self, sandbox: str, paths: Sequence[str], mode: int | None = None, *, owner: str | None = None) -> None:
        """Makes directories and their parents, and sets ``mode`` and ``owner`` on each, also where it was there."""
        self.call(_calls.mkdir(sandbox, paths, mode, owner))

    def empty(self, sandbox: str, paths: Sequence[str], mode: int | None = None) -> None:
        """Makes each path an empty directory, keeping a directory that is there."""
        self.call(_calls.empty(sandbox, paths, mode))

    def remove(self, sandbox: str, paths: Sequence[str]) -> None:
        """Removes each path and all below it."""
        self.call(_calls.remove(sandbox, paths))
