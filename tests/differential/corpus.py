"""What a case is, and how one is written down. The cases themselves are in cases/, by subject.

Three kinds of them:

- *compared*: what buildah made of the same Dockerfile is in reference/, and Berth has to make the same. `instead` gives the
  entries and fields where buildah is not BuildKit, as the documents have them.
- *documented* (`documents=` says what, and why buildah cannot be asked): the case itself holds the files and the config that
  the Dockerfile reference promises, all of them; nothing else may have changed from the base.
- *failing* (`fails=`): the build must fail, by the Dockerfile's fault, naming this file and line and showing the line itself.

And scenarios (`@scenario`), which build more than once: what is found in the cache, what is built at all.

A case's `files` is a shell script run as root in the empty context, which has the Dockerfile already.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field

from base import PATH
from tree import regular

GONE = "-"


def f(text: str | bytes, mode: int = 0o644, owner: str = "0:0", more: str = "") -> str:
    """A regular file, as tree.py tells it."""
    data = text if isinstance(text, bytes) else text.encode()
    return f"f {mode:o} {owner} {regular(data)}" + (f" {more}" if more else "")


def d(mode: int = 0o755, owner: str = "0:0", more: str = "") -> str:
    """A directory."""
    return f"d {mode:o} {owner}" + (f" {more}" if more else "")


def l(target: str, owner: str = "0:0") -> str:  # noqa: E743 as in the notation
    """A symbolic link."""
    return f"l {owner} -> {target}"


@dataclass
class Fault:
    """How a build must fail: the line, a regular expression found in what is said, and the file where it is no Dockerfile."""

    line: int | None
    says: str
    file: str = "Dockerfile"


@dataclass
class Case:
    name: str
    dockerfile: str
    files: str = ""
    args: list[str] = field(default_factory=list)
    subject: str = ""
    # Why buildah is not asked.
    documents: str = ""
    tree: dict[str, str] | None = None
    config: dict[str, object] | None = None
    # Of a compared case: what is right where buildah is not, and why.
    instead: dict[str, object] = field(default_factory=dict)
    because: str = ""
    # Paths (regular expressions) of which only the presence is compared, and why.
    varies: dict[str, str] = field(default_factory=dict)
    fails: Fault | None = None
    # Build checks that must warn: all of them, by name and line.
    warns: list[tuple[str, int]] | None = None
    # `created_by` of the history after the base's.
    history: list[str] | None = None
    # What the output of the build must and must not hold.
    prints: list[str] = field(default_factory=list)
    hides: list[str] = field(default_factory=list)
    # What a case is made with besides: environment of the command.
    env: dict[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> str:
        return f"{self.subject}/{self.name}"

    @property
    def compared(self) -> bool:
        return not self.documents and not self.fails

    def digest(self) -> str:
        """Of what the reference depends on."""
        return hashlib.sha256(json.dumps([self.dockerfile, self.files, self.args]).encode()).hexdigest()[:16]


@dataclass
class Scenario:
    name: str
    run: Callable
    subject: str = ""

    @property
    def whole(self) -> str:
        return f"{self.subject}/{self.name}"


CASES: list[Case] = []
SCENARIOS: list[Scenario] = []


def case(name: str, dockerfile: str, files: str = "", **more) -> None:
    CASES.append(Case(name, dockerfile.removeprefix("\n"), files, **more))


def documented(name: str, why: str, dockerfile: str, files: str = "", tree: dict | None = None, config: dict | None = None, **more) -> None:
    """A case that says itself what comes of it. Fields of the config that it does not name are the base's."""
    case(name, dockerfile, files, documents=why, tree=tree or {}, config={"Env": [PATH], "Cmd": ["sh"]} | (config or {}), **more)


def failing(name: str, dockerfile: str, line: int | None, says: str, files: str = "", file: str = "Dockerfile", **more) -> None:
    case(name, dockerfile, files, fails=Fault(line, says, file), **more)


def scenario(name: str) -> Callable:
    def keep(run: Callable) -> Callable:
        SCENARIOS.append(Scenario(name, run))
        return run

    return keep


def load() -> None:
    """Reads all of cases/."""
    import cases

    for module in sorted(found.name for found in pkgutil.iter_modules(cases.__path__)):
        before = len(CASES), len(SCENARIOS)
        importlib.import_module(f"cases.{module}")
        for one in [*CASES[before[0] :], *SCENARIOS[before[1] :]]:
            one.subject = module
    names = [(one.subject, one.name) for one in [*CASES, *SCENARIOS]]
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise SystemExit(f"two cases of one name: {doubled}")
