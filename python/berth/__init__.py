"""Berth's Python client.

``Client`` and ``AsyncClient`` speak HTTP to a Berth daemon: the one that ``BERTH_HOST`` names, else the embedded one, which is
started where none runs. :mod:`berth.harbor` is the environment provider for Harbor; it is not imported here.

>>> import berth
>>> with berth.Client() as client, client.create_sandbox("debian:bookworm") as sandbox:
...     print(sandbox.exec("echo hello").stdout)
"""

from berth._async import AsyncClient, AsyncSandbox, OutputCallback, ProgressCallback
from berth._sync import Client, Sandbox, SyncOutputCallback
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
    Check,
    Committed,
    ExecResult,
    FileStat,
    Image,
    ImageConfig,
    Lease,
    Mount,
    Page,
    Progress,
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
    "CapacityError",
    "Check",
    "Client",
    "Committed",
    "ConfigError",
    "Conflict",
    "ConnectionLost",
    "DaemonUnreachable",
    "ExecResult",
    "FileStat",
    "Image",
    "ImageConfig",
    "InternalError",
    "InvalidRequest",
    "Lease",
    "Mount",
    "NotFound",
    "OutputCallback",
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
    "SyncOutputCallback",
    "Unavailable",
    "Usage",
    "Version",
    "__version__",
]
