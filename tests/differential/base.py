"""The image `base` that most cases begin with: a shell, a few users, and things to copy, in less than two megabytes.

Made of this machine's static busybox alone, so that nothing has to be fetched. Both builders get it from the same archive.
The program's own bytes differ from machine to machine: no case may show them.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
import tarfile
from pathlib import Path

REFERENCE = "docker.io/library/base:latest"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
APPLETS = """
ash awk base64 basename cat chgrp chmod chown cp cut date dd df dirname du echo env expr false find grep groups gunzip gzip
head hexdump hostname id kill ln ls md5sum mkdir mkfifo mknod mktemp mount mv nc nproc od ping printf ps pwd readlink realpath
rm rmdir sed seq setsid sh sha256sum sleep sort stat sync tail tar tee test timeout touch tr true truncate umount uname uniq
wc wget which whoami xargs yes zcat
"""
DIRECTORIES = {
    "": 0o755, "bin": 0o755, "dev": 0o755, "etc": 0o755, "etc/conf.d": 0o750, "home": 0o755, "mnt": 0o755, "opt": 0o755,
    "proc": 0o555, "root": 0o700, "run": 0o755, "srv": 0o755, "sys": 0o555, "tmp": 0o1777, "usr": 0o755, "usr/bin": 0o755,
    "usr/lib": 0o755, "usr/local": 0o755, "usr/local/bin": 0o755, "usr/local/share": 0o2775, "usr/share": 0o755,
    "usr/share/doc": 0o755, "usr/share/doc/deep": 0o755, "usr/share/man": 0o755, "var": 0o755, "var/lib": 0o755,
}
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nbin:x:2:2:bin:/bin:/bin/false\nwww-data:x:33:33::/var/www:/bin/false\n"
    "bob:x:1500:2000:Bob:/home/bob:/bin/sh\nsvc:x:999:999::/nonexistent:/bin/false\nnobody:x:65534:65534::/:/bin/false\n",
    "etc/group": "root:x:0:\nbin:x:2:\nadm:x:4:bob\nwww-data:x:33:\nstaff:x:50:\nbobs:x:2000:\nextra:x:3000:bob,svc\nsvc:x:999:\n"
    "nogroup:x:65534:\n",
    "etc/motd": "welcome\n",
    "etc/conf.d/a": "a\n",
    "usr/share/doc/one": "one\n",
    "usr/share/doc/deep/two": "two\n",
}
LINKS = {"lib": "usr/lib", "usr/lib/absolute": "/usr/share/doc", "usr/lib/loop": "loop", "var/run": "/run"}
# CAP_NET_RAW, permitted and effective.
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


def layer(busybox: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def put(name: str, kind: bytes, mode: int, data: bytes = b"", owner: tuple[int, int] = (0, 0), **more) -> None:
            info = tarfile.TarInfo("./" + name)
            info.type, info.mode, info.size, info.mtime = kind, mode, len(data), 1_600_000_000
            info.uid, info.gid = owner
            info.linkname = more.get("target", "")
            info.pax_headers = more.get("pax", {})
            tar.addfile(info, io.BytesIO(data))

        for name, mode in DIRECTORIES.items():
            put(name, tarfile.DIRTYPE, mode)
        put("home/bob", tarfile.DIRTYPE, 0o750, owner=(1500, 2000))
        put("bin/busybox", tarfile.REGTYPE, 0o755, busybox.read_bytes())
        for name in APPLETS.split():
            put(f"bin/{name}", tarfile.SYMTYPE, 0o777, target="busybox")
        for name, target in LINKS.items():
            put(name, tarfile.SYMTYPE, 0o777, target=target)
        for name, text in FILES.items():
            put(name, tarfile.REGTYPE, 0o644, text.encode())
        # PAX headers are text: bytes above 127 would be encoded, and these are none.
        put("opt/cap", tarfile.REGTYPE, 0o755, b"capable\n", pax={"SCHILY.xattr.security.capability": CAPABILITY.decode("latin-1")})
        put("opt/attr", tarfile.REGTYPE, 0o644, b"attr\n", pax={"SCHILY.xattr.user.note": "noted"})
        put("opt/setuid", tarfile.REGTYPE, 0o4755, b"setuid\n")
        put("opt/hard", tarfile.LNKTYPE, 0o4755, target="./opt/setuid")
    return buffer.getvalue()


def make(archive: Path) -> None:
    """Writes the image in the format of `docker save`."""
    busybox = shutil.which("busybox")
    # A program that wants shared libraries has an interpreter named in its head.
    if busybox is None or b"/ld-linux" in Path(busybox).read_bytes()[:4096]:
        print("SKIP: the conformance suite of builds needs a static busybox (busybox-static)")
        raise SystemExit(0)
    bytes_ = layer(Path(busybox))
    config = {
        "architecture": "amd64", "os": "linux", "created": "2020-09-13T12:26:40Z",
        "config": {"Env": [PATH], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(bytes_).hexdigest()]},
        "history": [{"created": "2020-09-13T12:26:40Z", "created_by": "base"}],
    }
    manifest = [{"Config": "config.json", "RepoTags": ["base:latest"], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as tar:
        for name, data in {"manifest.json": json.dumps(manifest).encode(), "config.json": json.dumps(config).encode(), "layer.tar": bytes_}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
