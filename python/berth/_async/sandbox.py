"""The client with a sandbox in hand."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self, Unpack

from berth import _tar
from berth._async.execs import BytesCallback, OutputCallback
from berth._calls import ExecOptions, split_target
from berth.models import (
    ArchiveReport,
    Change,
    DirEntry,
    ExecBytes,
    ExecEvent,
    ExecInfo,
    ExecResult,
    FileStat,
    SandboxInfo,
)

if TYPE_CHECKING:
    from berth._async.client import AsyncClient


class AsyncSandbox:
    """A sandbox and what can be done with it; as a context manager it is deleted at the end."""

    def __init__(self, client: AsyncClient, info: SandboxInfo) -> None:
        self.client = client
        self.info = info

    @property
    def id(self) -> str:
        """Its id."""
        return self.info.id

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.delete()

    async def refresh(self) -> None:
        """Asks the daemon again what is known of it."""
        self.info = (await self.client.sandbox(self.id)).info

    async def delete(self) -> None:
        """Deletes it."""
        await self.client.delete_sandbox(self.id)

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        on_output: OutputCallback | None = None,
        collect: bool = True,
        **options: Unpack[ExecOptions],
    ) -> ExecResult:
        """See :meth:`AsyncClient.exec`."""
        return await self.client.exec(self.id, command, on_output=on_output, collect=collect, **options)

    async def exec_bytes(
        self,
        command: str | Sequence[str],
        *,
        on_output: BytesCallback | None = None,
        collect: bool = True,
        **options: Unpack[ExecOptions],
    ) -> ExecBytes:
        """See :meth:`AsyncClient.exec_bytes`."""
        return await self.client.exec_bytes(self.id, command, on_output=on_output, collect=collect, **options)

    async def exec_detached(self, command: str | Sequence[str], **options: Unpack[ExecOptions]) -> ExecInfo:
        """See :meth:`AsyncClient.exec_detached`."""
        return await self.client.exec_detached(self.id, command, **options)

    def attach(
        self, exec_id: str, *, stdout: int = 0, stderr: int = 0, follow: bool = True
    ) -> AsyncGenerator[ExecEvent]:
        """See :meth:`AsyncClient.attach`."""
        return self.client.attach(self.id, exec_id, stdout=stdout, stderr=stderr, follow=follow)

    async def exec_result(
        self, exec_id: str, *, on_output: OutputCallback | None = None, collect: bool = True
    ) -> ExecResult:
        """See :meth:`AsyncClient.exec_result`."""
        return await self.client.exec_result(self.id, exec_id, on_output=on_output, collect=collect)

    async def execs(self) -> list[ExecInfo]:
        """See :meth:`AsyncClient.execs`."""
        return await self.client.execs(self.id)

    async def exec_info(self, exec_id: str) -> ExecInfo:
        """See :meth:`AsyncClient.exec_info`."""
        return await self.client.exec_info(self.id, exec_id)

    async def kill_exec(self, exec_id: str) -> None:
        """See :meth:`AsyncClient.kill_exec`."""
        await self.client.kill_exec(self.id, exec_id)

    async def signal_exec(self, exec_id: str, signal: str | int, *, tree: bool = False) -> None:
        """See :meth:`AsyncClient.signal_exec`."""
        await self.client.signal_exec(self.id, exec_id, signal, tree=tree)

    async def resize_exec(self, exec_id: str, rows: int, cols: int) -> None:
        """See :meth:`AsyncClient.resize_exec`."""
        await self.client.resize_exec(self.id, exec_id, rows, cols)

    async def write_stdin(self, exec_id: str, data: bytes, *, offset: int | None = None, end: bool = False) -> int:
        """See :meth:`AsyncClient.write_stdin`."""
        return await self.client.write_stdin(self.id, exec_id, data, offset=offset, end=end)

    async def quiesce(self) -> int:
        """See :meth:`AsyncClient.quiesce`."""
        return await self.client.quiesce(self.id)

    async def upload_dir(self, source: Path | str, target: str) -> ArchiveReport:
        """See :meth:`AsyncClient.upload_dir`."""
        return await self.client.upload_dir(self.id, source, target)

    async def upload_file(self, source: Path | str, target: str) -> ArchiveReport:
        """Copies a file of this machine to ``target``, or into it where that is a directory."""
        found = await self.client.stat(self.id, target)
        directory, name = split_target(target, Path(source).name, found is not None and found.kind == "dir")
        return await self.client.upload_file(self.id, source, directory, name)

    async def download_dir(
        self,
        source: str,
        target: Path | str,
        *,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        exclude_files: Sequence[str] = (),
        protect: Sequence[str] = (),
    ) -> _tar.Report:
        """See :meth:`AsyncClient.download_dir`."""
        return await self.client.download_dir(
            self.id, source, target, exclude=exclude, include=include, exclude_files=exclude_files, protect=protect
        )

    async def download_file(self, source: str, target: Path | str) -> None:
        """See :meth:`AsyncClient.download_file`."""
        await self.client.download_file(self.id, source, target)

    async def read_file(
        self, path: str, offset: int = 0, length: int | None = None, *, user: str | None = None
    ) -> bytes:
        """See :meth:`AsyncClient.read_file`."""
        return await self.client.read_file(self.id, path, offset, length, user=user)

    async def write_file(
        self,
        path: str,
        data: bytes,
        *,
        mode: int | None = None,
        owner: str | None = None,
        create_only: bool = False,
    ) -> int:
        """See :meth:`AsyncClient.write_file`."""
        return await self.client.write_file(self.id, path, data, mode=mode, owner=owner, create_only=create_only)

    def watch(self, path: str, *, recursive: bool = False) -> AsyncGenerator[Change]:
        """See :meth:`AsyncClient.watch`."""
        return self.client.watch(self.id, path, recursive=recursive)

    async def list_dir(self, path: str, *, user: str | None = None) -> list[DirEntry]:
        """See :meth:`AsyncClient.list_dir`."""
        return await self.client.list_dir(self.id, path, user=user)

    async def stat(self, path: str, user: str | None = None) -> FileStat | None:
        """See :meth:`AsyncClient.stat`."""
        return await self.client.stat(self.id, path, user)
