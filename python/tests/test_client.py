"""Both clients against a daemon of the tests."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import stat
import sys
import threading
import time
from pathlib import Path

import berth
import pytest
from berth import _calls, _endpoint, _http
from berth._async import execs
from berth._endpoint import parse_host
from berth._lease import LeaseKeeper
from fake_daemon import FakeDaemon, fake_daemon


def test_hosts() -> None:
    assert parse_host("unix:///run/b.sock").socket == "/run/b.sock"
    assert parse_host("tcp://127.0.0.1:80").base_url == "http://127.0.0.1:80"
    assert parse_host("http://[::1]:80/").is_local
    assert not parse_host("tcp://10.0.0.1:80").is_local
    for bad in ("", "/run/b.sock", "unix://relative", "tcp://x", "ssh://x:1", "http://x:1/path", "tcp://x:port"):
        with pytest.raises(berth.InvalidRequest):
            parse_host(bad)


def test_sync_client(daemon: FakeDaemon, tmp_path: Path) -> None:
    with berth.Client(daemon.host) as client, client.create_sandbox("img", resources=berth.Resources(cpus=0.5)) as box:
        assert client.version().api == "v1"
        assert client.doctor()[0].status == "ok"
        assert box.info.resources == berth.Resources(cpus=0.5)
        pieces: list[tuple[str, str]] = []
        result = box.exec("echo out; echo err >&2; exit 3", on_output=lambda text, name: pieces.append((name, text)))
        assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 3)
        assert sorted(pieces) == [("stderr", "err\n"), ("stdout", "out\n")]
        assert box.exec(["no-such-program"]).reason == "not_started"
        (tmp_path / "from").mkdir()
        (tmp_path / "from/a").write_text("a")
        box.upload_dir(tmp_path / "from", str(tmp_path / "box/dir"))
        box.upload_file(tmp_path / "from/a", str(tmp_path / "box/new"))
        box.upload_file(tmp_path / "from/a", str(tmp_path / "box/dir/"))
        box.download_dir(str(tmp_path / "box"), tmp_path / "back")
        assert (tmp_path / "back/dir/a").read_text() == (tmp_path / "back/new").read_text() == "a"
        box.download_file(str(tmp_path / "box/new"), tmp_path / "one")
        assert box.stat("/nowhere") is None
        assert client.build_image(tmp_path / "from").content_key == "k3y"
        assert [one.id for one in client.sandboxes()] == [box.id]
    assert not daemon.sandboxes


def test_a_context_is_sent_once(daemon: FakeDaemon, tmp_path: Path) -> None:
    context = tmp_path / "context"
    (context / "dir").mkdir(parents=True)
    (context / "Dockerfile").write_text("FROM scratch")
    (context / ".dockerignore").write_text("x")
    (context / "dir/file").write_text("bytes")
    (context / "dir/link").symlink_to("file")
    os.mkfifo(context / "fifo")
    settings: berth.BuildSettings = {"tags": ["t"], "secrets": {"key": "s3cret"}, "packages": ["git"]}
    with berth.Client(daemon.host) as client:
        for _ in range(2):
            assert client.build_image(context, **settings).image.id == "sha256:built"
        assert len(daemon.builds) == 1 and len(daemon.asked) == 2
        options, names = daemon.builds[0]
        assert options == {"tags": ["t"], "secrets": {"key": "czNjcmV0"}, "packages": ["git"]}
        assert "dir/link" in names
        (context / "dir/file").write_text("other")
        client.build_image(context, **settings)
        (context / "dir/file").chmod(0o600)
        client.build_image(context, **settings)
        assert len(daemon.builds) == 3
        assert client.build_image(None, dockerfile_text="FROM x").content_key == "k3y"
        assert daemon.builds[-1] == ({"dockerfile_text": "FROM x"}, [])
    (_, manifest) = max((len(text), text) for text in daemon.contexts)
    found = json.loads(manifest)
    digest = hashlib.sha256(b"other").hexdigest()
    kinds = {entry["path"]: entry["kind"] for entry in found["entries"]}
    assert kinds == {
        "Dockerfile": "file",
        ".dockerignore": "file",
        "dir": "dir",
        "dir/file": "file",
        "dir/link": "link",
    }
    assert {entry.get("digest") for entry in found["entries"] if entry["path"] == "dir/file"} == {digest}
    assert found["texts"] == {"Dockerfile": "FROM scratch", ".dockerignore": "x"}


def test_a_context_that_changes_while_it_is_sent_is_sent_again_but_not_for_ever(
    daemon: FakeDaemon, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch")
    with berth.Client(daemon.host) as client:
        daemon.script.context_changes = 2
        client.build_image(tmp_path, dockerfile="Dockerfile")
        (tmp_path / "Dockerfile").write_text("FROM other")
        daemon.script.context_changes = 3
        with pytest.raises(berth.Conflict, match="another"):
            client.build_image(tmp_path)


def test_names_that_are_no_text_are_sent_without_asking(daemon: FakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch")
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff", os.O_CREAT | os.O_WRONLY))
    with berth.Client(daemon.host) as client:
        client.build_image(tmp_path)
    assert len(daemon.builds) == 1 and not daemon.asked


def test_errors_carry_kind_and_code(daemon: FakeDaemon) -> None:
    with berth.Client(daemon.host) as client:
        with pytest.raises(berth.NotFound) as caught:
            client.sandbox("none")
        assert (caught.value.code, caught.value.is_infrastructure) == ("sandbox_not_found", False)
        client.delete_sandbox("none")
        with pytest.raises(berth.NotFound):
            client.exec("none", "true")


async def test_async_exec(daemon: FakeDaemon) -> None:
    async with berth.AsyncClient(daemon.host) as client, await client.create_sandbox("img") as box:
        pieces: list[str] = []

        async def on_output(text: str, stream: str) -> None:
            pieces.append(text)

        result = await box.exec("printf 'a\\377b'; printf '%s' \"$X\"", env={"X": "q'\n"}, on_output=on_output)
        assert result.stdout == "a\N{REPLACEMENT CHARACTER}bq'\n" == "".join(pieces)
        result = await box.exec("echo partial; sleep 100", timeout=0.3)
        assert (result.exit_code, result.reason, result.stdout) == (124, "timed_out", "partial\n")
        results = await asyncio.gather(*(box.exec(f"echo {n}") for n in range(40)))
        assert [one.stdout for one in results] == [f"{n}\n" for n in range(40)]


async def test_cancelling_kills_before_it_returns(daemon: FakeDaemon, tmp_path: Path) -> None:
    async with berth.AsyncClient(daemon.host) as client:
        box = await client.create_sandbox("img")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(box.exec("sleep 100 & sleep 100", id="mine"), 0.3)
        assert daemon.kills == ["mine"]
        process = daemon.execs["mine"].process
        assert process is not None and process.returncode is not None


async def test_cancelling_at_once_kills_too(daemon: FakeDaemon) -> None:
    async with berth.AsyncClient(daemon.host) as client:
        box = await client.create_sandbox("img")
        for turns in range(12):
            task = asyncio.create_task(box.exec("sleep 100", id=f"e{turns}"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert all(run.process and run.process.poll() is not None for run in daemon.execs.values())


async def test_a_failing_callback_kills(daemon: FakeDaemon) -> None:
    async with berth.AsyncClient(daemon.host) as client:
        box = await client.create_sandbox("img")

        async def on_output(text: str, stream: str) -> None:
            raise RuntimeError("no more")

        with pytest.raises(RuntimeError, match="no more"):
            await box.exec("echo x; sleep 100", id="mine", on_output=on_output)
        assert daemon.kills == ["mine"]


async def test_a_stream_that_stays_cut_is_an_error(daemon: FakeDaemon) -> None:
    daemon.script.drop_exec = True
    async with berth.AsyncClient(daemon.host, patience=0.5) as client:
        box = await client.create_sandbox("img")
        with pytest.raises(berth.ConnectionLost):
            await box.exec("echo x")
        assert len({request["id"] for request in daemon.exec_requests}) == 1
        assert daemon.kills, "nobody knows how it ended, so it is ended"


@pytest.mark.parametrize("cuts", [[0], [1], [2, 0, 1], [3, 3]])
async def test_an_exec_that_is_cut_goes_on_and_runs_once(daemon: FakeDaemon, tmp_path: Path, cuts: list[int]) -> None:
    daemon.script.away = 2
    command = f"echo run >> {tmp_path}/runs; for i in 1 2 3 4; do echo $i; echo $i >&2; sleep 0.05; done; exit 5"
    heard: list[str] = []

    async def on_output(text: str, stream: str) -> None:
        if stream == "stdout":
            heard.append(text)

    async with berth.AsyncClient(daemon.host) as client:
        box = await client.create_sandbox("img")
        daemon.script.cuts = list(cuts)
        result = await box.exec(command, on_output=on_output)
        assert (result.stdout, result.stderr, result.exit_code) == ("1\n2\n3\n4\n", "1\n2\n3\n4\n", 5)
        assert "".join(heard) == result.stdout
        assert (tmp_path / "runs").read_text() == "run\n"
        assert daemon.kills == []

    def again() -> berth.ExecResult:
        daemon.script.cuts = list(cuts)
        with berth.Client(daemon.host) as client:
            return client.exec(box.id, command)

    result = await asyncio.to_thread(again)
    assert (result.stdout, result.stderr, result.exit_code) == ("1\n2\n3\n4\n", "1\n2\n3\n4\n", 5)
    assert (tmp_path / "runs").read_text() == "run\nrun\n"


def test_patience_begins_anew_after_a_connection_that_held(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(_http.time, "monotonic", lambda: now[0])
    patience, lost = _http.Patience(60), berth.ConnectionLost("cut", code="connection_lost")
    assert patience.allows(lost, {"stdout": 3})
    patience.attached()
    # Two silent hours later the next cut comes.
    now[0] += 7200
    assert patience.allows(lost, {"stdout": 3})
    now[0] += 59
    patience.attached()
    now[0] += 2
    assert not patience.allows(lost, {"stdout": 3}), "one that breaks at once is none"


def test_what_is_refused_at_first_is_not_waited_for() -> None:
    away = berth.DaemonUnreachable("away", code="daemon_unreachable")
    patience = _http.Patience(60)
    assert not patience.allows(away, {})
    patience.attached()
    assert patience.allows(away, {})
    assert not patience.allows(berth.NotFound("gone", code="sandbox_not_found"), {})


def test_a_daemon_that_stays_away_is_asked_once_a_call(daemon: FakeDaemon, tmp_path: Path) -> None:
    with berth.Client(daemon.host) as client:
        assert len(client._contact.pauses(_calls.version())) == 1 + len(_http.RETRY_PAUSES)
        client.version()
        assert len(client._contact.pauses(_calls.version())) == 1 + len(_http.RESTART_PAUSES)
        client._contact.failed()
        assert client._contact.pauses(_calls.version()) == (None,)
        client.version()
        assert len(client._contact.pauses(_calls.version())) == 1 + len(_http.RESTART_PAUSES)


async def test_what_could_not_be_killed_is_killed_before_the_next_command(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execs, "KILL_TIMEOUT", 0.2)
    daemon.script.refuse_kills = True
    async with berth.AsyncClient(daemon.host) as client:
        box = await client.create_sandbox("img")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(box.exec("sleep 100", id="left"), 0.3)
        with pytest.raises(berth.Unavailable):
            await box.exec("true")
        assert not daemon.kills
        daemon.script.refuse_kills = False
        assert (await box.exec("echo next")).stdout == "next\n"
        assert daemon.kills == ["left"]


async def test_bytes_input_and_what_is_not_collected(daemon: FakeDaemon) -> None:
    async with berth.AsyncClient(daemon.host) as client:
        box = await client.create_sandbox("img")
        data = os.urandom(3 << 20)
        assert (await box.exec_bytes("cat", stdin=data)).stdout == data
        seen = bytearray()

        async def on_output(piece: bytes, stream: str) -> None:
            seen.extend(piece)

        result = await box.exec_bytes("cat", stdin=data, on_output=on_output, collect=False)
        assert (result.stdout, bytes(seen) == data) == (b"", True)
        # A command need not read what it is given.
        assert (await box.exec("exit 3", stdin=data)).exit_code == 3
    with berth.Client(daemon.host) as client:
        assert client.exec_bytes(box.id, "cat", stdin=data).stdout == data


async def test_input_that_this_client_took_from_itself_is_given_on(daemon: FakeDaemon) -> None:
    data = os.urandom(3 << 20)
    async with berth.AsyncClient(daemon.host) as client:
        box = await client.create_sandbox("img")
        daemon.script.stdin_errors = ["stdin_taken"]
        assert (await box.exec_bytes("cat", stdin=data)).stdout == data

    def again() -> bytes:
        daemon.script.stdin_errors = ["stdin_taken"]
        with berth.Client(daemon.host) as client:
            return client.exec_bytes(box.id, "cat", stdin=data).stdout

    assert await asyncio.to_thread(again) == data
    assert daemon.kills == []


async def test_the_end_of_a_command_without_its_input_is_no_result(daemon: FakeDaemon) -> None:
    data = os.urandom(3 << 20)
    async with berth.AsyncClient(daemon.host) as client:
        box = await client.create_sandbox("img")
        daemon.script.stdin_errors = ["refused"]
        with pytest.raises(berth.Conflict):
            await box.exec_bytes("cat", stdin=data)

    def again() -> None:
        daemon.script.stdin_errors = ["refused"]
        with berth.Client(daemon.host) as client:
            client.exec_bytes(box.id, "cat", stdin=data)

    with pytest.raises(berth.Conflict):
        await asyncio.to_thread(again)
    assert len(daemon.kills) >= 2


async def test_a_detached_exec_is_found_again(daemon: FakeDaemon) -> None:
    async with berth.AsyncClient(daemon.host) as client:
        box = await client.create_sandbox("img")
        info = await box.exec_detached("echo one; read x; echo $x; exit 4", id="mine", stdin="stream")
        assert (info.id, info.status) == ("mine", None)
        assert await box.write_stdin("mine", b"tw", offset=0) == 2
        assert await box.write_stdin("mine", b"two\n", offset=0) == 4
        daemon.script.cuts = [1, 2]
        events = [event async for event in box.attach("mine", stdout=1)]
        assert b"".join(event.data for event in events[:-1] if isinstance(event, berth.ExecOutput)) == b"ne\ntwo\n"
        assert isinstance(events[-1], berth.ExecStatus)
        assert events[-1].exit_code == 4
        assert (await box.exec_result("mine")).stdout == "one\ntwo\n"
        assert [one.status.exit_code for one in await box.execs() if one.status] == [4]
        with pytest.raises(berth.NotFound):
            await box.exec_info("none")
        assert await box.quiesce() == 3
    with berth.Client(daemon.host) as client:
        assert client.exec_result(box.id, "mine").stdout == "one\ntwo\n"
        assert client.exec_info(box.id, "mine").status == events[-1]


async def test_single_files_lists_and_watches(daemon: FakeDaemon, tmp_path: Path) -> None:
    path = str(tmp_path / "box" / "file")
    (tmp_path / "box").mkdir()
    async with berth.AsyncClient(daemon.host) as client:
        box = await client.create_sandbox("img")
        assert await box.write_file(path, b"\0\xffcontents", mode=0o640) == 10
        assert await box.read_file(path, 2, 4) == b"cont"
        with pytest.raises(berth.Conflict):
            await box.write_file(path, b"", create_only=True)
        assert [(entry.name, entry.stat.mode) for entry in await box.list_dir(str(tmp_path / "box"))] == [
            ("file", 0o640)
        ]
        changes = []
        with pytest.raises(berth.NotFound, match="gone"):
            async for change in box.watch("/w"):
                changes.append(change)
        assert changes == [berth.Change("ready", "/w"), berth.Change("moved", "/w/b", "/w/a", True)]
    with berth.Client(daemon.host) as client:
        assert client.read_file(box.id, path) == b"\0\xffcontents"
        with pytest.raises(berth.NotFound):
            client.read_file(box.id, "/nowhere/at/all")


async def test_large_trees_both_ways(daemon: FakeDaemon, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in range(20):
        (source / f"{name}").write_bytes(os.urandom(300_000))
    async with berth.AsyncClient(daemon.host) as client:
        box = await client.create_sandbox("img")
        await box.upload_dir(source, str(tmp_path / "box"))
        await box.download_dir(str(tmp_path / "box"), tmp_path / "back", exclude=["1*"])
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == sorted(["0", *map(str, range(2, 10))])
    assert all((tmp_path / "back" / p.name).read_bytes() == p.read_bytes() for p in (tmp_path / "back").iterdir())


async def test_a_missing_directory_leaves_no_target(daemon: FakeDaemon, tmp_path: Path) -> None:
    async with berth.AsyncClient(daemon.host) as client:
        box = await client.create_sandbox("img")
        with pytest.raises(berth.NotFound):
            await box.download_dir("/no/such/dir", tmp_path / "target")
    assert not (tmp_path / "target").exists()


async def test_a_refused_connection_is_tried_again(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    late = daemon.socket.parent / "late.sock"
    threading.Timer(0.15, lambda: late.symlink_to(daemon.socket)).start()
    async with berth.AsyncClient(f"unix://{late}") as client:
        assert (await client.version()).api == "v1"
    monkeypatch.setattr(_http, "RETRY_PAUSES", (0.01,))
    async with berth.AsyncClient("unix:///nowhere.sock") as client:
        with pytest.raises(berth.DaemonUnreachable):
            await client.version()


def test_the_lease_is_renewed_and_given_back(daemon: FakeDaemon) -> None:
    keeper = LeaseKeeper(parse_host(daemon.host), ttl=60, interval=0.02)
    lease = keeper.current()
    assert daemon.leases == {lease: 60}
    _until(lambda: daemon.renewals >= 3)
    daemon.leases.clear()
    _until(lambda: keeper.current() != lease)
    assert len(daemon.leases) == 1
    keeper.end()
    assert not daemon.leases


def test_a_process_does_not_wait_at_its_end_for_a_daemon_that_has_gone(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_daemon(tmp_path_factory.mktemp("gone")) as running:
        keeper = LeaseKeeper(parse_host(running.host))
        keeper.current()
    monkeypatch.setattr(_http, "RETRY_PAUSES", (60.0,))
    keeper.end()


def _until(condition: object) -> None:
    deadline = time.monotonic() + 5
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _binary(directory: Path, script: str) -> Path:
    path = directory / "berth"
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_embedded_daemon_is_started(daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BERTH_HOST", raising=False)
    monkeypatch.setattr(_endpoint, "DEFAULT_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.setattr(_endpoint, "_started", {})
    answer = f'{{"host": "{daemon.host}", "pid": 1}}'
    script = f"import sys\nassert sys.argv[1:] == ['daemon', 'start', '--json']\nprint('{answer}')"
    monkeypatch.setenv("BERTH_BINARY", str(_binary(tmp_path, script)))
    with berth.Client() as client:
        assert client.endpoint.host == daemon.host
        assert client.version().api == "v1"
    (tmp_path / "berth").unlink()
    assert _endpoint.locate().host == daemon.host  # Remembered, since it still listens.


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys; sys.exit('error: not root')", "not root"),
        ("print('nonsense')", "nonsense"),
        ("print('{}')", "did not say"),
    ],
)
def test_a_daemon_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str) -> None:
    monkeypatch.delenv("BERTH_HOST", raising=False)
    monkeypatch.setattr(_endpoint, "DEFAULT_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.setattr(_endpoint, "_started", {})
    monkeypatch.setenv("BERTH_BINARY", str(_binary(tmp_path, script)))
    with pytest.raises(berth.DaemonUnreachable, match=words):
        berth.Client()


def test_a_host_that_is_named_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTH_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.setenv("BERTH_BINARY", str(_binary(tmp_path, "raise SystemExit('started')")))
    monkeypatch.setattr(_http, "RETRY_PAUSES", ())
    with berth.Client() as client, pytest.raises(berth.DaemonUnreachable, match="no daemon answers"):
        client.version()


def test_an_answer_that_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http, "RETRY_PAUSES", (0.01,))
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def answer() -> None:
            # Twice, since what does no harm is asked again.
            for _ in range(2):
                connection, _ = listener.accept()
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
                connection.close()

        threading.Thread(target=answer, daemon=True).start()
        with berth.Client(f"unix://{path}") as client, pytest.raises(berth.ConnectionLost):
            client.version()
