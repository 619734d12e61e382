"""Berth's Python client.

``Client`` and ``AsyncClient`` speak HTTP to a Berth daemon: the one that ``BERTH_HOST`` names, else the embedded one, which is
started where none runs. :mod:`berth.harbor` is the environment provider for Harbor; it is not imported here.

>>> import berth
>>> with berth.Client() as client, client.create_sandbox("debian:bookworm") as sandbox:
...     print(sandbox.exec("echo hello").stdout)
"""

from berth._async import AsyncClient, AsyncSandbox, BytesCallback, OutputCallback
from berth._calls import ExecOptions
from berth._sync import Client, Sandbox, SyncBytesCallback, SyncOutputCallback
from berth._tar import Report
from berth.errors import (
    BerthError,
    BuildFailed,
    CapacityError,
    ConfigError,
    Conflict,
    ConnectionLost,
    DaemonUnreachable,
    InternalError,
    InvalidRequest,
    NotFound,
    OutputLost,
    ProtocolError,
    Unavailable,
)
from berth.models import (
    ArchiveReport,
    BuildFailure,
    BuildResult,
    Change,
    Check,
    Committed,
    DirEntry,
    ExecBytes,
    ExecEvent,
    ExecInfo,
    ExecOffsets,
    ExecOutput,
    ExecResult,
    ExecStatus,
    FileStat,
    Image,
    ImageConfig,
    KeepOutput,
    Lease,
    Mount,
    OutputGap,
    Page,
    Progress,
    ProgressCallback,
    QueuePlace,
    Resources,
    SandboxInfo,
    Usage,
    Version,
)

__version__ = "0.1.0"

__all__ = [
    "ArchiveReport",
    "AsyncClient",
    "AsyncSandbox",
    "BerthError",
    "BuildFailed",
    "BuildFailure",
    "BuildResult",
    "BytesCallback",
    "CapacityError",
    "Change",
    "Check",
    "Client",
    "Committed",
    "ConfigError",
    "Conflict",
    "ConnectionLost",
    "DaemonUnreachable",
    "DirEntry",
    "ExecBytes",
    "ExecEvent",
    "ExecInfo",
    "ExecOffsets",
    "ExecOptions",
    "ExecOutput",
    "ExecResult",
    "ExecStatus",
    "FileStat",
    "Image",
    "ImageConfig",
    "InternalError",
    "InvalidRequest",
    "KeepOutput",
    "Lease",
    "Mount",
    "NotFound",
    "OutputCallback",
    "OutputGap",
    "OutputLost",
    "Page",
    "Progress",
    "ProgressCallback",
    "ProtocolError",
    "QueuePlace",
    "Report",
    "Resources",
    "Sandbox",
    "SandboxInfo",
    "SyncBytesCallback",
    "SyncOutputCallback",
    "Unavailable",
    "Usage",
    "Version",
    "__version__",
]
