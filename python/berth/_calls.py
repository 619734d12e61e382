"""Every plain call of the API, described once for the sync and the async client.

A :class:`Call` is a request and how to read its answer; it does no I/O. Streams (execs, archives, image progress) are
described here as far as their requests go, and read by the clients.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from berth.models import (
    ArchiveFormat,
    ArchiveReport,
    BuildResult,
    Capabilities,
    Check,
    FileStat,
    Image,
    Lease,
    Mount,
    Network,
    Page,
    PullPolicy,
    Resources,
    SandboxInfo,
    Version,
)

TAR_TYPE = "application/x-tar"


@dataclass(frozen=True, slots=True)
class Call[T]:
    """A request, and how to read its answer."""

    method: str
    path: str
    parse: Callable[[Any], T]
    query: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    content_type: str | None = None
    """Type of a body that the caller sends beside the call."""
    missing_ok: bool = False
    """Whether "not found" is as good as success."""
    once: bool = False
    """Whether to give up at the first refused connection."""


def _nothing(_: Any) -> None:
    return None


def _sandbox(name: str, *rest: str) -> str:
    return "/".join(["/v1/sandboxes", *(quote(part, safe="") for part in (name, *rest))])


def _given(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


# ------------------------------------------------------------------------------------------------- system, leases


def version() -> Call[Version]:
    return Call("GET", "/v1/version", Version.from_json)


def doctor() -> Call[list[Check]]:
    return Call("GET", "/v1/doctor", lambda data: [Check.from_json(check) for check in data["checks"]])


def node() -> Call[dict[str, Any]]:
    return Call("GET", "/v1/node", dict)


def shutdown() -> Call[None]:
    return Call("POST", "/v1/shutdown", _nothing)


def create_lease(ttl_seconds: int) -> Call[Lease]:
    return Call("POST", "/v1/leases", Lease.from_json, json={"ttl_seconds": ttl_seconds})


def renew_lease(lease: str, ttl_seconds: int) -> Call[Lease]:
    return Call("PUT", f"/v1/leases/{quote(lease, safe='')}", Lease.from_json, json={"ttl_seconds": ttl_seconds})


def delete_lease(lease: str) -> Call[None]:
    # Once: a process says this as it exits, and a daemon that has gone has taken its sandboxes along.
    return Call("DELETE", f"/v1/leases/{quote(lease, safe='')}", _nothing, missing_ok=True, once=True)


# ------------------------------------------------------------------------------------------------------ sandboxes


def create_sandbox(
    image: str,
    *,
    name: str | None = None,
    idempotency_key: str | None = None,
    labels: Mapping[str, str] | None = None,
    lease: str | None = None,
    resources: Resources | None = None,
    network: Network = "public",
    env: Mapping[str, str] | None = None,
    workdir: str | None = None,
    user: str | None = None,
    mounts: Sequence[Mount] = (),
    no_new_privileges: bool | None = None,
    allow_unenforced_storage: bool = False,
    ttl_seconds: int | None = None,
    wait_seconds: float | None = None,
    capabilities: Capabilities | None = None,
    user_namespace: bool | None = None,
) -> Call[SandboxInfo]:
    body = _given(
        image=image,
        name=name,
        idempotency_key=idempotency_key,
        labels=dict(labels) if labels else None,
        lease=lease,
        resources=resources.to_json() if resources else None,
        network=network,
        env=dict(env) if env else None,
        workdir=workdir,
        user=user,
        mounts=[mount.to_json() for mount in mounts] or None,
        no_new_privileges=no_new_privileges,
        storage_unenforced="allow" if allow_unenforced_storage else None,
        ttl_seconds=ttl_seconds,
        wait_seconds=wait_seconds,
        capabilities=capabilities if capabilities is None or isinstance(capabilities, str) else list(capabilities),
        user_namespace=user_namespace,
    )
    return Call("POST", "/v1/sandboxes", SandboxInfo.from_json, json=body)


def list_sandboxes(label: str | None, limit: int | None, after: str | None) -> Call[Page[SandboxInfo]]:
    query = {key: str(value) for key, value in _given(label=label, limit=limit, after=after).items()}
    return Call("GET", "/v1/sandboxes", _page(SandboxInfo.from_json), query=query)


def get_sandbox(name: str) -> Call[SandboxInfo]:
    return Call("GET", _sandbox(name), SandboxInfo.from_json)


def delete_sandbox(name: str) -> Call[None]:
    return Call("DELETE", _sandbox(name), _nothing, missing_ok=True)


def set_ttl(name: str, ttl_seconds: int | None) -> Call[SandboxInfo]:
    return Call("PUT", _sandbox(name, "ttl"), SandboxInfo.from_json, json={"ttl_seconds": ttl_seconds})


def set_lease(name: str, lease: str | None) -> Call[None]:
    return Call("PUT", _sandbox(name, "lease"), _nothing, json={"lease": lease})


def _page[T](item: Callable[[Any], T]) -> Callable[[Any], Page[T]]:
    return lambda data: Page([item(one) for one in data["items"]], data.get("next"))


# ---------------------------------------------------------------------------------------------------------- execs


def exec_(
    name: str,
    command: str | Sequence[str],
    *,
    id: str,
    env: Mapping[str, str] | None,
    cwd: str | None,
    user: str | None,
    timeout: float | None,
    offsets: Mapping[str, int] | None = None,
) -> Call[None]:
    """Runs a command, or attaches to what the same call has started before, from ``offsets`` on; the answer is a stream for
    :class:`berth._frames.ExecReader`."""
    body = _given(
        id=id,
        command={"shell": command} if isinstance(command, str) else {"argv": list(command)},
        env=dict(env) if env else None,
        cwd=cwd,
        user=user,
        timeout_seconds=timeout or None,
        **({"from": dict(offsets)} if offsets else {}),
    )
    return Call("POST", _sandbox(name, "exec"), _nothing, json=body)


def kill_exec(name: str, exec_id: str) -> Call[None]:
    return Call("DELETE", _sandbox(name, "execs", exec_id), _nothing, missing_ok=True)


# ---------------------------------------------------------------------------------------------------------- files


def put_archive(name: str, path: str, keep_ids: bool = False) -> Call[ArchiveReport]:
    query = {"path": path, **({"keep_ids": "true"} if keep_ids else {})}
    return Call("PUT", _sandbox(name, "archive"), ArchiveReport.from_json, query=query, content_type=TAR_TYPE)


def get_archive(name: str, path: str, exclude: Sequence[str] = ()) -> Call[None]:
    query = {"path": path, **({"exclude": "\n".join(exclude)} if exclude else {})}
    return Call("GET", _sandbox(name, "archive"), _nothing, query=query)


def stat(name: str, path: str, user: str | None) -> Call[FileStat | None]:
    body = _given(op="stat", path=path, user=user)
    return Call("POST", _sandbox(name, "fs"), _file_stat, json=body)


def mkdir(name: str, paths: Sequence[str], mode: int | None) -> Call[None]:
    return Call("POST", _sandbox(name, "fs"), _nothing, json=_given(op="mkdir", paths=list(paths), mode=mode))


def empty(name: str, paths: Sequence[str], mode: int | None) -> Call[None]:
    return Call("POST", _sandbox(name, "fs"), _nothing, json=_given(op="empty", paths=list(paths), mode=mode))


def remove(name: str, paths: Sequence[str]) -> Call[None]:
    return Call("POST", _sandbox(name, "fs"), _nothing, json={"op": "remove", "paths": list(paths)})


def _file_stat(data: Any) -> FileStat | None:
    found = data.get("stat")
    return FileStat.from_json(found) if found else None


# --------------------------------------------------------------------------------------------------------- images


def list_images() -> Call[Page[Image]]:
    return Call("GET", "/v1/images", _page(Image.from_json))


def get_image(reference: str) -> Call[Image]:
    return Call("GET", f"/v1/images/{quote(reference, safe='')}", Image.from_json)


def delete_image(reference: str) -> Call[None]:
    return Call("DELETE", f"/v1/images/{quote(reference, safe='')}", _nothing, missing_ok=True)


def pull_image(reference: str, policy: PullPolicy, username: str | None, password: str | None) -> Call[Image]:
    auth = {"username": username, "password": password or ""} if username is not None else None
    body = _given(reference=reference, policy=policy, auth=auth)
    return Call("POST", "/v1/images/pull", Image.from_json, json=body)


def import_image(reference: str | None, format: ArchiveFormat | None) -> Call[Image]:
    query = _given(reference=reference, format=format)
    return Call("POST", "/v1/images/import", Image.from_json, query=query, content_type="application/octet-stream")


def bootstrap_image(reference: str, mirror: str | None, packages: Sequence[str]) -> Call[Image]:
    body = _given(reference=reference, mirror=mirror, packages=list(packages) or None)
    return Call("POST", "/v1/images/bootstrap", Image.from_json, json=body)


def build_image(
    *,
    tags: Sequence[str],
    dockerfile: str | None,
    target: str | None,
    build_args: Mapping[str, str] | None,
    no_cache: bool,
) -> Call[BuildResult]:
    options = _given(
        tags=list(tags) or None,
        dockerfile=dockerfile,
        target=target,
        build_args=dict(build_args) if build_args else None,
        no_cache=no_cache or None,
    )
    query = {"options": json.dumps(options)}
    return Call("POST", "/v1/images/build", BuildResult.from_json, query=query, content_type=TAR_TYPE)
