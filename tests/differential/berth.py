"""Berth's side: a daemon of its own, builds through the command line, and what is in an image."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from network import Network

HERE = Path(__file__).resolve().parent
# Layers lie below the data directory itself, so that they can be mounted here as a sandbox has them mounted. Limits of
# storage are another suite's matter.
CONFIG = '[disk]\nengine = "plain"\nreserve_mb = 256\n[limits]\nallow_unenforced_storage = true\n'
MOUNT = (
    "mount -t tmpfs tmpfs /mnt && mkdir /mnt/empty /mnt/tree && cd \"$1\" && "
    'mount -t overlay overlay -o "lowerdir=$2:/mnt/empty" /mnt/tree && exec python3 -B "$3" /mnt/tree'
)


@dataclass
class Built:
    """What became of a build."""

    code: int
    output: str
    result: dict | None = None

    @property
    def id(self) -> str:
        return self.result["image"]["id"]

    @property
    def warnings(self) -> list[tuple[str, int]]:
        return sorted((one["check"], one["line"]) for one in self.result.get("warnings", []))


class Berth:
    """A private daemon in `work`; the binary is `binary`."""

    def __init__(self, binary: str, work: Path) -> None:
        self.binary, self.work, self.data = binary, work, work / "berth"
        self.socket = f"unix://{work}/socket"
        self.log = (work / "daemon.log").open("w")
        (work / "berth.toml").write_text(CONFIG)
        argv = [binary, "serve", "--host", self.socket, "--data-dir", str(self.data), "--config", str(work / "berth.toml")]
        self.network = Network()
        self.daemon = subprocess.Popen([*self.network.enter, *argv], stdout=self.log, stderr=self.log)
        for _ in range(300):
            if self.run("version").returncode == 0:
                return
            if self.daemon.poll() is not None:
                break
            time.sleep(0.1)
        self.stop()
        raise SystemExit(f"the daemon does not start:\n{(work / 'daemon.log').read_text()[-3000:]}")

    def stop(self) -> None:
        self.daemon.send_signal(signal.SIGTERM)
        try:
            self.daemon.wait(30)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            self.daemon.wait()
        self.network.stop()
        self.log.close()

    def run(self, *argv: str, env: dict[str, str] | None = None, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Any command of Berth's."""
        whole = os.environ | {"BERTH_HOST": self.socket, "NO_COLOR": "1"} | (env or {})
        return subprocess.run(
            [self.binary, *argv], capture_output=True, text=True, errors="replace", check=False, env=whole, timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def must(self, *argv: str) -> str:
        done = self.run(*argv)
        if done.returncode != 0:
            raise AssertionError(f"berth {' '.join(argv)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
        return done.stdout

    def build(self, context: Path, *args: str, env: dict[str, str] | None = None) -> Built:
        done = self.run("image", "build", str(context), "--json", *args, env=env)
        return Built(done.returncode, done.stderr, json.loads(done.stdout) if done.returncode == 0 else None)

    def image(self, id_: str) -> tuple[dict, dict[str, str]]:
        """An image's whole config, and its tree."""
        config = json.loads((self.data / "images" / f"{id_.removeprefix('sha256:')}.json").read_text())
        layers = [digest.removeprefix("sha256:")[:24] for digest in reversed(config["rootfs"]["diff_ids"])]
        if not layers:
            return config, {}
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", MOUNT, "sh"]
        argv += [str(self.data / "layers"), ":".join(dict.fromkeys(layers)), str(HERE / "tree.py")]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise AssertionError(f"the layers of {id_} cannot be mounted: {done.stderr}")
        return config, json.loads(done.stdout)


def step_lines(output: str) -> list[str]:
    """The lines of progress that tell of steps."""
    return [line for line in output.splitlines() if re.match(r"\[\d+/\d+\] ", line)]
