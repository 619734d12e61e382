"""What a failed call raises.

Every error of Berth's is a :class:`BerthError` with the daemon's own ``kind``, stable ``code``, message and, where one
is known, a ``hint``. The class follows the kind, so that callers can tell whose fault it is: a wrong request, a missing
thing, or the infrastructure. An infrastructure error (``is_infrastructure``) never says anything about the command or
the task that was running.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class BerthError(Exception):
    """A call that failed. Its text is the message, then the hint where there is one."""

    kind = "internal"
    """``user``, ``not_found``, ``config``, ``conflict``, ``capacity``, ``unavailable`` or ``internal``."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "internal",
        hint: str | None = None,
        details: Any = None,
        kind: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.hint = hint
        self.details = details
        if kind is not None:
            self.kind = kind

    @property
    def is_infrastructure(self) -> bool:
        """Whether the platform failed, as opposed to the request being wrong."""
        return self.kind in {"config", "capacity", "unavailable", "internal"}

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


class InvalidRequest(BerthError):
    """The request is wrong as it stands."""

    kind = "user"


class NotFound(BerthError):
    """What the request names does not exist."""

    kind = "not_found"


class ConfigError(BerthError):
    """The daemon's or the machine's set-up does not allow it."""

    kind = "config"


class Conflict(BerthError):
    """The request contradicts the present state."""

    kind = "conflict"


class CapacityError(BerthError):
    """The machine has not enough of something."""

    kind = "capacity"


class Unavailable(BerthError):
    """Something that the request depends on is away."""

    kind = "unavailable"


class InternalError(BerthError):
    """A fault of Berth's own."""

    kind = "internal"


class DaemonUnreachable(Unavailable):
    """No daemon could be reached: the request never left this process."""


class ConnectionLost(Unavailable):
    """The connection ended before the answer was complete; whether the daemon acted is unknown."""


class ProtocolError(InternalError):
    """The daemon sent something that this client does not understand."""


class OutputLost(InternalError):
    """Output of a command that is not kept any more: what is there is not all."""


class BuildFailed(BerthError):
    """An image could not be built; ``details`` names the step, the instruction and its last output."""

    kind = "user"


_BY_KIND: dict[str, type[BerthError]] = {
    cls.kind: cls
    for cls in (InvalidRequest, NotFound, ConfigError, Conflict, CapacityError, Unavailable, InternalError)
}
_KIND_BY_STATUS = {400: "user", 404: "not_found", 412: "config", 409: "conflict", 507: "capacity", 503: "unavailable"}


def from_api_error(error: Mapping[str, Any], status: int = 500) -> BerthError:
    """The exception for the API's ``ApiError`` object."""
    kind = str(error.get("kind") or _KIND_BY_STATUS.get(status, "internal"))
    code = str(error.get("code") or f"http_{status}")
    cls = BuildFailed if code == "build_failed" else _BY_KIND.get(kind, BerthError)
    return cls(
        str(error.get("message") or f"the daemon answered with status {status}"),
        code=code,
        hint=error.get("hint"),
        details=error.get("details"),
        kind=kind,
    )
