"""Commands: run once, and picked up again where their connection was cut."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from typing import Unpack

from berth import _calls, _http, errors
from berth._calls import Call, ExecOptions, tells_gaps
from berth._endpoint import Endpoint
from berth._frames import BytesCollector, Collector, ExecReader, TextCollector
from berth._http import GIVE_UP_TIMEOUT, GONE, KILL_TIMEOUT
from berth._sync.link import Link
from berth.models import ExecBytes, ExecEvent, ExecInfo, ExecResult, ExecStatus, OutputStream

SyncOutputCallback = Callable[[str, OutputStream], None]
SyncBytesCallback = Callable[[bytes, OutputStream], None]


class Execs(Link):
    """The calls on commands."""

    def __init__(self, host: str | None, endpoint: Endpoint | None, patience: float) -> None:
        super().__init__(host, endpoint)
        self.patience = patience
        self._lock = threading.Lock()
        self._left: dict[str, set[str]] = {}

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
