"""From calls to HTTP and back: the part of both clients that touches httpx.

A request that cannot have reached the daemon (the connection was refused) is tried again, and so is one that does no harm
when it arrives twice. Everything that httpx raises becomes a :class:`~berth.errors.BerthError`, and an answer that is not
complete never looks like one that is.

Trailers do not reach httpx's callers, so archives are asked for without: one that breaks off then breaks the connection.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from berth import errors
from berth._calls import Call
from berth._endpoint import Endpoint
from berth.models import Change, Progress

RETRY_PAUSES = (0.05, 0.2, 0.5, 1.0)
"""Seconds to wait before each further attempt at a refused connection."""

CONNECT_TIMEOUT = 10.0
"""Seconds for a connection to be made."""

# An exec or a build is silent for as long as it likes, and a transfer is as long as it is.
_TIMEOUT = httpx.Timeout(None, connect=CONNECT_TIMEOUT)
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=32)


RESTART_PAUSES = (*RETRY_PAUSES, 1.0, 1.5)
"""The same for a daemon that has answered before: it may be starting anew."""

AWAY = 30.0
"""Seconds for which a daemon that did not answer is asked only once a call, so that a clean-up of many calls ends soon."""

PATIENCE = 300.0
"""Seconds for which a command whose connection was cut is tried to be picked up again: as long as sandboxes live on without
their daemon, if nothing else is configured."""

RESUME_PAUSE = 0.2
"""Seconds between two tries."""

HOLDS = 5.0
"""Seconds after which a connection that was made again counts as one, so that patience starts afresh."""


KILL_TIMEOUT = 30.0
"""How long a cancelled exec waits for its processes to be dead, in seconds."""

GIVE_UP_TIMEOUT = 5.0
"""The same for an exec whose daemon has been waited for in vain."""

GONE = ("sandbox_not_found", "sandbox_ended", "sandbox_lost", "sandbox_not_running", "exec_not_found")
"""Codes of errors that say that nothing of a sandbox runs any more, or of a command."""


def is_cut(error: errors.BerthError) -> bool:
    """Whether to ask again, with the same id, makes sense after ``error``: nothing is known of the exec's end."""
    if isinstance(error, errors.ConnectionLost):
        return error.code != "cancelled"
    return isinstance(error, errors.DaemonUnreachable) or error.code in ("sandbox_unresponsive", "shutting_down")


def may_feed_on(error: errors.BerthError) -> bool:
    """Whether a command may be given the rest of its input after ``error``. It may have been taken by this very client, as
    it asked for the command again after a cut."""
    return is_cut(error) or error.code == "stdin_taken"


class Patience:
    """How long to go on trying after a cut."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._since: float | None = None
        self._attached: float | None = None
        self._seen: dict[str, int] = {}
        self.tries = 0

    def attached(self) -> None:
        """The daemon has said that it goes on with the command."""
        if self._attached is None:
            self._attached = time.monotonic()

    def allows(
        self,
        error: errors.BerthError,
        seen: dict[str, int],
        may_repeat: Callable[[errors.BerthError], bool] = is_cut,
    ) -> bool:
        """Whether to try again after ``error``; ``seen`` is how far things have come."""
        # A request that was refused at the first try has started nothing.
        refused = isinstance(error, errors.DaemonUnreachable) or error.code == "shutting_down"
        if not may_repeat(error) or (self.tries == 0 and refused and self._attached is None):
            return False
        now = time.monotonic()
        held = self._attached is not None and now - self._attached >= HOLDS
        if self._since is None or held or seen != self._seen:
            self._since, self._seen = now, dict(seen)
        self._attached = None
        self.tries += 1
        return now - self._since < self._limit

    @property
    def pause(self) -> float:
        """How long to wait before the next try; the first comes nearly at once."""
        return 0.01 if self.tries <= 1 else RESUME_PAUSE


def may_repeat(call: Call[Any], error: errors.Unavailable) -> bool:
    """Whether a call that failed with ``error`` may be made again."""
    return isinstance(error, errors.DaemonUnreachable) or (call.repeats and isinstance(error, errors.ConnectionLost))


class Contact:
    """Whether the daemon was there lately, which decides how often a call is tried."""

    def __init__(self) -> None:
        self._met = False
        self._away: float | None = None

    def pauses(self, call: Call[Any]) -> tuple[float | None, ...]:
        """One entry an attempt: how long to wait after it has failed, or None to give up."""
        away = self._away is not None and time.monotonic() - self._away < AWAY
        if call.once or away:
            return (None,)
        return (*(RESTART_PAUSES if self._met else RETRY_PAUSES), None)

    def answered(self) -> None:
        """The daemon has answered."""
        self._met, self._away = True, None

    def failed(self) -> None:
        """The last attempt of a call has failed, as nobody is there."""
        if self._away is None or time.monotonic() - self._away >= AWAY:
            self._away = time.monotonic()


def sync_client(endpoint: Endpoint) -> httpx.Client:
    """An httpx client for the daemon, without proxies, redirects or environment."""
    transport = httpx.HTTPTransport(uds=endpoint.socket, verify=False, limits=_LIMITS, trust_env=False)
    return httpx.Client(base_url=endpoint.base_url, transport=transport, timeout=_TIMEOUT, trust_env=False)


def async_client(endpoint: Endpoint) -> httpx.AsyncClient:
    """As :func:`sync_client`, asynchronous."""
    transport = httpx.AsyncHTTPTransport(uds=endpoint.socket, verify=False, limits=_LIMITS, trust_env=False)
    return httpx.AsyncClient(base_url=endpoint.base_url, transport=transport, timeout=_TIMEOUT, trust_env=False)


def request_arguments(call: Call[Any]) -> dict[str, Any]:
    """What to build the call's request from, but for a streamed body."""
    arguments: dict[str, Any] = {"method": call.method, "url": call.path}
    if call.query:
        arguments["params"] = dict(call.query)
    if call.json is not None:
        arguments["json"] = call.json
    if call.body is not None:
        arguments["content"] = call.body
    headers = dict(call.headers)
    if call.content_type:
        headers["content-type"] = call.content_type
    if headers:
        arguments["headers"] = headers
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


class Lines:
    """Cuts a byte stream into lines."""

    def __init__(self) -> None:
        self.rest = bytearray()
        """What is not followed by a line's end."""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completes, but for empty ones."""
        self.rest += data
        *lines, self.rest = self.rest.split(b"\n")
        return [bytes(line) for line in lines if line.strip()]


def change(line: bytes) -> Change:
    """What a line of a watch tells; raises the error that it ends with."""
    try:
        entry = json.loads(line)
        if "error" in entry:
            raise errors.from_api_error(entry["error"])
        return Change.from_json(entry)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.ProtocolError("a line of changes is not what this client expects", code="bad_answer") from error


class ProgressReader[T]:
    """Reads an NDJSON stream of progress whose last line is the result or an error."""

    def __init__(self, call: Call[T]) -> None:
        self._call = call
        self._lines = Lines()
        self._result: tuple[T] | None = None

    def feed(self, data: bytes) -> Iterator[Progress]:
        """The progress that ``data`` completes; raises the error that the stream ends with."""
        for line in self._lines.feed(data):
            if (progress := self._line(line)) is not None:
                yield progress

    def result(self) -> T:
        """The result, once the stream is over."""
        if self._lines.rest.strip():
            self._line(bytes(self._lines.rest))
        if self._result is None:
            raise errors.ConnectionLost(
                f"the answer to {self._call.method} {self._call.path} ended without a result", code="connection_lost"
            )
        return self._result[0]

    def _line(self, line: bytes) -> Progress | None:
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
