"""A connection that breaks: a unix socket before a daemon's, which cuts what passes after as many bytes as it likes."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self


class CuttingProxy:
    """Passes connections on to the daemon at ``host``, and cuts each of them at some point, in either direction."""

    def __init__(self, host: str, path: Path, seed: int) -> None:
        self.host = f"unix://{path}"
        self.cuts = 0
        self._daemon = host.removeprefix("unix://")
        self._dice = random.Random(seed)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(128)

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        # Closing alone does not wake who waits for a connection.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(self._daemon)
            # A request is some hundred bytes, an answer some ten thousand.
            for source, sink, most in ((near, far, 3_000), (far, near, 60_000)):
                limit = self._dice.randrange(self._dice.choice([400, most]))
                threading.Thread(target=self._pass, args=(source, sink, limit), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, limit: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data[:limit])
                limit -= len(data)
                if limit < 0:
                    self.cuts += 1
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
