"""The provider on a real sandbox: what Harbor's contract says of exec and files."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator
from pathlib import Path

import berth
import pytest
import pytest_asyncio
from berth.harbor import BerthEnvironment
from harbor.environments.base import BaseEnvironment
from harbor.models.task.config import EnvironmentConfig
from harbor.models.trial.paths import TrialPaths

DOCKERFILE = """\
FROM debian:bookworm
ENV FROM_IMAGE=yes
WORKDIR /srv/work
RUN useradd --create-home --shell /bin/sh alice
"""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def env(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BerthEnvironment]:
    root = tmp_path_factory.mktemp("provider")
    (root / "environment").mkdir()
    (root / "environment/Dockerfile").write_text(DOCKERFILE)
    (root / "trial").mkdir()
    logs = [{"type": "bind", "source": str(root / "trial/agent"), "target": "/logs/agent"}]
    # Harbor 0.24 hands its own mounts over with the user's.
    key = "auto_mounts" if "auto_mounts" in inspect.signature(BaseEnvironment.__init__).parameters else "mounts"
    environment = BerthEnvironment(
        environment_dir=root / "environment",
        environment_name="provider",
        session_id="provider__env",
        trial_paths=TrialPaths(root / "trial"),
        task_env_config=EnvironmentConfig(env={"TASK": "1"}, memory_mb=512),
        **{key: logs},
    )
    await environment.start(force_build=False)
    yield environment
    await environment.stop(delete=True)


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    ("command", "code", "stdout"),
    [
        ("true", 0, ""),
        ("", 0, ""),
        ("exit 255", 255, ""),
        ("kill -KILL $$", 137, ""),
        ("kill -TERM $$", 143, ""),
        ("no-such-command-at-all", 127, ""),
        ("cat", 0, ""),
        ("printf 'a\\r\\n\\000\\033[1m'", 0, "a\r\n\0\033[1m"),
        ("printf '\\377\\342\\202\\254'", 0, "\N{REPLACEMENT CHARACTER}€"),
        ("pwd", 0, "/srv/work\n"),
        ("echo $FROM_IMAGE$TASK", 0, "yes1\n"),
        ("echo ${BASH_VERSION:+bash}", 0, "bash\n"),
        ("stat -c %a /logs/agent", 0, "777\n"),
        ("sleep 50 & echo back", 0, "back\n"),
    ],
)
async def test_exec(env: BerthEnvironment, command: str, code: int, stdout: str) -> None:
    result = await asyncio.wait_for(env.exec(command), 20)
    assert (result.return_code, result.stdout) == (code, stdout), result


async def test_streams_are_apart_and_whole(env: BerthEnvironment) -> None:
    result = await env.exec("seq 300000; seq 5 >&2")
    assert result.stdout == "".join(f"{n}\n" for n in range(1, 300001))
    assert result.stderr == "1\n2\n3\n4\n5\n"


async def test_env_of_any_content(env: BerthEnvironment) -> None:
    value = "line\n'\"$(x) ü " + "x" * 100_000
    result = await env.exec('printf %s "$V"', env={"V": value, "TASK": "2"})
    assert result.stdout == value
    assert (await env.exec("echo " + "y" * 100_000)).stdout == "y" * 100_000 + "\n"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (None, "0 0 /root"),
        ("alice", "1000 1000 /home/alice"),
        (1000, "1000 1000 /home/alice"),
        ("4242:4343", "4242 4343 /"),
    ],
)
async def test_users(env: BerthEnvironment, user: str | int | None, expected: str) -> None:
    assert (await env.exec('echo "$(id -u) $(id -g) $HOME"', user=user)).stdout == f"{expected}\n"


async def test_unknown_users_and_directories_are_named(env: BerthEnvironment) -> None:
    for arguments, name in (({"user": "nobody-here"}, "nobody-here"), ({"cwd": "/no such dir"}, "/no such dir")):
        result = await env.exec("true", **arguments)  # type: ignore[arg-type]
        assert result.return_code != 0
        assert name in (result.stderr or "")


async def _alive(env: BerthEnvironment, seconds: int) -> str | None:
    """Which processes sleep for that long; the brackets keep the question itself out of the answer."""
    listed = "for file in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$file; echo; done 2>/dev/null"
    return (await env.exec(f"{{ {listed}; }} | grep 'sleep [{str(seconds)[0]}]{str(seconds)[1:]}'; true")).stdout


async def test_a_timeout_leaves_nothing(env: BerthEnvironment) -> None:
    command = "echo partial; (trap '' TERM; sleep 6161) & setsid sleep 6161 & sleep 6161"
    result = await asyncio.wait_for(env.exec(command, timeout_sec=1), 15)
    assert (result.return_code, result.stdout) == (124, "partial\n")
    assert "timed out" in (result.stderr or "")
    assert await _alive(env, 6161) == ""


async def test_a_cancellation_leaves_nothing(env: BerthEnvironment) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(env.exec("trap '' TERM; setsid sleep 6262 & sleep 6262"), 1)
    assert await _alive(env, 6262) == ""


async def test_daemons_outlive_their_exec(env: BerthEnvironment) -> None:
    await asyncio.wait_for(env.exec("nohup setsid sleep 6363 >/dev/null 2>&1 &"), 10)
    await asyncio.sleep(0.5)
    assert await _alive(env, 6363) != ""


async def test_many_at_once(env: BerthEnvironment) -> None:
    results = await asyncio.gather(*(env.exec(f"sleep 0.1; echo {n}; exit {n}") for n in range(60)))
    assert [(one.stdout, one.return_code) for one in results] == [(f"{n}\n", n) for n in range(60)]


async def test_output_arrives_while_the_command_runs(env: BerthEnvironment) -> None:
    seen: list[str] = []
    early = asyncio.Event()

    async def callback(text: str, stream: str) -> None:
        seen.append(text)
        early.set()

    with env.scoped_output_callback(callback):
        running = asyncio.create_task(env.exec("echo first; sleep 2; echo second"))
        await asyncio.wait_for(early.wait(), 1.5)
        assert seen == ["first\n"]
        assert (await running).stdout == "first\nsecond\n" == "".join(seen)


async def test_trees_survive_both_ways(env: BerthEnvironment, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub/empty").mkdir(parents=True)
    (source / "sub/run.sh").write_text("#!/bin/sh\necho ran\n")
    (source / "sub/run.sh").chmod(0o755)
    (source / "-odd\nname ü").write_bytes(os.urandom(3_000_000))
    (source / "inside").symlink_to("sub/run.sh")
    (source / "absolute").symlink_to("/etc/hostname")
    (source / "dangling").symlink_to("nowhere")
    await env.exec("mkdir -p /data && echo kept > /data/kept")
    await env.upload_dir(source, "/data")
    assert (
        await env.exec("/data/inside; cat /data/kept; readlink /data/absolute; stat -c %u:%g /data/sub")
    ).stdout == ("ran\nkept\n/etc/hostname\n0:0\n")
    target = tmp_path / "target"
    await env.download_dir("/data", target)
    assert (target / "-odd\nname ü").read_bytes() == (source / "-odd\nname ü").read_bytes()
    assert (target / "sub/empty").is_dir()
    assert (target / "sub/run.sh").stat().st_mode & 0o777 == 0o755
    assert os.readlink(target / "inside") == "sub/run.sh"
    assert os.readlink(target / "dangling") == "nowhere"
    assert not (target / "absolute").is_symlink()
    await env.download_dir_with_exclusions(source_dir="/data", target_dir=tmp_path / "t2", exclude=["sub", "*ü"])
    assert sorted(path.name for path in (tmp_path / "t2").iterdir()) == ["dangling", "inside", "kept"]
    await env.download_dir_filtered(source_dir="/data", target_dir=tmp_path / "t3", include=["sub/*"], protect=["kept"])
    assert sorted(str(p.relative_to(tmp_path / "t3")) for p in (tmp_path / "t3").rglob("*")) == [
        "kept",
        "sub",
        "sub/run.sh",
    ]


async def test_single_files(env: BerthEnvironment, tmp_path: Path) -> None:
    (tmp_path / "f.sh").write_text("x")
    (tmp_path / "f.sh").chmod(0o755)
    await env.upload_file(tmp_path / "f.sh", "/new/deep/g.sh")
    await env.upload_file(tmp_path / "f.sh", "/new")
    assert (await env.exec("stat -c '%a %u %n' /new/deep/g.sh /new/f.sh")).stdout == (
        "755 0 /new/deep/g.sh\n755 0 /new/f.sh\n"
    )
    await env.exec("ln -s deep/g.sh /new/link; mkfifo /new/fifo")
    await env.download_file("/new/link", tmp_path / "back")
    assert (tmp_path / "back").read_text() == "x"
    await asyncio.wait_for(env.download_dir("/new", tmp_path / "dir"), 10)
    for missing in (env.download_file("/new/no", tmp_path / "no"), env.download_dir("/no", tmp_path / "no")):
        with pytest.raises(FileNotFoundError):
            await missing
    assert not (tmp_path / "no").exists()
    with pytest.raises(IsADirectoryError):
        await env.download_file("/new/deep", tmp_path / "no")
    with pytest.raises(NotADirectoryError):
        await env.download_dir("/new/f.sh", tmp_path / "no")


async def test_probes_and_directories(env: BerthEnvironment) -> None:
    await env.exec("mkdir -p /p/secret && touch /p/f /p/secret/f && ln -s /p /p/l && chmod 700 /p/secret")
    assert await env.is_dir("/p/l")
    assert await env.is_file("/p/f")
    assert not await env.is_file("/p/no")
    assert await env.is_file("/p/secret/f", user="root")
    assert not await env.is_file("/p/secret/f", user="alice")
    await env.empty_dirs(["/p/secret", "/p/f", "/p/new"])
    assert (await env.exec("find /p/secret /p/f /p/new -printf '%p %y %m\\n'")).stdout == (
        "/p/secret d 777\n/p/f d 777\n/p/new d 777\n"
    )
    await env.reset_dirs(remove_dirs=["/p"], create_dirs=["/p", "/q"], chmod_dirs=["/q"])
    assert (await env.exec("find /p /q -printf '%p %m\\n'")).stdout == "/p 755\n/q 777\n"
    with env.with_default_user("alice"):
        await env.ensure_dirs(["/q/hers"], chmod=False)
    assert (await env.exec("stat -c %U /q/hers")).stdout == "alice\n"


async def test_files_without_any_tool_of_the_image(env: BerthEnvironment, tmp_path: Path) -> None:
    box = berth.Client().create_sandbox(env._running.info.image)
    try:
        box.exec("echo log > /log; /bin/rm -rf /usr/bin /bin /tmp")
        box.download_file("/log", tmp_path / "log")
        assert (tmp_path / "log").read_text() == "log\n"
    finally:
        box.delete()
