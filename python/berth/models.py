"""What the daemon answers, as plain frozen dataclasses.

Names, units and meanings are the API's own (``_mb`` is 2**20 bytes). Fields that this version does not know are left
out, so that a newer daemon can say more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, Self

OutputStream = Literal["stdout", "stderr"]
Network = Literal["public", "no-network"]
PullPolicy = Literal["missing", "always", "never"]
BasePull = Literal["missing", "refresh", "never"]
Capabilities = Literal["default", "none"] | Sequence[str]
ArchiveFormat = Literal["docker-archive", "oci-archive", "rootfs"]
WhenFull = Literal["wait", "drop_oldest"]
OnDisconnect = Literal["keep", "kill"]
ChangeKind = Literal["ready", "created", "modified", "closed", "attributes", "moved", "removed", "overflow"]


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
class ExecOffsets(Model):
    """Places in a command's outputs, in bytes from their beginnings."""

    stdout: int = 0
    stderr: int = 0


@dataclass(frozen=True, slots=True)
class KeepOutput(Model):
    """How much of a command's latest output is kept for whoever attaches later, in bytes (64 KiB to 1 GiB), and what happens
    when so much waits for a reader: the command waits, or the oldest is dropped and told of (:class:`OutputGap`)."""

    bytes: int
    when_full: WhenFull = "wait"

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        return {"bytes": self.bytes, "when_full": self.when_full}


@dataclass(frozen=True, slots=True)
class ExecOutput:
    """A piece of a command's output: where in its stream it begins, in bytes, and when the command wrote it, in microseconds
    since the epoch."""

    stream: OutputStream
    offset: int
    time_us: int
    data: bytes


@dataclass(frozen=True, slots=True)
class OutputGap:
    """Output that was asked for and is not kept any more: the bytes from ``start`` up to ``end`` of a stream."""

    stream: OutputStream
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecStatus(Model):
    """How a command ended.

    ``exit_code`` is the program's own, 128+n after signal n, 127 for a program that is not there, 126 for one that
    cannot be run, 124 at the timeout. ``reason`` is ``exited``, ``signaled``, ``out_of_memory``, ``timed_out``, ``killed``
    or ``not_started``. ``limits_hit`` names the sandbox's limits that were met: ``memory``, ``pids``, ``disk``. What the
    machine does not count by exec is None. ``rescued``: it ran beside the memory limit, as the sandbox's memory was full.
    ``machine_disk_full``: it failed while the machine's disk was full, so that the failure may be the machine's.
    ``written`` counts the bytes of its output, ``dropped`` those of them that were dropped before anybody had read them.
    """

    _parse: ClassVar = {"written": ExecOffsets.from_json, "dropped": ExecOffsets.from_json}

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
    written: ExecOffsets = ExecOffsets()
    dropped: ExecOffsets = ExecOffsets()

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult(ExecStatus):
    """How a command ended, and its output as text: UTF-8, with U+FFFD for what is none. ``gaps`` are the parts of it that are
    missing, where the caller wanted them told rather than raised."""

    stdout: str = ""
    stderr: str = ""
    gaps: list[OutputGap] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecBytes(ExecStatus):
    """As :class:`ExecResult`, with the output as it is."""

    stdout: bytes = b""
    stderr: bytes = b""
    gaps: list[OutputGap] = field(default_factory=list)


ExecEvent = ExecOutput | OutputGap | ExecStatus
"""What whoever is attached to a command is told; the status is last, and there is none while the command runs on."""


@dataclass(frozen=True, slots=True)
class ExecInfo(Model):
    """A command of a sandbox, running or over (``status`` is there then).

    ``command`` is a line for people. ``processes`` counts those that live, also those that a command which is over has left.
    ``kept_from`` is where the output that is kept begins. ``blocked``: it waits until somebody reads its output.
    """

    _parse: ClassVar = {
        "status": ExecStatus.from_json,
        "written": ExecOffsets.from_json,
        "kept_from": ExecOffsets.from_json,
    }

    id: str
    command: str
    cwd: str
    started_at: str
    user: str | None = None
    pid: int | None = None
    status: ExecStatus | None = None
    cpu_usec: int | None = None
    memory_bytes: int | None = None
    processes: int | None = None
    written: ExecOffsets = ExecOffsets()
    kept_from: ExecOffsets = ExecOffsets()
    blocked: bool = False
    attached: int = 0
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class FileStat(Model):
    """One file's facts; ``kind`` is ``file``, ``dir`` or ``other``, ``modified_us`` microseconds since the epoch."""

    kind: str
    size: int
    mode: int
    uid: int
    gid: int
    modified_us: int = 0


@dataclass(frozen=True, slots=True)
class DirEntry(Model):
    """An entry of a directory; links are not followed, ``link`` is where one points to."""

    _parse: ClassVar = {"stat": FileStat.from_json}

    name: str
    stat: FileStat
    link: str | None = None


@dataclass(frozen=True, slots=True)
class Change(Model):
    """Something that happened to a file. ``ready`` is always the first: from there on nothing is missed, but where an
    ``overflow`` says so. ``origin`` is where something ``moved`` was before."""

    kind: ChangeKind
    path: str
    origin: str | None = None
    is_dir: bool = False

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """An instance from a JSON object."""
        return cls(data["kind"], data["path"], data.get("from"), data.get("is_dir", False))


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
class BuildWarning(Model):
    """Something in a Dockerfile that looks like a mistake; ``check`` is the name that BuildKit's build checks have for it."""

    check: str
    message: str
    file: str
    line: int


def _warnings(found: Sequence[Mapping[str, Any]]) -> list[BuildWarning]:
    return [BuildWarning.from_json(warning) for warning in found]


@dataclass(frozen=True, slots=True)
class BuildResult(Model):
    """Result of a build. ``joined`` says that it was one under way that others had asked for first."""

    _parse: ClassVar = {"image": Image.from_json, "warnings": _warnings}

    image: Image
    content_key: str
    steps: int
    cached_steps: int
    warnings: list[BuildWarning] = field(default_factory=list)
    joined: bool = False


@dataclass(frozen=True, slots=True)
class ReplayResult(Model):
    """Result of replaying a Dockerfile in a sandbox: ``config`` is what its commands run with from now on."""

    _parse: ClassVar = {"config": ImageConfig.from_json, "warnings": _warnings}

    config: ImageConfig
    content_key: str
    steps: int
    warnings: list[BuildWarning] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PruneReport(Model):
    """What a prune removed, or would have."""

    images: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    cache_mounts: list[str] = field(default_factory=list)
    freed_bytes: int = 0
    left_bytes: int = 0


@dataclass(frozen=True, slots=True)
class VerifyReport(Model):
    """What a look at the store found; no ``problems`` means that all is well."""

    images: int = 0
    layers: int = 0
    bytes: int = 0
    unverifiable: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


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
    stage: str | None = None
    excerpt: str | None = None
    """The instruction as it stands in the file, drawn with its line."""


@dataclass(frozen=True, slots=True)
class Progress(Model):
    """Something that went on during a pull, an import or a build.

    ``what`` is ``message`` (``text``), ``transfer`` (``item``, ``action``, ``current``, ``total``), ``step`` (``step``, ``steps``,
    ``instruction``, ``cached``), ``output`` (``step``, ``text``), ``step_done`` (``step``, ``elapsed_ms``) or ``warning``
    (``check``, ``message``, ``file``, ``line``).
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
    elapsed_ms: int | None = None
    check: str | None = None
    message: str | None = None
    file: str | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Page[T]:
    """A page of a listing; pass ``next`` as ``after`` for the following one."""

    items: Sequence[T]
    next: str | None = None

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)


ProgressCallback = Callable[[Progress], None]
