"""File trees as tar streams, on the client's side.

:func:`pack` is a generator of bytes, so whoever sends it sets the pace and nothing is held but one chunk. :func:`extract`
treats the archive as hostile: it walks the target by directory descriptors and never through a symlink, writes every
file under a temporary name and renames it into place, and refuses each entry that would leave the target, without
giving up on the others. Entries merge into what is there; files belong to whoever runs this.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol, cast

CHUNK = 256 << 10
"""Bytes read from a file, and sent, at a time."""

_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Readable(Protocol):
    """What :func:`extract` reads from."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; empty at the end."""
        ...


# ---------------------------------------------------------------------------------------------------------- packing


def pack(source: Path) -> Iterator[bytes]:
    """The contents of the directory ``source``, as a tar in chunks of about :data:`CHUNK`.

    Modes, symlinks and empty directories are kept, owners are not; sockets, FIFOs and devices are left out. The directory itself is
    no entry, so the mode of the place it is unpacked into stays as it is.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is not a directory")
    return _coalesce(_members(source))


def pack_file(source: Path, name: str) -> Iterator[bytes]:
    """The file ``source`` (symlinks followed) as the single entry ``name`` of a tar."""
    if not source.is_file():
        raise FileNotFoundError(f"{source} is not a file")
    return _coalesce(_file(source, name, source.stat()))


def _coalesce(pieces: Iterator[bytes]) -> Iterator[bytes]:
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        if len(buffer) >= CHUNK:
            yield bytes(buffer)
            buffer.clear()
    yield bytes(buffer) + bytes(2 * tarfile.BLOCKSIZE)


def _members(root: Path) -> Iterator[bytes]:
    for directory, names, files in os.walk(root, onerror=_raise):
        names.sort()
        for name in sorted(names + files):
            path = Path(directory, name)
            facts = path.lstat()
            relative = str(path.relative_to(root))
            if stat.S_ISLNK(facts.st_mode):
                yield _header(relative, facts, tarfile.SYMTYPE, link=os.readlink(path))
            elif stat.S_ISDIR(facts.st_mode):
                yield _header(relative, facts, tarfile.DIRTYPE)
            elif stat.S_ISREG(facts.st_mode):
                yield from _file(path, relative, facts)


def _raise(error: OSError) -> None:
    raise error


def _file(path: Path, name: str, facts: os.stat_result) -> Iterator[bytes]:
    yield _header(name, facts, tarfile.REGTYPE, size=facts.st_size)
    left = facts.st_size
    with path.open("rb") as file:
        # The header has promised a size: growth is left out, and a shrunken file cannot be told truthfully.
        while left:
            piece = file.read(min(CHUNK, left))
            if not piece:
                raise OSError(f"{path} shrank while it was being read")
            left -= len(piece)
            yield piece
    yield bytes(-facts.st_size % tarfile.BLOCKSIZE)


def _header(name: str, facts: os.stat_result, kind: bytes, size: int = 0, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = size
    info.linkname = link
    info.mode = stat.S_IMODE(facts.st_mode)
    info.mtime = int(facts.st_mtime)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


# ------------------------------------------------------------------------------------------------------- extracting


@dataclass
class Report:
    """What an extraction did."""

    extracted: int = 0
    """Entries written."""
    refused: list[str] = field(default_factory=list)
    """Entries that were not written, each with the reason."""


class _Refused(Exception):
    """An entry that must not be written."""


def extract(stream: Readable, target: Path) -> Report:
    """Unpacks the tar from ``stream`` into ``target``, which is made when it is not there.

    Truncated archives raise :class:`tarfile.ReadError`.
    """
    target.mkdir(parents=True, exist_ok=True)
    report = Report()
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _archive(stream) as archive:
            for member in archive:
                _extract_member(archive, member, root, report)
    finally:
        os.close(root)
    return report


def extract_file(stream: Readable, target: Path) -> None:
    """Writes the one file of the tar from ``stream`` as ``target``."""
    name = target.name
    with _archive(stream) as archive:
        member = archive.next()
        if member is None or not member.isreg():
            raise OSError("it is no regular file: the archive holds none")
        parent = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _write_file(archive, member, parent, name)
        except _Refused as error:
            raise IsADirectoryError(f"{target}: {error}") from error
        finally:
            os.close(parent)


def _archive(stream: Readable) -> tarfile.TarFile:
    return tarfile.open(fileobj=cast(IO[bytes], _Complete(stream)), mode="r|", bufsize=CHUNK)


class _Complete:
    """A stream whose early end is an error: `tarfile` takes an archive without its end marker for a complete one."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._tail = b""

    def read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._stream.read(size - len(data))
            if not piece:
                break
            data += piece
        self._tail = (self._tail + data[-2 * tarfile.BLOCKSIZE :])[-2 * tarfile.BLOCKSIZE :]
        if len(data) < size and self._tail.strip(b"\0"):
            raise tarfile.ReadError("the archive ends early")
        return bytes(data)


def _extract_member(archive: tarfile.TarFile, member: tarfile.TarInfo, root: int, report: Report) -> None:
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if not parts or not (member.isreg() or member.islnk() or member.isdir() or member.issym()):
        return
    try:
        if _place(archive, member, root, parts):
            report.extracted += 1
        else:
            report.refused.append(f"{member.name}: a hard link to {member.linkname!r}, which is not there")
    except _Refused as error:
        report.refused.append(f"{member.name}: {error}")
    except OSError as error:
        # A full disk or a lost permission concerns every entry, a clash of names only this one.
        if not isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
            raise
        report.refused.append(f"{member.name}: {error.strerror}")


def _place(archive: tarfile.TarFile, member: tarfile.TarInfo, root: int, parts: list[str]) -> bool:
    """Writes one entry; false for a hard link whose original is not in the target."""
    if ".." in parts:
        raise _Refused("the name leaves the directory")
    with _opened(root, parts[:-1], make=True) as parent:
        name = parts[-1]
        if member.isdir():
            _make_dir(parent, name, member.mode)
        elif member.issym():
            _check_link(member.linkname, len(parts) - 1)
            _replace(parent, name, lambda temp: os.symlink(member.linkname, temp, dir_fd=parent))
        elif member.islnk():
            return _link(root, member, parent, name)
        else:
            _write_file(archive, member, parent, name)
    return True


@contextlib.contextmanager
def _opened(root: int, parts: Iterable[str], make: bool) -> Iterator[int]:
    """A descriptor of the directory at ``parts`` below ``root``, reached through real directories only."""
    current = os.dup(root)
    try:
        for part in parts:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o777, dir_fd=current)
            try:
                below = os.open(part, _DIR_FLAGS, dir_fd=current)
            except NotADirectoryError as error:
                raise _Refused(f"{part} is in the way and is no directory") from error
            except OSError as error:
                # O_NOFOLLOW on a symlink.
                raise _Refused(f"{part}: {error.strerror}") from error
            os.close(current)
            current = below
        yield current
    finally:
        os.close(current)


def _check_link(link: str, depth: int) -> None:
    """Refuses a symlink that leads out of the target.

    Leading ``..`` climb real directories, since entries are never written through symlinks, and every further name stays
    inside by the same rule. A ``..`` after a name could climb out of what a symlink points at, so it is refused as well.
    """
    if not link or link.startswith("/"):
        raise _Refused(f"a symlink to {link!r} leaves the directory")
    climbed, named = 0, False
    for part in link.split("/"):
        if part == "..":
            climbed += 1
            if named or climbed > depth:
                raise _Refused(f"a symlink to {link!r} leaves the directory")
        elif part not in ("", "."):
            named = True


def _make_dir(parent: int, name: str, mode: int) -> None:
    try:
        os.mkdir(name, 0o777, dir_fd=parent)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
            os.unlink(name, dir_fd=parent)
            os.mkdir(name, 0o777, dir_fd=parent)
    below = os.open(name, _DIR_FLAGS, dir_fd=parent)
    try:
        os.fchmod(below, mode & 0o755 | 0o700)
    finally:
        os.close(below)


def _write_file(archive: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str) -> None:
    # The archive stands where the member's data begin, and of a sparse file holds only what is data.
    source = cast(IO[bytes], archive.fileobj)

    def write(temp: str) -> None:
        with io.FileIO(os.open(temp, _NEW_FILE_FLAGS, 0o600, dir_fd=parent), "wb") as file:
            for start, length in _data(member):
                file.seek(start)
                _copy(source, file, length)
            file.truncate(member.size)
            os.fchmod(file.fileno(), _file_mode(member.mode))
            os.utime(file.fileno(), (member.mtime, member.mtime))

    _replace(parent, name, write)


def _data(member: tarfile.TarInfo) -> Iterable[tuple[int, int]]:
    """Where a file holds data: offsets and lengths."""
    ranges = cast("Iterable[tuple[int, int]] | None", member.sparse)
    return [(0, member.size)] if ranges is None else ranges


def _copy(source: IO[bytes], file: io.FileIO, length: int) -> None:
    while length:
        piece = source.read(min(CHUNK, length))
        if not piece:
            raise tarfile.ReadError("the archive ends early")
        length -= len(piece)
        left = memoryview(piece)
        while left:
            left = left[file.write(left) :]


def _file_mode(mode: int) -> int:
    """As tarfile's ``data`` filter has it: no set-id bits, no writing by others, readable by the owner."""
    mode &= 0o755
    if not mode & 0o100:
        mode &= ~0o111
    return mode | 0o600


def _link(root: int, member: tarfile.TarInfo, parent: int, name: str) -> bool:
    original = [part for part in member.linkname.split("/") if part not in ("", ".")]
    if not original or ".." in original:
        raise _Refused(f"a hard link to {member.linkname!r} leaves the directory")
    with contextlib.ExitStack() as stack:
        try:
            directory = stack.enter_context(_opened(root, original[:-1], make=False))
            found = os.lstat(original[-1], dir_fd=directory)
        except (FileNotFoundError, _Refused):
            return False
        if not stat.S_ISREG(found.st_mode):
            raise _Refused(f"a hard link to {member.linkname!r}, which is no file")

        def link(temp: str) -> None:
            os.link(original[-1], temp, src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False)

        _replace(parent, name, link)
    return True


def _replace(parent: int, name: str, make: Callable[[str], None]) -> None:
    """Makes something under a temporary name and renames it to ``name``, whatever file or symlink is there."""
    temp = f".berth-{os.getpid()}-{os.urandom(6).hex()}"
    try:
        make(temp)
        os.rename(temp, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temp, dir_fd=parent)
        raise


def save(stream: Readable, target: Path) -> None:
    """Writes what ``stream`` gives to the file ``target``, which is there, or replaced, only when that is whole."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("wb") as file:
            while piece := stream.read(CHUNK):
                file.write(piece)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
