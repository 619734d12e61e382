"""The exec stream's decoder."""

from __future__ import annotations

import json

import pytest
from berth import BerthError, ConnectionLost, ExecResult, OutputGap, OutputLost, ProtocolError
from berth._frames import MAX_LEN, ExecReader, FrameDecoder, TextCollector


def frame(kind: int, payload: bytes) -> bytes:
    return bytes([kind]) + len(payload).to_bytes(4, "big") + payload


def output(kind: int, offset: int, data: bytes) -> bytes:
    return frame(kind, offset.to_bytes(8, "big") + bytes(8) + data)


def exited(code: int = 0, reason: str = "exited") -> bytes:
    return frame(
        3, json.dumps({"event": "exited", "exit_code": code, "reason": reason, "duration_ms": 7, "new": 1}).encode()
    )


class Reader(ExecReader):
    """Reads and collects, as the clients do."""

    def __init__(self, **how: bool) -> None:
        super().__init__()
        self.collector = TextCollector(**how)

    def text(self, data: bytes) -> list[tuple[str, str]]:
        found = [(event.stream, self.collector.add(event)) for event in self.feed(data)]
        if self.status is not None:
            found += self.collector.end()
        return [(stream, text) for stream, text in found if text]

    def result(self) -> ExecResult:
        self.check_end()
        return self.collector.result(self.status or {})


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_any_cut_gives_the_same_result(step: int) -> None:
    started = frame(3, b'{"event": "started", "id": "x", "program": "/bin/sh"}')
    stream = started + output(1, 0, "zwölf €".encode()) + output(2, 0, b"err\r\0\n") + output(1, 10, b"") + exited(3)
    reader = Reader()
    told = [piece for at in range(0, len(stream), step) for piece in reader.text(stream[at : at + step])]
    result = reader.result()
    assert (result.stdout, result.stderr, result.exit_code, result.duration_ms) == ("zwölf €", "err\r\0\n", 3, 7)
    assert "".join(text for stream, text in told if stream == "stdout") == "zwölf €"


def test_a_character_cut_between_frames_is_whole() -> None:
    reader = Reader()
    euro = "€".encode()
    for piece in (output(1, 0, euro[:1]), output(2, 0, b"!"), output(1, 1, euro[1:]), exited()):
        reader.text(piece)
    assert reader.result().stdout == "€"


def test_invalid_utf8_is_replaced_also_at_the_end() -> None:
    reader = Reader()
    reader.text(output(1, 0, b"a\xff") + output(1, 2, "€".encode()[:2]))
    assert reader.text(exited()) == [("stdout", "\N{REPLACEMENT CHARACTER}")]
    assert reader.result().stdout == "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"


def test_no_end_is_no_result() -> None:
    reader = Reader()
    reader.text(output(1, 0, b"half"))
    with pytest.raises(ConnectionLost):
        reader.result()


def test_an_error_frame_is_raised_with_its_kind() -> None:
    error = {"code": "sandbox_lost", "kind": "unavailable", "message": "it died", "hint": "look"}
    with pytest.raises(BerthError, match=r"it died \(hint: look\)") as caught:
        Reader().text(frame(4, json.dumps(error).encode()))
    assert caught.value.code == "sandbox_lost"
    assert caught.value.is_infrastructure


@pytest.mark.parametrize("again", range(11))
def test_after_a_cut_nothing_comes_twice_and_nothing_is_missing(again: int) -> None:
    text = "zwölf €".encode()
    reader = Reader()
    cut = output(1, 0, text[:4]) + output(2, 0, b"err") + output(1, 4, text[4:])[:9]
    told = [piece for at in range(0, len(cut), 5) for piece in reader.text(cut[at : at + 5])]
    assert reader.resume() == {"stdout": 4, "stderr": 3}
    start = min(again, 4)
    told += reader.text(output(2, 0, b"er") + output(1, start, text[start:]) + exited(4))
    assert "".join(text for stream, text in told if stream == "stdout") == "zwölf €"
    assert (reader.result().stdout, reader.result().stderr, reader.result().exit_code) == ("zwölf €", "err", 4)


def test_output_that_is_missing_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="at byte 5, not at 0"):
        Reader().text(output(1, 5, b"late"))
    gap = frame(3, json.dumps({"event": "gap", "stream": "stdout", "from": 0, "to": 5}).encode())
    with pytest.raises(OutputLost, match="stdout from byte 0 to 5"):
        Reader().text(gap)
    with pytest.raises(ProtocolError, match="missing from byte 5"):
        Reader().text(frame(3, json.dumps({"event": "gap", "stream": "stdout", "from": 5, "to": 9}).encode()))


def test_output_that_may_be_dropped_is_told() -> None:
    gap = frame(3, json.dumps({"event": "gap", "stream": "stdout", "from": 2, "to": 7}).encode())
    reader = Reader(tell_gaps=True)
    told = reader.text(output(1, 0, b"a" + "€".encode()[:1]) + gap + output(1, 5, b"xxb") + exited())
    # What of a character came before the gap is no character.
    assert told == [("stdout", "a"), ("stdout", "\N{REPLACEMENT CHARACTER}"), ("stdout", "b")]
    assert reader.result().stdout == "a\N{REPLACEMENT CHARACTER}b"
    assert reader.result().gaps == [OutputGap("stdout", 2, 7)]


def test_who_collects_nothing_is_told_everything() -> None:
    reader = Reader(keep=False)
    assert reader.text(output(1, 0, b"all") + exited()) == [("stdout", "all")]
    assert (reader.result().stdout, reader.result().exit_code) == ("", 0)


@pytest.mark.parametrize(
    "bad", [frame(1, b"short"), frame(9, b""), frame(3, b"nonsense"), frame(3, b"[]"), bytes([1]) + b"\xff" * 4]
)
def test_what_is_no_frame_is_refused(bad: bytes) -> None:
    with pytest.raises(ProtocolError):
        Reader().text(bad)


def test_the_longest_frame_passes() -> None:
    decoder = FrameDecoder()
    assert [len(payload) for _, payload in decoder.feed(frame(1, bytes(MAX_LEN)))] == [MAX_LEN]
    assert decoder.pending == 0
