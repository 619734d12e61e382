"""Every plain call of the API, described once for the sync and the async client.

A :class:`Call` is a request and how to read its answer; it does no I/O. Streams (execs, archives, image progress) are
described here as far as their requests go, and read by the clients.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict
from urllib.parse import quote

from berth.errors import InvalidRequest
from berth.models import (
    ArchiveFormat,
    ArchiveReport,
    BuildResult,
    Capabilities,
    Check,
    DirEntry,
    ExecInfo,
    FileStat,
    Image,
    KeepOutput,
    Lease,
    Mount,
    Network,
    OnDisconnect,
    Page,
    PruneReport,
    PullPolicy,
    ReplayResult,
    Resources,
    SandboxInfo,
    VerifyReport,
    Version,
)

TAR_TYPE = "application/x-tar"
BYTES_TYPE = "application/octet-stream"

BUILD_OPTIONS = "berth-build-options"
"""Header: length of the options that a build's body begins with, in bytes."""


@dataclass(frozen=True, slots=True)
class Call[T]:
    """A request, and how to read its answer."""

    method: str
    path: str
    parse: Callable[[Any], T]
    query: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    body: bytes | None = None
    content_type: str | None = None
    """Type of a body, be it ``body`` or one that the caller sends beside the call."""
    headers: Mapping[str, str] = field(default_factory=dict)
    repeats: bool = False
    """Whether it does no harm, and answers the same, when it arrives twice."""
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
    return Call("GET", "/v1/version", Version.from_json, repeats=True)


def doctor() -> Call[list[Check]]:
    return Call("GET", "/v1/doctor", lambda data: [Check.from_json(check) for check in data["checks"]], repeats=True)


def node() -> Call[dict[str, Any]]:
    return Call("GET", "/v1/node", dict, repeats=True)


def shutdown() -> Call[None]:
    return Call("POST", "/v1/shutdown", _nothing)


def create_lease(ttl_seconds: int) -> Call[Lease]:
    return Call("POST", "/v1/leases", Lease.from_json, json={"ttl_seconds": ttl_seconds})


def renew_lease(lease: str, ttl_seconds: int) -> Call[Lease]:
    return Call(
        "PUT", f"/v1/leases/{quote(lease, safe='')}", Lease.from_json, json={"ttl_seconds": ttl_seconds}, repeats=True
    )


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
    return Call("GET", "/v1/sandboxes", _page(SandboxInfo.from_json), query=query, repeats=True)


def get_sandbox(name: str) -> Call[SandboxInfo]:
    return Call("GET", _sandbox(name), SandboxInfo.from_json, repeats=True)


def delete_sandbox(name: str) -> Call[None]:
    return Call("DELETE", _sandbox(name), _nothing, missing_ok=True, repeats=True)


def set_ttl(name: str, ttl_seconds: int | None) -> Call[SandboxInfo]:
    return Call("PUT", _sandbox(name, "ttl"), SandboxInfo.from_json, json={"ttl_seconds": ttl_seconds}, repeats=True)


def set_lease(name: str, lease: str | None) -> Call[None]:
    return Call("PUT", _sandbox(name, "lease"), _nothing, json={"lease": lease}, repeats=True)


def _page[T](item: Callable[[Any], T]) -> Callable[[Any], Page[T]]:
    return lambda data: Page([item(one) for one in data["items"]], data.get("next"))


# ---------------------------------------------------------------------------------------------------------- execs

MAX_INPUT = 1 << 20
"""Most input that goes along with the request, and with one request after it, in bytes."""


class ExecOptions(TypedDict, total=False):
    """How a command is run; what is absent or None is as the sandbox has it."""

    id: str | None
    """The key that makes a repeated request harmless, 1 to 64 of ``[A-Za-z0-9_-]``; made when absent. With the id of a command
    that the same request has started before, the call goes on with that one."""
    env: Mapping[str, str] | None
    """Added to, and winning over, the sandbox's environment."""
    cwd: str | None
    """Working directory."""
    user: str | None
    """``name``, ``uid``, ``name:group`` or ``uid:gid``."""
    timeout: float | None
    """Seconds, none when 0: at the limit everything that the command started is killed and the exit code is 124."""
    stdin: bytes | Literal["stream"] | None
    """These bytes and then the end, or what :meth:`write_stdin` sends; ``/dev/null`` when absent."""
    terminal: tuple[int, int] | None
    """Gives it a terminal of so many rows and columns. All of its output is stdout then."""
    keep: KeepOutput | None
    """What is kept of its output for whoever attaches later, and what happens when nobody reads."""
    on_disconnect: OnDisconnect
    """Whether it runs on when the last client that is attached goes away: ``keep`` unless given."""


def _exec_body(command: str | Sequence[str], options: ExecOptions) -> dict[str, Any]:
    stdin, terminal, keep = options.get("stdin"), options.get("terminal"), options.get("keep")
    if isinstance(stdin, bytes):
        given: Any = {"data": base64.b64encode(stdin).decode()} if len(stdin) <= MAX_INPUT else "stream"
    else:
        given = stdin
    return _given(
        id=options.get("id"),
        command={"shell": command} if isinstance(command, str) else {"argv": list(command)},
        env=dict(options.get("env") or {}) or None,
        cwd=options.get("cwd"),
        user=options.get("user"),
        timeout_seconds=options.get("timeout") or None,
        stdin=given,
        terminal={"rows": terminal[0], "cols": terminal[1]} if terminal else None,
        keep=keep.to_json() if keep else None,
        on_disconnect=options.get("on_disconnect"),
    )


def streamed_input(options: ExecOptions) -> bytes | None:
    """The input that does not go along with the request."""
    stdin = options.get("stdin")
    return stdin if isinstance(stdin, bytes) and len(stdin) > MAX_INPUT else None


def tells_gaps(options: ExecOptions) -> bool:
    """Whether missing output is told in the result: who lets the oldest be dropped expects it."""
    keep = options.get("keep")
    return keep is not None and keep.when_full == "drop_oldest"


def exec_(
    name: str, command: str | Sequence[str], options: ExecOptions, offsets: Mapping[str, int] | None = None
) -> Call[None]:
    """Runs a command, or attaches to what the same call has started before, from ``offsets`` on; the answer is a stream for
    :class:`berth._frames.ExecReader`."""
    body = _exec_body(command, options)
    return Call("POST", _sandbox(name, "exec"), _nothing, json={**body, "from": dict(offsets)} if offsets else body)


def exec_detached(name: str, command: str | Sequence[str], options: ExecOptions) -> Call[ExecInfo]:
    # With an id of its own the same request only attaches.
    body = {**_exec_body(command, options), "detach": True}
    return Call("POST", _sandbox(name, "exec"), ExecInfo.from_json, json=body, repeats=True)


def exec_output(name: str, exec_id: str, offsets: Mapping[str, int], follow: bool) -> Call[None]:
    query = {key: str(value) for key, value in offsets.items()} | {"follow": "true" if follow else "false"}
    return Call("GET", _sandbox(name, "execs", exec_id, "output"), _nothing, query=query)


def list_execs(name: str) -> Call[list[ExecInfo]]:
    def parse(data: Any) -> list[ExecInfo]:
        return [ExecInfo.from_json(one) for one in data["items"]]

    return Call("GET", _sandbox(name, "execs"), parse, repeats=True)


def exec_info(name: str, exec_id: str) -> Call[ExecInfo]:
    return Call("GET", _sandbox(name, "execs", exec_id), ExecInfo.from_json, repeats=True)


def kill_exec(name: str, exec_id: str) -> Call[None]:
    return Call("DELETE", _sandbox(name, "execs", exec_id), _nothing, missing_ok=True, repeats=True)


def signal_exec(name: str, exec_id: str, signal: str | int, tree: bool) -> Call[None]:
    return Call("POST", _sandbox(name, "execs", exec_id, "signal"), _nothing, json={"signal": signal, "tree": tree})


def resize_exec(name: str, exec_id: str, rows: int, cols: int) -> Call[None]:
    body = {"rows": rows, "cols": cols}
    return Call("POST", _sandbox(name, "execs", exec_id, "resize"), _nothing, json=body, repeats=True)


def write_stdin(name: str, exec_id: str, data: bytes, offset: int | None, end: bool) -> Call[int]:
    query = {} if offset is None else {"offset": str(offset)}
    return Call(
        "POST",
        _sandbox(name, "execs", exec_id, "stdin"),
        lambda answer: int(answer["offset"]),
        query=query | {"end": "true" if end else "false"},
        body=data,
        content_type=BYTES_TYPE,
        repeats=offset is not None,
    )


def quiesce(name: str) -> Call[int]:
    return Call("POST", _sandbox(name, "quiesce"), lambda answer: int(answer["killed"]))


# ---------------------------------------------------------------------------------------------------------- files


def put_archive(name: str, path: str, keep_ids: bool = False) -> Call[ArchiveReport]:
    query = {"path": path, **({"keep_ids": "true"} if keep_ids else {})}
    return Call("PUT", _sandbox(name, "archive"), ArchiveReport.from_json, query=query, content_type=TAR_TYPE)


def get_archive(
    name: str,
    path: str,
    *,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    exclude_files: Sequence[str] = (),
    protect: Sequence[str] = (),
) -> Call[None]:
    patterns = {"exclude": exclude, "include": include, "exclude_files": exclude_files, "protect": protect}
    for key, lines in patterns.items():
        if broken := [line for line in lines if "\n" in line]:
            raise InvalidRequest(f"{key}: {broken[0]!r} holds a line break, which no pattern may", code="bad_request")
    query = {key: "\n".join(lines) for key, lines in patterns.items() if lines}
    return Call("GET", _sandbox(name, "archive"), _nothing, query={"path": path, "sparse": "true", **query})


def read_file(name: str, path: str, offset: int, length: int | None, user: str | None) -> Call[None]:
    query = _given(path=path, offset=offset or None, length=length, user=user)
    return Call(
        "GET", _sandbox(name, "file"), _nothing, query={key: str(value) for key, value in query.items()}, repeats=True
    )


def write_file(name: str, path: str, data: bytes, mode: int | None, owner: str | None, create_only: bool) -> Call[int]:
    query = _given(path=path, mode=None if mode is None else f"{mode:04o}", owner=owner)
    return Call(
        "PUT",
        _sandbox(name, "file"),
        lambda answer: int(answer["bytes"]),
        query=query | ({"create_only": "true"} if create_only else {}),
        body=data,
        content_type=BYTES_TYPE,
        # The second of two would find what the first has made.
        repeats=not create_only,
    )


def watch(name: str, path: str, recursive: bool) -> Call[None]:
    query = {"path": path, "recursive": "true" if recursive else "false"}
    return Call("GET", _sandbox(name, "watch"), _nothing, query=query)


def list_dir(name: str, path: str, user: str | None) -> Call[list[DirEntry]]:
    def parse(data: Any) -> list[DirEntry]:
        return [DirEntry.from_json(entry) for entry in data["entries"]]

    return Call("POST", _sandbox(name, "fs"), parse, json=_given(op="list", path=path, user=user), repeats=True)


def stat(name: str, path: str, user: str | None) -> Call[FileStat | None]:
    body = _given(op="stat", path=path, user=user)
    return Call("POST", _sandbox(name, "fs"), _file_stat, json=body, repeats=True)


def mkdir(name: str, paths: Sequence[str], mode: int | None, owner: str | None) -> Call[None]:
    body = _given(op="mkdir", paths=list(paths), mode=mode, owner=owner)
    return Call("POST", _sandbox(name, "fs"), _nothing, json=body, repeats=True)


def empty(name: str, paths: Sequence[str], mode: int | None) -> Call[None]:
    return Call("POST", _sandbox(name, "fs"), _nothing, json=_given(op="empty", paths=list(paths), mode=mode))


def remove(name: str, paths: Sequence[str]) -> Call[None]:
    return Call("POST", _sandbox(name, "fs"), _nothing, json={"op": "remove", "paths": list(paths)})


def _file_stat(data: Any) -> FileStat | None:
    found = data.get("stat")
    return FileStat.from_json(found) if found else None


# --------------------------------------------------------------------------------------------------------- images


def list_images() -> Call[Page[Image]]:
    return Call("GET", "/v1/images", _page(Image.from_json), repeats=True)


def get_image(reference: str) -> Call[Image]:
    return Call("GET", f"/v1/images/{quote(reference, safe='')}", Image.from_json, repeats=True)


def delete_image(reference: str) -> Call[None]:
    return Call("DELETE", f"/v1/images/{quote(reference, safe='')}", _nothing, missing_ok=True)


def pull_image(
    reference: str, policy: PullPolicy, username: str | None, password: str | None, cache: bool = False
) -> Call[Image]:
    auth = {"username": username, "password": password or ""} if username is not None else None
    body = _given(reference=reference, policy=policy, auth=auth, cache=cache or None)
    return Call("POST", "/v1/images/pull", Image.from_json, json=body)


def import_image(reference: str | None, format: ArchiveFormat | None) -> Call[Image]:
    query = _given(reference=reference, format=format)
    return Call("POST", "/v1/images/import", Image.from_json, query=query, content_type="application/octet-stream")


def bootstrap_image(reference: str, mirror: str | None, packages: Sequence[str]) -> Call[Image]:
    body = _given(reference=reference, mirror=mirror, packages=list(packages) or None)
    return Call("POST", "/v1/images/bootstrap", Image.from_json, json=body)


def push_image(reference: str, to: str | None, username: str | None, password: str | None, cache: bool) -> Call[Image]:
    auth = {"username": username, "password": password or ""} if username is not None else None
    body = _given(reference=reference, to=to, auth=auth, cache=cache or None)
    return Call("POST", "/v1/images/push", Image.from_json, json=body)


def tag_image(image: str, reference: str) -> Call[Image]:
    return Call("POST", "/v1/images/tag", Image.from_json, json={"image": image, "reference": reference}, repeats=True)


def prune_images(**wanted: Any) -> Call[PruneReport]:
    return Call("POST", "/v1/images/prune", PruneReport.from_json, json=_given(**wanted))


def verify_images(deep: bool) -> Call[VerifyReport]:
    return Call("POST", "/v1/images/verify", VerifyReport.from_json, json={"deep": deep})


def export_images(images: Sequence[str], format: ArchiveFormat | None, cache: bool) -> Call[None]:
    body = _given(images=list(images), format=format, cache=cache or None)
    return Call("POST", "/v1/images/export", _nothing, json=body)


def build_image(length: int) -> Call[BuildResult]:
    return Call(
        "POST",
        "/v1/images/build",
        BuildResult.from_json,
        content_type=TAR_TYPE,
        headers={BUILD_OPTIONS: str(length)},
    )


def base_of_build(length: int) -> Call[BuildResult]:
    return dataclasses.replace(build_image(length), query={"base": "true"})


def replay(sandbox: str, length: int) -> Call[ReplayResult]:
    return Call(
        "POST",
        _sandbox(sandbox, "replay"),
        ReplayResult.from_json,
        content_type=TAR_TYPE,
        headers={BUILD_OPTIONS: str(length)},
    )


# -------------------------------------------------------------------------------------------------- names of files


def directory(path: str) -> str:
    """``path``, named so that only a directory answers to it, also through a symlink."""
    return f"{path.rstrip('/')}/."


def split_target(target: str, source_name: str, is_dir: bool) -> tuple[str, str]:
    """Directory and name to upload a file as: into a directory that is there, else as ``target`` itself."""
    if is_dir or target.endswith("/"):
        return target, source_name
    directory, _, name = target.rpartition("/")
    return directory or "/", name
