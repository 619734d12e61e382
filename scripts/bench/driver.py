"""Times commands inside the benchmark's root, for `cargo xtask bench trial`.

Starts podman's API service and gives it the base image; then reads requests from stdin and answers on stdout, one
JSON object a line, until stdin ends:

    {"argv": ["harbor", ...], "env": {"NAME": "VALUE"}, "timeout": 900}
    {"seconds": 1.234, "status": 0, "output": "the end of what it printed"}

The first line answered is {"versions": {...}}.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SOCKET = Path("/run/podman/podman.sock")
BASE = "docker.io/library/debian:bookworm"
BASE_TAR = "/bench/bookworm.tar"
# A longer output is told by its end.
TAIL = 4000
ENVIRONMENT = {
    **os.environ,
    "DOCKER_HOST": f"unix://{SOCKET}",
    # Compose's BuildKit client does not speak to podman.
    "DOCKER_BUILDKIT": "0",
    "PODMAN_COMPOSE_PROVIDER": "/usr/bin/docker-compose",
    "PYTHONPATH": "/bench/scripts",
    # Harbor's own traffic: there is no way out of here anyhow.
    "HARBOR_TELEMETRY": "off",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "NO_COLOR": "1",
    "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
}
# runc, since crun refuses hybrid control groups. The limits, since raising them takes a capability that root may lack.
CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
compose_warning_logs = false
"""


def check(*argv: str) -> str:
    done = subprocess.run(argv, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


@contextlib.contextmanager
def podman() -> Iterator[None]:
    """podman's API service, for as long as this lasts."""
    SOCKET.parent.mkdir(parents=True, exist_ok=True)
    Path("/etc/containers/containers.conf").write_text(CONTAINERS_CONF)
    with Path("/var/log/podman.log").open("w") as log:
        service = subprocess.Popen(
            ["podman", "system", "service", "--time=0", f"unix://{SOCKET}"],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 30
        while not SOCKET.exists():
            if service.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("podman's service did not start:\n" + Path("/var/log/podman.log").read_text()[-TAIL:])
            time.sleep(0.05)
        yield
    finally:
        service.terminate()
        service.wait()


def give_base() -> None:
    exists = subprocess.run(["podman", "image", "exists", BASE], env=ENVIRONMENT, stdin=subprocess.DEVNULL)
    if exists.returncode != 0:
        check("podman", "import", "--change", "CMD [\"bash\"]", BASE_TAR, BASE)


def versions() -> dict[str, str]:
    harbor = "import importlib.metadata as m; print(m.version('harbor'), f'(certifi {m.version(\"certifi\")})')"
    return {
        "harbor": check("/opt/harbor/bin/python", "-c", harbor),
        "podman": check("podman", "--version").removeprefix("podman version "),
        "compose": check("docker-compose", "version", "--short"),
        "runc": check("runc", "--version").splitlines()[0].removeprefix("runc version "),
    }


def timed(request: dict[str, object]) -> dict[str, object]:
    """Runs one command; one that does not end in time is ended with what it started."""
    with tempfile.TemporaryFile() as output:
        began = time.monotonic()
        process = subprocess.Popen(
            request["argv"],
            env=ENVIRONMENT | request.get("env", {}),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        # Not Popen.wait(timeout), which looks up to 50 ms too late.
        ended = os.pidfd_open(process.pid)
        in_time = select.select([ended], [], [], request["timeout"])[0]
        seconds = time.monotonic() - began
        os.close(ended)
        if not in_time:
            os.killpg(process.pid, signal.SIGKILL)
            print(f"bench: ended after {request['timeout']} s: {' '.join(request['argv'])}", file=sys.stderr)
        status = process.wait()
        output.seek(max(0, output.seek(0, os.SEEK_END) - TAIL))
        return {"seconds": seconds, "status": status, "output": output.read().decode(errors="replace")}


def answer(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


def main() -> None:
    # An interrupted benchmark ends by the end of stdin.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with podman():
        give_base()
        answer({"versions": versions()})
        for line in sys.stdin:
            answer(timed(json.loads(line)))


if __name__ == "__main__":
    main()
