"""The connection to one daemon: calls, streams both ways, and what is tried again."""

from __future__ import annotations

import asyncio
import concurrent.futures
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, Self

import httpx

from berth import _http, _tar, errors
from berth._calls import Call
from berth._endpoint import Endpoint, locate
from berth.models import ArchiveReport, ProgressCallback

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


class Link:
    """Speaks HTTP to one daemon from one event loop; connections are kept until :meth:`aclose`."""

    def __init__(self, host: str | None, endpoint: Endpoint | None) -> None:
        self._host = host
        self._endpoint = endpoint
        self._http: httpx.AsyncClient | None = None
        self._opening = asyncio.Lock()
        self._contact = _http.Contact()

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


async def _in_worker_chunks(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    while (chunk := await loop.run_in_executor(_workers, next, chunks, None)) is not None:
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
        await settle(_outcome(work), _http.KILL_TIMEOUT)
        raise


async def _outcome(work: asyncio.Future[Any]) -> None:
    await work
