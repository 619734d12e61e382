"""What the daemon answers, as plain frozen dataclasses.

Names, units and meanings are the API's own (``_mb`` is 2**20 bytes). Fields that this version does not know are left
out, so that a newer daemon can say more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Self

OutputStream = Literal["stdout", "stderr"]
Network = Literal["public", "no-network"]
PullPolicy = Literal["missing", "always", "never"]
Capabilities = Literal["default", "none"] | Sequence[str]
ArchiveFormat = Literal["docker-archive", "oci-archive", "rootfs"]


class Model:
    """Reads itself from the API's JSON."""

    _parse: ClassVar[Mapping[str, Callable[[Any], Any]]] = {}
    """How to read the fields that are not plain values."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """An instance from a JSON object."""
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        return cls(**{k: cls._parse.get(k, _same)(v) for k, v in data.items() if k in known})


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Version(Model):
    """Answer to ``GET /v1/version``."""

    version: str
    api: str
    pid: int
    data_dir: str


@dataclass(frozen=True, slots=True)
class Check(Model):
    """One thing that Berth needs or can use; ``status`` is ``ok``, ``warn`` or ``fail``."""

    name: str
    status: str
    found: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Lease(Model):
    """A dead man's switch: sandboxes that name it are deleted when nobody renews it in time."""

    id: str
    expires_at: str


@dataclass(frozen=True, slots=True)
class Resources(Model):
    """Limits of a sandbox, and what is set aside for it (``*_request*``); ``None`` means the daemon's default."""

    cpus: float | None = None
    cpu_request: float | None = None
    memory_mb: int | None = None
    memory_request_mb: int | None = None
    storage_mb: int | None = None
    storage_inodes: int | None = None
    pids: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON object, without what is not limited."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


@dataclass(frozen=True, slots=True)
class Mount(Model):
    """A path of the daemon's machine, mounted into a sandbox."""

    source: str
    target: str
    read_only: bool = False

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        return {"source": self.source, "target": self.target, "read_only": self.read_only}


@dataclass(frozen=True, slots=True)
class QueuePlace(Model):
    """A place among the sandboxes that wait for room, 1 being the next; ``waits_for`` is what the first one lacks:
    ``memory``, ``memory_in_use``, ``disk``, ``disk_in_use``, ``cpus`` or ``starts``."""

    position: int
    waits_for: str


@dataclass(frozen=True, slots=True)
class Committed(Model):
    """What the daemon sets aside for a sandbox."""

    memory_bytes: int
    disk_bytes: int
    cpus: float


@dataclass(frozen=True, slots=True)
class Usage(Model):
    """What a sandbox uses; ``None`` where the machine cannot tell. ``limits_hit`` holds ``memory``, ``pids``, ``disk``.

    ``machine_disk_full``: the machine's disk is full, or was when a command failed.
    """

    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    memory_limit_bytes: int | None = None
    oom_kills: int | None = None
    cpu_seconds: float | None = None
    pids: int | None = None
    pids_limit: int | None = None
    disk_bytes: int | None = None
    disk_limit_bytes: int | None = None
    disk_inodes: int | None = None
    disk_inodes_limit: int | None = None
    limits_hit: list[str] = field(default_factory=list)
    machine_disk_full: bool = False


@dataclass(frozen=True, slots=True)
class SandboxInfo(Model):
    """A sandbox, as the API shows it.

    ``state`` is ``queued``, ``starting``, ``running``, ``stopping``, ``lost`` or ``ended``; ``reason_code`` says why it no longer
    runs: ``ttl``, ``deleted``, ``lease_ended``, ``out_of_memory``, ``guest_lost``, ``disk_lost`` or ``daemon_restart``.
    ``resource_defaults`` names the fields of ``resources`` that nobody asked for.
    """

    _parse: ClassVar = {
        "resources": Resources.from_json,
        "queue": QueuePlace.from_json,
        "committed": Committed.from_json,
        "usage": Usage.from_json,
    }

    id: str
    name: str
    group: str
    state: str
    image: str
    labels: dict[str, str]
    resources: Resources
    storage_enforced: bool
    network: str
    workdir: str
    user: str
    created_at: str
    reason: str | None = None
    reason_code: str | None = None
    queue: QueuePlace | None = None
    resource_defaults: list[str] = field(default_factory=list)
    committed: Committed | None = None
    user_namespace: bool = False
    capabilities: str | list[str] = "default"
    expires_at: str | None = None
    lease: str | None = None
    shell: str | None = None
    start_ms: float | None = None
    queued_ms: float | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class ExecResult(Model):
    """How a command ended, with all of its output.

    ``exit_code`` is the program's own, 128+n after signal n, 127 for a program that is not there, 126 for one that
    cannot be run, 124 at the timeout. ``reason`` is ``exited``, ``signaled``, ``out_of_memory``, ``timed_out``, ``killed``
    or ``not_started``. ``limits_hit`` names the sandbox's limits that were met: ``memory``, ``pids``, ``disk``. What the
    machine does not count by exec is None. ``rescued``: it ran beside the memory limit, as the sandbox's memory was full.
    ``machine_disk_full``: it failed while the machine's disk was full, so that the failure may be the machine's.
    """

    stdout: str
    stderr: str
    exit_code: int
    reason: str
    duration_ms: int
    signal: int | None = None
    message: str | None = None
    oom_kills: int | None = None
    limits_hit: list[str] = field(default_factory=list)
    peak_memory_bytes: int | None = None
    cpu_usec: int | None = None
    rescued: bool = False
    machine_disk_full: bool = False


@dataclass(frozen=True, slots=True)
class FileStat(Model):
    """One file's facts; ``kind`` is ``file``, ``dir`` or ``other``."""

    kind: str
    size: int
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class ArchiveReport(Model):
    """What an unpacked archive left out, each with its reason."""

    refused: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ImageConfig(Model):
    """The parts of an image's config that decide how a sandbox runs."""

    env: list[str] = field(default_factory=list)
    working_dir: str = ""
    user: str = ""
    entrypoint: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Image(Model):
    """An image of the daemon's store."""

    _parse: ClassVar = {"config": ImageConfig.from_json}

    id: str
    references: list[str]
    size_bytes: int
    layers: int
    platform: str
    config: ImageConfig
    created: str | None = None


@dataclass(frozen=True, slots=True)
class BuildResult(Model):
    """Result of a build."""

    _parse: ClassVar = {"image": Image.from_json}

    image: Image
    content_key: str
    steps: int
    cached_steps: int


@dataclass(frozen=True, slots=True)
class BuildFailure(Model):
    """Why a build failed: the ``details`` of a :class:`berth.BuildFailed`."""

    step: int
    steps: int
    instruction: str
    file: str
    line: int
    output_tail: list[str]
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Progress(Model):
    """Something that went on during a pull, an import or a build.

    ``what`` is ``message`` (``text``), ``transfer`` (``item``, ``action``, ``current``, ``total``), ``step`` (``step``, ``steps``,
    ``instruction``, ``cached``) or ``output`` (``step``, ``text``).
    """

    what: str
    text: str | None = None
    item: str | None = None
    action: str | None = None
    current: int | None = None
    total: int | None = None
    step: int | None = None
    steps: int | None = None
    instruction: str | None = None
    cached: bool | None = None


@dataclass(frozen=True, slots=True)
class Page[T]:
    """A page of a listing; pass ``next`` as ``after`` for the following one."""

    items: Sequence[T]
    next: str | None = None

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)
