"""The stream that an exec answers with, decoded without I/O.

A frame is one kind byte, four bytes of big-endian length, and that many bytes. :class:`ExecReader` takes whatever
pieces the network delivers and gives back text, so that a frame or a UTF-8 character may be cut anywhere. A stream that
ends without the command's end is an error, never a result.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any

from berth.errors import ConnectionLost, OutputLost, ProtocolError, from_api_error
from berth.models import ExecResult, OutputStream

STDOUT, STDERR, EVENT, ERROR = 1, 2, 3, 4
HEADER = 5
OUTPUT_HEADER = 16
"""Bytes before those of output: their offset, and when they were written in microseconds since the epoch."""
MAX_LEN = 1 << 20
"""Longest payload of a frame, in bytes."""


class FrameDecoder:
    """Cuts a byte stream into ``(kind, payload)``."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The frames that ``data`` completes."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= HEADER:
            length = int.from_bytes(self._buffer[start + 1 : start + HEADER], "big")
            if length > MAX_LEN:
                raise ProtocolError(f"a frame of {length} bytes is longer than {MAX_LEN}", code="bad_frame")
            end = start + HEADER + length
            if len(self._buffer) < end:
                break
            yield self._buffer[start], bytes(self._buffer[start + HEADER : end])
            start = end
        del self._buffer[:start]

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._buffer)


class ExecReader:
    """Turns an exec's stream, or the pieces that it was cut into, into text and an :class:`~berth.models.ExecResult`.

    After a cut :meth:`resume` tells from where on the daemon is to go on; what it sends twice is passed over, and what it
    leaves out is an error.
    """

    def __init__(self, keep: bool = True) -> None:
        """``keep``: whether the result is to hold all of the text."""
        self._keep = keep
        self._frames = FrameDecoder()
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}
        self._text: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._status: dict[str, Any] | None = None
        self.offsets = {"stdout": 0, "stderr": 0}
        """Bytes of each stream that have come."""

    def feed(self, data: bytes) -> list[tuple[OutputStream, str]]:
        """The text that ``data`` completes, in the order of arrival."""
        output: list[tuple[OutputStream, str]] = []
        for kind, payload in self._frames.feed(data):
            if kind == STDOUT:
                self._output(output, "stdout", payload)
            elif kind == STDERR:
                self._output(output, "stderr", payload)
            elif kind == EVENT:
                self._event(output, _json(payload))
            elif kind == ERROR:
                raise from_api_error(_json(payload))
            else:
                raise ProtocolError(f"a frame of kind {kind} is not known", code="bad_frame")
        return output

    def resume(self) -> dict[str, int]:
        """Forgets the rest of a stream that was cut; gives the offsets to ask for."""
        self._frames = FrameDecoder()
        return dict(self.offsets)

    @property
    def is_over(self) -> bool:
        """Whether the command's end has come."""
        return self._status is not None

    def result(self) -> ExecResult:
        """The command's end, once the stream is over."""
        if self._status is None:
            raise ConnectionLost(
                "the stream of the command's output ended before the command did; how it ended is unknown",
                code="exec_stream_closed",
            )
        text = {name: "".join(parts) for name, parts in self._text.items()}
        return ExecResult.from_json({**self._status, **text})

    def _output(self, output: list[tuple[OutputStream, str]], stream: OutputStream, payload: bytes) -> None:
        if len(payload) < OUTPUT_HEADER:
            raise ProtocolError("a frame of output is too short", code="bad_frame")
        at, offset = self.offsets[stream], int.from_bytes(payload[:8], "big")
        if offset > at:
            raise ProtocolError(f"{stream} goes on at byte {offset}, not at {at}", code="bad_offset")
        data = memoryview(payload)[OUTPUT_HEADER + at - offset :]
        self.offsets[stream] = at + len(data)
        self._decode(output, stream, data)

    def _decode(
        self,
        output: list[tuple[OutputStream, str]],
        stream: OutputStream,
        payload: bytes | memoryview,
        final: bool = False,
    ) -> None:
        text = self._decoders[stream].decode(payload, final)
        if text:
            if self._keep:
                self._text[stream].append(text)
            output.append((stream, text))

    def _event(self, output: list[tuple[OutputStream, str]], event: dict[str, Any]) -> None:
        # Events of a newer daemon that this client does not know say nothing about output or end.
        match event.get("event"):
            case "exited":
                self._decode(output, "stdout", b"", final=True)
                self._decode(output, "stderr", b"", final=True)
                self._status = event
            case "gap":
                stream, start, end = event["stream"], event["from"], event["to"]
                if end > self.offsets[stream]:
                    raise OutputLost(
                        f"the command's {stream} from byte {max(start, self.offsets[stream])} to {end} is not kept any more",
                        code="output_gone",
                    )


def _json(payload: bytes) -> dict[str, Any]:
    try:
        value = json.loads(payload)
    except ValueError as error:
        raise ProtocolError("a frame does not hold JSON", code="bad_frame") from error
    if not isinstance(value, dict):
        raise ProtocolError("a frame does not hold a JSON object", code="bad_frame")
    return value
