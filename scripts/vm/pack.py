#!/usr/bin/env python3
"""Lays out what the virtual machine runs: pack.py RING DIRECTORY [SUITE...]

Builds the tests of the suites that are asked for (by ring, smoke or full, or by name) and writes

    files/       checkout and programs at their own absolute paths: tests know them by these
    places       directories to be bound to their own place
    run          suites: name, group, directory, program, pattern, with tabs between

Rings are built with the whole workspace, as the other tests are, so that nothing is compiled twice for having other
features. Suites that are named are built by themselves, whatever else does not compile at the moment.

Programs go without their debug information, which is most of their size.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def suites(ring, names):
    """The lines of the list that are asked for."""
    found = []
    for line in (HERE / "suites").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        name, package, target, group, smoke, pattern = line.split()
        if ring == "smoke":
            pattern = smoke
        if pattern != "-" and (not names or name in names):
            found.append((name, package, target, group, pattern))
    missing = set(names) - {suite[0] for suite in found}
    if missing:
        sys.exit(f"vm: no such suite in {HERE / 'suites'}: {', '.join(sorted(missing))}")
    return found


def cargo(arguments):
    """Runs cargo and returns the artifacts that it tells of."""
    command = ["cargo", *arguments, "--message-format", "json-render-diagnostics"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        sys.exit(f"vm: {' '.join(command)} failed")
    messages = (json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{"))
    return [m for m in messages if m.get("reason") == "compiler-artifact" and m.get("executable")]


def build(wanted, named):
    """Builds the tests: the programs of tests by (package, target), and the plain programs by package."""
    tests, programs = {}, {}
    packages = sorted({suite[1] for suite in wanted})
    chosen = [word for package in packages for word in ("-p", package)] if named else ["--workspace"]
    for artifact in cargo(["test", "--no-run", *chosen]):
        directory = Path(artifact["manifest_path"]).parent
        package = names[str(directory)]
        kind, target = artifact["target"]["kind"][0], artifact["target"]["name"]
        if artifact["profile"]["test"]:
            key = (package, kind if kind in ("lib", "bin") else target)
            tests[key] = (directory, Path(artifact["executable"]))
        elif kind == "bin":
            programs[package] = Path(artifact["executable"])
    return tests, programs


def metadata():
    done = subprocess.run(
        ["cargo", "metadata", "--format-version", "1", "--no-deps"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def sources(files):
    """The checkout's own files, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, stdout=subprocess.PIPE, check=True,
    ).stdout.decode().split("\0")
    for name in listed:
        source = ROOT / name
        if name and source.is_file() and not source.is_symlink():
            target = inside(files, source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def inside(files, path):
    return files / path.relative_to("/")


def program(files, path):
    target = inside(files, path)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["strip", "--strip-debug", "-o", target, path], check=True)


def main():
    ring, out, *asked = sys.argv[1:]
    out = Path(out)
    files = out / "files"
    wanted = suites(ring, asked)
    tests, programs = build(wanted, bool(asked))
    lines = []
    for name, package, target, group, pattern in wanted:
        if (package, target) not in tests:
            sys.exit(f"vm: {package} has no tests {target}, which {HERE / 'suites'} names")
        directory, executable = tests[package, target]
        program(files, executable)
        lines.append("\t".join([name, group, str(directory), str(executable), pattern]) + "\n")
    for package in {suite[1] for suite in wanted} & programs.keys():
        program(files, programs[package])
    sources(files)
    places = [ROOT]
    if not Path(about["target_directory"]).is_relative_to(ROOT):
        places.append(Path(about["target_directory"]))
    (out / "run").write_text("".join(lines))
    (out / "places").write_text("".join(f"{place}\n" for place in places))


about = metadata()
names = {str(Path(p["manifest_path"]).parent): p["name"] for p in about["packages"]}
main()
