"""Builds cases with podman, inside the benchmark's root: reference.py WORK CASE…

WORK/contexts/CASE is a case's context, and WORK/reference/CASE.json becomes what podman made of it.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

from cases import CASES
from tree import tree

WORK = Path(sys.argv[1])
STORE = WORK / "podman"
BASE = "docker.io/library/debian:bookworm"
PODMAN = ["podman", "--runtime", "runc", "--root", str(STORE / "root"), "--runroot", "/run/differential"]
CHANGES = ["ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 'CMD ["bash"]']


def podman(*argv: str, check: bool = True, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*PODMAN, *argv], capture_output=True, text=True, errors="replace", cwd=cwd, check=False)
    if check and done.returncode != 0:
        raise SystemExit(f"podman {' '.join(argv)}: {done.returncode}\n{done.stderr}")
    return done


def give_base() -> None:
    if podman("image", "exists", BASE, check=False).returncode == 0:
        return
    changes = [part for change in CHANGES for part in ("--change", change)]
    podman("import", *changes, "/bench/bookworm.tar", BASE)
    podman("save", "--format", "docker-archive", "-o", str(WORK / "base.tar"), BASE)


def build(case: str, args: list[str]) -> dict[str, object]:
    context = WORK / "contexts" / case
    tag = f"localhost/case:{case}"
    argv = ["build", "--isolation", "chroot", "--network", "host", "--format", "docker", "--no-cache", "-t", tag]
    args = [arg.format(context=context) for arg in args]
    done = podman(*argv, *args, ".", check=False, cwd=context)
    if done.returncode != 0:
        return {"failed": (done.stdout + done.stderr)[-2000:]}
    image = json.loads(podman("image", "inspect", tag).stdout)[0]
    # What `inspect` shows of the config lacks what OCI's has not.
    blob = "=" + base64.b64encode(f"sha256:{image['Id']}".encode()).decode()
    config = json.loads((STORE / "root/overlay-images" / image["Id"] / blob).read_text())["config"]
    if not image["RootFS"]["Layers"]:
        return {"config": config, "tree": {}}
    mounted = podman("image", "mount", tag).stdout.strip()
    found = tree(mounted)
    podman("image", "umount", tag)
    return {"config": config, "tree": found}


def main() -> None:
    Path("/etc/containers/containers.conf").write_text(
        '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\n[engine]\ncgroup_manager = "cgroupfs"\n'
    )
    os.environ["PODMAN_IGNORE_CGROUPSV1_WARNING"] = "1"
    os.environ["TMPDIR"] = "/var/tmp"
    os.umask(0o022)
    give_base()
    wanted = sys.argv[2:]
    for case in CASES:
        if case.name in wanted:
            result = build(case.name, case.args)
            (WORK / "reference" / f"{case.name}.json").write_text(json.dumps(result))


main()
