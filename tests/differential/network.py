"""Where the suite's daemon lives, and what its builds can reach: two network namespaces, apart from this machine's.

    builds ── daemon's namespace, 11.0.0.1 ── veth ── outside, 11.0.0.2: web servers of scenarios

A build's own network is the internet's side only, so a server on loopback would be none for it. The address is a public one,
but nothing of it leaves the two namespaces.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

OUTSIDE = "11.0.0.2"
CLONE_NEWNET = 0x40000000


class Network:
    def __init__(self) -> None:
        self.holders = [subprocess.Popen(["unshare", "--net", "sleep", "infinity"]) for _ in range(2)]
        inner, outer = (holder.pid for holder in self.holders)
        ours = os.readlink("/proc/self/ns/net")
        try:
            for pid in (inner, outer):
                while os.readlink(f"/proc/{pid}/ns/net") == ours:
                    time.sleep(0.01)
            self.ip("link", "add", "inner", "netns", str(inner), "type", "veth", "peer", "name", "outer", "netns", str(outer))
            for pid, name, address in ((inner, "inner", "11.0.0.1"), (outer, "outer", OUTSIDE)):
                self.ip("link", "set", "lo", "up", within=pid)
                self.ip("addr", "add", f"{address}/24", "dev", name, within=pid)
                self.ip("link", "set", name, "up", within=pid)
            self.ip("route", "add", "default", "via", OUTSIDE, within=inner)
        except BaseException:
            self.stop()
            raise

    @staticmethod
    def ip(*argv: str, within: int | None = None) -> None:
        enter = ["nsenter", "--net", "--target", str(within)] if within else []
        subprocess.run([*enter, "ip", *argv], check=True)

    @property
    def enter(self) -> list[str]:
        """What a program is started by that lives where the daemon does."""
        return ["nsenter", "--net", "--target", str(self.holders[0].pid)]

    def listen(self) -> socket.socket:
        """A socket outside, on a port of its own."""
        made: list[socket.socket] = []

        def make() -> None:
            # A thread's namespace is its own; the socket stays where it was made.
            with Path(f"/proc/{self.holders[1].pid}/ns/net").open() as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) != 0:
                    return
            made.append(socket.create_server((OUTSIDE, 0)))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        assert made, "cannot listen outside"
        return made[0]

    def stop(self) -> None:
        for holder in self.holders:
            holder.kill()
            holder.wait()
