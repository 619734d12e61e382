"""Makes a sandbox, runs `true` in it and ends it, COUNT times, one after the other: sandbox.py podman|berth COUNT

Prints the milliseconds of each as a JSON array. podman is used by its command line, Berth by its Python client: each as
its own users' programs reach it. Both give the sandbox a network with a way out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

IMAGE = "debian:bookworm"
# Caches fill; not counted.
WARM_UP = 2


def podman() -> Callable[[], None]:
    command = ["podman", "run", "--rm", IMAGE, "true"]
    return lambda: subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)


def berth() -> Callable[[], None]:
    from berth import Client

    client = Client()

    def once() -> None:
        with client.create_sandbox(IMAGE) as sandbox:
            result = sandbox.exec(["true"])
            if result.exit_code != 0:
                raise SystemExit(f"true: {result}")

    return once


def main() -> None:
    once = {"podman": podman, "berth": berth}[sys.argv[1]]()
    times = []
    for _ in range(WARM_UP + int(sys.argv[2])):
        began = time.perf_counter()
        once()
        times.append(round((time.perf_counter() - began) * 1000, 3))
    print(json.dumps(times[WARM_UP:]))


if __name__ == "__main__":
    main()
