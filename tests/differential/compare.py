"""Builds the corpus with Berth and compares with what podman made of it: see run.sh."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cases import CASES, Case

HERE = Path(__file__).resolve().parent
# Where the runtime mounts something of its own, or leaves the place for it.
MOUNTS = re.compile(r"/(dev|proc|sys)(/.*)?|/etc/(hosts|hostname|resolv\.conf)|/run/(\.containerenv|secrets(/.*)?)|/etc/mtab")
# What containers-storage makes of a root that no layer describes.
ROOT_MODE = "0o40555"
# Files that hold times or the order of a hash.
VARIES = re.compile(r"/var/(log|cache)/.*|/var/lib/(apt|dpkg)/.*|/etc/ld\.so\.cache|/etc/[a-z]*-")
FIELDS = [
    "Env", "WorkingDir", "User", "Cmd", "Entrypoint", "Labels", "ExposedPorts", "Volumes", "Shell", "Healthcheck",
    "StopSignal", "OnBuild",
]
IMAGE = "localhost/case"


def berth(*argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([os.environ["BERTH"], *argv], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise SystemExit(f"berth {' '.join(argv)}: {done.returncode}\n{done.stderr}")
    return done


def make_context(case: Case, work: Path) -> Path:
    context = work / "contexts" / case.name
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir(parents=True)
    (context / "Dockerfile").write_bytes(case.dockerfile.encode())
    subprocess.run(["bash", "-euc", f"umask 022\n{case.files}"], cwd=context, check=True)
    return context


def tree_of(config: dict, data: Path) -> dict:
    """The layers mounted as a sandbox has them."""
    layers = [digest.removeprefix("sha256:")[:24] for digest in reversed(config["rootfs"]["diff_ids"])]
    layers = list(dict.fromkeys(layers))
    # One lower layer alone is no overlay.
    script = 'mount -t tmpfs tmpfs /mnt && mkdir /mnt/empty /mnt/tree && cd "$1" && mount -t overlay overlay -o "lowerdir=$2:/mnt/empty" /mnt/tree && exec python3 "$3" /mnt/tree'
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh"]
    argv += [str(data / "layers"), ":".join(layers), str(HERE / "tree.py")]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def build(case: Case, context: Path, data: Path) -> dict:
    args = [arg.format(context=context) for arg in case.args]
    done = berth("image", "build", str(context), "--no-cache", "--json", "-t", f"{IMAGE}:{case.name}", *args, check=False)
    if done.returncode != 0:
        return {"failed": f"exit code {done.returncode}: {done.stderr[-1500:]}", "code": done.returncode}
    image = json.loads(done.stdout)["image"]["id"].removeprefix("sha256:")
    config = json.loads((data / "images" / f"{image}.json").read_text())
    found = tree_of(config, data) if config["rootfs"]["diff_ids"] else {}
    return {"config": config.get("config", {}), "tree": found}


def differences(case: Case, ours: dict, theirs: dict) -> list[str]:
    apart = [re.compile(pattern) for pattern in case.apart]
    found = []

    def tell(what: str, our: object, their: object) -> None:
        if not any(pattern.fullmatch(what) for pattern in apart):
            found.append(f"{what}: berth {json.dumps(our, sort_keys=True)}, podman {json.dumps(their, sort_keys=True)}")

    for name in FIELDS:
        our, their = ours["config"].get(name) or None, theirs["config"].get(name) or None
        if name == "Env":
            our, their = sorted(our or []), sorted(their or [])
        if name == "Labels" and their:
            their = {key: value for key, value in their.items() if key != "io.buildah.version"} or None
        if name == "WorkingDir":
            our, their = our or "/", their or "/"
        if our != their:
            tell(f"config/{name}", our, their)
    for path in sorted(ours["tree"].keys() | theirs["tree"].keys()):
        if MOUNTS.fullmatch(path):
            continue
        our, their = ours["tree"].get(path), theirs["tree"].get(path)
        if our and their and VARIES.fullmatch(path):
            our, their = ({k: v for k, v in one.items() if k not in ("size", "sha256")} for one in (our, their))
        if path == "/" and our and their and their["mode"] == ROOT_MODE:
            their = their | {"mode": our["mode"]}
        if our != their:
            if our and their:
                keys = [key for key in our.keys() | their.keys() if our.get(key) != their.get(key)]
                our, their = ({k: one.get(k) for k in keys} for one in (our, their))
            tell(path, our, their)
    return found


def judge(case: Case, ours: dict, theirs: dict) -> list[str]:
    if "failed" in ours:
        if ours["code"] not in (64, 66):
            return [f"not told as the Dockerfile's fault: {ours['failed']}"]
        return [] if case.fails else [f"berth fails: {ours['failed']}" + (" (podman too)" if "failed" in theirs else "")]
    if case.fails:
        return ["berth builds what must fail"]
    if "failed" in theirs:
        return [] if "build" in case.apart else [f"only podman fails: {theirs['failed'][-400:]}"]
    return differences(case, ours, theirs)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--no-reference", action="store_true", help="compare with what podman made the last time")
    options = parser.parse_intermixed_args()
    work = options.work
    cases = [case for case in CASES if not options.cases or case.name in options.cases]
    (work / "reference").mkdir(parents=True, exist_ok=True)
    contexts = {case.name: make_context(case, work) for case in cases}
    if not options.no_reference:
        enter = HERE.parent.parent / "scripts/bench/enter.sh"
        binds = [f"{options.root.parent}/bookworm.tar:/bench/bookworm.tar", f"{HERE}:/bench/differential", f"{work}:{work}"]
        # With this machine's network, which enter.sh alone does not give: packages are installed.
        argv = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL", "--propagation", "private"]
        argv += [str(enter), "--inside", str(options.root), *binds, "--", "python3", "-B", "/bench/differential/reference.py", str(work)]
        subprocess.run([*argv, *contexts], check=True, stdin=subprocess.DEVNULL)
    if "debian:bookworm" not in berth("image", "ls").stdout:
        berth("image", "import", str(work / "base.tar"))
    different = 0
    for case in cases:
        found = judge(case, build(case, contexts[case.name], options.data), json.loads((work / "reference" / f"{case.name}.json").read_text()))
        different += bool(found)
        print(f"{'DIFFERS' if found else 'same'} {case.name}", *found[:25], sep="\n    ", flush=True)
        if len(found) > 25:
            print(f"    and {len(found) - 25} more")
    print(f"{different} of {len(cases)} differ")
    sys.exit(bool(different))


main()
