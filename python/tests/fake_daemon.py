"""A daemon for tests: the API's routes on a unix socket, with this machine's own files and shell as every sandbox.

Paths "in the sandbox" are paths of this machine, so tests work below a temporary directory. What a test wants to go wrong is
put into :attr:`FakeDaemon.script`.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import socketserver
import stat
import subprocess
import tarfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


def filter_paths_by_patterns(paths: list[str], include: list[str], exclude: list[str]) -> list[str]:
    """As Harbor chooses."""
    chosen = [path for path in paths if not include or any(fnmatch(path, pattern) for pattern in include)]
    return [path for path in chosen if not any(fnmatch(path, pattern) for pattern in exclude)]


KINDS = {400: "user", 404: "not_found", 409: "conflict", 500: "internal", 503: "unavailable"}


@dataclass
class Script:
    """What the daemon is to do other than its best."""

    build_error: dict[str, Any] | None = None
    context_changes: int = 0
    """How many contexts are refused, as if they had changed while they were sent."""
    pull_error: dict[str, Any] | None = None
    create_error: dict[str, Any] | None = None
    create_delay: float = 0.0
    refuse_kills: bool = False
    drop_exec: bool = False
    """Cut the stream of every exec before its end."""
    cuts: list[int] = field(default_factory=list)
    """After how many frames the streams of execs are cut, one after the other."""
    away: int = 0
    """How many requests for an exec are refused as by a daemon that is away, once one was cut."""
    stdin_errors: list[str] = field(default_factory=list)
    """Codes of errors with which requests to give input are answered, one after the other."""
    exec_end: dict[str, Any] = field(default_factory=dict)
    """Fields of an exec's end that are to be others."""
    storage_enforced: bool = True
    queued_for: float = 0.0
    """Seconds that a sandbox is queued before it is made."""
    image_user: str = ""
    shell: str | None = "/bin/sh"


class FakeExec:
    """A command, and what it wrote, for as many readers as come."""

    def __init__(self, process: subprocess.Popen[bytes] | None, argv: list[str]) -> None:
        self.process = process
        self.argv = argv
        self.killed = False
        self.end: dict[str, Any] | None = None
        self.given = 0
        """Bytes of input."""
        self._log: list[tuple[int, int, bytes]] = []
        self._news = threading.Condition()

    def run(self, timeout: float | None) -> None:
        """Reads until it ends; on a thread of its own."""
        process, began = self.process, time.monotonic()
        assert process and process.stdout and process.stderr
        timed_out = threading.Event()

        def expire() -> None:
            timed_out.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(timeout, expire) if timeout else None
        if timer:
            timer.start()
        other = threading.Thread(target=self._copy, args=(2, process.stderr))
        other.start()
        self._copy(1, process.stdout)
        other.join()
        code = process.wait()
        if timer:
            timer.cancel()
        reason = "timed_out" if timed_out.is_set() else "killed" if self.killed else "exited"
        exit_code = 124 if timed_out.is_set() else code if code >= 0 else 128 - code
        self.finish(exit_code=exit_code, reason=reason, duration_ms=int(1000 * (time.monotonic() - began)))

    def info(self, exec_id: str) -> dict[str, Any]:
        ended = {"status": self.end} if self.end else {}
        return {
            "id": exec_id,
            "command": " ".join(self.argv),
            "cwd": "/",
            "started_at": "2030-01-01T00:00:00Z",
            **ended,
        }

    def finish(self, **end: Any) -> None:
        with self._news:
            self.end = end
            self._news.notify_all()

    def _copy(self, kind: int, pipe: Any) -> None:
        offset = 0
        while data := os.read(pipe.fileno(), 65536):
            with self._news:
                self._log.append((kind, offset, data))
                self._news.notify_all()
            offset += len(data)

    def output(self, skip: dict[int, int]) -> Iterator[tuple[int, int, bytes]]:
        """What it writes, from these offsets on, until its end."""
        for at in itertools.count():
            with self._news:
                while at >= len(self._log):
                    if self.end is not None:
                        return
                    self._news.wait()
                kind, offset, data = self._log[at]
            known = max(0, skip[kind] - offset)
            if known < len(data):
                yield kind, offset + known, data[known:]


@dataclass
class FakeDaemon:
    """State of the daemon, for tests to look at."""

    socket: Path
    workdir: str
    script: Script = field(default_factory=Script)
    sandboxes: dict[str, dict[str, Any]] = field(default_factory=dict)
    leases: dict[str, int] = field(default_factory=dict)
    renewals: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)
    creations: list[dict[str, Any]] = field(default_factory=list)
    builds: list[tuple[dict[str, Any], list[str]]] = field(default_factory=list)
    contexts: set[str] = field(default_factory=set)
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Options of builds that came without a context."""
    bases: list[dict[str, Any]] = field(default_factory=list)
    replays: list[tuple[dict[str, Any], list[str]]] = field(default_factory=list)
    pulls: list[dict[str, Any]] = field(default_factory=list)
    execs: dict[str, FakeExec] = field(default_factory=dict)
    exec_requests: list[dict[str, Any]] = field(default_factory=list)
    kills: list[str] = field(default_factory=list)

    @property
    def host(self) -> str:
        return f"unix://{self.socket}"

    def count(self, method: str, part: str) -> int:
        """Requests of that method whose path holds ``part``."""
        return sum(1 for seen, path in self.requests if seen == method and part in path)


class Fault(Exception):
    """An error answer."""

    def __init__(self, status: int, code: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "kind": KINDS[status], "message": message, **more}


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128
    state: FakeDaemon

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextlib.contextmanager
def fake_daemon(directory: Path) -> Iterator[FakeDaemon]:
    """A running daemon with its socket in ``directory``."""
    workdir = directory / "workdir"
    workdir.mkdir()
    state = FakeDaemon(directory / "d.sock", str(workdir))
    server = _Server(str(state.socket), _Handler)
    server.state = state
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        for run in state.execs.values():
            with contextlib.suppress(ProcessLookupError):
                if run.process is not None:
                    os.killpg(run.process.pid, signal.SIGKILL)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: Any) -> None:
        pass

    @property
    def state(self) -> FakeDaemon:
        return self.server.state

    def do_GET(self) -> None:
        self._route()

    do_POST = do_PUT = do_DELETE = do_GET

    def _route(self) -> None:
        parts = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        self.body = self._read_body()
        segments = [unquote(part) for part in parts.path.split("/")[2:]]
        self.state.requests.append((self.command, parts.path))
        try:
            handler = getattr(self, "_".join([self.command.lower(), *segments[::2]]).replace("-", "_"))
            handler(*segments[1::2])
        except Fault as fault:
            self._json({"error": fault.body}, fault.status)
        except AttributeError as error:
            if "_Handler" not in str(error):
                raise
            self._json({"error": Fault(404, "no_such_route", str(error)).body}, 404)

    def _read_body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            data = bytearray()
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return bytes(data)
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _json(self, value: Any, status: int = 200) -> None:
        data = b"" if status == 204 else json.dumps(value).encode()
        self.send_response(status)
        if status != 204:
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    # ---- system, leases

    def get_version(self) -> None:
        self._json({"version": "0.1.0", "api": "v1", "pid": os.getpid(), "data_dir": "/", "later": True})

    def get_doctor(self) -> None:
        self._json({"checks": [{"name": "cgroups", "status": "ok", "found": "v2"}]})

    def post_leases(self) -> None:
        lease = uuid.uuid4().hex
        self.state.leases[lease] = json.loads(self.body)["ttl_seconds"]
        self._json({"id": lease, "expires_at": "2030-01-01T00:00:00Z"}, 201)

    def put_leases(self, lease: str) -> None:
        if lease not in self.state.leases:
            raise Fault(404, "lease_not_found", "there is no such lease")
        self.state.renewals += 1
        self._json({"id": lease, "expires_at": "2030-01-01T00:00:00Z"})

    def delete_leases(self, lease: str) -> None:
        if self.state.leases.pop(lease, None) is None:
            raise Fault(404, "lease_not_found", "there is no such lease")
        self.state.sandboxes = {k: v for k, v in self.state.sandboxes.items() if v["lease"] != lease}
        self._json(None, 204)

    # ---- sandboxes

    def post_sandboxes(self) -> None:
        request = json.loads(self.body)
        self.state.creations.append(request)
        time.sleep(self.state.script.create_delay)
        if self.state.script.create_error:
            raise Fault(**self.state.script.create_error)
        sandbox = {
            "id": uuid.uuid4().hex,
            "name": request.get("name"),
            "group": "g",
            "state": "running",
            "image": request["image"],
            "labels": request.get("labels", {}),
            "lease": request.get("lease"),
            "resources": request.get("resources", {}),
            "storage_enforced": self.state.script.storage_enforced,
            "network": request.get("network", "public"),
            "workdir": request.get("workdir") or self.state.workdir,
            "user": self.state.script.image_user,
            "shell": self.state.script.shell,
            "created_at": "2030-01-01T00:00:00Z",
            "start_ms": 12.5,
        }
        self.state.sandboxes[sandbox["id"]] = sandbox
        if self.state.script.queued_for:
            place = {"position": 2, "waits_for": "memory_in_use"}
            self.state.sandboxes[sandbox["id"]] = {**sandbox, "state": "queued", "queue": place}
            time.sleep(self.state.script.queued_for)
            self.state.sandboxes[sandbox["id"]] = sandbox
        self._json(sandbox, 201)

    def get_sandboxes(self, name: str | None = None) -> None:
        if name is None:
            self._json({"items": list(self.state.sandboxes.values())})
        else:
            self._json(self._sandbox(name))

    def delete_sandboxes(self, name: str) -> None:
        del self.state.sandboxes[self._sandbox(name)["id"]]
        self._json(None, 204)

    def put_sandboxes_lease(self, name: str) -> None:
        self._sandbox(name)["lease"] = json.loads(self.body)["lease"]
        self._json(self._sandbox(name))

    def _sandbox(self, name: str) -> dict[str, Any]:
        for sandbox in self.state.sandboxes.values():
            if name in (sandbox["id"], sandbox["name"]):
                return sandbox
        raise Fault(404, "sandbox_not_found", f"there is no sandbox {name}")

    # ---- execs

    def post_sandboxes_exec(self, name: str) -> None:
        sandbox, request = self._sandbox(name), json.loads(self.body)
        script = self.state.script
        if script.away and request["id"] in self.state.execs:
            script.away -= 1
            self.close_connection = True
            return
        self.state.exec_requests.append(request)
        known = self.state.execs.get(request["id"])
        # As with the real one: once the headers are out, the exec can be killed by its id.
        run = self.state.execs.setdefault(request["id"], known or self._start(sandbox, request))
        if request.get("detach"):
            return self._json(run.info(request["id"]), 202)
        self._tell(run, request["id"], request.get("from", {}), known is not None)

    def get_sandboxes_execs_output(self, name: str, exec_id: str) -> None:
        self._sandbox(name)
        offsets = {key: int(self.query[key]) for key in ("stdout", "stderr")}
        self._tell(self._exec(exec_id), exec_id, offsets, True)

    def get_sandboxes_execs(self, name: str, exec_id: str | None = None) -> None:
        self._sandbox(name)
        if exec_id is not None:
            return self._json(self._exec(exec_id).info(exec_id))
        self._json({"items": [run.info(key) for key, run in self.state.execs.items()]})

    def post_sandboxes_execs_stdin(self, name: str, exec_id: str) -> None:
        self._sandbox(name)
        run = self._exec(exec_id)
        assert run.process and run.process.stdin
        if self.state.script.stdin_errors:
            raise Fault(409, self.state.script.stdin_errors.pop(0), "as the script has it")
        data = self.body[max(0, run.given - int(self.query.get("offset", run.given))) :]
        try:
            run.process.stdin.write(data)
            run.process.stdin.flush()
        except OSError:
            raise Fault(409, "exec_over", "it is over") from None
        run.given += len(data)
        if self.query["end"] == "true":
            run.process.stdin.close()
        self._json({"offset": run.given})

    def post_sandboxes_execs_signal(self, name: str, exec_id: str) -> None:
        run, signal_ = self._exec(exec_id), json.loads(self.body)["signal"]
        assert run.process
        run.process.send_signal(signal_ if isinstance(signal_, int) else signal.Signals[f"SIG{signal_}"])
        self._json(None, 204)

    def post_sandboxes_replay(self, name: str) -> None:
        length = int(self.headers["berth-build-options"])
        with tarfile.open(fileobj=io.BytesIO(self.body[length:])) as archive:
            self.state.replays.append((json.loads(self.body[:length]), archive.getnames()))
        error = self.state.script.build_error
        config = {"env": ["REPLAYED=yes"], "working_dir": self.state.workdir}
        result = {"config": config, "content_key": "k3y", "steps": 2}
        self._lines([{"error": error} if error else {"result": result}])

    def post_sandboxes_quiesce(self, name: str) -> None:
        self._sandbox(name)
        self._json({"killed": 3})

    def _exec(self, exec_id: str) -> FakeExec:
        if exec_id not in self.state.execs:
            raise Fault(404, "exec_not_found", f"there is no exec {exec_id}")
        return self.state.execs[exec_id]

    def _tell(self, run: FakeExec, exec_id: str, offsets: dict[str, int], attached: bool) -> None:
        script = self.state.script
        self._stream()
        if run.process is not None:
            started = {"event": "started", "id": exec_id, "program": run.argv[0], "attached": attached}
            self._frame(3, json.dumps(started).encode())
        left = script.cuts.pop(0) if script.cuts else None
        for kind, offset, data in run.output({1: offsets.get("stdout", 0), 2: offsets.get("stderr", 0)}):
            if left == 0:
                break
            left = left and left - 1
            with contextlib.suppress(OSError):
                self._frame(kind, offset.to_bytes(8, "big") + bytes(8) + data)
        if left is not None or script.drop_exec:
            self.close_connection = True
            return
        self._exited(**{**(run.end or {}), **script.exec_end})

    def _start(self, sandbox: dict[str, Any], request: dict[str, Any]) -> FakeExec:
        command = request["command"]
        argv = command["argv"] if "argv" in command else ["sh", "-c", command["shell"]]
        try:
            process = subprocess.Popen(
                argv,
                cwd=request.get("cwd") or sandbox["workdir"],
                env={**os.environ, **request.get("env", {})},
                stdin=subprocess.PIPE if request.get("stdin") == "stream" else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            run = FakeExec(None, argv)
            run.finish(exit_code=127, reason="not_started", message=str(error), duration_ms=0)
            return run
        run = FakeExec(process, argv)
        threading.Thread(target=run.run, args=(request.get("timeout_seconds"),)).start()
        return run

    def _frame(self, kind: int, payload: bytes) -> None:
        self._chunk(bytes([kind]) + len(payload).to_bytes(4, "big") + payload)

    def _exited(self, **status: Any) -> None:
        self._frame(3, json.dumps({"event": "exited", **status}).encode())
        self.wfile.write(b"0\r\n\r\n")

    def delete_sandboxes_execs(self, name: str, exec_id: str) -> None:
        self._sandbox(name)
        run = self._exec(exec_id)
        if self.state.script.refuse_kills:
            raise Fault(503, "sandbox_unresponsive", "the sandbox does not answer")
        self.state.kills.append(exec_id)
        run.killed = True
        if run.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.process.pid, signal.SIGKILL)
            run.process.wait()
        self._json(None, 204)

    # ---- files

    def put_sandboxes_archive(self, name: str) -> None:
        self._sandbox(name)
        target = Path(self.query["path"])
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(self.body)) as archive:
            archive.extractall(target, filter="fully_trusted")
        self._json({"refused": [], "skipped": []})

    def get_sandboxes_archive(self, name: str) -> None:
        self._sandbox(name)
        path = Path(self.query["path"])
        if not path.exists():
            raise Fault(404, "path_not_found", f"there is no {path}")
        if self.query["path"].endswith("/.") and not path.is_dir():
            raise Fault(409, "not_a_directory", f"{path} is not a directory")
        excluded = [f"--exclude={p}" for p in self._lines_of("exclude")]
        where = [str(path), "."] if path.is_dir() else [str(path.parent), path.name]
        include, without = self._lines_of("include"), self._lines_of("exclude_files")
        if include or without:
            names = [str(f.relative_to(path)) for f in sorted(path.rglob("*")) if f.is_file() and not f.is_symlink()]
            chosen = filter_paths_by_patterns(names, include=include, exclude=without)
            chosen += [name for name in self._lines_of("protect") if name in names and name not in chosen]
            where = [str(path), "--no-recursion", "--null", "--verbatim-files-from", "-T", "-"]
            stdin = "\0".join(chosen).encode()
        else:
            stdin = b""
        command = ["tar", "-c", "--sort=name", "--format=posix", *excluded, "-C", *where]
        data = subprocess.run(command, input=stdin, capture_output=True, check=True).stdout
        self._stream()
        for start in range(0, len(data), 65536):
            self._chunk(data[start : start + 65536])
        self.wfile.write(b"0\r\n\r\n")

    def _lines_of(self, key: str) -> list[str]:
        return [line for line in self.query.get(key, "").split("\n") if line]

    def get_sandboxes_file(self, name: str) -> None:
        self._sandbox(name)
        path, offset = Path(self.query["path"]), int(self.query.get("offset", 0))
        if not path.is_file():
            raise Fault(404, "path_not_found", f"there is no {path}")
        data = path.read_bytes()[offset:]
        data = data[: int(self.query.get("length", len(data)))]
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def put_sandboxes_file(self, name: str) -> None:
        self._sandbox(name)
        path = Path(self.query["path"])
        if "create_only" in self.query and path.exists():
            raise Fault(409, "exists", f"{path} is there")
        path.write_bytes(self.body)
        path.chmod(int(self.query.get("mode", "644"), 8))
        self._json({"bytes": len(self.body)})

    def get_sandboxes_watch(self, name: str) -> None:
        self._sandbox(name)
        path = self.query["path"]
        self._stream()
        for change in (
            {"kind": "ready", "path": path},
            {"kind": "moved", "path": f"{path}/b", "from": f"{path}/a", "is_dir": True},
            {"error": Fault(404, "path_not_found", f"{path} is gone").body},
        ):
            self._chunk(json.dumps(change).encode() + b"\n")
        self.wfile.write(b"0\r\n\r\n")

    def post_sandboxes_fs(self, name: str) -> None:
        self._sandbox(name)
        request = json.loads(self.body)
        if request["op"] == "stat":
            return self._stat(request["path"])
        if request["op"] == "list":
            entries = [{"name": child.name, "stat": _facts(child)} for child in sorted(Path(request["path"]).iterdir())]
            return self._json({"entries": entries})
        for path in map(Path, request["paths"]):
            if request["op"] == "empty":
                if path.is_symlink() or path.is_file():
                    path.unlink()
                path.mkdir(parents=True, exist_ok=True)
                for child in path.iterdir():
                    _remove(child)
            elif request["op"] == "remove":
                _remove(path)
            else:
                try:
                    path.mkdir(parents=True, exist_ok=True)
                except FileExistsError:
                    raise Fault(400, "not_a_directory", f"{path} is not a directory") from None
            if request.get("mode") is not None:
                path.chmod(request["mode"])
        self._json({})

    def _stat(self, path: str) -> None:
        try:
            self._json({"stat": _facts(Path(path))})
        except OSError:
            self._json({})

    # ---- images

    def post_images(self, action: str) -> None:
        getattr(self, f"_{action}")()

    def _build(self) -> None:
        length = int(self.headers["berth-build-options"])
        options, context = json.loads(self.body[:length]), self.body[length:]
        manifest = json.dumps(options.pop("manifest", None))
        if self.query.get("base") == "true":
            self.state.bases.append(options)
            return self._lines([{"result": self._built("sha256:base")}])
        if not context:
            self.state.asked.append(options)
            if manifest not in self.state.contexts:
                raise Fault(409, "context_needed", "not built yet")
            return self._lines([{"result": self._built("sha256:built")}])
        if self.state.script.context_changes:
            self.state.script.context_changes -= 1
            raise Fault(409, "context_changed", "it is another")
        with tarfile.open(fileobj=io.BytesIO(context)) as archive:
            self.state.builds.append((options, archive.getnames()))
        lines: list[dict[str, Any]] = [
            {"progress": {"what": "step", "step": 1, "steps": 1, "instruction": "FROM scratch", "cached": True}},
            {"progress": {"what": "output", "step": 1, "text": "some output\n"}},
        ]
        error = self.state.script.build_error
        if not error:
            self.state.contexts.add(manifest)
        self._lines([*lines, {"error": error} if error else {"result": self._built("sha256:built")}])

    def _built(self, image: str) -> dict[str, Any]:
        return {"image": _image(image), "content_key": "k3y", "steps": 1, "cached_steps": 1}

    def _pull(self) -> None:
        request = json.loads(self.body)
        self.state.pulls.append(request)
        error = self.state.script.pull_error
        self._lines([{"error": error} if error else {"result": _image("sha256:pulled")}])

    def _lines(self, lines: list[dict[str, Any]]) -> None:
        data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        self._stream()
        # Cut anywhere: a reader must not take a chunk for a line.
        for start in range(0, len(data), 50):
            self._chunk(data[start : start + 50])
        self.wfile.write(b"0\r\n\r\n")


def _facts(path: Path) -> dict[str, Any]:
    facts = path.stat()
    kind = "dir" if stat.S_ISDIR(facts.st_mode) else "file" if stat.S_ISREG(facts.st_mode) else "other"
    return {"kind": kind, "size": facts.st_size, "mode": stat.S_IMODE(facts.st_mode), "uid": 0, "gid": 0}


def _image(id: str) -> dict[str, Any]:
    return {"id": id, "references": [], "size_bytes": 1, "layers": 1, "platform": "linux/amd64", "config": {}}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
