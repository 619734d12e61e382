"""Packing and unpacking: nothing lost, nothing outside."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from berth import _tar


def archive(*members: tuple[str, bytes, str | bytes, int]) -> io.BytesIO:
    """A tar of ``(name, type, link or content, mode)``."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, content, mode in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid = kind, mode, 12345
            if isinstance(content, str):
                info.linkname = content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    data.seek(0)
    return data


def reg(name: str, content: bytes = b"x", mode: int = 0o644) -> tuple[str, bytes, bytes, int]:
    return name, tarfile.REGTYPE, content, mode


def sym(name: str, link: str) -> tuple[str, bytes, str, int]:
    return name, tarfile.SYMTYPE, link, 0o777


def tree(root: Path) -> dict[str, tuple[str, object, int]]:
    """Everything below ``root``: kind, content or link, mode."""
    found: dict[str, tuple[str, object, int]] = {}
    for path in sorted(root.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = ("link", os.readlink(path), 0)
        elif path.is_dir():
            found[name] = ("dir", None, mode)
        else:
            found[name] = ("file", path.read_bytes(), mode)
    return found


def test_round_trip(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for name in ("deep/er", "empty", "ö"):
        (source / name).mkdir(parents=True)
    (source / "deep/er/script.sh").write_text("#!/bin/sh\n")
    (source / "deep/er/script.sh").chmod(0o755)
    (source / "-dash").write_bytes(os.urandom(3 * _tar.CHUNK + 17))
    (source / "new\nline").write_text("")
    (source / ("long" * 60)).write_text("pax")
    (source / "relative").symlink_to("deep/er/script.sh")
    (source / "dangling").symlink_to("nowhere")
    (source / "deep/up").symlink_to("../empty")
    report = _tar.extract(io.BytesIO(b"".join(_tar.pack(source))), target)
    assert not report.refused
    assert tree(target) == tree(source)


def test_packing_keeps_what_extracting_would_refuse(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "absolute").symlink_to("/etc/passwd")
    os.mkfifo(source / "fifo")
    with tarfile.open(fileobj=io.BytesIO(b"".join(_tar.pack(source)))) as packed:
        assert [(m.name, m.linkname, m.uid) for m in packed] == [("absolute", "/etc/passwd", 0)]


def test_an_empty_directory_is_a_valid_archive(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    assert _tar.extract(io.BytesIO(b"".join(_tar.pack(tmp_path / "source"))), tmp_path / "target").extracted == 0
    assert (tmp_path / "target").is_dir()


def test_not_a_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _tar.pack(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        _tar.pack_file(tmp_path, "name")


def test_merging(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/kept").write_text("kept")
    (tmp_path / "d/replaced").write_text("old")
    (tmp_path / "was-link").symlink_to("d/kept")
    (tmp_path / "was-file").write_text("")
    members = [reg("d/replaced", b"new"), reg("was-link", b"file"), ("was-file", tarfile.DIRTYPE, "", 0o755)]
    assert not _tar.extract(archive(*members), tmp_path).refused
    assert (tmp_path / "d/kept").read_text() == "kept"
    assert (tmp_path / "d/replaced").read_text() == "new"
    assert (tmp_path / "was-link").read_text() == "file"
    assert not (tmp_path / "was-link").is_symlink()
    assert (tmp_path / "was-file").is_dir()


ESCAPES = [
    [reg("../escaped")],
    [reg("a/../../escaped")],
    [sym("link", "/"), reg("link/escaped")],
    [sym("link", ".."), reg("link/escaped")],
    [sym("out", "../escaped")],
    [sym("absolute", "/etc/passwd")],
    [("d", tarfile.DIRTYPE, "", 0o755), sym("d/out", "../../escaped")],
    # d/up is the root, so d/up/../x would be above it, though its text stays inside.
    [("a/b", tarfile.DIRTYPE, "", 0o755), sym("a/b/up", "../.."), sym("x", "a/b/up/../escaped")],
    [("hard", tarfile.LNKTYPE, "../escaped", 0o644)],
    [sym("link", ".."), ("hard", tarfile.LNKTYPE, "link/secret", 0o644)],
    [("hard", tarfile.LNKTYPE, "missing", 0o644)],
    [("d", tarfile.DIRTYPE, "", 0o755), reg("d")],
]


@pytest.mark.parametrize("members", ESCAPES)
def test_escapes_are_refused_one_by_one(tmp_path: Path, members: list[tuple[str, bytes, str | bytes, int]]) -> None:
    (tmp_path / "secret").write_text("secret")
    target = tmp_path / "target"
    report = _tar.extract(archive(*members, reg("good", b"good")), target)
    assert len(report.refused) >= 1
    assert (target / "good").read_bytes() == b"good"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "target"]
    assert (tmp_path / "secret").read_text() == "secret"
    for path in target.rglob("*"):
        assert path.resolve().is_relative_to(target), path


def test_a_name_that_only_looks_absolute_stays_inside(tmp_path: Path) -> None:
    _tar.extract(archive(reg("/etc/x"), reg("./y")), tmp_path)
    assert (tmp_path / "etc/x").exists()
    assert (tmp_path / "y").exists()


def test_writing_never_goes_through_a_symlink_of_the_target(tmp_path: Path) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    (outside / "file").write_text("untouched")
    (target / "dir").symlink_to(outside)
    (target / "file").symlink_to(outside / "file")
    report = _tar.extract(archive(reg("dir/new"), reg("file", b"mine")), target)
    assert len(report.refused) == 1
    assert (outside / "file").read_text() == "untouched"
    assert sorted(path.name for path in outside.iterdir()) == ["file"]


def test_modes_owners_and_special_files(tmp_path: Path) -> None:
    members = [reg("suid", b"", 0o4777), reg("none", b"", 0), ("fifo", tarfile.FIFOTYPE, "", 0o644)]
    report = _tar.extract(archive(*members, ("null", tarfile.CHRTYPE, "", 0o666), reg("x", b"", 0o711)), tmp_path)
    assert not report.refused
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"suid": 0o755, "none": 0o600, "x": 0o711}
    assert {path.stat().st_uid for path in tmp_path.iterdir()} == {os.getuid()}


def test_hard_links(tmp_path: Path) -> None:
    _tar.extract(archive(reg("a/one", b"same"), ("two", tarfile.LNKTYPE, "a/one", 0o644)), tmp_path)
    assert (tmp_path / "two").read_bytes() == b"same"
    assert (tmp_path / "two").stat().st_ino == (tmp_path / "a/one").stat().st_ino


def test_a_sparse_file_stays_sparse(tmp_path: Path) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    source.mkdir()
    with (source / "holes").open("wb") as file:
        file.seek(64 << 20)
        file.write(b"middle")
        file.truncate(256 << 20)
    (source / "after").write_text("after")
    command = ["tar", "--sparse", "--format=posix", "-C", str(source), "-c", "."]
    packed = subprocess.run(command, capture_output=True, check=True).stdout
    assert len(packed) < 1 << 20
    _tar.extract(io.BytesIO(packed), made)
    with (made / "holes").open("rb") as file:
        file.seek(64 << 20)
        assert file.read(8) == b"middle\0\0"
    facts = (made / "holes").stat()
    assert (facts.st_size, facts.st_blocks * 512 < 1 << 20) == (256 << 20, True)
    assert (made / "after").read_text() == "after"


@pytest.mark.parametrize("keep", [0, 100, 512, 700, 1536, 3000])
def test_a_truncated_archive_is_an_error(tmp_path: Path, keep: int) -> None:
    whole = archive(reg("one", b"1" * 900), reg("two", b"2" * 900)).getvalue()
    with pytest.raises(tarfile.ReadError):
        _tar.extract(io.BytesIO(whole[:keep]), tmp_path / "target")


def test_single_files(tmp_path: Path) -> None:
    source, target = tmp_path / "run.sh", tmp_path / "copy"
    source.write_text("run")
    source.chmod(0o750)
    target.symlink_to(source)
    _tar.extract_file(io.BytesIO(b"".join(_tar.pack_file(source, "other"))), target)
    assert (target.read_text(), target.is_symlink(), stat.S_IMODE(target.stat().st_mode)) == ("run", False, 0o750)
    with pytest.raises(OSError, match="no regular file"):
        _tar.extract_file(archive(("d", tarfile.DIRTYPE, "", 0o755)), tmp_path / "d")
