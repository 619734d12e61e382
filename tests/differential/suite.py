"""Runs the conformance suite: see run.sh."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import base
import corpus
from berth import Berth
from buildah import Buildah
from corpus import GONE, Case, Scenario
from world import World

HERE = Path(__file__).resolve().parent
REFERENCE = HERE / "reference"
# Where buildah mounts something of its own, or leaves the place for it.
MOUNTS = re.compile(r"/(dev|proc|sys)(/.*)?|/etc/(hosts|hostname|resolv\.conf|mtab)|/run/(\.containerenv|secrets(/.*)?)")
FIELDS = [
    "Env", "WorkingDir", "User", "Cmd", "Entrypoint", "Labels", "ExposedPorts", "Volumes", "Shell", "Healthcheck",
    "StopSignal", "OnBuild",
]
# Exit codes that say that the user's own input is at fault.
USERS_FAULT = (64, 66)


def config_of(image: dict) -> dict[str, object]:
    """The fields that are compared, in one form."""
    config = image.get("config") or {}
    found = {name: config[name] for name in FIELDS if config.get(name)}
    if "Env" in found:
        found["Env"] = sorted(found["Env"])
    labels = {key: value for key, value in found.pop("Labels", {}).items() if key != "io.buildah.version"}
    if labels:
        found["Labels"] = labels
    if found.get("WorkingDir") == "/":
        del found["WorkingDir"]
    if image.get("author"):
        found["Author"] = image["author"]
    return found


def changes(tree: dict[str, str], below: dict[str, str]) -> dict[str, str]:
    """What a tree has otherwise than the base; all of it where it was not made from that."""
    tree = {path: entry for path, entry in tree.items() if not MOUNTS.fullmatch(path)}
    below = {path: entry for path, entry in below.items() if not MOUNTS.fullmatch(path)}
    # What containers-storage makes of a root directory that it was not told of.
    if tree.get("/") == "d 555 0:0":
        tree["/"] = below.get("/", "")
    if "/bin/busybox" not in tree:
        tree.pop("/", None)
        return tree
    found = {path: entry for path, entry in tree.items() if below.get(path) != entry}
    return found | dict.fromkeys(below.keys() - tree.keys(), GONE)


class Suite:
    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        archive = work / "base.tar"
        base.make(archive)
        self.berth = Berth(options.berth, work)
        self.buildah = None
        try:
            self.berth.must("image", "import", str(archive))
            ids = json.loads(self.berth.must("image", "ls", "--json"))
            images = ids["items"] if isinstance(ids, dict) else ids
            self.base_id = next(one["id"] for one in images if base.REFERENCE in one["references"])
            self.base = self.berth.image(self.base_id)[1]
            if options.refresh:
                self.buildah = Buildah(work, archive)
        except BaseException:
            self.stop()
            raise
        self.references = {path.stem: json.loads(path.read_text()) for path in REFERENCE.glob("*.json")}
        self.lock = threading.Lock()

    def stop(self) -> None:
        self.berth.stop()
        if self.buildah:
            self.buildah.stop()

    def context(self, case: Case) -> Path:
        context = self.work / "contexts" / case.whole
        context.mkdir(parents=True)
        (context / "Dockerfile").write_bytes(case.dockerfile.encode())
        done = subprocess.run(["bash", "-euc", f"umask 022\n{case.files}"], cwd=context, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise AssertionError(f"the context cannot be made: {done.stderr}")
        return context

    def refresh(self, case: Case, context: Path, args: list[str]) -> str:
        """Asks buildah; says what is new of its answer."""
        made = self.buildah.build(f"{case.subject}-{case.name}".lower(), context, args)
        if "failed" in made:
            raise AssertionError(f"buildah fails: {made['failed'][-600:]}")
        new = {"of": case.digest(), "config": config_of(made["config"]), "tree": changes(made["tree"], self.base)}
        with self.lock:
            kept = self.references.setdefault(case.subject, {})
            old = kept.get(case.name)
            kept[case.name] = new
        if old is None:
            return "new reference"
        return "" if old == new else "changed reference: " + "; ".join(compare(new, old, {}, "new", "old"))

    def judge(self, case: Case) -> tuple[list[str], str]:
        """What is wrong of a case, and a remark."""
        context = self.context(case)
        args = [arg.format(context=context) for arg in case.args]
        remark = self.refresh(case, context, args) if self.buildah and case.compared else ""
        # What an earlier case left in the cache has the same bytes, and perhaps another time.
        built = self.berth.build(context, "--no-cache", *args, env=case.env)
        wrong = [f"the output lacks {text!r}" for text in case.prints if text not in built.output]
        wrong += [f"the output holds {text!r}" for text in case.hides if text in built.output]
        if case.fails:
            return wrong + self.judge_failure(case, built), remark
        if built.result is None:
            return [f"berth fails ({built.code}): {built.output[-1200:].strip()}"], remark
        image, tree = self.berth.image(built.id)
        ours = {"config": config_of(image), "tree": changes(tree, self.base)}
        if case.documents:
            expected = {"config": {k: v for k, v in (case.config or {}).items() if v is not None}, "tree": case.tree}
            expected["config"]["Env"] = sorted(expected["config"].get("Env", []))
            if not expected["config"]["Env"]:
                del expected["config"]["Env"]
        else:
            expected = self.references.get(case.subject, {}).get(case.name)
            if expected is None or expected["of"] != case.digest():
                return [*wrong, "no reference for this case: run.sh --refresh"], remark
            expected = corrected(expected, case)
        wrong += compare(ours, expected, case.varies, "berth", "right")
        if case.warns is not None and built.warnings != sorted(case.warns):
            wrong.append(f"warnings: berth {built.warnings}, right {sorted(case.warns)}")
        if case.history is not None:
            made = [entry.get("created_by") for entry in image.get("history", [])]
            if made[-len(case.history) :] != case.history:
                wrong.append(f"history: berth {made}, right …{case.history}")
        return wrong, remark

    def judge_failure(self, case: Case, built) -> list[str]:
        if built.result is not None:
            return ["berth builds what must fail"]
        told = " ".join(built.output.split())
        wrong = []
        if built.code not in USERS_FAULT:
            wrong.append(f"exit code {built.code}, which says that it is not the Dockerfile's fault")
        place = f"{case.fails.file}:{case.fails.line}" if case.fails.line else ""
        if place not in told:
            wrong.append(f"does not name {place}")
        if not re.search(case.fails.says, told):
            wrong.append(f"does not say /{case.fails.says}/")
        if case.fails.line:
            line = case.dockerfile.splitlines()[case.fails.line - 1].strip().removesuffix("\\").strip()
            if line not in built.output.replace(place, ""):
                wrong.append(f"does not show the line `{line}`")
        return [f"{'; '.join(wrong)}, but: {built.output[-700:].strip()}"] if wrong else []

    def play(self, scenario: Scenario) -> tuple[list[str], str]:
        work = self.work / "contexts" / scenario.whole
        work.mkdir(parents=True)
        try:
            scenario.run(World(self.berth, work, f"{scenario.subject}-{scenario.name}", self.base))
        except AssertionError as error:
            return [str(error) or "an assertion without words"], ""
        return [], ""

    def run(self, one: Case | Scenario) -> bool:
        try:
            wrong, remark = self.judge(one) if isinstance(one, Case) else self.play(one)
        except AssertionError as error:
            wrong, remark = [str(error)], ""
        lines = [f"{'FAIL' if wrong else 'PASS'}: {one.whole}" + (f" ({remark})" if remark else "")]
        lines += [f"    {line}" for line in wrong[:25]]
        if len(wrong) > 25:
            lines.append(f"    and {len(wrong) - 25} more")
        with self.lock:
            print("\n".join(lines), flush=True)
        shutil.rmtree(self.work / "contexts" / one.whole, ignore_errors=True)
        return not wrong

    def keep_references(self) -> None:
        """Writes them, an entry a line; those of cases that are no more go."""
        known = {(case.subject, case.name) for case in corpus.CASES if case.compared}
        REFERENCE.mkdir(exist_ok=True)
        for subject, cases in self.references.items():
            kept = {name: cases[name] for name in sorted(cases) if (subject, name) in known}
            path = REFERENCE / f"{subject}.json"
            if kept:
                path.write_text(json.dumps(kept, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
            else:
                path.unlink(missing_ok=True)


def corrected(expected: dict, case: Case) -> dict:
    """A reference with what is right where buildah is not."""
    config, tree = dict(expected["config"]), dict(expected["tree"])
    for key, value in case.instead.items():
        where, name = (tree, key) if key.startswith("/") else (config, key)
        if value is None:
            where.pop(name, None)
        else:
            where[name] = sorted(value) if name == "Env" else value
    return {"config": config, "tree": tree}


def compare(ours: dict, theirs: dict, varies: dict[str, str], us: str, them: str) -> list[str]:
    found = []
    for part in ("config", "tree"):
        for name in sorted(ours[part].keys() | theirs[part].keys()):
            our, their = ours[part].get(name), theirs[part].get(name)
            if our == their or (our and their and any(re.fullmatch(pattern, name) for pattern in varies)):
                continue
            found.append(f"{name}: {us} {told(our)}, {them} {told(their)}")
    return found


def told(value: object) -> str:
    if value is None:
        return "nothing"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="run.sh", description="The conformance suite of image builds.")
    parser.add_argument("cases", nargs="*", help="SUBJECT/NAME, or a whole SUBJECT; all by default")
    parser.add_argument("--refresh", action="store_true", help="ask buildah anew, show what changed, and keep it")
    parser.add_argument("--list", action="store_true", help="only print the cases")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--berth", default=os.environ.get("BERTH"))
    options = parser.parse_intermixed_args()
    corpus.load()
    wanted = set(options.cases)
    all_ = [*corpus.CASES, *corpus.SCENARIOS]
    chosen = [one for one in all_ if not wanted or {one.whole, one.subject} & wanted]
    unknown = wanted - {one.whole for one in all_} - {one.subject for one in all_}
    if unknown:
        raise SystemExit(f"no such case: {', '.join(sorted(unknown))}")
    if options.list:
        for one in chosen:
            kind = "scenario" if isinstance(one, Scenario) else "failing" if one.fails else "documented" if one.documents else "compared"
            print(f"{one.whole}: {kind}")
        print(f"{len(chosen)} cases")
        return
    # So that nothing stays when it is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    work = Path(tempfile.mkdtemp(prefix="berth-conformance.", dir=os.environ.get("TMPDIR", "/var/tmp")))
    try:
        suite = Suite(options, work)
        try:
            with ThreadPoolExecutor(options.jobs) as pool:
                well = list(pool.map(suite.run, chosen))
        finally:
            suite.stop()
        if options.refresh:
            suite.keep_references()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{well.count(True)} of {len(well)} cases pass")
    sys.exit(0 if all(well) else 1)


if __name__ == "__main__":
    main()
