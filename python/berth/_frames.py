"""The stream that an exec answers with, decoded without I/O.

A frame is one kind byte, four bytes of big-endian length, and that many bytes. :class:`ExecReader` takes whatever
pieces the network delivers and gives back events, :class:`Collector` makes of them what a caller wants; a frame or a UTF-8
character may be cut anywhere. A stream that ends without the command's end is an error, never a result.
"""

from __future__ import annotations

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from berth.errors import ConnectionLost, OutputLost, ProtocolError, from_api_error
from berth.models import ExecBytes, ExecOutput, ExecResult, ExecStatus, OutputGap, OutputStream

STDOUT, STDERR, EVENT, ERROR = 1, 2, 3, 4
HEADER = 5
OUTPUT_HEADER = 16
"""Bytes before those of output: their offset, and when they were written in microseconds since the epoch."""
MAX_LEN = 1 << 20
"""Longest payload of a frame, in bytes."""


class FrameDecoder:
    """Cuts a byte stream into ``(kind, payload)``."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, memoryview]]:
        """The frames that ``data`` completes."""
        if self._rest:
            data = self._rest + data
        whole, start = memoryview(data), 0
        while len(data) - start >= HEADER:
            length = int.from_bytes(whole[start + 1 : start + HEADER], "big")
            if length > MAX_LEN:
                raise ProtocolError(f"a frame of {length} bytes is longer than {MAX_LEN}", code="bad_frame")
            end = start + HEADER + length
            if len(data) < end:
                break
            yield data[start], whole[start + HEADER : end]
            start = end
        self._rest = data[start:]

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._rest)


class ExecReader:
    """Turns an exec's stream, or the pieces that it was cut into, into events, each byte once and in its place.

    After a cut :meth:`resume` tells from where on the daemon is to go on. What it sends twice is passed over; what it leaves
    out must have been told by a gap.
    """

    def __init__(self, stdout: int = 0, stderr: int = 0) -> None:
        """Where the stream is asked to begin."""
        self._frames = FrameDecoder()
        self.offsets = {"stdout": stdout, "stderr": stderr}
        """How far each stream has come, in bytes."""
        self.has_started = False
        """Whether the daemon has said, on the present connection, that the command runs."""
        self.is_detached = False
        """Whether all that there is has come while the command runs on."""
        self.status: dict[str, Any] | None = None
        """The command's end, as the daemon tells it, once that has come."""

    def feed(self, data: bytes) -> Iterator[ExecOutput | OutputGap]:
        """What ``data`` completes, in the order of arrival."""
        for kind, payload in self._frames.feed(data):
            event: ExecOutput | OutputGap | None = None
            if kind == STDOUT:
                event = self._output("stdout", payload)
            elif kind == STDERR:
                event = self._output("stderr", payload)
            elif kind == EVENT:
                event = self._event(_json(payload))
            elif kind == ERROR:
                raise from_api_error(_json(payload))
            else:
                raise ProtocolError(f"a frame of kind {kind} is not known", code="bad_frame")
            if event is not None:
                yield event

    def resume(self) -> dict[str, int]:
        """Forgets the rest of a stream that was cut; gives the offsets to ask for."""
        self._frames = FrameDecoder()
        self.has_started = False
        return dict(self.offsets)

    def check_end(self) -> None:
        """Raises unless the stream, which is over, was complete."""
        if self.status is None and not self.is_detached:
            raise ConnectionLost(
                "the stream of the command's output ended before the command did; how it ended is unknown",
                code="exec_stream_closed",
            )

    def _output(self, stream: OutputStream, payload: memoryview) -> ExecOutput | None:
        if len(payload) < OUTPUT_HEADER:
            raise ProtocolError("a frame of output is too short", code="bad_frame")
        at, offset = self.offsets[stream], int.from_bytes(payload[:8], "big")
        if offset > at:
            raise ProtocolError(f"{stream} goes on at byte {offset}, not at {at}", code="bad_offset")
        data = bytes(payload[OUTPUT_HEADER + at - offset :])
        if not data:
            return None
        self.offsets[stream] = at + len(data)
        return ExecOutput(stream, at, int.from_bytes(payload[8:OUTPUT_HEADER], "big"), data)

    def _event(self, event: dict[str, Any]) -> OutputGap | None:
        # Events of a newer daemon that this client does not know say nothing about output or end.
        match event.get("event"):
            case "started":
                self.has_started = True
            case "exited":
                self.status = event
            case "detached":
                self.is_detached = True
            case "gap":
                return self._gap(event["stream"], event["from"], event["to"])
        return None

    def _gap(self, stream: OutputStream, start: int, end: int) -> OutputGap | None:
        at = self.offsets[stream]
        if start > at:
            raise ProtocolError(
                f"{stream} is missing from byte {start} on, before what is there at {at}", code="bad_offset"
            )
        if end <= at:
            return None
        self.offsets[stream] = end
        return OutputGap(stream, at, end)


class Collector[P: (str, bytes), R: ExecStatus](ABC):
    """What a caller wants of a command: its output in pieces, and the result."""

    def __init__(self, keep: bool = True, tell_gaps: bool = False) -> None:
        """``keep``: whether the result is to hold the output. ``tell_gaps``: whether output that is missing is told in the
        result; otherwise it is an error, :class:`~berth.errors.OutputLost`."""
        self._keep = keep
        self._tell_gaps = tell_gaps
        self._kept: dict[str, list[P]] = {"stdout": [], "stderr": []}
        self._gaps: list[OutputGap] = []

    def add(self, event: ExecOutput | OutputGap) -> P:
        """The piece that ``event`` completes; it may be empty."""
        if isinstance(event, OutputGap):
            if not self._tell_gaps:
                raise OutputLost(
                    f"the command's {event.stream} from byte {event.start} to {event.end} is not kept any more",
                    code="output_gone",
                    details=event,
                )
            self._gaps.append(event)
            return self._take(event.stream, self._break(event.stream))
        return self._take(event.stream, self._piece(event))

    def end(self) -> list[tuple[OutputStream, P]]:
        """What is left once the command is over."""
        streams: tuple[OutputStream, ...] = ("stdout", "stderr")
        return [(stream, piece) for stream in streams if (piece := self._take(stream, self._break(stream)))]

    @abstractmethod
    def result(self, status: Mapping[str, Any]) -> R:
        """The result, from the command's end."""

    def _take(self, stream: OutputStream, piece: P) -> P:
        if piece and self._keep:
            self._kept[stream].append(piece)
        return piece

    @abstractmethod
    def _piece(self, event: ExecOutput) -> P: ...

    @abstractmethod
    def _break(self, stream: OutputStream) -> P:
        """What is pending of a stream that does not go on."""


class TextCollector(Collector[str, ExecResult]):
    """Output as text."""

    def __init__(self, keep: bool = True, tell_gaps: bool = False) -> None:
        super().__init__(keep, tell_gaps)
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}

    def _piece(self, event: ExecOutput) -> str:
        return self._decoders[event.stream].decode(event.data)

    def _break(self, stream: OutputStream) -> str:
        return self._decoders[stream].decode(b"", True)

    def result(self, status: Mapping[str, Any]) -> ExecResult:
        text = {name: "".join(parts) for name, parts in self._kept.items()}
        return ExecResult.from_json({**status, **text, "gaps": self._gaps})


class BytesCollector(Collector[bytes, ExecBytes]):
    """Output as it is."""

    def _piece(self, event: ExecOutput) -> bytes:
        return event.data

    def _break(self, stream: OutputStream) -> bytes:
        return b""

    def result(self, status: Mapping[str, Any]) -> ExecBytes:
        data = {name: b"".join(parts) for name, parts in self._kept.items()}
        return ExecBytes.from_json({**status, **data, "gaps": self._gaps})


def _json(payload: memoryview) -> dict[str, Any]:
    try:
        value = json.loads(bytes(payload))
    except ValueError as error:
        raise ProtocolError("a frame does not hold JSON", code="bad_frame") from error
    if not isinstance(value, dict):
        raise ProtocolError("a frame does not hold a JSON object", code="bad_frame")
    return value
