"""The synchronous client: the same calls as :mod:`berth._async`, for scripts and threads."""

from __future__ import annotations

import contextlib
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import httpx

from berth import _calls, _http, _tar, errors
from berth._async import GIVE_UP_TIMEOUT, GONE, KILL_TIMEOUT, ProgressCallback, directory, split_target
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
    PullPolicy,
    Resources,
    SandboxInfo,
    Version,
)

SyncOutputCallback = Callable[[str, OutputStream], None]
SyncBytesCallback = Callable[[bytes, OutputStream], None]


class Client:
    """Speaks to one daemon; safe to share between threads. See :class:`berth.AsyncClient` for what decides which daemon."""

    def __init__(
        self, host: str | None = None, *, endpoint: Endpoint | None = None, patience: float = _http.PATIENCE
    ) -> None:
        """``patience``: seconds for which a command whose connection was cut is tried to be picked up again."""
        self.patience = patience
        self.endpoint = endpoint or locate(host)
        self._http = _http.sync_client(self.endpoint)
        self._contact = _http.Contact()
        self._lock = threading.Lock()
        self._left: dict[str, set[str]] = {}

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
        on_output: SyncOutputCallback | None = None,
        collect: bool = True,
        **options: Unpack[ExecOptions],
    ) -> ExecResult:
        """Runs a command to its end; see :meth:`berth.AsyncClient.exec`. When this is interrupted, what the command started is
        dead before it returns, or as there."""
        return self._run(sandbox, command, TextCollector(collect, tells_gaps(options)), on_output, options)

    def exec_bytes(
        self,
        sandbox: str,
        command: str | Sequence[str],
        *,
        on_output: SyncBytesCallback | None = None,
        collect: bool = True,
        **options: Unpack[ExecOptions],
    ) -> ExecBytes:
        """As :meth:`exec`, with output as it is."""
        return self._run(sandbox, command, BytesCollector(collect, tells_gaps(options)), on_output, options)

    def exec_detached(self, sandbox: str, command: str | Sequence[str], **options: Unpack[ExecOptions]) -> ExecInfo:
        """See :meth:`berth.AsyncClient.exec_detached`."""
        options["id"] = exec_id = options.get("id") or uuid.uuid4().hex
        self._kill_left(sandbox)
        info = self.call(_calls.exec_detached(sandbox, command, options))
        if data := _calls.streamed_input(options):
            self._feed(sandbox, exec_id, data)
        return info

    def attach(
        self, sandbox: str, exec_id: str, *, stdout: int = 0, stderr: int = 0, follow: bool = True
    ) -> Generator[ExecEvent]:
        """See :meth:`berth.AsyncClient.attach`; whoever leaves it early closes it (``contextlib.closing``)."""
        reader, patience = ExecReader(stdout, stderr), _http.Patience(self.patience)
        while True:
            try:
                response = self._send(_calls.exec_output(sandbox, exec_id, reader.resume(), follow))
                try:
                    with _http.translated(self.endpoint):
                        self._raise_error(response)
                        for data in response.iter_raw():
                            yield from reader.feed(data)
                            if reader.has_started:
                                patience.attached()
                finally:
                    response.close()
                reader.check_end()
                if reader.status is not None:
                    yield ExecStatus.from_json(reader.status)
                return
            except errors.BerthError as error:
                if not patience.allows(error, reader.offsets):
                    raise
            time.sleep(patience.pause)

    def exec_result(
        self, sandbox: str, exec_id: str, *, on_output: SyncOutputCallback | None = None, collect: bool = True
    ) -> ExecResult:
        """See :meth:`berth.AsyncClient.exec_result`."""
        collector = TextCollector(collect, tell_gaps=True)
        with contextlib.closing(self.attach(sandbox, exec_id)) as events:
            for event in events:
                if isinstance(event, ExecStatus):
                    for stream, piece in collector.end():
                        if on_output is not None:
                            on_output(piece, stream)
                    return collector.result(event.to_json())
                if (piece := collector.add(event)) and on_output is not None:
                    on_output(piece, event.stream)
        raise AssertionError("who follows is told the end, or why not")

    def execs(self, sandbox: str) -> list[ExecInfo]:
        """The commands of a sandbox, running and over, the oldest first."""
        return self.call(_calls.list_execs(sandbox))

    def exec_info(self, sandbox: str, exec_id: str) -> ExecInfo:
        """One command: how it ended, or what it uses."""
        return self.call(_calls.exec_info(sandbox, exec_id))

    def kill_exec(self, sandbox: str, exec_id: str) -> None:
        """Kills an exec and everything it started; returns when all of it is dead."""
        self.call(_calls.kill_exec(sandbox, exec_id))

    def signal_exec(self, sandbox: str, exec_id: str, signal: str | int, *, tree: bool = False) -> None:
        """See :meth:`berth.AsyncClient.signal_exec`."""
        self.call(_calls.signal_exec(sandbox, exec_id, signal, tree))

    def resize_exec(self, sandbox: str, exec_id: str, rows: int, cols: int) -> None:
        """Tells a command the size of its terminal, in characters."""
        self.call(_calls.resize_exec(sandbox, exec_id, rows, cols))

    def write_stdin(
        self, sandbox: str, exec_id: str, data: bytes, *, offset: int | None = None, end: bool = False
    ) -> int:
        """See :meth:`berth.AsyncClient.write_stdin`."""
        return self.call(_calls.write_stdin(sandbox, exec_id, data, offset, end))

    def quiesce(self, sandbox: str) -> int:
        """Kills every process of every command, daemons that they left behind included; returns how many there were."""
        return self.call(_calls.quiesce(sandbox))

    def _run[P: (str, bytes), R: ExecStatus](
        self,
        sandbox: str,
        command: str | Sequence[str],
        collector: Collector[P, R],
        on_output: Callable[[P, OutputStream], None] | None,
        options: ExecOptions,
    ) -> R:
        options["id"] = exec_id = options.get("id") or uuid.uuid4().hex
        self._kill_left(sandbox)
        reader, patience = ExecReader(), _http.Patience(self.patience)
        feeding = Feeding(self._feed, sandbox, exec_id, _calls.streamed_input(options))
        over, wait = False, KILL_TIMEOUT
        try:
            while True:
                call = _calls.exec_(sandbox, command, options, reader.resume() if patience.tries else None)
                try:
                    self._run_once(call, reader, patience, collector, on_output, feeding)
                    over = True
                    break
                except errors.BerthError as error:
                    # Asked again with the same id, the daemon goes on with the same exec; nothing is run twice.
                    if not patience.allows(error, reader.offsets):
                        over = not patience.tries and not reader.has_started
                        wait = GIVE_UP_TIMEOUT
                        raise
                time.sleep(patience.pause)
        finally:
            if not over:
                self._kill_surely(sandbox, exec_id, wait)
        for stream, piece in collector.end():
            if on_output is not None:
                on_output(piece, stream)
        return collector.result(reader.status or {})

    def _run_once[P: (str, bytes), R: ExecStatus](
        self,
        call: Call[None],
        reader: ExecReader,
        patience: _http.Patience,
        collector: Collector[P, R],
        on_output: Callable[[P, OutputStream], None] | None,
        feeding: Feeding,
    ) -> None:
        """Runs an exec, or goes on with it, over one connection."""
        response = self._send(call)
        try:
            with _http.translated(self.endpoint):
                self._raise_error(response)
                feeding.begin()
                for data in response.iter_raw():
                    for event in reader.feed(data):
                        if (piece := collector.add(event)) and on_output is not None:
                            on_output(piece, event.stream)
                    if reader.has_started:
                        patience.attached()
            feeding.check()
            reader.check_end()
        finally:
            response.close()

    def _feed(
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
                at = self.write_stdin(sandbox, exec_id, piece, offset=at, end=at + len(piece) == len(data))
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
                        self.kill_exec(sandbox, exec_id)
                    raise
                time.sleep(patience.pause)

    def _kill_surely(self, sandbox: str, exec_id: str, timeout: float) -> None:
        """Kills an exec, or remembers that it is to be killed."""
        with self._lock:
            self._left.setdefault(sandbox, set()).add(exec_id)
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.call(_calls.kill_exec(sandbox, exec_id))
                return self._killed(sandbox, exec_id)
            except errors.BerthError as error:
                # A daemon that is being started anew finds the exec running.
                if not _http.is_cut(error):
                    # What is no more needs no killing.
                    return self._killed(sandbox, exec_id) if error.code in GONE else None
                if time.monotonic() >= deadline:
                    return None
            time.sleep(_http.RESUME_PAUSE)

    def _kill_left(self, sandbox: str) -> None:
        """Kills what could not be killed when it was to be, so that nothing runs beside it."""
        with self._lock:
            left = list(self._left.get(sandbox, ()))
        for exec_id in left:
            self.call(_calls.kill_exec(sandbox, exec_id))
            self._killed(sandbox, exec_id)

    def _killed(self, sandbox: str, exec_id: str) -> None:
        with self._lock:
            if left := self._left.get(sandbox):
                left.discard(exec_id)
                if not left:
                    del self._left[sandbox]

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

    def call[T](self, call: Call[T]) -> T:
        """Makes a plain call."""
        return _http.parse(call, self._answer(call))

    def _answer(self, call: Call[Any], chunks: Iterator[bytes] | None = None) -> httpx.Response:
        """The whole response to a plain call."""

        def attempt() -> httpx.Response:
            response = self._send_once(call, chunks)
            try:
                with _http.translated(self.endpoint):
                    response.read()
                return response
            finally:
                response.close()

        return self._attempts(call, attempt)

    def _upload(self, call: Call[ArchiveReport], chunks: Iterator[bytes]) -> ArchiveReport:
        return _http.parse(call, self._answer(call, chunks))

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

    def _opened(self, call: Call[Any]) -> httpx.Response:
        """The response to a call whose answer is a stream; its errors are raised."""
        response = self._send(call)
        try:
            with _http.translated(self.endpoint):
                self._raise_error(response)
        except BaseException:
            response.close()
            raise
        return response

    def _send(self, call: Call[Any], chunks: Iterator[bytes] | None = None) -> httpx.Response:
        return self._attempts(call, lambda: self._send_once(call, chunks))

    def _send_once(self, call: Call[Any], chunks: Iterator[bytes] | None = None) -> httpx.Response:
        arguments = _http.request_arguments(call)
        if chunks is not None:
            arguments["content"] = chunks
        with _http.translated(self.endpoint):
            response = self._http.send(self._http.build_request(**arguments), stream=True)
        self._contact.answered()
        return response

    def _attempts(self, call: Call[Any], attempt: Callable[[], httpx.Response]) -> httpx.Response:
        for pause in self._contact.pauses(call):
            try:
                return attempt()
            except errors.Unavailable as error:
                if not _http.may_repeat(call, error):
                    raise
                if pause is None:
                    self._contact.failed()
                    raise
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


class Feeding:
    """Input that is given to a command while its output is read: by a thread, which goes on by itself after a cut."""

    def __init__(
        self,
        feed: Callable[[str, str, bytes, Callable[[errors.BerthError], None]], None],
        sandbox: str,
        exec_id: str,
        data: bytes | None,
    ) -> None:
        self._arguments = (sandbox, exec_id, data or b"")
        self._feed = feed
        self._is_wanted = data is not None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def begin(self) -> None:
        """The command runs."""
        if self._is_wanted and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="berth-stdin", daemon=True)
            self._thread.start()

    def check(self) -> None:
        """Raises what kept the input from being given."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._feed(*self._arguments, self._failed)
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self._error = error


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
        on_output: SyncOutputCallback | None = None,
        collect: bool = True,
        **options: Unpack[ExecOptions],
    ) -> ExecResult:
        """See :meth:`Client.exec`."""
        return self.client.exec(self.id, command, on_output=on_output, collect=collect, **options)

    def exec_bytes(
        self,
        command: str | Sequence[str],
        *,
        on_output: SyncBytesCallback | None = None,
        collect: bool = True,
        **options: Unpack[ExecOptions],
    ) -> ExecBytes:
        """See :meth:`Client.exec_bytes`."""
        return self.client.exec_bytes(self.id, command, on_output=on_output, collect=collect, **options)

    def exec_detached(self, command: str | Sequence[str], **options: Unpack[ExecOptions]) -> ExecInfo:
        """See :meth:`Client.exec_detached`."""
        return self.client.exec_detached(self.id, command, **options)

    def attach(self, exec_id: str, *, stdout: int = 0, stderr: int = 0, follow: bool = True) -> Generator[ExecEvent]:
        """See :meth:`Client.attach`."""
        return self.client.attach(self.id, exec_id, stdout=stdout, stderr=stderr, follow=follow)

    def exec_result(
        self, exec_id: str, *, on_output: SyncOutputCallback | None = None, collect: bool = True
    ) -> ExecResult:
        """See :meth:`Client.exec_result`."""
        return self.client.exec_result(self.id, exec_id, on_output=on_output, collect=collect)

    def execs(self) -> list[ExecInfo]:
        """See :meth:`Client.execs`."""
        return self.client.execs(self.id)

    def exec_info(self, exec_id: str) -> ExecInfo:
        """See :meth:`Client.exec_info`."""
        return self.client.exec_info(self.id, exec_id)

    def kill_exec(self, exec_id: str) -> None:
        """See :meth:`Client.kill_exec`."""
        self.client.kill_exec(self.id, exec_id)

    def signal_exec(self, exec_id: str, signal: str | int, *, tree: bool = False) -> None:
        """See :meth:`Client.signal_exec`."""
        self.client.signal_exec(self.id, exec_id, signal, tree=tree)

    def resize_exec(self, exec_id: str, rows: int, cols: int) -> None:
        """See :meth:`Client.resize_exec`."""
        self.client.resize_exec(self.id, exec_id, rows, cols)

    def write_stdin(self, exec_id: str, data: bytes, *, offset: int | None = None, end: bool = False) -> int:
        """See :meth:`Client.write_stdin`."""
        return self.client.write_stdin(self.id, exec_id, data, offset=offset, end=end)

    def quiesce(self) -> int:
        """See :meth:`Client.quiesce`."""
        return self.client.quiesce(self.id)

    def upload_dir(self, source: Path | str, target: str) -> ArchiveReport:
        """See :meth:`Client.upload_dir`."""
        return self.client.upload_dir(self.id, source, target)

    def upload_file(self, source: Path | str, target: str) -> ArchiveReport:
        """Copies a file of this machine to ``target``, or into it where that is a directory."""
        found = self.client.stat(self.id, target)
        directory, name = split_target(target, Path(source).name, found is not None and found.kind == "dir")
        return self.client.upload_file(self.id, source, directory, name)

    def download_dir(
        self,
        source: str,
        target: Path | str,
        *,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        exclude_files: Sequence[str] = (),
        protect: Sequence[str] = (),
    ) -> _tar.Report:
        """See :meth:`Client.download_dir`."""
        return self.client.download_dir(
            self.id, source, target, exclude=exclude, include=include, exclude_files=exclude_files, protect=protect
        )

    def download_file(self, source: str, target: Path | str) -> None:
        """See :meth:`Client.download_file`."""
        self.client.download_file(self.id, source, target)

    def read_file(self, path: str, offset: int = 0, length: int | None = None, *, user: str | None = None) -> bytes:
        """See :meth:`Client.read_file`."""
        return self.client.read_file(self.id, path, offset, length, user=user)

    def write_file(
        self,
        path: str,
        data: bytes,
        *,
        mode: int | None = None,
        owner: str | None = None,
        create_only: bool = False,
    ) -> int:
        """See :meth:`Client.write_file`."""
        return self.client.write_file(self.id, path, data, mode=mode, owner=owner, create_only=create_only)

    def watch(self, path: str, *, recursive: bool = False) -> Generator[Change]:
        """See :meth:`Client.watch`."""
        return self.client.watch(self.id, path, recursive=recursive)

    def list_dir(self, path: str, *, user: str | None = None) -> list[DirEntry]:
        """See :meth:`Client.list_dir`."""
        return self.client.list_dir(self.id, path, user=user)

    def stat(self, path: str, user: str | None = None) -> FileStat | None:
        """See :meth:`Client.stat`."""
        return self.client.stat(self.id, path, user)
