"""What a file tree holds, as JSON: path -> kind, mode, owner, size, digest, target, attributes, links. No times."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from pathlib import Path

# Told apart per file system, or added by whoever mounts the tree.
NOT_OURS = ("trusted.overlay.", "system.posix_acl", "security.selinux")


def describe(path: str, info: os.stat_result) -> dict[str, object]:
    kind = stat.S_IFMT(info.st_mode)
    entry: dict[str, object] = {"mode": oct(info.st_mode), "owner": f"{info.st_uid}:{info.st_gid}"}
    if kind == stat.S_IFREG:
        entry["size"] = info.st_size
        with Path(path).open("rb") as file:
            entry["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    elif kind == stat.S_IFLNK:
        entry["target"] = os.readlink(path)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        entry["device"] = info.st_rdev
    for name in os.listxattr(path, follow_symlinks=False):
        if not name.startswith(NOT_OURS):
            entry[f"xattr {name}"] = os.getxattr(path, name, follow_symlinks=False).hex()
    return entry


def tree(top: str) -> dict[str, dict[str, object]]:
    found = {"/": describe(top, os.lstat(top))}
    links: dict[tuple[int, int], list[str]] = {}
    for parent, dirs, files in os.walk(top):
        for name in dirs + files:
            whole = os.path.join(parent, name)
            try:
                info = os.lstat(whole)
            except FileNotFoundError:
                # podman lists names like `.wh.x` that nothing can be found by.
                continue
            shown = os.fsencode(whole.removeprefix(top)).decode("utf-8", "backslashreplace")
            found[shown] = describe(whole, info)
            if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
                links.setdefault((info.st_dev, info.st_ino), []).append(shown)
    for names in links.values():
        for name in names if len(names) > 1 else []:
            found[name]["same as"] = min(names)
    return found


if __name__ == "__main__":
    json.dump(tree(sys.argv[1].rstrip("/")), sys.stdout)
