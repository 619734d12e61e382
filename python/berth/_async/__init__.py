"""The asynchronous client.

:class:`AsyncClient` is what users have; it is built in three floors: the connection to the daemon (``link``), commands, which
outlive it (``execs``), and every other call (``client``). :class:`AsyncSandbox` is the client with a sandbox in hand.
"""

from berth._async.client import AsyncClient
from berth._async.execs import BytesCallback, OutputCallback
from berth._async.link import settle
from berth._async.sandbox import AsyncSandbox

__all__ = ["AsyncClient", "AsyncSandbox", "BytesCallback", "OutputCallback", "settle"]
