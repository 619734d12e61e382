"""The synchronous client: the same calls as :mod:`berth._async`, for scripts and threads, on the same floors."""

from berth._sync.client import Client
from berth._sync.execs import SyncBytesCallback, SyncOutputCallback
from berth._sync.sandbox import Sandbox

__all__ = ["Client", "Sandbox", "SyncBytesCallback", "SyncOutputCallback"]
