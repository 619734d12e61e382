"""What a file tree holds: path -> one line that tells kind, mode, owner, content, link, attributes.

    d 755 0:0                        a directory
    f 644 0:0 "text\\n"               a short file, by its text
    f 4755 0:0 1024 sha256:…         any other, by its length and digest
    l 0:0 -> target                  a symbolic link
    p 644 0:0                        a FIFO; c and b are devices, with their numbers

and after it, where they are there: `time=N` (a time before 2001 but
not 1970's first second, which only a test or an archive sets), `same=/path` (the
first of several hard links), `NAME=hex` (an extended attribute).
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys

# Told apart per file system, or added by whoever mounts the tree.
NOT_OURS = ("trusted.overlay.", "user.overlay.", "system.posix_acl", "security.selinux")
SHORT = 160
# Clocks of machines that build are later than this.
ANCIENT = 978_307_200


def regular(data: bytes) -> str:
    """How a file's bytes are told."""
    if len(data) <= SHORT:
        try:
            return json.dumps(data.decode(), ensure_ascii=False)
        except UnicodeDecodeError:
            pass
    return f"{len(data)} sha256:{hashlib.sha256(data).hexdigest()}"


def describe(path: str, info: os.stat_result) -> str:
    kind, owner = stat.S_IFMT(info.st_mode), f"{info.st_uid}:{info.st_gid}"
    letter = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFIFO: "p", stat.S_IFCHR: "c", stat.S_IFBLK: "b"}[kind]
    parts = [letter, owner] if letter == "l" else [letter, f"{stat.S_IMODE(info.st_mode):o}", owner]
    if letter == "f":
        with open(path, "rb") as file:
            parts.append(regular(file.read()))
    elif letter == "l":
        parts += ["->", os.readlink(path)]
    elif letter in "cb":
        parts.append(f"{os.major(info.st_rdev)},{os.minor(info.st_rdev)}")
    if 0 < info.st_mtime < ANCIENT and letter != "l":
        parts.append(f"time={info.st_mtime:.0f}")
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        if not name.startswith(NOT_OURS):
            parts.append(f"{name}={os.getxattr(path, name, follow_symlinks=False).hex()}")
    return " ".join(parts)


def tree(top: str) -> dict[str, str]:
    top = top.rstrip("/")
    found = {"/": describe(top, os.lstat(top))}
    links: dict[tuple[int, int], list[str]] = {}
    for parent, dirs, files in os.walk(top):
        for name in dirs + files:
            whole = os.path.join(parent, name)
            try:
                info = os.lstat(whole)
            except FileNotFoundError:
                # Overlays list names like `.wh.x` that nothing can be found by.
                continue
            shown = os.fsencode(whole.removeprefix(top)).decode("utf-8", "backslashreplace")
            found[shown] = describe(whole, info)
            if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
                links.setdefault((info.st_dev, info.st_ino), []).append(shown)
    for names in links.values():
        for name in names if len(names) > 1 else []:
            found[name] += f" same={min(names)}"
    return dict(sorted(found.items()))


if __name__ == "__main__":
    json.dump(tree(sys.argv[1]), sys.stdout)
