"""The synchronous client: the same calls as :mod:`berth._async`, for scripts and threads."""

from __future__ import annotations

import contextlib
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from berth import _calls, _http, _tar, errors
from berth._async import ProgressCallback, directory, split_target
from berth._calls import Call
from berth._endpoint import Endpoint, locate
from berth._frames import ExecReader
from berth.models import (
    ArchiveFormat,
    ArchiveReport,
    BuildResult,
    Capabilities,
    Check,
    ExecResult,
    FileStat,
    Image,
    Lease,
    Mount,
    Network,
    OutputStream,
    Page,
    PullPolicy,
    Resources,
    SandboxInfo,
    Version,
)

SyncOutputCallback = Callable[[str, OutputStream], None]


class Client:
    """Speaks to one daemon; safe to share between threads. See :class:`berth.AsyncClient` for what decides which daemon."""

    def __init__(self, host: str | None = None, *, endpoint: Endpoint | None = None) -> None:
        self.endpoint = endpoint or locate(host)
        self._http = _http.sync_client(self.endpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

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

    # ---- execs

    def exec(
        self,
        sandbox: str,
        command: str | Sequence[str],
        *,
        id: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        on_output: SyncOutputCallback | None = None,
    ) -> ExecResult:
        """Runs a command to its end: a string in the image's shell, a sequence as it is.

        When this is interrupted, everything the command started is dead before it returns, as far as the daemon can still
        be reached.
        """
        id = id or uuid.uuid4().hex
        reader, patience = ExecReader(), _http.Patience()
        over = False
        try:
            while True:
                call = _calls.exec_(
                    sandbox,
                    command,
                    id=id,
                    env=env,
                    cwd=cwd,
                    user=user,
                    timeout=timeout,
                    offsets=reader.resume() if patience.tries else None,
                )
                try:
                    result = self._exec_once(call, reader, on_output)
                    over = True
                    return result
                except errors.BerthError as error:
                    # Asked again with the same id, the daemon goes on with the same exec; nothing is run twice.
                    if not patience.allows(error, reader.offsets):
                        over = not patience.tries and not _http.is_cut(error)
                        raise
                time.sleep(patience.pause)
        finally:
            if not over:
                with contextlib.suppress(errors.BerthError):
                    self.kill_exec(sandbox, id)

    def _exec_once(self, call: Call[None], reader: ExecReader, on_output: SyncOutputCallback | None) -> ExecResult:
        """Runs an exec, or goes on with it, over one connection."""
        response = self._send(call)
        try:
            with _http.translated(self.endpoint):
                self._raise_error(response)
                for data in response.iter_raw():
                    for stream, text in reader.feed(data):
                        if on_output is not None:
                            on_output(text, stream)
            return reader.result()
        finally:
            response.close()

    def kill_exec(self, sandbox: str, exec_id: str) -> None:
        """Kills an exec and everything it started; returns when all of it is dead."""
        self.call(_calls.kill_exec(sandbox, exec_id))

    # ---- files

    def upload_dir(self, sandbox: str, source: Path | str, target: str) -> ArchiveReport:
        """Merges the contents of a directory of this machine into one of the sandbox."""
        return self.call(_calls.put_archive(sandbox, target), _tar.pack(Path(source)))

    def upload_file(self, sandbox: str, source: Path | str, directory: str, name: str) -> ArchiveReport:
        """Puts a file of this machine into a directory of the sandbox, as ``name``."""
        return self.call(_calls.put_archive(sandbox, directory), _tar.pack_file(Path(source), name))

    def download_dir(
        self,
        sandbox: str,
        source: str,
        target: Path | str,
        *,
        exclude: Sequence[str] = (),
        select: Callable[[str], bool] | None = None,
    ) -> _tar.Report:
        """See :meth:`berth.AsyncClient.download_dir`."""
        path = Path(target)
        return self._download(
            _calls.get_archive(sandbox, directory(source), exclude), lambda stream: _tar.extract(stream, path, select)
        )

    def download_file(self, sandbox: str, source: str, target: Path | str) -> None:
        """Copies a file of the sandbox, symlinks followed, to ``target``."""
        # An archive does not tell a file from a directory that holds one.
        found = self.stat(sandbox, source)
        if found is not None and found.kind == "dir":
            raise errors.Conflict(f"{source} is a directory", code="is_a_directory")
        path = Path(target)
        self._download(_calls.get_archive(sandbox, source), lambda stream: _tar.extract_file(stream, path))

    def stat(self, sandbox: str, path: str, user: str | None = None) -> FileStat | None:
        """What ``path`` is, symlinks followed, as ``user`` (root when absent) sees it; ``None`` when it is not there."""
        return self.call(_calls.stat(sandbox, path, user))

    def mkdir(self, sandbox: str, paths: Sequence[str], mode: int | None = None) -> None:
        """Makes directories and their parents, and sets ``mode`` on each, also where it was there."""
        self.call(_calls.mkdir(sandbox, paths, mode))

    def empty(self, sandbox: str, paths: Sequence[str], mode: int | None = None) -> None:
        """Makes each path an empty directory, keeping a directory that is there."""
        self.call(_calls.empty(sandbox, paths, mode))

    def remove(self, sandbox: str, paths: Sequence[str]) -> None:
        """Removes each path and all below it."""
        self.call(_calls.remove(sandbox, paths))

    # ---- images

    def images(self) -> Page[Image]:
        """The images of the daemon's store."""
        return self.call(_calls.list_images())

    def image(self, reference: str) -> Image:
        """The image of that reference or id."""
        return self.call(_calls.get_image(reference))

    def delete_image(self, reference: str) -> None:
        """Removes a reference, or an image by id."""
        self.call(_calls.delete_image(reference))

    def pull_image(
        self,
        reference: str,
        *,
        policy: PullPolicy = "always",
        username: str | None = None,
        password: str | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> Image:
        """Fetches an image from its registry."""
        return self._progress(_calls.pull_image(reference, policy, username, password), on_progress)

    def import_image(
        self,
        archive: Path | str,
        *,
        reference: str | None = None,
        format: ArchiveFormat | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> Image:
        """Takes an image from an archive of this machine."""
        with Path(archive).open("rb") as file:
            chunks = iter(lambda: file.read(_tar.CHUNK), b"")
            return self._progress(_calls.import_image(reference, format), on_progress, chunks)

    def bootstrap_image(
        self,
        reference: str,
        *,
        mirror: str | None = None,
        packages: Sequence[str] = (),
        on_progress: ProgressCallback | None = None,
    ) -> Image:
        """Makes a base image (``debian:SUITE``) from a Debian mirror."""
        return self._progress(_calls.bootstrap_image(reference, mirror, packages), on_progress)

    def build_image(
        self,
        context: Path | str,
        *,
        tags: Sequence[str] = (),
        dockerfile: str | None = None,
        target: str | None = None,
        build_args: Mapping[str, str] | None = None,
        no_cache: bool = False,
        on_progress: ProgressCallback | None = None,
    ) -> BuildResult:
        """Builds a Dockerfile with the directory ``context``."""
        call = _calls.build_image(
            tags=tags, dockerfile=dockerfile, target=target, build_args=build_args, no_cache=no_cache
        )
        return self._progress(call, on_progress, _tar.pack(Path(context)))

    # ---- plumbing

    def call[T](self, call: Call[T], chunks: Iterator[bytes] | None = None) -> T:
        """Makes a plain call, with a streamed body where it takes one."""
        response = self._send(call, chunks)
        try:
            with _http.translated(self.endpoint):
                response.read()
            return _http.parse(call, response)
        finally:
            response.close()

    def _progress[T](
        self, call: Call[T], on_progress: ProgressCallback | None, chunks: Iterator[bytes] | None = None
    ) -> T:
        response = self._send(call, chunks)
        reader = _http.ProgressReader(call)
        try:
            with _http.translated(self.endpoint):
                self._raise_error(response)
                for data in response.iter_raw():
                    for progress in reader.feed(data):
                        if on_progress is not None:
                            on_progress(progress)
            return reader.result()
        finally:
            response.close()

    def _download[T](self, call: Call[None], unpack: Callable[[_tar.Readable], T]) -> T:
        response = self._send(call)
        try:
            with _http.translated(self.endpoint):
                self._raise_error(response)
                return unpack(_BodyStream(response.iter_raw()))
        except tarfile.TarError as error:
            raise errors.ConnectionLost(f"the archive is not complete: {error}", code="bad_archive") from error
        finally:
            response.close()

    def _raise_error(self, response: httpx.Response) -> None:
        if not response.is_success:
            response.read()
            _http.check(response)

    def _send(self, call: Call[Any], chunks: Iterator[bytes] | None = None) -> httpx.Response:
        arguments = _http.request_arguments(call)
        for pause in _http.pauses(call):
            request = self._http.build_request(**arguments, content=chunks)
            try:
                with _http.translated(self.endpoint):
                    return self._http.send(request, stream=True)
            except errors.DaemonUnreachable:
                if pause is None:
                    raise
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


class _BodyStream:
    """A response's body as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._buffer = b""

    def read(self, size: int) -> bytes:
        while not self._buffer:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._buffer = piece
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data


class Sandbox:
    """A sandbox and what can be done with it; as a context manager it is deleted at the end."""

    def __init__(self, client: Client, info: SandboxInfo) -> None:
        self.client = client
        self.info = info

    @property
    def id(self) -> str:
        """Its id."""
        return self.info.id

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.delete()

    def delete(self) -> None:
        """Deletes it."""
        self.client.delete_sandbox(self.id)

    def exec(
        self,
        command: str | Sequence[str],
        *,
        id: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        on_output: SyncOutputCallback | None = None,
    ) -> ExecResult:
        """See :meth:`Client.exec`."""
        return self.client.exec(
            self.id, command, id=id, env=env, cwd=cwd, user=user, timeout=timeout, on_output=on_output
        )

    def upload_dir(self, source: Path | str, target: str) -> ArchiveReport:
        """See :meth:`Client.upload_dir`."""
        return self.client.upload_dir(self.id, source, target)

    def upload_file(self, source: Path | str, target: str) -> ArchiveReport:
        """Copies a file of this machine to ``target``, or into it where that is a directory."""
        found = self.client.stat(self.id, target)
        directory, name = split_target(target, Path(source).name, found is not None and found.kind == "dir")
        return self.client.upload_file(self.id, source, directory, name)

    def download_dir(self, source: str, target: Path | str, *, exclude: Sequence[str] = ()) -> _tar.Report:
        """See :meth:`Client.download_dir`."""
        return self.client.download_dir(self.id, source, target, exclude=exclude)

    def download_file(self, source: str, target: Path | str) -> None:
        """See :meth:`Client.download_file`."""
        self.client.download_file(self.id, source, target)

    def stat(self, path: str, user: str | None = None) -> FileStat | None:
        """See :meth:`Client.stat`."""
        return self.client.stat(self.id, path, user)
