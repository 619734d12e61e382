"""The reference's side: builds by buildah in a storage of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from base import REFERENCE
from tree import tree


class Buildah:
    def __init__(self, work: Path, archive: Path) -> None:
        for program in ("buildah", "skopeo"):
            if shutil.which(program) is None:
                raise SystemExit(f"--refresh needs {program}")
        self.work = work / "buildah"
        self.work.mkdir()
        self.storage = ["--root", f"{self.work}/root", "--runroot", f"{self.work}/run", "--storage-driver", "overlay"]
        (self.work / "tmp").mkdir()
        self.env = os.environ | {"TMPDIR": f"{self.work}/tmp", "BUILDAH_HISTORY": "false"}
        self.run("pull", f"docker-archive:{archive}:{REFERENCE}")

    def run(self, *argv: str, check: bool = True, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["buildah", *self.storage, *argv], capture_output=True, text=True, errors="replace", cwd=cwd, check=False, env=self.env,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"buildah {' '.join(argv)}: {done.returncode}\n{done.stderr}")
        return done

    def build(self, name: str, context: Path, args: list[str]) -> dict[str, object]:
        tag = f"localhost/case:{name}"
        argv = ["build", "--isolation", "chroot", "--network", "host", "--format", "docker", "--no-cache", "--pull-never", "-t", tag]
        done = self.run(*argv, *args, ".", check=False, cwd=context)
        if done.returncode != 0:
            return {"failed": (done.stdout + done.stderr)[-2000:]}
        # What `inspect` shows of the config as OCI's lacks what OCI's has not.
        config = json.loads(self.run("inspect", "--type", "image", tag).stdout)["Docker"]
        if not config["rootfs"]["diff_ids"]:
            return {"config": config, "tree": {}}
        container = self.run("from", "--pull-never", tag).stdout.strip()
        try:
            found = tree(self.run("mount", container).stdout.strip())
        finally:
            self.run("rm", container, check=False)
        return {"config": config, "tree": found}

    def stop(self) -> None:
        self.run("rm", "--all", check=False)
        # The storage keeps itself mounted.
        subprocess.run(["umount", "-q", f"{self.work}/root/overlay"], check=False)
        shutil.rmtree(self.work, ignore_errors=True)
