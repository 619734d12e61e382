"""The client with a sandbox in hand."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self, Unpack

from berth import _tar
from berth._calls import ExecOptions, split_target
from berth._sync.execs import SyncBytesCallback, SyncOutputCallback
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
    from berth._sync.client import Client


class Sandbox:
    """A sandbox and what can be done with it; as a context manager it is deleted at the end."""

    def __init__(self, client: Client, info: SandboxInfo) -> None:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.delete()

    def refresh(self) -> None:
        """Asks the daemon again what is known of it."""
        self.info = (self.client.sandbox(self.id)).info

    def delete(self) -> None:
        """Deletes it."""
        self.client.delete_sandbox(self.id)

    def exec(
        self,
        command: str | Sequence[str],
        *,
        on_output: SyncOutputCallback | None = None,
        collect: bool = True,
        **options: Unpack[ExecOptions],
    ) -> ExecResult:
        """See :meth:`Client.exec`."""
        return self.client.exec(self.id, command, on_output=on_output, collect=collect, **options)

    def exec_bytes(
        self,
        command: str | Sequence[str],
        *,
        on_output: SyncBytesCallback | None = None,
        collect: bool = True,
        **options: Unpack[ExecOptions],
    ) -> ExecBytes:
        """See :meth:`Client.exec_bytes`."""
        return self.client.exec_bytes(self.id, command, on_output=on_output, collect=collect, **options)

    def exec_detached(self, command: str | Sequence[str], **options: Unpack[ExecOptions]) -> ExecInfo:
        """See :meth:`Client.exec_detached`."""
        return self.client.exec_detached(self.id, command, **options)

    def attach(self, exec_id: str, *, stdout: int = 0, stderr: int = 0, follow: bool = True) -> Generator[ExecEvent]:
        """See :meth:`Client.attach`."""
        return self.client.attach(self.id, exec_id, stdout=stdout, stderr=stderr, follow=follow)

    def exec_result(
        self, exec_id: str, *, on_output: SyncOutputCallback | None = None, collect: bool = True
    ) -> ExecResult:
        """See :meth:`Client.exec_result`."""
        return self.client.exec_result(self.id, exec_id, on_output=on_output, collect=collect)

    def execs(self) -> list[ExecInfo]:
        """See :meth:`Client.execs`."""
        return self.client.execs(self.id)

    def exec_info(self, exec_id: str) -> ExecInfo:
        """See :meth:`Client.exec_info`."""
        return self.client.exec_info(self.id, exec_id)

    def kill_exec(self, exec_id: str) -> None:
        """See :meth:`Client.kill_exec`."""
        self.client.kill_exec(self.id, exec_id)

    def signal_exec(self, exec_id: str, signal: str | int, *, tree: bool = False) -> None:
        """See :meth:`Client.signal_exec`."""
        self.client.signal_exec(self.id, exec_id, signal, tree=tree)

    def resize_exec(self, exec_id: str, rows: int, cols: int) -> None:
        """See :meth:`Client.resize_exec`."""
        self.client.resize_exec(self.id, exec_id, rows, cols)

    def write_stdin(self, exec_id: str, data: bytes, *, offset: int | None = None, end: bool = False) -> int:
        """See :meth:`Client.write_stdin`."""
        return self.client.write_stdin(self.id, exec_id, data, offset=offset, end=end)

    def quiesce(self) -> int:
        """See :meth:`Client.quiesce`."""
        return self.client.quiesce(self.id)

    def upload_dir(self, source: Path | str, target: str) -> ArchiveReport:
        """See :meth:`Client.upload_dir`."""
        return self.client.upload_dir(self.id, source, target)

    def upload_file(self, source: Path | str, target: str) -> ArchiveReport:
        """Copies a file of this machine to ``target``, or into it where that is a directory."""
        found = self.client.stat(self.id, target)
        directory, name = split_target(target, Path(source).name, found is not None and found.kind == "dir")
        return self.client.upload_file(self.id, source, directory, name)

    def download_dir(
        self,
        source: str,
        target: Path | str,
        *,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        exclude_files: Sequence[str] = (),
        protect: Sequence[str] = (),
    ) -> _tar.Report:
        """See :meth:`Client.download_dir`."""
        return self.client.download_dir(
            self.id, source, target, exclude=exclude, include=include, exclude_files=exclude_files, protect=protect
        )

    def download_file(self, source: str, target: Path | str) -> None:
        """See :meth:`Client.download_file`."""
        self.client.download_file(self.id, source, target)

    def read_file(self, path: str, offset: int = 0, length: int | None = None, *, user: str | None = None) -> bytes:
        """See :meth:`Client.read_file`."""
        return self.client.read_file(self.id, path, offset, length, user=user)

    def write_file(
        self,
        path: str,
        data: bytes,
        *,
        mode: int | None = None,
        owner: str | None = None,
        create_only: bool = False,
    ) -> int:
        """See :meth:`Client.write_file`."""
        return self.client.write_file(self.id, path, data, mode=mode, owner=owner, create_only=create_only)

    def watch(self, path: str, *, recursive: bool = False) -> Generator[Change]:
        """See :meth:`Client.watch`."""
        return self.client.watch(self.id, path, recursive=recursive)

    def list_dir(self, path: str, *, user: str | None = None) -> list[DirEntry]:
        """See :meth:`Client.list_dir`."""
        return self.client.list_dir(self.id, path, user=user)

    def stat(self, path: str, user: str | None = None) -> FileStat | None:
        """See :meth:`Client.stat`."""
        return self.client.stat(self.id, path, user)
