"""The process's lease: what deletes its sandboxes when it dies without having done so.

A thread of its own renews it, so that a blocked event loop loses nothing. One process has one lease per daemon; a fork
makes its own.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading

from berth._endpoint import Endpoint
from berth._sync import Client
from berth.errors import BerthError, NotFound

TTL = 60
"""Seconds that the lease lasts from each renewal."""

INTERVAL = 15.0
"""Seconds between renewals."""

_RETRY = 2.0
_keepers: dict[tuple[int, str], LeaseKeeper] = {}
_lock = threading.Lock()
_log = logging.getLogger(__name__)


def process_lease(endpoint: Endpoint) -> str:
    """The id of this process's living lease with that daemon; made at the first call. Blocks."""
    key = (os.getpid(), endpoint.host)
    with _lock:
        keeper = _keepers.get(key)
        if keeper is None:
            keeper = _keepers[key] = LeaseKeeper(endpoint)
            atexit.register(keeper.end)
    return keeper.current()


class LeaseKeeper:
    """Makes a lease when one is first needed, and renews it until :meth:`end`."""

    def __init__(self, endpoint: Endpoint, ttl: int = TTL, interval: float = INTERVAL) -> None:
        self._client = Client(endpoint=endpoint)
        self._ttl = ttl
        self._interval = interval
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._lease: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def current(self) -> str:
        """The lease's id; a new lease when there is none or the old one has run out."""
        with self._lock:
            if self._lease is None:
                self._lease = self._client.create_lease(self._ttl).id
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="berth-lease", daemon=True)
                self._thread.start()
            return self._lease

    def end(self) -> None:
        """Stops renewing and gives the lease back, which deletes the sandboxes that still carry it."""
        if os.getpid() != self._pid:
            return
        self._stop.set()
        with self._lock:
            lease, self._lease = self._lease, None
        if lease is not None:
            with contextlib.suppress(BerthError, RuntimeError):
                self._client.delete_lease(lease)

    def _run(self) -> None:
        pause = self._interval
        while not self._stop.wait(pause):
            with self._lock:
                lease = self._lease
            pause = self._interval if lease is None or self._renew(lease) else _RETRY

    def _renew(self, lease: str) -> bool:
        try:
            self._client.renew_lease(lease, self._ttl)
        except NotFound:
            _log.warning("the lease %s ran out, and its sandboxes are gone; was this process suspended?", lease)
            with self._lock:
                self._lease = None
        except BerthError as error:
            _log.debug("could not renew the lease %s: %s", lease, error)
            return False
        return True
