"""The asynchronous client."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import tarfile
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, Unpack

import httpx

from berth import _calls, _http, _tar, errors
from berth._calls import Call, ExecOptions, tells_gaps
from berth._endpoint import Endpoint, locate
from berth._frames import BytesCollector, Collector, ExecReader, TextCollector
from berth.models import (
    ArchiveFormat,
    ArchiveReport,
    BuildResult,
    Capabilities,
    Change,
    Check,
    DirEntry,
    ExecBytes,
    ExecEvent,
    ExecInfo,
    ExecResult,
    ExecStatus,
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
BytesCallback = Callable[[bytes, OutputStream], Awaitable[None]]

KILL_TIMEOUT = 30.0
"""How long a cancelled exec waits for its processes to be dead, in seconds."""

GIVE_UP_TIMEOUT = 5.0
"""The same for an exec whose daemon has been waited for in vain."""

GONE = ("sandbox_not_found", "sandbox_ended", "sandbox_lost", "sandbox_not_running", "exec_not_found")
"""Codes of errors that say that nothing of a sandbox runs any more, or of a command."""

_SMALL = 1 << 20
"""Archives up to this size, in bytes, are read whole before they are unpacked."""

_workers = concurrent.futures.ThreadPoolExecutor(max_workers=16, thread_name_prefix="berth-files")
"""Packing and unpacking block; a pool of their own keeps them from starving the loop's default one."""


async def settle(work: Coroutine[Any, Any, Any], timeout: float) -> None:
    """Runs clean-up to its end, or for ``timeout`` seconds, and lets no cancellation interrupt it.

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
    task.cancel()
    if cancelled:
        raise asyncio.CancelledError


class AsyncClient:
    """Speaks to one daemon from one event loop; connections are kept until :meth:`aclose`.

    Without ``host``, ``BERTH_HOST`` decides, and without that the embedded daemon is used, and started where none runs.
    """

    def __init__(
        self, host: str | None = None, *, endpoint: Endpoint | None = None, patience: float = _http.PATIENCE
    ) -> None:
        """``patience``: seconds for which a command whose connection was cut is tried to be picked up again."""
        self.patience = patience
        self._host = host
        self._endpoint = endpoint
        self._http: httpx.AsyncClient | None = None
        self._opening = asyncio.Lock()
        self._contact = _http.Contact()
        self._left: dict[str, set[str]] = {}

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
        on_output: OutputCallback | None = None,
        collect: bool = True,
        **options: Unpack[ExecOptions],
    ) -> ExecResult:
        """Runs a command to its end: a string in the image's shell, a sequence as it is.

        ``on_output`` is awaited with each piece of text as it arrives; the command waits for a callback that is slow. Without
        ``collect`` the result holds no output. For ``options`` see :class:`berth.ExecOptions`. When the connection is cut, or
        the daemon is started anew, the call goes on where it was: the command runs once, and all of its output comes. Output
        that is not kept any more raises :class:`~berth.errors.OutputLost`, unless ``keep`` lets the oldest be dropped: then the
        result tells what is missing. When this coroutine is cancelled or fails, everything the command started is dead before
        it returns; where the daemon cannot be reached, it is killed before the next command of this client runs there.
        """
        return await self._run(sandbox, command, TextCollector(collect, tells_gaps(options)), on_output, options)

    async def exec_bytes(
        self,
        sandbox: str,
        command: str | Sequence[str],
        *,
        on_output: BytesCallback | None = None,
        collect: bool = True,
        **options: Unpack[ExecOptions],
    ) -> ExecBytes:
        """As :meth:`exec`, with output as it is."""
        return await self._run(sandbox, command, BytesCollector(collect, tells_gaps(options)), on_output, options)

    async def exec_detached(
        self, sandbox: str, command: str | Sequence[str], **options: Unpack[ExecOptions]
    ) -> ExecInfo:
        """Starts a command and returns as soon as it runs. Its output is kept as ``keep`` has it, see :meth:`attach`."""
        options["id"] = exec_id = options.get("id") or uuid.uuid4().hex
        await self._kill_left(sandbox)
        info = await self.call(_calls.exec_detached(sandbox, command, options))
        if data := _calls.streamed_input(options):
            await self._feed(sandbox, exec_id, data)
        return info

    async def attach(
        self, sandbox: str, exec_id: str, *, stdout: int = 0, stderr: int = 0, follow: bool = True
    ) -> AsyncGenerator[ExecEvent]:
        """What a command writes, from these offsets on, then its status; without ``follow`` what there is.

        Output that is not kept any more comes as an :class:`~berth.models.OutputGap`. A connection that is cut is made again.
        Leaving the iteration detaches; whoever leaves it early closes it (``contextlib.aclosing``).
        """
        reader, patience = ExecReader(stdout, stderr), _http.Patience(self.patience)
        while True:
            try:
                response = await self._opened(_calls.exec_output(sandbox, exec_id, reader.resume(), follow))
                try:
                    with _http.translated(await self.endpoint()):
                        async for data in response.aiter_raw():
                            for event in reader.feed(data):
                                yield event
                            if reader.has_started:
                                patience.attached()
                finally:
                    await response.aclose()
                reader.check_end()
                if reader.status is not None:
                    yield ExecStatus.from_json(reader.status)
                return
            except errors.BerthError as error:
                if not patience.allows(error, reader.offsets):
                    raise
            await asyncio.sleep(patience.pause)

    async def exec_result(
        self, sandbox: str, exec_id: str, *, on_output: OutputCallback | None = None, collect: bool = True
    ) -> ExecResult:
        """The end of a command that was started before, with its output as far as that is kept (see ``gaps``)."""
        collector = TextCollector(collect, tell_gaps=True)
        async with contextlib.aclosing(self.attach(sandbox, exec_id)) as events:
            async for event in events:
                if isinstance(event, ExecStatus):
                    for stream, piece in collector.end():
                        if on_output is not None:
                            await on_output(piece, stream)
                    return collector.result(event.to_json())
                if (piece := collector.add(event)) and on_output is not None:
                    await on_output(piece, event.stream)
        raise AssertionError("who follows is told the end, or why not")

    async def execs(self, sandbox: str) -> list[ExecInfo]:
        """The commands of a sandbox, running and over, the oldest first."""
        return await self.call(_calls.list_execs(sandbox))

    async def exec_info(self, sandbox: str, exec_id: str) -> ExecInfo:
        """One command: how it ended, or what it uses."""
        return await self.call(_calls.exec_info(sandbox, exec_id))

    async def kill_exec(self, sandbox: str, exec_id: str) -> None:
        """Kills an exec and everything it started; returns when all of it is dead."""
        await self.call(_calls.kill_exec(sandbox, exec_id))

    async def signal_exec(self, sandbox: str, exec_id: str, signal: str | int, *, tree: bool = False) -> None:
        """Sends a signal (``TERM``, ``SIGTERM`` or a number) to a command's first process, or with ``tree`` to all of it."""
        await self.call(_calls.signal_exec(sandbox, exec_id, signal, tree))

    async def resize_exec(self, sandbox: str, exec_id: str, rows: int, cols: int) -> None:
        """Tells a command the size of its terminal, in characters."""
        await self.call(_calls.resize_exec(sandbox, exec_id, rows, cols))

    async def write_stdin(
        self, sandbox: str, exec_id: str, data: bytes, *, offset: int | None = None, end: bool = False
    ) -> int:
        """Gives a command that was started with ``stdin="stream"`` input, and with ``end`` the end of it.

        ``offset`` says where in its input ``data`` begins; with it a call whose fate is unknown can be repeated, and is.
        Returns how many bytes the command has been given in all; where that is less than was sent, the rest is to be sent
        again.
        """
        return await self.call(_calls.write_stdin(sandbox, exec_id, data, offset, end))

    async def quiesce(self, sandbox: str) -> int:
        """Kills every process of every command, daemons that they left behind included; returns how many there were."""
        return await self.call(_calls.quiesce(sandbox))

    async def _run[P: (str, bytes), R: ExecStatus](
        self,
        sandbox: str,
        command: str | Sequence[str],
        collector: Collector[P, R],
        on_output: Callable[[P, OutputStream], Awaitable[None]] | None,
        options: ExecOptions,
    ) -> R:
        options["id"] = exec_id = options.get("id") or uuid.uuid4().hex
        await self._kill_left(sandbox)
        reader, patience = ExecReader(), _http.Patience(self.patience)
        feeding = Feeding(self._feed, sandbox, exec_id, _calls.streamed_input(options))
        while True:
            call = _calls.exec_(sandbox, command, options, reader.resume() if patience.tries else None)
            try:
                await self._run_once(sandbox, exec_id, call, reader, patience, collector, on_output, feeding)
                break
            except errors.BerthError as error:
                # Asked again with the same id, the daemon goes on with the same exec; nothing is run twice.
                if not patience.allows(error, reader.offsets):
                    if patience.tries:
                        await self._kill_surely(sandbox, exec_id, GIVE_UP_TIMEOUT)
                    raise
            try:
                await asyncio.sleep(patience.pause)
            except asyncio.CancelledError:
                await self._kill_surely(sandbox, exec_id, KILL_TIMEOUT)
                raise
        for stream, piece in collector.end():
            if on_output is not None:
                await on_output(piece, stream)
        return collector.result(reader.status or {})

    async def _run_once[P: (str, bytes), R: ExecStatus](
        self,
        sandbox: str,
        exec_id: str,
        call: Call[None],
        reader: ExecReader,
        patience: _http.Patience,
        collector: Collector[P, R],
        on_output: Callable[[P, OutputStream], Awaitable[None]] | None,
        feeding: Feeding,
    ) -> None:
        """Runs an exec, or goes on with it, over one connection."""
        # Until the headers are there nobody can tell whether the command runs, so that part is never abandoned.
        opening = asyncio.ensure_future(self._send(call))
        response: httpx.Response | None = None
        over = False
        try:
            response = await asyncio.shield(opening)
            if not response.is_success:
                over = True
                with _http.translated(await self.endpoint()):
                    await response.aread()
                _http.check(response)
            feeding.begin()
            with _http.translated(await self.endpoint()):
                async for data in response.aiter_raw():
                    for event in reader.feed(data):
                        if (piece := collector.add(event)) and on_output is not None:
                            await on_output(piece, event.stream)
                    if reader.has_started:
                        patience.attached()
            feeding.check()
            reader.check_end()
            over = True
        except errors.BerthError as error:
            # The command may run on; whether to go back to it is the caller's to say.
            over = over or _http.is_cut(error)
            raise
        finally:
            try:
                await feeding.end()
                if not over:
                    await self._kill_surely(sandbox, exec_id, KILL_TIMEOUT, opening)
            finally:
                if response is not None:
                    await response.aclose()

    async def _feed(
        self,
        sandbox: str,
        exec_id: str,
        data: bytes,
        failed: Callable[[errors.BerthError], None] = lambda _: None,
    ) -> None:
        """Gives a command its input, piece by piece, and the end."""
        at, patience = 0, _http.Patience(self.patience)
        while True:
            piece = data[at : at + _calls.MAX_INPUT]
            try:
                at = await self.write_stdin(sandbox, exec_id, piece, offset=at, end=at + len(piece) == len(data))
                if at >= len(data):
                    return
            except errors.BerthError as error:
                # A command need not read what it is given.
                if error.code in ("exec_over", "no_stdin"):
                    return
                patience.attached()
                if not patience.allows(error, {"stdin": at}, _http.may_feed_on):
                    # Said before it is killed, so that its end does not pass for one of its own.
                    failed(error)
                    # It would wait for the rest for good.
                    with contextlib.suppress(errors.BerthError):
                        await self.kill_exec(sandbox, exec_id)
                    raise
                await asyncio.sleep(patience.pause)

    async def _kill_surely(
        self, sandbox: str, exec_id: str, timeout: float, opening: asyncio.Future[httpx.Response] | None = None
    ) -> None:
        """Kills an exec, or remembers that it is to be killed. No cancellation interrupts it."""
        self._left.setdefault(sandbox, set()).add(exec_id)
        await settle(self._kill(sandbox, exec_id, opening), timeout)

    async def _kill(self, sandbox: str, exec_id: str, opening: asyncio.Future[httpx.Response] | None) -> None:
        """Kills an exec, however long that takes: to be bounded by the caller."""
        response = None
        if opening is not None:
            with contextlib.suppress(errors.BerthError):
                response = await opening
        try:
            while True:
                try:
                    await self.call(_calls.kill_exec(sandbox, exec_id))
                    return self._killed(sandbox, exec_id)
                except errors.BerthError as error:
                    # A daemon that is being started anew finds the exec running.
                    if not _http.is_cut(error):
                        # What is no more needs no killing.
                        return self._killed(sandbox, exec_id) if error.code in GONE else None
                await asyncio.sleep(_http.RESUME_PAUSE)
        finally:
            if response is not None:
                await response.aclose()

    async def _kill_left(self, sandbox: str) -> None:
        """Kills what could not be killed when it was to be, so that nothing runs beside it."""
        for exec_id in list(self._left.get(sandbox, ())):
            await self.call(_calls.kill_exec(sandbox, exec_id))
            self._killed(sandbox, exec_id)

    def _killed(self, sandbox: str, exec_id: str) -> None:
        if left := self._left.get(sandbox):
            left.discard(exec_id)
            if not left:
                del self._left[sandbox]

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
        return await self._download(call, lambda stream: _tar.extract(stream, path))

    async def download_file(self, sandbox: str, source: str, target: Path | str) -> None:
        """Copies a file of the sandbox, symlinks followed, to ``target``."""
        # An archive does not tell a file from a directory that holds one.
        found = await self.stat(sandbox, source)
        if found is not None and found.kind == "dir":
            raise errors.Conflict(f"{source} is a directory", code="is_a_directory")
        path = Path(target)
        await self._download(_calls.get_archive(sandbox, source), lambda stream: _tar.extract_file(stream, path))

    async def read_file(
        self, sandbox: str, path: str, offset: int = 0, length: int | None = None, *, user: str | None = None
    ) -> bytes:
        """The bytes of a file, symlinks followed, or ``length`` of them from ``offset`` on, fewer at its end; as ``user`` (root
        when absent) may read them."""
        response = await self._answer(_calls.read_file(sandbox, path, offset, length, user))
        _http.check(response)
        return response.content

    async def write_file(
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
        return await self.call(_calls.write_file(sandbox, path, data, mode, owner, create_only))

    async def watch(self, sandbox: str, path: str, *, recursive: bool = False) -> AsyncGenerator[Change]:
        """Changes of a file or directory, or with ``recursive`` of all below it, as they happen; ``ready`` is the first.

        It ends by an error when what is watched is gone, and is not taken up again after a cut, as changes would be missing.
        Whoever leaves it early closes it (``contextlib.aclosing``).
        """
        response = await self._opened(_calls.watch(sandbox, path, recursive))
        lines = _http.Lines()
        try:
            with _http.translated(await self.endpoint()):
                async for data in response.aiter_raw():
                    for line in lines.feed(data):
                        yield _http.change(line)
            raise errors.ConnectionLost("the watch ended without a reason", code="connection_lost")
        finally:
            await response.aclose()

    async def list_dir(self, sandbox: str, path: str, *, user: str | None = None) -> list[DirEntry]:
        """What is in a directory, sorted by name, as ``user`` (root when absent) sees it."""
        return await self.call(_calls.list_dir(sandbox, path, user))

    async def stat(self, sandbox: str, path: str, user: str | None = None) -> FileStat | None:
        """What ``path`` is, symlinks followed, as ``user`` (root when absent) sees it; ``None`` when it is not there."""
        return await self.call(_calls.stat(sandbox, path, user))

    async def mkdir(
        self, sandbox: str, paths: Sequence[str], mode: int | None = None, *, owner: str | None = None
    ) -> None:
        """Makes directories and their parents, and sets ``mode`` and ``owner`` on each, also where it was there."""
        await self.call(_calls.mkdir(sandbox, paths, mode, owner))

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
        return _http.parse(call, await self._answer(call))

    async def _answer(self, call: Call[Any]) -> httpx.Response:
        """The whole response to a plain call."""

        async def attempt() -> httpx.Response:
            response = await self._send_once(call)
            try:
                with _http.translated(await self.endpoint()):
                    await response.aread()
                return response
            finally:
                await response.aclose()

        return await self._attempts(call, attempt)

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
        return await self._attempts(call, lambda: self._send_once(call, chunks))

    async def _send_once(self, call: Call[Any], chunks: Iterator[bytes] | None = None) -> httpx.Response:
        endpoint = await self.endpoint()
        if self._http is None:
            self._http = _http.async_client(endpoint)
        arguments = _http.request_arguments(call)
        if chunks is not None:
            arguments["content"] = _in_worker_chunks(chunks)
        with _http.translated(endpoint):
            response = await self._http.send(self._http.build_request(**arguments), stream=True)
        self._contact.answered()
        return response

    async def _attempts(self, call: Call[Any], attempt: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        for pause in self._contact.pauses(call):
            try:
                return await attempt()
            except errors.Unavailable as error:
                if not _http.may_repeat(call, error):
                    raise
                if pause is None:
                    self._contact.failed()
                    raise
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


class Feeding:
    """Input that is given to a command while its output is read."""

    def __init__(
        self,
        feed: Callable[[str, str, bytes, Callable[[errors.BerthError], None]], Coroutine[Any, Any, None]],
        sandbox: str,
        exec_id: str,
        data: bytes | None,
    ) -> None:
        self._arguments = (sandbox, exec_id, data or b"")
        self._feed = feed
        self._is_wanted = data is not None
        self._task: asyncio.Task[None] | None = None
        self._error: errors.BerthError | None = None

    def _failed(self, error: errors.BerthError) -> None:
        self._error = error

    def begin(self) -> None:
        """The command runs."""
        if self._is_wanted and self._task is None:
            self._task = asyncio.create_task(self._feed(*self._arguments, self._failed))

    def check(self) -> None:
        """Raises what kept the input from being given."""
        if self._error is not None:
            raise self._error
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    async def end(self) -> None:
        """The connection is over; on the next one what the command has already is passed over."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()


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
        on_output: OutputCallback | None = None,
        collect: bool = True,
        **options: Unpack[ExecOptions],
    ) -> ExecResult:
        """See :meth:`AsyncClient.exec`."""
        return await self.client.exec(self.id, command, on_output=on_output, collect=collect, **options)

    async def exec_bytes(
        self,
        command: str | Sequence[str],
        *,
        on_output: BytesCallback | None = None,
        collect: bool = True,
        **options: Unpack[ExecOptions],
    ) -> ExecBytes:
        """See :meth:`AsyncClient.exec_bytes`."""
        return await self.client.exec_bytes(self.id, command, on_output=on_output, collect=collect, **options)

    async def exec_detached(self, command: str | Sequence[str], **options: Unpack[ExecOptions]) -> ExecInfo:
        """See :meth:`AsyncClient.exec_detached`."""
        return await self.client.exec_detached(self.id, command, **options)

    def attach(
        self, exec_id: str, *, stdout: int = 0, stderr: int = 0, follow: bool = True
    ) -> AsyncGenerator[ExecEvent]:
        """See :meth:`AsyncClient.attach`."""
        return self.client.attach(self.id, exec_id, stdout=stdout, stderr=stderr, follow=follow)

    async def exec_result(
        self, exec_id: str, *, on_output: OutputCallback | None = None, collect: bool = True
    ) -> ExecResult:
        """See :meth:`AsyncClient.exec_result`."""
        return await self.client.exec_result(self.id, exec_id, on_output=on_output, collect=collect)

    async def execs(self) -> list[ExecInfo]:
        """See :meth:`AsyncClient.execs`."""
        return await self.client.execs(self.id)

    async def exec_info(self, exec_id: str) -> ExecInfo:
        """See :meth:`AsyncClient.exec_info`."""
        return await self.client.exec_info(self.id, exec_id)

    async def kill_exec(self, exec_id: str) -> None:
        """See :meth:`AsyncClient.kill_exec`."""
        await self.client.kill_exec(self.id, exec_id)

    async def signal_exec(self, exec_id: str, signal: str | int, *, tree: bool = False) -> None:
        """See :meth:`AsyncClient.signal_exec`."""
        await self.client.signal_exec(self.id, exec_id, signal, tree=tree)

    async def resize_exec(self, exec_id: str, rows: int, cols: int) -> None:
        """See :meth:`AsyncClient.resize_exec`."""
        await self.client.resize_exec(self.id, exec_id, rows, cols)

    async def write_stdin(self, exec_id: str, data: bytes, *, offset: int | None = None, end: bool = False) -> int:
        """See :meth:`AsyncClient.write_stdin`."""
        return await self.client.write_stdin(self.id, exec_id, data, offset=offset, end=end)

    async def quiesce(self) -> int:
        """See :meth:`AsyncClient.quiesce`."""
        return await self.client.quiesce(self.id)

    async def upload_dir(self, source: Path | str, target: str) -> ArchiveReport:
        """See :meth:`AsyncClient.upload_dir`."""
        return await self.client.upload_dir(self.id, source, target)

    async def upload_file(self, source: Path | str, target: str) -> ArchiveReport:
        """Copies a file of this machine to ``target``, or into it where that is a directory."""
        found = await self.client.stat(self.id, target)
        directory, name = split_target(target, Path(source).name, found is not None and found.kind == "dir")
        return await self.client.upload_file(self.id, source, directory, name)

    async def download_dir(
        self,
        source: str,
        target: Path | str,
        *,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        exclude_files: Sequence[str] = (),
        protect: Sequence[str] = (),
    ) -> _tar.Report:
        """See :meth:`AsyncClient.download_dir`."""
        return await self.client.download_dir(
            self.id, source, target, exclude=exclude, include=include, exclude_files=exclude_files, protect=protect
        )

    async def download_file(self, source: str, target: Path | str) -> None:
        """See :meth:`AsyncClient.download_file`."""
        await self.client.download_file(self.id, source, target)

    async def read_file(
        self, path: str, offset: int = 0, length: int | None = None, *, user: str | None = None
    ) -> bytes:
        """See :meth:`AsyncClient.read_file`."""
        return await self.client.read_file(self.id, path, offset, length, user=user)

    async def write_file(
        self,
        path: str,
        data: bytes,
        *,
        mode: int | None = None,
        owner: str | None = None,
        create_only: bool = False,
    ) -> int:
        """See :meth:`AsyncClient.write_file`."""
        return await self.client.write_file(self.id, path, data, mode=mode, owner=owner, create_only=create_only)

    def watch(self, path: str, *, recursive: bool = False) -> AsyncGenerator[Change]:
        """See :meth:`AsyncClient.watch`."""
        return self.client.watch(self.id, path, recursive=recursive)

    async def list_dir(self, path: str, *, user: str | None = None) -> list[DirEntry]:
        """See :meth:`AsyncClient.list_dir`."""
        return await self.client.list_dir(self.id, path, user=user)

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
