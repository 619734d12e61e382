"""What users ask of the Harbor provider by ``--ek`` and mounts: checked at construction, so that nothing is passed over.

Everything raises ``ValueError`` with what was wrong and what would be right.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harbor.environments.base import BaseEnvironment

from berth import _endpoint, models
from berth.errors import BerthError

PULL_POLICIES = ("missing", "always", "never")
OWN_KEYS = (
    "allow_unenforced_storage",
    "boot",
    "host",
    "mode",
    "no_new_privileges",
    "preinstall_packages",
    "pull",
    "quiesce_before_verifier",
    "reconnect_sec",
    "snapshot_id",
    "startup_timeout_sec",
    "use_oci_image_build",
)

BOOT_MODES = ("image", "replay")
"""How a task's environment comes about: from an image that is built once, or by its Dockerfile's steps in each trial."""


@functools.cache
def _harbor_keys() -> frozenset[str]:
    parameters = inspect.signature(BaseEnvironment.__init__).parameters.values()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return frozenset(named - {"self"} | {"suppress_override_warnings"})


def refuse_unknown_keys(kwargs: Mapping[str, Any]) -> None:
    """Harbor's base class swallows unknown keys, so a mistyped one would go unnoticed."""
    unknown = sorted(set(kwargs) - _harbor_keys())
    if not unknown:
        return
    texts = []
    for key in unknown:
        near = difflib.get_close_matches(key, OWN_KEYS, n=1)
        texts.append(f"{key!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    raise ValueError(f"unknown --ek key {', '.join(texts)}; valid keys are {', '.join(OWN_KEYS)}")


def one_of(key: str, value: object, choices: Sequence[str]) -> str:
    if isinstance(value, str) and value in choices:
        return value
    near = difflib.get_close_matches(str(value), choices, n=1)
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"--ek {key}={value!r} is not valid{meant}; it takes {', '.join(choices)}")


def boolean(key: str, value: bool | str) -> bool:
    if isinstance(value, bool):
        return value
    match str(value).strip().lower():
        case "true" | "yes" | "on" | "1":
            return True
        case "false" | "no" | "off" | "0":
            return False
    raise ValueError(f"--ek {key}={value!r} is not valid; it takes true or false")


def boot_mode(boot: object, use_oci_image_build: bool | str | None) -> str:
    if use_oci_image_build is None:
        return one_of("boot", boot, BOOT_MODES) if boot is not None else "image"
    wanted = "image" if boolean("use_oci_image_build", use_oci_image_build) else "replay"
    if boot not in (None, wanted):
        raise ValueError(f"--ek boot={boot!r} and --ek use_oci_image_build={use_oci_image_build} contradict each other")
    return wanted


def package_list(value: object) -> list[str]:
    """A list of names. Harbor reads JSON on its command line itself; elsewhere it may come as text."""
    found = value
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except ValueError:
            found = None
    if (
        not isinstance(found, Sequence)
        or isinstance(found, str)
        or not all(isinstance(name, str) and name for name in found)
    ):
        raise ValueError(
            f'--ek preinstall_packages={value!r} is not valid; it takes a list of names such as \'["git", "jq"]\''
        )
    return list(found)


def seconds(key: str, value: float | str) -> float:
    try:
        seconds = -1.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"--ek {key}={value!r} is not valid; it takes a number of seconds")
    return seconds


def checked_host(host: object) -> str | None:
    if host is None:
        return None
    if not isinstance(host, str):
        raise ValueError(f"--ek host={host!r} is not valid; it takes an address such as unix:///run/berth/berth.sock")
    try:
        return _endpoint.parse_host(host).host
    except BerthError as error:
        raise ValueError(f"--ek host: {error}") from error


def bind_mount(mount: Mapping[str, Any], host: str | None) -> models.Mount:
    """The daemon's mount for a user's, or a refusal: nothing of a mount is ever dropped in silence."""
    kind, source, target = mount.get("type"), str(mount.get("source", "")), str(mount.get("target", ""))
    if kind != "bind":
        raise ValueError(f"mount of {target}: type {kind!r} is not supported by berth; 'bind' is")
    endpoint = _endpoint.configured(host)
    if endpoint is not None and not endpoint.is_local:
        raise ValueError(f"mount of {target}: the daemon at {endpoint.host} cannot mount paths of this machine")
    source = str(Path(source).expanduser())
    if not posixpath.isabs(source) or not posixpath.isabs(target):
        raise ValueError(f"mount of {target}: source {source!r} and target must be absolute paths")
    # SELinux labels and the (never made) host path ask for nothing that the daemon would have to do.
    other = set(mount) - {"type", "source", "target", "read_only", "bind"}
    other |= {f"bind.{key}" for key in set(mount.get("bind") or {}) - {"selinux", "create_host_path"}}
    if other:
        raise ValueError(f"mount of {target}: berth does not know {', '.join(sorted(other))}")
    return models.Mount(source=source, target=target, read_only=bool(mount.get("read_only", False)))


def slug(text: str, default: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or default
