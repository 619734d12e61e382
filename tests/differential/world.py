"""What scenarios are written with: a context that changes, builds of it, and looks into what came out."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from berth import Berth, Built
from network import OUTSIDE

# A RUN that leaves something new in FILE each time that it runs: whether it ran again shows in the image.
UNIQUE = "cat /proc/sys/kernel/random/uuid >"


class World:
    def __init__(self, berth: Berth, work: Path, name: str, base: dict[str, str]) -> None:
        self.berth, self.work, self.name, self.base = berth, work, name, base
        self.context = work / "context"
        self.context.mkdir()

    def sh(self, script: str, where: Path | None = None) -> str:
        """Changes the context."""
        argv = ["bash", "-euc", f"umask 022\n{script}"]
        done = subprocess.run(argv, cwd=where or self.context, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{script}: {done.stderr}"
        return done.stdout

    def dockerfile(self, text: str, name: str = "Dockerfile") -> None:
        # What a scenario writes is its own: no other's steps are found in the cache.
        text = text.removeprefix("\n").replace("UNIQUE", UNIQUE)
        (self.context / name).write_text(text)

    def try_build(self, *args: str, context: Path | None = None, env: dict[str, str] | None = None) -> Built:
        return self.berth.build(context or self.context, *args, env=env)

    def build(self, *args: str, context: Path | None = None, env: dict[str, str] | None = None) -> Built:
        built = self.try_build(*args, context=context, env=env)
        assert built.result is not None, f"the build fails ({built.code}): {built.output[-1500:]}"
        return built

    def cached(self, built: Built) -> None:
        steps, cached = built.result["steps"], built.result["cached_steps"]
        assert cached == steps, f"{steps - cached} of {steps} steps are not from the cache: {built.output[-1500:]}"

    def tree(self, built: Built) -> dict[str, str]:
        return self.berth.image(built.id)[1]

    def config(self, built: Built) -> dict:
        return self.berth.image(built.id)[0].get("config", {})

    def text(self, built: Built, path: str) -> str:
        """A short file of an image."""
        entry = self.tree(built).get(path)
        assert entry is not None and entry.startswith("f "), f"{path} of the image is {entry}"
        return json.loads(entry[entry.index('"') : entry.rindex('"') + 1])

    def ran_again(self, before: Built, after: Built, *paths: str) -> None:
        """The steps that made these files, and no other of UNIQUE's files, ran again."""
        old, new = self.tree(before), self.tree(after)
        marks = [path for path in old if path.startswith("/mark")]
        assert marks, "nothing was marked"
        again = sorted(path for path in marks if old[path] != new.get(path))
        assert again == sorted(paths), f"ran again: {again}, and should have: {sorted(paths)}"

    def fresh(self, name: str) -> Path:
        """A new directory beside the context."""
        made = self.work / name
        made.mkdir()
        return made

    @staticmethod
    def files_below(top: Path, prefix: str) -> dict[str, bytes]:
        """What a server of `top` at `prefix` answers."""
        return {f"{prefix}/{path.relative_to(top)}": path.read_bytes() for path in top.rglob("*") if path.is_file()}

    @contextmanager
    def server(self, pages: dict[str, bytes]) -> Iterator[str]:
        """A web server that builds reach; it has these pages, which may change. Its URL."""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = pages.get(self.path.partition("?")[0])
                self.send_response(200 if body is not None else 404)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def do_HEAD(self) -> None:
                self.send_response(200 if self.path.partition("?")[0] in pages else 404)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        listener = self.berth.network.listen()
        server = ThreadingHTTPServer(listener.getsockname(), Handler, bind_and_activate=False)
        server.socket.close()
        server.socket = listener
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{OUTSIDE}:{listener.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def nowhere(self, secret: str, built: Built) -> None:
        """A secret is in no file of the daemon's, nor in what was printed."""
        assert secret not in built.output and secret not in json.dumps(built.result), "it is in the output"
        found = subprocess.run(
            ["grep", "-rlF", "--devices=skip", secret, str(self.berth.data), str(self.berth.work / "daemon.log")],
            capture_output=True, text=True, check=False,
        )
        assert found.returncode == 1, f"it is in {found.stdout}"

    def start(self) -> subprocess.Popen:
        """A build under way, whose client may be killed."""
        argv = [self.berth.binary, "image", "build", str(self.context), "--json"]
        env = os.environ | {"BERTH_HOST": self.berth.socket}
        return subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def until_cached_file(self, name: str) -> None:
        """Until a step has written a file of that name to a cache mount."""
        for _ in range(300):
            if any((self.berth.data / "build-caches").rglob(name)):
                return
            time.sleep(0.1)
        raise AssertionError(f"no step came to write {name}")

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(seconds)
