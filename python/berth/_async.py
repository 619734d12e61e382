"""The asynchronous client."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import tarfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import httpx

from berth import _calls, _http, _tar, errors
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
    Progress,
    PullPolicy,
    Resources,
    SandboxInfo,
    Version,
)

OutputCallback = Callable[[str, OutputStream], Awaitable[None]]
ProgressCallback = Callable[[Progress], None]

KILL_TIMEOUT = 30.0
"""How long a cancelled exec waits for its processes to be dead, in seconds."""

_SMALL = 1 << 20
"""Archives up to this size, in bytes, are read whole before they are unpacked."""

_workers = concurrent.futures.ThreadPoolExecutor(max_workers=16, thread_name_prefix="berth-files")
"""Packing and unpacking block; a pool of their own keeps them from starving the loop's default one."""


async def settle(work: Coroutine[Any, Any, Any], timeout: float) -> None:
    """Runs clean-up to its end, at most ``timeout`` seconds, and lets no cancellation interrupt it.

    Its failure is not raised. A cancellation that arrived meanwhile is, once it is over.
    """
    task = asyncio.ensure_future(work)
    # Retrieved, so that asyncio does not report it as lost.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    cancelled = False
    while not task.done() and (left := deadline - loop.time()) > 0:
        try:
            await asyncio.wait({task}, timeout=left)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


class AsyncClient:
    """Speaks to one daemon from one event loop; connections are kept until :meth:`aclose`.

    Without ``host``, ``BERTH_HOST`` decides, and without that the embedded daemon is used, and started where none runs.
    """

    def __init__(self, host: str | None = None, *, endpoint: Endpoint | None = None) -> None:
        self._host = host
        self._endpoint = endpoint
        self._http: httpx.AsyncClient | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections."""
        client, self._http = self._http, None
        if client is not None:
            await client.aclose()

    async def endpoint(self) -> Endpoint:
        """The daemon this client speaks to."""
        if self._endpoint is None:
            async with self._opening:
                if self._endpoint is None:
                    self._endpoint = await asyncio.to_thread(locate, self._host)
        return self._endpoint

    # ---- system and leases

    async def version(self) -> Version:
        """The daemon's version."""
        return await self.call(_calls.version())

    async def doctor(self) -> list[Check]:
        """Whether the daemon's machine is fit."""
        return await self.call(_calls.doctor())

    async def shutdown(self) -> None:
        """Ends the daemon and every sandbox of it."""
        await self.call(_calls.shutdown())

    async def create_lease(self, ttl_seconds: int) -> Lease:
        """Makes a lease that lasts ``ttl_seconds`` from now."""
        return await self.call(_calls.create_lease(ttl_seconds))

    async def renew_lease(self, lease: str, ttl_seconds: int) -> Lease:
        """Makes a lease last ``ttl_seconds`` from now."""
        return await self.call(_calls.renew_lease(lease, ttl_seconds))

    async def delete_lease(self, lease: str) -> None:
        """Ends a lease and deletes its sandboxes."""
        await self.call(_calls.delete_lease(lease))

    # ---- sandboxes

    async def create_sandbox(
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
    ) -> AsyncSandbox:
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
        return AsyncSandbox(self, await self.call(call))

    async def sandboxes(
        self, *, label: str | None = None, limit: int | None = None, after: str | None = None
    ) -> Page[SandboxInfo]:
        """A page of the sandboxes, oldest first; ``label`` is ``key=value``."""
        return await self.call(_calls.list_sandboxes(label, limit, after))

    async def sandbox(self, name: str) -> AsyncSandbox:
        """The sandbox of that id or name."""
        return AsyncSandbox(self, await self.call(_calls.get_sandbox(name)))

    async def delete_sandbox(self, name: str) -> None:
        """Deletes a sandbox, by id or name; one that is gone already is no error."""
        await self.call(_calls.delete_sandbox(name))

    async def set_ttl(self, name: str, ttl_seconds: int | None) -> SandboxInfo:
        """Lets a sandbox live for so many seconds from now; with ``None`` until it is deleted."""
        return await self.call(_calls.set_ttl(name, ttl_seconds))

    async def node(self) -> dict[str, Any]:
        """What the daemon's machine has, what of that is set aside, and what runs in the background, as JSON has it."""
        return await self.call(_calls.node())

    async def set_lease(self, name: str, lease: str | None) -> None:
        """Puts a sandbox under another lease, or under none: it then lives until deleted."""
        await self.call(_calls.set_lease(name, lease))

    # ---- execs

    async def exec(
        self,
        sandbox: str,
        command: str | Sequence[str],
        *,
        id: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        on_output: OutputCallback | None = None,
    ) -> ExecResult:
        """Runs a command to its end: a string in the image's shell, a sequence as it is.

        ``on_output`` is awaited with each piece of text as it arrives. ``timeout`` (seconds; none when absent or 0) makes the
        exit code 124 and keeps the output so far. When the connection is cut, or the daemon is started anew, it goes on where
        it was: the command runs once, and all of its output comes. When this coroutine is cancelled or fails, everything
        the command started is dead before it returns, as far as the daemon can still be reached.
        """
        id = id or uuid.uuid4().hex
        reader, patience = ExecReader(), _http.Patience()
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
                return await self._exec_once(sandbox, id, call, reader, on_output)
            except errors.BerthError as error:
                # Asked again with the same id, the daemon goes on with the same exec; nothing is run twice.
                if not patience.allows(error, reader.offsets):
                    if patience.tries:
                        await settle(self._kill(sandbox, id), KILL_TIMEOUT)
                    raise
            try:
                await asyncio.sleep(patience.pause)
            except asyncio.CancelledError:
                await settle(self._kill(sandbox, id), KILL_TIMEOUT)
                raise

    async def _exec_once(
        self, sandbox: str, id: str, call: Call[None], reader: ExecReader, on_output: OutputCallback | None
    ) -> ExecResult:
        """Runs an exec, or goes on with it, over one connection."""
        # Until the headers are there nobody can tell whether the command runs, so that part is never abandoned.
        opening = asyncio.ensure_future(self._send(call))
        response: httpx.Response | None = None
        over = False
        try:
            response = await asyncio.shield(opening)
            over = not response.is_success
            with _http.translated(await self.endpoint()):
                result = await self._read_exec(response, reader, on_output)
            over = True
            return result
        except errors.BerthError as error:
            # The command may run on; whether to go back to it is the caller's to say.
            over = over or _http.is_cut(error)
            raise
        finally:
            try:
                if not over:
                    await settle(self._kill(sandbox, id, opening), KILL_TIMEOUT)
            finally:
                if response is not None:
                    await response.aclose()

    async def _read_exec(
        self, response: httpx.Response, reader: ExecReader, on_output: OutputCallback | None
    ) -> ExecResult:
        if not response.is_success:
            await response.aread()
            _http.check(response)
        async for data in response.aiter_raw():
            for stream, text in reader.feed(data):
                if on_output is not None:
                    await on_output(text, stream)
        return reader.result()

    async def _kill(
        self, sandbox: str, exec_id: str, opening: asyncio.Future[httpx.Response] | None = None
    ) -> None:
        """Kills an exec, however long that takes: to be bounded by the caller."""
        response = None
        if opening is not None:
            with contextlib.suppress(errors.BerthError):
                response = await opening
        try:
            while True:
                try:
                    return await self.call(_calls.kill_exec(sandbox, exec_id))
                except errors.BerthError as error:
                    # A daemon that is being started anew finds the exec running.
                    if not _http.is_cut(error):
                        raise
                await asyncio.sleep(_http.RESUME_PAUSE)
        finally:
            if response is not None:
                await response.aclose()

    async def kill_exec(self, sandbox: str, exec_id: str) -> None:
        """Kills an exec and everything it started; returns when all of it is dead."""
        await self.call(_calls.kill_exec(sandbox, exec_id))

    # ---- files

    async def upload_dir(self, sandbox: str, source: Path | str, target: str) -> ArchiveReport:
        """Merges the contents of a directory of this machine into one of the sandbox."""
        return await self._upload(_calls.put_archive(sandbox, target), _tar.pack(Path(source)))

    async def upload_file(self, sandbox: str, source: Path | str, directory: str, name: str) -> ArchiveReport:
        """Puts a file of this machine into a directory of the sandbox, as ``name``."""
        return await self._upload(_calls.put_archive(sandbox, directory), _tar.pack_file(Path(source), name))

    async def download_dir(
        self,
        sandbox: str,
        source: str,
        target: Path | str,
        *,
        exclude: Sequence[str] = (),
        select: Callable[[str], bool] | None = None,
    ) -> _tar.Report:
        """Merges the contents of a directory of the sandbox into one of this machine.

        ``exclude`` are patterns as GNU tar's ``--exclude`` has them. With ``select``, only regular files whose relative path it
        accepts are written. A directory that is not there raises :class:`~berth.errors.NotFound`, what is no directory
        :class:`~berth.errors.Conflict`; neither leaves a target.
        """
        path = Path(target)
        call = _calls.get_archive(sandbox, directory(source), exclude)
        return await self._download(call, lambda stream: _tar.extract(stream, path, select))

    async def download_file(self, sandbox: str, source: str, target: Path | str) -> None:
        """Copies a file of the sandbox, symlinks followed, to ``target``."""
        # An archive does not tell a file from a directory that holds one.
        found = await self.stat(sandbox, source)
        if found is not None and found.kind == "dir":
            raise errors.Conflict(f"{source} is a directory", code="is_a_directory")
        path = Path(target)
        await self._download(_calls.get_archive(sandbox, source), lambda stream: _tar.extract_file(stream, path))

    async def stat(self, sandbox: str, path: str, user: str | None = None) -> FileStat | None:
        """What ``path`` is, symlinks followed, as ``user`` (root when absent) sees it; ``None`` when it is not there."""
        return await self.call(_calls.stat(sandbox, path, user))

    async def mkdir(self, sandbox: str, paths: Sequence[str], mode: int | None = None) -> None:
        """Makes directories and their parents, and sets ``mode`` on each, also where it was there."""
        await self.call(_calls.mkdir(sandbox, paths, mode))

    async def empty(self, sandbox: str, paths: Sequence[str], mode: int | None = None) -> None:
        """Makes each path an empty directory, keeping a directory that is there."""
        await self.call(_calls.empty(sandbox, paths, mode))

    async def remove(self, sandbox: str, paths: Sequence[str]) -> None:
        """Removes each path and all below it."""
        await self.call(_calls.remove(sandbox, paths))

    # ---- images

    async def images(self) -> Page[Image]:
        """The images of the daemon's store."""
        return await self.call(_calls.list_images())

    async def image(self, reference: str) -> Image:
        """The image of that reference or id."""
        return await self.call(_calls.get_image(reference))

    async def delete_image(self, reference: str) -> None:
        """Removes a reference, or an image by id."""
        await self.call(_calls.delete_image(reference))

    async def pull_image(
        self,
        reference: str,
        *,
        policy: PullPolicy = "always",
        username: str | None = None,
        password: str | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> Image:
        """Fetches an image from its registry."""
        return await self._progress(_calls.pull_image(reference, policy, username, password), on_progress)

    async def import_image(
        self,
        archive: Path | str,
        *,
        reference: str | None = None,
        format: ArchiveFormat | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> Image:
        """Takes an image from an archive of this machine."""
        return await self._progress(_calls.import_image(reference, format), on_progress, _file_chunks(Path(archive)))

    async def bootstrap_image(
        self,
        reference: str,
        *,
        mirror: str | None = None,
        packages: Sequence[str] = (),
        on_progress: ProgressCallback | None = None,
    ) -> Image:
        """Makes a base image (``debian:SUITE``) from a Debian mirror."""
        return await self._progress(_calls.bootstrap_image(reference, mirror, packages), on_progress)

    async def build_image(
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
        return await self._progress(call, on_progress, _tar.pack(Path(context)))

    # ---- plumbing

    async def call[T](self, call: Call[T]) -> T:
        """Makes a plain call."""
        response = await self._send(call)
        try:
            with _http.translated(await self.endpoint()):
                await response.aread()
            return _http.parse(call, response)
        finally:
            await response.aclose()

    async def _upload(self, call: Call[ArchiveReport], chunks: Iterator[bytes]) -> ArchiveReport:
        response = await self._send(call, chunks)
        try:
            with _http.translated(await self.endpoint()):
                await response.aread()
            return _http.parse(call, response)
        finally:
            await response.aclose()

    async def _progress[T](
        self, call: Call[T], on_progress: ProgressCallback | None, chunks: Iterator[bytes] | None = None
    ) -> T:
        response = await self._opened(call, chunks)
        reader = _http.ProgressReader(call)
        try:
            with _http.translated(await self.endpoint()):
                async for data in response.aiter_raw():
                    for progress in reader.feed(data):
                        if on_progress is not None:
                            on_progress(progress)
            return reader.result()
        finally:
            await response.aclose()

    async def _download[T](self, call: Call[None], unpack: Callable[[_tar.Readable], T]) -> T:
        response = await self._opened(call)
        try:
            with _http.translated(await self.endpoint()):
                async with _readable(response) as stream:
                    return await _in_worker(stream, unpack)
        except tarfile.TarError as error:
            raise errors.ConnectionLost(f"the archive is not complete: {error}", code="bad_archive") from error
        finally:
            await response.aclose()

    async def _opened(self, call: Call[Any], chunks: Iterator[bytes] | None = None) -> httpx.Response:
        """The response to a call whose body is a stream; its errors are raised."""
        response = await self._send(call, chunks)
        if not response.is_success:
            try:
                with _http.translated(await self.endpoint()):
                    await response.aread()
                _http.check(response)
            finally:
                await response.aclose()
        return response

    async def _send(self, call: Call[Any], chunks: Iterator[bytes] | None = None) -> httpx.Response:
        endpoint = await self.endpoint()
        if self._http is None:
            self._http = _http.async_client(endpoint)
        arguments = _http.request_arguments(call)
        for pause in _http.pauses(call):
            content = _in_worker_chunks(chunks) if chunks is not None else None
            request = self._http.build_request(**arguments, content=content)
            try:
                with _http.translated(endpoint):
                    return await self._http.send(request, stream=True)
            except errors.DaemonUnreachable:
                if pause is None:
                    raise
                await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


async def _in_worker_chunks(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    while (chunk := await loop.run_in_executor(_workers, next, chunks, None)) is not None:
        yield chunk


def _file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_tar.CHUNK):
            yield chunk


class _LoopStream:
    """A response's body, as a blocking stream for a worker thread: each read asks the loop for the next piece."""

    def __init__(self, first: bytes, rest: AsyncIterator[bytes] | None, loop: asyncio.AbstractEventLoop) -> None:
        self._buffer = first
        self._rest = rest
        self._loop = loop
        self._closed = False
        self._waiting: concurrent.futures.Future[bytes | None] | None = None

    def close(self) -> None:
        """Makes the worker's present or next read fail."""
        self._closed = True
        if self._waiting is not None:
            self._waiting.cancel()

    def read(self, size: int) -> bytes:
        while not self._buffer and self._rest is not None:
            if self._closed:
                raise errors.ConnectionLost("the transfer was given up", code="cancelled")
            self._waiting = asyncio.run_coroutine_threadsafe(_next(self._rest), self._loop)
            piece = self._waiting.result()
            if piece is None:
                self._rest = None
            else:
                self._buffer = piece
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)


@asynccontextmanager
async def _readable(response: httpx.Response) -> AsyncIterator[_LoopStream]:
    """The body as a stream. A small one is read whole first, so that its unpacking needs no trips to the loop."""
    pieces = response.aiter_raw()
    first = bytearray()
    rest: AsyncIterator[bytes] | None = None
    async for piece in pieces:
        first += piece
        if len(first) > _SMALL:
            rest = pieces
            break
    yield _LoopStream(bytes(first), rest, asyncio.get_running_loop())


async def _in_worker[T](stream: _LoopStream, unpack: Callable[[_tar.Readable], T]) -> T:
    work = asyncio.get_running_loop().run_in_executor(_workers, unpack, stream)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        # The thread must not write on after the caller has gone.
        stream.close()
        await settle(_outcome(work), KILL_TIMEOUT)
        raise


async def _outcome(work: asyncio.Future[Any]) -> None:
    await work


class AsyncSandbox:
    """A sandbox and what can be done with it; as a context manager it is deleted at the end."""

    def __init__(self, client: AsyncClient, info: SandboxInfo) -> None:
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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.delete()

    async def delete(self) -> None:
        """Deletes it."""
        await self.client.delete_sandbox(self.id)

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        id: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        on_output: OutputCallback | None = None,
    ) -> ExecResult:
        """See :meth:`AsyncClient.exec`."""
        return await self.client.exec(
            self.id, command, id=id, env=env, cwd=cwd, user=user, timeout=timeout, on_output=on_output
        )

    async def upload_dir(self, source: Path | str, target: str) -> ArchiveReport:
        """See :meth:`AsyncClient.upload_dir`."""
        return await self.client.upload_dir(self.id, source, target)

    async def upload_file(self, source: Path | str, target: str) -> ArchiveReport:
        """Copies a file of this machine to ``target``, or into it where that is a directory."""
        found = await self.client.stat(self.id, target)
        directory, name = split_target(target, Path(source).name, found is not None and found.kind == "dir")
        return await self.client.upload_file(self.id, source, directory, name)

    async def download_dir(self, source: str, target: Path | str, *, exclude: Sequence[str] = ()) -> _tar.Report:
        """See :meth:`AsyncClient.download_dir`."""
        return await self.client.download_dir(self.id, source, target, exclude=exclude)

    async def download_file(self, source: str, target: Path | str) -> None:
        """See :meth:`AsyncClient.download_file`."""
        await self.client.download_file(self.id, source, target)

    async def stat(self, path: str, user: str | None = None) -> FileStat | None:
        """See :meth:`AsyncClient.stat`."""
        return await self.client.stat(self.id, path, user)


def directory(path: str) -> str:
    """``path``, named so that only a directory answers to it, also through a symlink."""
    return f"{path.rstrip('/')}/."


def split_target(target: str, source_name: str, is_dir: bool) -> tuple[str, str]:
    """Directory and name to upload a file as: into a directory that is there, else as ``target`` itself."""
    if is_dir or target.endswith("/"):
        return target, source_name
    directory, _, name = target.rpartition("/")
    return directory or "/", name
