"""Section E of the contract: files."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import berth
import pytest
from world import FULL, IMAGE, World


def described(root: Path) -> dict[bytes, tuple[object, ...]]:
    """A tree, as far as a transfer keeps it."""
    found: dict[bytes, tuple[object, ...]] = {}
    top = os.fsencode(root)
    for directory, names, files in os.walk(top):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            facts = os.lstat(path)
            content: object = None
            if stat.S_ISLNK(facts.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(facts.st_mode):
                with open(path, "rb") as file:
                    content = hashlib.sha256(file.read()).hexdigest()
            mode = 0 if stat.S_ISLNK(facts.st_mode) else stat.S_IMODE(facts.st_mode)
            found[os.path.relpath(path, top)] = (stat.S_IFMT(facts.st_mode), mode, content)
    return found


def odd_tree(root: Path, dice: random.Random, entries: int = 60) -> None:
    """Directories, files and links with names and modes of all sorts, all of which may come back."""
    names = ["plain", "with blank", "-dash", "new\nline", "tab\t", "ümlaut", "'quote\"", "*?[x]", ".hidden", "x" * 200]
    directories = [root]
    root.mkdir()
    for number in range(entries):
        parent = dice.choice(directories)
        path = parent / f"{dice.choice(names)}{number}"
        kind = dice.randrange(10)
        if kind < 3:
            path.mkdir()
            path.chmod(dice.choice([0o755, 0o700, 0o750]))
            directories.append(path)
        elif kind < 5:
            path.symlink_to(dice.choice(["nowhere", "./plain0", "sub/dir/x"]))
        else:
            path.write_bytes(dice.randbytes(dice.choice([0, 1, 511, 512, 513, 70_000])))
            path.chmod(dice.choice([0o644, 0o755, 0o600, 0o444 | 0o200]))
    (root / "empty dir").mkdir()
    with open(os.fsencode(root) + b"/not utf-8 \xff\xfe", "wb") as file:
        file.write(b"bytes")


def test_e67_one_file_goes_up(world: World, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("new")
    source.chmod(0o755)
    world.run("mkdir -p /e67/dir && echo old >/e67/there")
    for target, path in (("/e67/there", "/e67/there"), ("/e67/dir", "/e67/dir/source")):
        world.upload_file(source, target)
        assert world.run(f"cat {path}; stat -c ' %a %u %g' {path}").out == b"new 755 0 0\n"


def test_e67_parents_are_made(world: World, tmp_path: Path) -> None:
    (tmp_path / "source").write_text("new")
    world.upload_file(tmp_path / "source", "/e67/a/b/c")
    assert world.run("cat /e67/a/b/c").out == b"new"


def test_e67_a_single_file_is_written_as_a_whole(box: berth.Sandbox) -> None:
    assert box.write_file("/e67w/a/file", b"one", mode=0o640, owner="alice:crew") == 3
    assert box.exec("stat -c '%a %U %G' /e67w/a/file").stdout == "640 alice crew\n"
    box.write_file("/e67w/a/file", b"\0two")
    assert box.exec("stat -c '%a %U %G' /e67w/a/file").stdout == "640 alice crew\n", "as the one it replaces"
    assert (box.read_file("/e67w/a/file"), box.read_file("/e67w/a/file", 1, 2)) == (b"\0two", b"tw")
    with pytest.raises(berth.Conflict):
        box.write_file("/e67w/a/file", b"", create_only=True)
    with pytest.raises(berth.NotFound):
        box.read_file("/e67w/none")


def test_e68_a_tree_goes_up_and_merges(world: World, tmp_path: Path) -> None:
    source = tmp_path / "source"
    odd_tree(source, random.Random(68))
    (source / "absolute").symlink_to("/etc/passwd")
    (source / "same").write_text("new")
    world.run("mkdir -p /e68/sub && echo old >/e68/same && echo kept >/e68/sibling")
    world.upload_dir(source, "/e68")
    assert world.run("cat /e68/sibling /e68/same; readlink /e68/absolute").out == b"kept\nnew/etc/passwd\n"
    listing = "cd /e68 && find . -mindepth 1 -printf '%y %m %l %P\\0' | sort -z | sha256sum"
    expected = subprocess.run(["bash", "-c", listing.replace("/e68", f"'{source}'")], capture_output=True, check=True)
    world.run("rm -r /e68/sub /e68/sibling")
    # The mode of a link is the system's business.
    assert world.run(listing).out == expected.stdout


@pytest.mark.parametrize("seed", range(20 if FULL else 4))
def test_e68_e70_random_trees_come_back_as_they_were(world: World, tmp_path: Path, seed: int) -> None:
    odd_tree(tmp_path / "out", random.Random(seed))
    world.upload_dir(tmp_path / "out", f"/e70/{seed}")
    world.download_dir(f"/e70/{seed}", tmp_path / "back")
    assert described(tmp_path / "back") == described(tmp_path / "out")


def test_e69_a_file_over_a_directory_and_the_other_way(world: World, tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    (tmp_path / "up/name").write_text("file")
    world.run("mkdir -p /e69/name/full && touch /e69/name/full/x")
    try:
        world.upload_dir(tmp_path / "up", "/e69")
    except (OSError, AssertionError, berth.BerthError) as error:
        assert "name" in str(error), "it says what stands in the way"
        assert world.run("test -e /e69/name/full/x").code == 0
    else:
        assert world.run("cat /e69/name").out == b"file"


def test_e69_a_target_below_a_file_is_a_clear_error(box: berth.Sandbox, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    box.exec("echo file >/e69file")
    with pytest.raises(berth.BerthError) as caught:
        box.upload_file(tmp_path / "x", "/e69file/below/x")
    assert not caught.value.is_infrastructure
    assert "/e69file" in str(caught.value)
    assert box.exec("cat /e69file").stdout == "file\n"


def test_e70_links_out_of_the_tree_are_refused_one_by_one(box: berth.Sandbox, tmp_path: Path) -> None:
    box.exec(
        "mkdir -p /e70x && cd /e70x && echo a >a && ln -s a in && ln -s /etc/passwd out && ln -s ../../x up && echo z >z"
    )
    report = box.download_dir("/e70x", tmp_path / "target")
    assert sorted(path.name for path in (tmp_path / "target").iterdir()) == ["a", "in", "z"]
    assert sorted(line.split(":")[0].removeprefix("./") for line in report.refused) == ["out", "up"]


def test_e71_what_is_missing_is_an_error_and_leaves_nothing(world: World, tmp_path: Path) -> None:
    with pytest.raises((OSError, berth.NotFound)):
        world.download_file("/no/such/file", tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_e71_a_missing_directory_leaves_no_target(box: berth.Sandbox, tmp_path: Path) -> None:
    with pytest.raises(berth.NotFound, match="/no/such/dir"):
        box.download_dir("/no/such/dir", tmp_path / "dir")
    assert not (tmp_path / "dir").exists()


def test_e72_fifos_sockets_and_devices_hang_nobody(world: World, tmp_path: Path) -> None:
    world.run("mkdir -p /e72 && cd /e72 && mkfifo fifo && echo a >a && echo z >z; mknod null c 1 3")
    world.download_dir("/e72", tmp_path / "down")
    assert {"a", "z"} <= {path.name for path in (tmp_path / "down").iterdir() if path.is_file()}
    up = tmp_path / "up"
    up.mkdir()
    os.mkfifo(up / "fifo")
    (up / "after").write_text("after")
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(up)
        listener.bind("socket")
        world.upload_dir(up, "/e72up")
    assert world.run("cat /e72up/after").out == b"after"


def test_e73_a_file_of_256_mib_or_5_gb_in_full_goes_both_ways(box: berth.Sandbox, tmp_path: Path) -> None:
    size = 5_000_000_000 if FULL else 256 << 20
    digest, block = hashlib.sha256(), os.urandom(1 << 20)
    with (tmp_path / "big").open("wb") as file:
        for start in range(0, size, len(block)):
            piece = block[: size - start]
            file.write(piece)
            digest.update(piece)
    box.upload_file(tmp_path / "big", "/e73/big")
    (tmp_path / "big").unlink()
    assert box.exec("sha256sum </e73/big").stdout.split()[0] == digest.hexdigest()
    box.download_file("/e73/big", tmp_path / "back")
    with (tmp_path / "back").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest.hexdigest()
    (tmp_path / "back").unlink()
    box.exec("rm /e73/big")


def test_e73_5000_or_200000_small_files_in_full_go_both_ways(box: berth.Sandbox, tmp_path: Path) -> None:
    count = 200_000 if FULL else 5_000
    for number in range(count):
        directory = tmp_path / "up" / str(number // 1000)
        if number % 1000 == 0:
            directory.mkdir(parents=True)
        (directory / str(number)).write_text(str(number))
    box.upload_dir(tmp_path / "up", "/e73s")
    assert box.exec("find /e73s -type f | wc -l").stdout.strip() == str(count)
    assert box.download_dir("/e73s", tmp_path / "back").extracted >= count
    assert described(tmp_path / "back") == described(tmp_path / "up")
    box.exec("rm -r /e73s")


def test_e73_holes_stay_holes(box: berth.Sandbox, tmp_path: Path) -> None:
    box.exec("mkdir -p /e73h && truncate -s 3G /e73h/sparse && printf end >>/e73h/sparse")
    box.download_dir("/e73h", tmp_path / "down")
    facts = (tmp_path / "down/sparse").stat()
    assert facts.st_size == (3 << 30) + 3
    assert facts.st_blocks * 512 < 1 << 20


@pytest.fixture(scope="module")
def corpus(box: berth.Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tree here and in the sandbox, at /e74."""
    root = tmp_path_factory.mktemp("corpus") / "c"
    dice = random.Random(74)
    parts = ["a", "b", "log", "x.log", "y.txt", "deep", "reward.txt", "a b", "[z]", ".git", "cache"]
    for _ in range(150):
        path = root.joinpath(*(dice.choice(parts) for _ in range(dice.randint(1, 4))))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(path))
        except OSError:
            continue  # A directory is there, or a file where one ought to be.
    os.link(next(path for path in sorted(root.rglob("*")) if path.is_file()), root / "second name")
    box.upload_dir(root, "/e74")
    box.exec(
        "cd /e74 && f=$(find . -type f ! -name 'second name' | LC_ALL=C sort | head -n 1) && ln -f \"$f\" 'second name'"
    )
    return root


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and not path.is_symlink()}


PATTERNS = [
    "*",
    "a",
    "*.log",
    "a/*",
    "*/deep/*",
    "log",
    "[!a]*",
    "?",
    "a b",
    "deep",
    "*.txt",
    "b/b",
    "\\[z\\]",
    ".git",
    "[z",
    "x.lo?",
]


@pytest.mark.parametrize("seed", range(60))
def test_e74_excluding_is_as_with_tar(box: berth.Sandbox, corpus: Path, tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    # tar takes a lone question mark for the directory itself, `.`, and then leaves out everything; Berth never does that.
    patterns = dice.sample([pattern for pattern in PATTERNS if pattern != "?"], dice.randint(1, 3))
    box.download_dir("/e74", tmp_path / "ours", exclude=patterns)
    (tmp_path / "theirs").mkdir()
    excludes = [f"--exclude={pattern}" for pattern in patterns]
    packed = subprocess.run(["tar", "-C", str(corpus), "-c", *excludes, "."], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-C", str(tmp_path / "theirs"), "-x"], input=packed, check=True)
    assert set(described(tmp_path / "ours")) == set(described(tmp_path / "theirs")), patterns


@pytest.mark.parametrize("seed", range(60))
def test_e74_choosing_is_as_with_harbor(box: berth.Sandbox, corpus: Path, tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    include = dice.sample(PATTERNS, dice.randint(0, 2))
    exclude = dice.sample(PATTERNS, dice.randint(0, 2))
    names = files(corpus)
    protect = dice.sample(sorted(names), dice.randint(0, 2))
    chosen = {name for name in names if not include or any(fnmatch(name, pattern) for pattern in include)}
    chosen = {name for name in chosen if not any(fnmatch(name, pattern) for pattern in exclude)} | set(protect)
    box.download_dir("/e74", tmp_path / "ours", include=include or ["*"], exclude_files=exclude, protect=protect)
    assert files(tmp_path / "ours") == chosen, (include, exclude, protect)


def test_e75_kinds_follow_links_and_permissions(box: berth.Sandbox) -> None:
    box.exec(
        "mkdir -p /e75/secret/in && cd /e75 && touch f && ln -s f lf && ln -s secret ld && ln -s no ln; chmod 700 secret"
    )

    def kind(path: str, user: str | None = None) -> str | None:
        found = box.stat(path, user)
        return found.kind if found else None

    kinds = {path: kind(f"/e75/{path}") for path in ("f", "lf", "secret", "ld", "ln", "none", "f/below")}
    assert kinds == {"f": "file", "lf": "file", "secret": "dir", "ld": "dir", "ln": None, "none": None, "f/below": None}
    assert (kind("/e75/secret/in"), kind("/e75/secret/in", "alice")) == ("dir", None)
    entries = {entry.name: (entry.stat.kind, entry.link) for entry in box.list_dir("/e75")}
    assert entries["lf"] == ("other", "f")
    assert entries["f"] == ("file", None)


def test_e76_files_that_are_written_to_meanwhile(box: berth.Sandbox, tmp_path: Path) -> None:
    box.exec_detached(
        "mkdir -p /e76 && cd /e76 && for i in $(seq 300); do echo x >gone$i; done;"
        " touch ready; while :; do head -c 100000 /dev/zero >>log; mv log log.1;"
        " for i in $(seq 300); do rm gone$i; echo x >gone$i; done; done",
        id="e76",
    )
    while box.stat("/e76/ready") is None:
        time.sleep(0.05)
    for number in range(10):
        box.download_dir("/e76", tmp_path / str(number))
        assert (tmp_path / str(number) / "ready").exists()
    box.kill_exec("e76")


def test_e77_after_the_agent_has_wrecked_everything(fresh: berth.Sandbox, tmp_path: Path) -> None:
    fresh.exec("mkdir -p /logs && echo result >/logs/result")
    wreck = (
        "rm -rf /tmp /usr/bin/tar; printf '#!/bin/sh\nexec false' >/usr/bin/tar; chmod +x /usr/bin/tar;"
        " rm -rf /bin /usr/bin /usr/lib /etc"
    )
    fresh.exec(wreck)
    fresh.download_dir("/logs", tmp_path / "logs")
    assert (tmp_path / "logs/result").read_text() == "result\n"
    fresh.upload_dir(tmp_path / "logs", "/tests")
    assert fresh.read_file("/tests/result") == b"result\n"
    assert fresh.stat("/logs") is not None


def test_e77_with_a_full_root(client: berth.Client, tmp_path: Path) -> None:
    try:
        box = client.create_sandbox(IMAGE, resources=berth.Resources(storage_mb=64), network="no-network")
    except berth.ConfigError:
        pytest.skip("SKIP: the daemon's disk engine cannot limit storage")
    with box:
        if not box.info.storage_enforced:
            pytest.skip("SKIP: the daemon's disk engine cannot limit storage")
        box.exec("mkdir /logs && echo result >/logs/result; head -c 200000000 /dev/zero >/full")
        box.download_dir("/logs", tmp_path / "logs")
        assert (tmp_path / "logs/result").read_text() == "result\n"
        (tmp_path / "big").write_bytes(bytes(10 << 20))
        with pytest.raises(berth.BerthError):
            box.upload_file(tmp_path / "big", "/big")
        assert box.exec("echo still").stdout == "still\n"


def test_e78_a_target_under_a_mount_goes_into_it(client: berth.Client, tmp_path: Path) -> None:
    # INSIDE:OUTSIDE, as this suite and as the daemon know it.
    inside, _, outside = os.environ.get("BERTH_TEST_SHARED", "").partition(":")
    if not inside:
        pytest.skip("SKIP: this suite and the daemon share no directory (BERTH_TEST_SHARED)")
    shared = Path(inside, f"e78-{os.getpid()}")
    shared.mkdir()
    # Roots of different sandboxes are different users of the machine.
    shared.chmod(0o777)
    (tmp_path / "x").write_text("x")
    mount = berth.Mount(f"{outside or inside}/{shared.name}", "/mounted")
    try:
        with client.create_sandbox(IMAGE, mounts=[mount], network="no-network", allow_unenforced_storage=True) as box:
            box.upload_file(tmp_path / "x", "/mounted/sub/x")
            try:
                assert (shared / "sub/x").read_text() == "x"
            finally:
                box.client.remove(box.id, ["/mounted/sub"])
    finally:
        shared.rmdir()


def test_e79_emptied_directories_stay_the_same_directories(box: berth.Sandbox) -> None:
    box.exec(
        "mkdir -p /e79/d/sub /e79/real && touch /e79/d/.hidden /e79/d/sub/x /e79/real/kept && ln -s real /e79/link"
    )
    inode = box.exec("stat -c %i /e79/d").stdout
    box.client.empty(box.id, ["/e79/d", "/e79/link", "/e79/new"], 0o777)
    assert box.exec("stat -c %i /e79/d").stdout == inode
    assert box.exec("find /e79 -mindepth 1 -printf '%y %m %P\\n' | sort").stdout.splitlines() == [
        "d 755 real",
        "d 777 d",
        "d 777 link",
        "d 777 new",
        "f 644 real/kept",
    ]


def test_changes_are_told_as_they_happen(box: berth.Sandbox) -> None:
    box.exec("mkdir -p /watched/sub")
    told: list[berth.Change] = []
    ready = threading.Event()

    def changes() -> Iterator[berth.Change]:
        for change in box.watch("/watched", recursive=True):
            ready.set()
            yield change

    def read() -> None:
        for change in changes():
            told.append(change)
            if change.path == "/watched/last" and change.kind == "created":
                return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert ready.wait(20)
    box.exec("echo x >/watched/sub/a; mv /watched/sub/a /watched/b; rm /watched/b; touch /watched/last")
    reader.join(20)
    assert not reader.is_alive()
    seen = [(change.kind, change.path) for change in told]
    for expected in (("created", "/watched/sub/a"), ("moved", "/watched/b"), ("removed", "/watched/b")):
        assert expected in seen, seen
