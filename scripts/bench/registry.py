"""A registry on loopback for `cargo xtask bench builds`: registry.py ROOTFS.tar DIR

Cuts the tree into four gzipped layers, once, below DIR, and serves them as `bench/debian:1`, with no regard for who asks or what
else there is. Prints its port when it is ready. Every request is a line of DIR/requests.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copyfileobj

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
SHARES = ("usr/lib", "usr/share", "usr/bin")

rootfs, place = Path(sys.argv[1]), Path(sys.argv[2])


def share_of(name: str) -> int:
    plain = name.removeprefix("./")
    return next((at for at, share in enumerate(SHARES) if plain.startswith(share + "/")), len(SHARES))


def put(data: bytes) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    (place / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def make() -> bytes:
    place.mkdir(parents=True, exist_ok=True)
    paths = [place / f"{at}.tar" for at in range(len(SHARES) + 1)]
    layers = [tarfile.open(path, "w", format=tarfile.PAX_FORMAT) for path in paths]
    with tarfile.open(rootfs) as tree:
        for member in tree:
            data = tree.extractfile(member) if member.isreg() else None
            # A name of another layer's file would dangle: each of these becomes a file of its own.
            if member.islnk() and share_of(member.linkname) != share_of(member.name):
                member = tree.getmember(member.linkname).replace(name=member.name, deep=False)
                data = tree.extractfile(member)
            layers[share_of(member.name)].addfile(member, data)
    described, diff_ids = [], []
    for layer, path in zip(layers, paths, strict=True):
        layer.close()
        plain = path.read_bytes()
        path.unlink()
        diff_ids.append(f"sha256:{hashlib.sha256(plain).hexdigest()}")
        described.append({"mediaType": LAYER, **put(gzip.compress(plain, 6, mtime=0))})
    machine = {"x86_64": "amd64", "aarch64": "arm64"}
    arch = machine.get(__import__("platform").machine(), "amd64")
    env = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    config = {"architecture": arch, "os": "linux", "config": {"Env": env}}
    config["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": described}
    manifest["config"] = {"mediaType": CONFIG, **put(json.dumps(config).encode())}
    return json.dumps(manifest).encode()


def manifest_once() -> bytes:
    kept = place / "manifest.json"
    if not kept.exists():
        kept.write_bytes(make())
    return kept.read_bytes()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 20

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        with lock:
            requests.write(f"{self.command} {self.path}\n")
            requests.flush()
        name = self.path.rsplit("/", 1)[-1]
        if self.path in ("/v2", "/v2/"):
            return self.answer(200, "application/json", b"{}")
        if "/manifests/" in self.path and name in ("1", f"sha256:{hashlib.sha256(manifest).hexdigest()}"):
            return self.answer(200, MANIFEST, manifest)
        blob = place / name.removeprefix("sha256:")
        if "/blobs/" in self.path and blob.is_file():
            return self.file(blob)
        self.answer(404, "application/json", b'{"errors": [{"code": "NAME_UNKNOWN"}]}')

    def answer(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Docker-Content-Digest", f"sha256:{hashlib.sha256(data).hexdigest()}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def file(self, path: Path) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(path.stat().st_size))
        self.end_headers()
        if self.command == "GET":
            with path.open("rb") as file:
                copyfileobj(file, self.wfile, 1 << 20)


manifest = manifest_once()
lock = threading.Lock()
requests = (place / "requests").open("w")
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
print(server.server_port, flush=True)
server.serve_forever()
