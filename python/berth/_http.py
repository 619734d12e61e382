"""From calls to HTTP and back: the part of both clients that touches httpx.

Only a request that cannot have reached the daemon (the connection was refused) is tried again. Everything that httpx
raises becomes a :class:`~berth.errors.BerthError`, and an answer that is not complete never looks like one that is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from berth import errors
from berth._calls import Call
from berth._endpoint import Endpoint
from berth.models import Progress

RETRY_PAUSES = (0.05, 0.2, 0.5, 1.0)
"""Seconds to wait before each further attempt at a refused connection."""

CONNECT_TIMEOUT = 10.0
"""Seconds for a connection to be made."""

# An exec or a build is silent for as long as it likes, and a transfer is as long as it is.
_TIMEOUT = httpx.Timeout(None, connect=CONNECT_TIMEOUT)
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=32)


PATIENCE = 60.0
"""Seconds for which an exec whose connection was cut is tried to be picked up again, since anything new has come."""

RESUME_PAUSE = 0.2
"""Seconds between two tries."""


def is_cut(error: errors.BerthError) -> bool:
    """Whether to ask again, with the same id, makes sense after ``error``: nothing is known of the exec's end."""
    return isinstance(error, errors.ConnectionLost | errors.DaemonUnreachable) or error.code == "sandbox_unresponsive"


class Patience:
    """How long to go on trying after a cut."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._seen: dict[str, int] = {}
        self.tries = 0

    def allows(self, error: errors.BerthError, seen: dict[str, int]) -> bool:
        """Whether to try again after ``error``; ``seen`` is how far things have come."""
        # A connection that was refused at the first try has started nothing.
        if not is_cut(error) or (self.tries == 0 and isinstance(error, errors.DaemonUnreachable)):
            return False
        if self._since is None or seen != self._seen:
            self._since, self._seen = time.monotonic(), dict(seen)
        self.tries += 1
        return time.monotonic() - self._since < PATIENCE

    @property
    def pause(self) -> float:
        """How long to wait before the next try; the first comes nearly at once."""
        return 0.01 if self.tries <= 1 else RESUME_PAUSE


def sync_client(endpoint: Endpoint) -> httpx.Client:
    """An httpx client for the daemon, without proxies, redirects or environment."""
    transport = httpx.HTTPTransport(uds=endpoint.socket, verify=False, limits=_LIMITS, trust_env=False)
    return httpx.Client(base_url=endpoint.base_url, transport=transport, timeout=_TIMEOUT, trust_env=False)


def async_client(endpoint: Endpoint) -> httpx.AsyncClient:
    """As :func:`sync_client`, asynchronous."""
    transport = httpx.AsyncHTTPTransport(uds=endpoint.socket, verify=False, limits=_LIMITS, trust_env=False)
    return httpx.AsyncClient(base_url=endpoint.base_url, transport=transport, timeout=_TIMEOUT, trust_env=False)


def pauses(call: Call[Any]) -> tuple[float | None, ...]:
    """One entry an attempt: how long to wait after it has been refused, or None to give up."""
    return (None,) if call.once else (*RETRY_PAUSES, None)


def request_arguments(call: Call[Any]) -> dict[str, Any]:
    """What to build the call's request from, but for a streamed body."""
    arguments: dict[str, Any] = {"method": call.method, "url": call.path}
    if call.query:
        arguments["params"] = dict(call.query)
    if call.json is not None:
        arguments["json"] = call.json
    if call.content_type:
        arguments["headers"] = {"content-type": call.content_type}
    return arguments


@contextmanager
def translated(endpoint: Endpoint) -> Iterator[None]:
    """Turns httpx's exceptions into Berth's."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise errors.DaemonUnreachable(
            f"no daemon answers at {endpoint.host}: {_reason(error)}", code="daemon_unreachable"
        ) from error
    except httpx.TransportError as error:
        raise errors.ConnectionLost(
            f"the connection to the daemon at {endpoint.host} was lost: {_reason(error)}", code="connection_lost"
        ) from error
    except httpx.StreamError as error:
        raise errors.ConnectionLost(
            f"the answer of the daemon at {endpoint.host} was cut off: {_reason(error)}", code="connection_lost"
        ) from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def parse[T](call: Call[T], response: httpx.Response) -> T:
    """The answer of a call whose response has been read."""
    if response.status_code == 404 and call.missing_ok:
        return call.parse(None)
    check(response)
    try:
        return call.parse(json.loads(response.content) if response.content else None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.ProtocolError(
            f"the answer to {call.method} {call.path} is not what this client expects", code="bad_answer"
        ) from error


def check(response: httpx.Response) -> None:
    """Raises the error that a response which has been read carries, if it does."""
    if response.is_success:
        return
    try:
        body = json.loads(response.content)["error"]
        if not isinstance(body, dict):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        text = response.content[:200].decode("utf-8", "replace").strip()
        body = {"message": f"status {response.status_code}{': ' if text else ''}{text}"}
    raise errors.from_api_error(body, response.status_code)


class ProgressReader[T]:
    """Reads an NDJSON stream of progress whose last line is the result or an error."""

    def __init__(self, call: Call[T]) -> None:
        self._call = call
        self._buffer = bytearray()
        self._result: tuple[T] | None = None

    def feed(self, data: bytes) -> Iterator[Progress]:
        """The progress that ``data`` completes; raises the error that the stream ends with."""
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        for line in lines:
            if line.strip() and (progress := self._line(line)) is not None:
                yield progress

    def result(self) -> T:
        """The result, once the stream is over."""
        if self._buffer.strip():
            self._line(bytes(self._buffer))
        if self._result is None:
            raise errors.ConnectionLost(
                f"the answer to {self._call.method} {self._call.path} ended without a result", code="connection_lost"
            )
        return self._result[0]

    def _line(self, line: bytes | bytearray) -> Progress | None:
        try:
            entry = json.loads(line)
            if "error" in entry:
                raise errors.from_api_error(entry["error"])
            if "result" in entry:
                self._result = (self._call.parse(entry["result"]),)
            return Progress.from_json(entry["progress"]) if "progress" in entry else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise errors.ProtocolError(
                "a line of progress is not what this client expects", code="bad_answer"
            ) from error
