"""The connection to one daemon: calls, streams both ways, and what is tried again."""

from __future__ import annotations

import tarfile
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import httpx

from berth import _http, _tar, errors
from berth._calls import Call
from berth._endpoint import Endpoint, locate
from berth.models import ArchiveReport, ProgressCallback


class Link:
    """Speaks HTTP to one daemon; safe to share between threads."""

    def __init__(self, host: str | None, endpoint: Endpoint | None) -> None:
        self.endpoint = endpoint or locate(host)
        self._http = _http.sync_client(self.endpoint)
        self._contact = _http.Contact()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

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
