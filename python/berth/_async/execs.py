"""Commands: run once, and picked up again where their connection was cut."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, Unpack

import httpx

from berth import _calls, _http, errors
from berth._async.link import Link, settle
from berth._calls import Call, ExecOptions, tells_gaps
from berth._endpoint import Endpoint
from berth._frames import BytesCollector, Collector, ExecReader, TextCollector
from berth._http import GIVE_UP_TIMEOUT, GONE, KILL_TIMEOUT
from berth.models import ExecBytes, ExecEvent, ExecInfo, ExecResult, ExecStatus, OutputStream

OutputCallback = Callable[[str, OutputStream], Awaitable[None]]
BytesCallback = Callable[[bytes, OutputStream], Awaitable[None]]


class Execs(Link):
    """The calls on commands."""

    def __init__(self, host: str | None, endpoint: Endpoint | None, patience: float) -> None:
        super().__init__(host, endpoint)
        self.patience = patience
        self._left: dict[str, set[str]] = {}

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
