"""Berth as an environment of Harbor: ``harbor run … -e berth.harbor:BerthEnvironment``.

What it is for: running one Harbor trial's environment in one Berth sandbox. What it refuses, at construction: compose tasks,
allow-lists, GPUs, Windows, volumes, unknown ``--ek`` keys; it declares only what the daemon has. How it fails: the classes
carry the names that Harbor's retry and grading table knows, so that a failure of the platform is never graded as the
agent's. Start reading at :meth:`BerthEnvironment.start` and :meth:`BerthEnvironment.exec`.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import secrets
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NoReturn, Unpack, cast, override

from harbor.environments.base import BaseEnvironment, ExecResult, SandboxBuildFailedError
from harbor.environments.capabilities import EnvironmentCapabilities, EnvironmentResourceCapabilities
from harbor.environments.definition import (
    COMPOSE_FILE_NAME,
    require_agent_environment_definition,
    should_upload_environment_dir,
    should_use_prebuilt_docker_image,
)
from harbor.models.trial.config import ResourceMode
from harbor.models.trial.paths import EnvironmentPaths

from berth import _endpoint, models
from berth._async import AsyncClient, AsyncSandbox, settle
from berth._build import BuildSettings
from berth._calls import split_target
from berth._harbor_options import (
    PULL_POLICIES,
    bind_mount,
    boolean,
    boot_mode,
    checked_host,
    one_of,
    package_list,
    refuse_unknown_keys,
    seconds,
    slug,
)
from berth._http import PATIENCE
from berth._lease import process_lease
from berth._sync import Client
from berth._tar import Report
from berth.errors import BerthError, BuildFailed

STARTUP_TIMEOUT_SEC = 120.0
"""Seconds that a sandbox may take from its image to running, by default."""

_REAP_TIMEOUT = 30.0
"""Seconds that cleaning up waits for the daemon."""

_WRITABLE_BY_ALL = 0o777
_OUTPUT_TAIL = 50
_PATH_ERRORS: dict[str, type[OSError]] = {
    "path_not_found": FileNotFoundError,
    "not_a_directory": NotADirectoryError,
    "is_a_directory": IsADirectoryError,
    "permission_denied": PermissionError,
}

_LOOK = 1.0
"""Seconds between looks at a sandbox that is being made."""

_LINUX = EnvironmentPaths.for_os("linux")

EnvironmentPath = str | PurePath


class RuntimeRequestError(RuntimeError):
    """The platform failed, not the task: Harbor's table maps this name to "sandbox failed, retry, do not grade".

    A ``RuntimeError``, because the set-up of installed agents rewraps everything else under a name that would be graded.
    """


class BerthEnvironment(BaseEnvironment):
    """One Berth sandbox, as Harbor's environment."""

    def __init__(
        self,
        *args: Any,
        host: str | None = None,
        pull: str = "missing",
        no_new_privileges: bool | str | None = None,
        allow_unenforced_storage: bool | str = False,
        startup_timeout_sec: float | str = STARTUP_TIMEOUT_SEC,
        reconnect_sec: float | str = PATIENCE,
        quiesce_before_verifier: bool | str = False,
        mode: str = "auto",
        boot: str | None = None,
        use_oci_image_build: bool | str | None = None,
        snapshot_id: str | None = None,
        preinstall_packages: Sequence[str] | str = (),
        **kwargs: Any,
    ) -> None:
        """See Harbor's base class for the rest.

        Args:
            host: The daemon, as ``BERTH_HOST`` has it; that, or the embedded daemon, when absent.
            pull: When a ``docker_image`` is looked up in its registry: ``missing``, ``always`` or ``never``.
            no_new_privileges: Whether set-uid programs lose their effect; the daemon decides by the image when absent.
            allow_unenforced_storage: Run without the task's ``storage_mb`` where the daemon's disk engine cannot enforce it;
                refused otherwise.
            startup_timeout_sec: Limit for making the sandbox, once its image is there and there is room for it on the
                machine; 0 means none.
            reconnect_sec: How long a command whose connection was cut, or whose daemon is away, is tried to be picked up again.
                It runs on meanwhile, and nothing of it is lost.
            quiesce_before_verifier: Kill every process that earlier commands have left before the verifier starts. Off, since
                tasks may start services on purpose.
            mode: Only ``auto``, for commands that were written for providers with several modes.
            boot: ``image``, the default: the Dockerfile is built once, and every trial of the same content starts from the
                cache; or ``replay``: each trial starts from the Dockerfile's base and runs its steps in its own sandbox.
            use_oci_image_build: The same choice by the name that other providers have for it: true is ``image``, false ``replay``.
            snapshot_id: A snapshot to start from; there are none yet.
            preinstall_packages: Native packages (apt, apk, dnf, …) that every trial's environment has on top: a list, as JSON on
                the command line. With ``image`` they are one more cached layer.
        """
        refuse_unknown_keys(kwargs)
        if mode != "auto":
            raise ValueError(f"--ek mode={mode!r} is not supported; berth has one mode, 'auto'")
        self._pull = one_of("pull", pull, PULL_POLICIES)
        self._no_new_privileges = None if no_new_privileges is None else boolean("no_new_privileges", no_new_privileges)
        self._allow_unenforced_storage = boolean("allow_unenforced_storage", allow_unenforced_storage)
        self._startup_timeout_sec = seconds("startup_timeout_sec", startup_timeout_sec)
        self._reconnect_sec = seconds("reconnect_sec", reconnect_sec)
        self._quiesces = boolean("quiesce_before_verifier", quiesce_before_verifier)
        self._boot = boot_mode(boot, use_oci_image_build)
        self._packages = package_list(preinstall_packages)
        if snapshot_id is not None:
            raise ValueError(
                f"--ek snapshot_id={snapshot_id!r}: berth has no snapshots yet; leave it out to start from the image"
            )
        self._host = checked_host(host)
        self._client: AsyncClient | None = None
        self._sandbox: AsyncSandbox | None = None
        self._creating: asyncio.Task[AsyncSandbox] | None = None
        super().__init__(*args, **kwargs)
        self._user_mounts = [bind_mount(mount, self._host) for mount in self._mounts_of_user()]

    # ---------------------------------------------------------------------------------------- what it is and can do

    @staticmethod
    @override
    def type() -> str:
        return "berth"

    @property
    @override
    def capabilities(self) -> EnvironmentCapabilities:
        return EnvironmentCapabilities(disable_internet=True)

    @classmethod
    @override
    def resource_capabilities(cls) -> EnvironmentResourceCapabilities:
        # Harbor 0.24 knows whole CPUs only, and passes over the last word.
        return EnvironmentResourceCapabilities(
            cpu_limit=True, cpu_request=True, memory_limit=True, memory_request=True, fractional_cpus=True
        )

    @override
    def _validate_definition(self) -> None:
        compose = self.environment_dir / COMPOSE_FILE_NAME
        if compose.exists():
            raise ValueError(f"{compose}: berth does not run docker-compose tasks")
        require_agent_environment_definition(self.environment_dir, docker_image=self.task_env_config.docker_image)

    @classmethod
    @override
    def preflight(cls) -> None:
        # Preflight does not see --ek; a daemon named there is checked when the first trial starts.
        if any(argument.startswith("host=") for argument in sys.argv):
            return
        try:
            with Client() as client:
                client.version()
        except BerthError as error:
            raise SystemExit(f"berth: {error}") from None

    # -------------------------------------------------------------------------------------------------- start, stop

    @override
    async def start(self, force_build: bool) -> None:
        try:
            with _infrastructure("start the environment"):
                await self._start(force_build)
        except BaseException:
            # Whatever was made so far has no owner when this fails or is cancelled.
            await settle(self._reap(), _REAP_TIMEOUT)
            raise

    async def _start(self, force_build: bool) -> None:
        self._client = AsyncClient(self._host, patience=self._reconnect_sec)
        replays = self._boot == "replay" and not self._is_prebuilt(force_build)
        image = await (self._base() if replays else self._image(force_build))
        if replays and self._no_new_privileges is None:
            # Nobody knows yet what the steps will install.
            self._no_new_privileges = False
        self._sandbox = await self._create(image)
        if replays:
            await self._replay(self._sandbox)
        info = self._sandbox.info
        self.logger.debug(f"berth: sandbox {info.name} ({info.id}) runs {image}, ready in {info.start_ms or 0:.0f} ms")
        if info.shell is not None and posixpath.basename(info.shell) != "bash":
            self.logger.debug(f"berth: the image has no bash; commands run in {info.shell}")
        if info.shell is None:
            self.logger.warning("berth: the image has no shell; commands of the task and of Harbor cannot run in it")
        if self._effective_storage_mb is not None and not info.storage_enforced:
            self.logger.warning(
                f"berth: storage_mb={self._effective_storage_mb} is not enforced by the daemon's disk engine"
            )
        await self._make_log_dirs()
        await self._upload_environment_dir_after_start()

    def _is_prebuilt(self, force_build: bool) -> bool:
        prebuilt: bool = should_use_prebuilt_docker_image(
            self.environment_dir, docker_image=self.task_env_config.docker_image, force_build=force_build
        )
        return prebuilt

    async def _image(self, force_build: bool) -> str:
        """The id of the image to run: built from the task's Dockerfile, or pulled."""
        reference = self.task_env_config.docker_image
        began = time.monotonic()
        with self._build_errors():
            if reference is None or not self._is_prebuilt(force_build):
                return await self._built(self.environment_dir, force_build)
            policy = "always" if force_build else self._pull
            image = await self._connected.pull_image(
                reference, policy=cast(models.PullPolicy, policy), on_progress=self._log_progress
            )
            self.logger.debug(
                f"berth: image resolution: {reference} -> {image.id} (pull={policy}, {time.monotonic() - began:.2f} s)"
            )
            if self._packages:
                return await self._built(None, force_build, dockerfile_text=f"FROM {reference}\n")
            return image.id

    async def _built(self, context: Path | None, force_build: bool, **settings: Unpack[BuildSettings]) -> str:
        began = time.monotonic()
        settings["no_cache"], settings["packages"] = force_build, self._packages
        if force_build:
            # Mutable tags of base images are looked up anew, too.
            settings["pull"] = "refresh"
        if context is not None:
            settings["tags"] = [self._tag()]
        built = await self._connected.build_image(context, on_progress=self._log_progress, **settings)
        hit = "hit" if built.cached_steps == built.steps else "miss"
        joined = " joined" if built.joined else ""
        self.logger.debug(
            f"berth: image resolution: key={built.content_key} {hit}{joined} steps={built.steps} cached={built.cached_steps}"
            f" -> {built.image.id} ({time.monotonic() - began:.2f} s)"
        )
        return built.image.id

    async def _base(self) -> str:
        """The id of the image that the task's Dockerfile begins with."""
        began = time.monotonic()
        with self._build_errors():
            image = await self._connected.base_of_build(self.environment_dir, on_progress=self._log_progress)
        self.logger.debug(f"berth: image resolution: base {image.id} for a replay ({time.monotonic() - began:.2f} s)")
        return image.id

    async def _replay(self, sandbox: AsyncSandbox) -> None:
        """Runs the Dockerfile's steps in the sandbox."""
        began = time.monotonic()
        with self._build_errors():
            replayed = await self._connected.replay(
                sandbox.id, self.environment_dir, packages=self._packages, on_progress=self._log_progress
            )
        await sandbox.refresh()
        self.logger.debug(
            f"berth: image resolution: key={replayed.content_key} replayed steps={replayed.steps}"
            f" ({time.monotonic() - began:.2f} s)"
        )

    @contextlib.contextmanager
    def _build_errors(self) -> Iterator[None]:
        """Says of a task that has no usable image what its author needs to know."""
        try:
            yield
        except BerthError as error:
            if error.is_infrastructure:
                raise
            raise SandboxBuildFailedError(_build_failure(error, self.environment_dir)) from error

    def _tag(self) -> str:
        return f"localhost/harbor/{slug(self.environment_name, 'task').lower()}:latest"

    def _log_progress(self, progress: models.Progress) -> None:
        match progress.what:
            case "step":
                cached = " (cached)" if progress.cached else ""
                self.logger.info(f"berth: step {progress.step}/{progress.steps}: {progress.instruction}{cached}")
            case "message":
                self.logger.info(f"berth: {progress.text}")
            case "warning":
                self.logger.warning(f"berth: {progress.file}:{progress.line}: {progress.message} ({progress.check})")
            case "output" if progress.text:
                self.logger.debug(f"berth: build output: {progress.text.rstrip()}")

    async def _create(self, image: str) -> AsyncSandbox:
        client = self._connected
        lease = await asyncio.to_thread(process_lease, await client.endpoint())
        name = f"{slug(self.session_id, 'harbor')[:54]}-{secrets.token_hex(4)}"
        # A task of its own: when this is cancelled, what the daemon made of the request must still be learned.
        self._creating = asyncio.create_task(
            client.create_sandbox(
                image,
                name=name,
                labels={"harbor.session": self.session_id, "harbor.task": self.environment_name},
                lease=lease,
                resources=self._resources(),
                allow_unenforced_storage=self._allow_unenforced_storage,
                network="no-network" if self._network_disabled else "public",
                env=self._startup_env(),
                workdir=self.task_env_config.workdir,
                mounts=self._user_mounts,
                no_new_privileges=self._no_new_privileges,
            )
        )
        return await self._made(self._creating, name)

    def _resources(self) -> models.Resources:
        """What Harbor's enforcement policies make of the task's resources; the automatic one is to limit."""
        limit = ResourceMode.LIMIT
        return models.Resources(
            cpus=self._resource_limit_value("cpu", auto_mode=limit),
            cpu_request=self._resource_request_value("cpu", auto_mode=limit),
            memory_mb=self._resource_limit_value("memory", auto_mode=limit),
            memory_request_mb=self._resource_request_value("memory", auto_mode=limit),
            storage_mb=self._effective_storage_mb,
        )

    async def _made(self, creating: asyncio.Task[AsyncSandbox], name: str) -> AsyncSandbox:
        """The sandbox, once it runs. Waiting for room on the machine is told, and is no part of the limit."""
        looked, spent = time.monotonic(), 0.0
        told: models.QueuePlace | None = None
        while True:
            left = self._startup_timeout_sec - spent if self._startup_timeout_sec else _LOOK
            if left <= 0:
                raise RuntimeRequestError(
                    f"the sandbox was not ready within startup_timeout_sec={self._startup_timeout_sec:g}"
                )
            done, _ = await asyncio.wait({creating}, timeout=min(left, _LOOK))
            if done:
                return await asyncio.shield(creating)
            place = await self._place(name)
            now = time.monotonic()
            spent, looked = (spent if place else spent + now - looked), now
            if place and place != told:
                told = place
                self.logger.info(
                    f"berth: waiting for room: place {place.position} of the queue, for {place.waits_for.replace('_', ' ')}"
                )

    async def _place(self, name: str) -> models.QueuePlace | None:
        # Whatever is wrong with the daemon, the call that is under way will say it.
        with contextlib.suppress(BerthError):
            return (await self._connected.sandbox(name)).info.queue
        return None

    def _mounts_of_user(self) -> list[Mapping[str, Any]]:
        """The mounts that the user asked for. Harbor's own are the trial's directories, which it downloads instead."""
        if hasattr(self, "_host_mounts"):
            return list(self._host_mounts)
        # Harbor 0.24 does not tell them apart, but by where they lie.
        trial = self.trial_paths.trial_dir.resolve()
        return [mount for mount in self._mounts if not Path(mount.get("source", "")).is_relative_to(trial)]

    async def _make_log_dirs(self) -> None:
        # A file or socket mounted by the user is there already, and is no directory.
        ready = {mount.target for mount in self._user_mounts if not Path(mount.source).is_dir()}
        made = await self.ensure_dirs([t for t in self._mount_targets(writable_only=True) if t not in ready])
        if made is not None and made.return_code != 0:
            raise RuntimeRequestError(f"cannot make the log directories: {made.stderr}")

    @override
    async def _upload_environment_dir_after_start(self) -> None:
        # As the base, but the daemon knows the working directory, so no shell is needed to ask for it.
        image = self.task_env_config.docker_image
        if self._enable_environment_dir_upload and should_upload_environment_dir(
            self.environment_dir, docker_image=image
        ):
            workdir = self._running.info.workdir
            self.logger.debug(f"Uploading environment/ to {workdir}")
            await self.upload_dir(self.environment_dir, workdir)

    @override
    async def stop(self, delete: bool) -> None:
        if delete or self._sandbox is None:
            await settle(self._reap(), _REAP_TIMEOUT)
        else:
            await settle(self._keep(self._sandbox), _REAP_TIMEOUT)

    async def _keep(self, sandbox: AsyncSandbox) -> None:
        client = sandbox.client
        try:
            await client.set_lease(sandbox.id, None)
            endpoint = await client.endpoint()
            prefix = "" if endpoint.host == _endpoint.DEFAULT_HOST else f"BERTH_HOST={shlex.quote(endpoint.host)} "
            self.logger.info(
                f"berth: the sandbox is kept; run commands in it with: {prefix}berth sandbox exec {sandbox.name} -- sh -c '…'"
            )
        except Exception as error:
            self.logger.warning(f"berth: could not keep the sandbox {sandbox.name} beyond this process: {error}")
        finally:
            self._sandbox = self._creating = self._client = None
            await client.aclose()

    async def _reap(self) -> None:
        """Deletes whatever was made. Never raises: the lease deletes what cannot be reached now."""
        client, creating = self._client, self._creating
        self._sandbox = self._creating = self._client = None
        if client is None:
            return
        try:
            if creating is not None:
                sandbox = await creating
                await sandbox.delete()
        except BerthError as error:
            self.logger.debug(f"berth: nothing deleted: {error}")
        except Exception:
            self.logger.warning("berth: could not delete the sandbox; its lease will", exc_info=True)
        finally:
            with contextlib.suppress(Exception):
                await client.aclose()

    # --------------------------------------------------------------------------------------------------------- exec

    @override
    async def exec(
        self,
        command: str,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        timeout_sec: int | None = None,
        user: str | int | None = None,
    ) -> ExecResult:
        # Environment and callback are scoped to the caller's task and must be asked for here.
        with _infrastructure("run a command"):
            if command.startswith("rm -f -- ") and command.endswith(str(_LINUX.reward_json_path)):
                await self._quiesce_if_wanted()
            result = await self._running.exec(
                command,
                cwd=cwd,
                env=self._merge_env(env),
                user=self._user(user),
                timeout=timeout_sec,
                on_output=self._output_callback(),
            )
        if result.exit_code != 0 and result.machine_disk_full:
            raise RuntimeRequestError(
                f"a command failed with exit code {result.exit_code} while the disk of the daemon's machine was full; it may"
                " not be the command's doing [machine_disk_full]"
            )
        if met := _limits_met(result):
            # The task's own doing, and no error: but whoever reads the trial is to see that it had too little.
            self.logger.warning(f"berth: a command that ended with exit code {result.exit_code} met {met}")
        return _exec_result(result, timeout_sec)

    async def _quiesce_if_wanted(self) -> None:
        """Harbor has no hook for the verifier's beginning: it is known by what its verifier does first, which is to remove old
        rewards (since 0.25) and to upload the tests."""
        if self._quiesces:
            killed = await self._running.quiesce()
            self.logger.info(f"berth: {killed} processes of earlier commands were killed before the verifier")

    def _user(self, user: str | int | None) -> str | None:
        resolved = self._resolve_user(user)
        return None if resolved is None else str(resolved)

    # -------------------------------------------------------------------------------------------------------- files

    @override
    async def upload_file(self, source_path: Path | str, target_path: str) -> None:
        sandbox, target = self._running, self._absolute(target_path)
        with _infrastructure(f"upload {source_path} to {target}"):
            found = await sandbox.stat(target)
            is_dir = found is not None and found.kind == "dir"
            directory, name = split_target(target, Path(source_path).name, is_dir)
            self._log_report(await sandbox.client.upload_file(sandbox.id, source_path, directory, name), target)

    @override
    async def upload_dir(self, source_dir: Path | str, target_dir: str) -> None:
        target = self._absolute(target_dir)
        with _infrastructure(f"upload {source_dir} to {target}"):
            if target.rstrip("/") == str(_LINUX.tests_dir):
                await self._quiesce_if_wanted()
            self._log_report(await self._running.upload_dir(source_dir, target), target)

    @override
    async def download_file(self, source_path: str, target_path: Path | str) -> None:
        source, target = self._absolute(source_path), Path(target_path)
        if target.is_dir():
            target /= posixpath.basename(source)
        with _infrastructure(f"download {source}"):
            await self._running.download_file(source, target)

    @override
    async def download_dir(self, source_dir: str, target_dir: Path | str) -> None:
        await self._download(source_dir, target_dir, [])

    @override
    async def download_dir_with_exclusions(
        self, *, source_dir: str, target_dir: Path | str, exclude: list[str]
    ) -> None:
        await self._download(source_dir, target_dir, exclude)

    async def _download(self, source_dir: str, target_dir: Path | str, exclude: Sequence[str]) -> None:
        source = self._absolute(source_dir)
        with _infrastructure(f"download {source}"):
            report = await self._running.download_dir(source, target_dir, exclude=exclude)
        self._log_report(report, source)

    @override
    async def download_dir_filtered(
        self,
        *,
        source_dir: str,
        target_dir: Path | str,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        protect: Sequence[str] | None = None,
    ) -> None:
        sandbox, source = self._running, self._absolute(source_dir)
        with _infrastructure(f"download {source}"):
            report = await sandbox.download_dir(
                source,
                target_dir,
                # Regular files alone, also where everything is wanted.
                include=include or ["*"],
                exclude_files=exclude or (),
                protect=protect or (),
            )
        self._log_report(report, source)
        if not report.extracted:
            self.logger.warning(
                f"No files in {source_dir!r} matched include={include} exclude={exclude}; downloading nothing"
            )

    def _log_report(self, report: Report | models.ArchiveReport, path: str) -> None:
        if report.refused:
            shown = "; ".join(report.refused[:10])
            self.logger.warning(f"berth: {path}: {len(report.refused)} entries were refused: {shown}")

    # ------------------------------------------------------------------------------------------ paths and directories

    @override
    async def is_dir(self, path: str, user: str | int | None = None) -> bool:
        return await self._kind(path, user) == "dir"

    @override
    async def is_file(self, path: str, user: str | int | None = None) -> bool:
        return await self._kind(path, user) == "file"

    async def _kind(self, path: str, user: str | int | None) -> str | None:
        sandbox = self._running
        with _infrastructure(f"look at {path}"):
            try:
                found = await sandbox.stat(self._absolute(path), self._user(user) or sandbox.info.user or None)
            except BerthError as error:
                if error.is_infrastructure or error.code == "sandbox_not_found":
                    raise
                return None
        return found.kind if found else None

    @override
    async def ensure_dirs(self, dirs: Sequence[EnvironmentPath], *, chmod: bool = True) -> ExecResult | None:
        if not dirs:
            return None
        if not chmod and not self._is_root():
            # The directories then belong to that user, as with the base's `mkdir -p`.
            return await super().ensure_dirs(dirs, chmod=chmod)
        return await self._directories("make", self._paths(dirs), _WRITABLE_BY_ALL if chmod else None)

    @override
    async def empty_dirs(self, dirs: Sequence[EnvironmentPath], *, chmod: bool = True) -> ExecResult | None:
        if not dirs:
            return None
        return await self._directories("empty", self._paths(dirs), _WRITABLE_BY_ALL if chmod else None)

    @override
    async def reset_dirs(
        self,
        *,
        remove_dirs: Sequence[EnvironmentPath],
        create_dirs: Sequence[EnvironmentPath],
        chmod_dirs: Sequence[EnvironmentPath] | None = None,
    ) -> ExecResult:
        removed, made, opened = self._paths(remove_dirs), self._paths(create_dirs), self._paths(chmod_dirs or ())
        if not set(opened) <= set(made):
            return await super().reset_dirs(remove_dirs=remove_dirs, create_dirs=create_dirs, chmod_dirs=chmod_dirs)
        result = await self._directories("remove", removed)
        for paths, mode in (([path for path in made if path not in opened], None), (opened, _WRITABLE_BY_ALL)):
            if result.return_code == 0:
                result = await self._directories("make", paths, mode)
        return result

    async def _directories(self, action: str, paths: list[str], mode: int | None = None) -> ExecResult:
        """One call for all paths; what a shell command would have failed at is a result, as with the base."""
        sandbox = self._running
        with _infrastructure(f"{action} directories"):
            try:
                if paths and action == "remove":
                    await sandbox.client.remove(sandbox.id, paths)
                elif paths and action == "empty":
                    await sandbox.client.empty(sandbox.id, paths, mode)
                elif paths:
                    await sandbox.client.mkdir(sandbox.id, paths, mode)
            except BerthError as error:
                if error.is_infrastructure or error.code == "sandbox_not_found":
                    raise
                return ExecResult(stdout="", stderr=f"{error}\n", return_code=1)
        return ExecResult(stdout="", stderr="", return_code=0)

    def _paths(self, paths: Sequence[EnvironmentPath]) -> list[str]:
        return [self._absolute(path.as_posix() if isinstance(path, PurePath) else path) for path in paths]

    def _absolute(self, path: EnvironmentPath) -> str:
        return posixpath.join(self._running.info.workdir or "/", str(path))

    def _is_root(self) -> bool:
        return (self._user(None) or self._running.info.user or "root").partition(":")[0] in {"root", "0"}

    @property
    def _running(self) -> AsyncSandbox:
        if self._sandbox is None:
            raise RuntimeError("the environment has not been started, or has been stopped")
        return self._sandbox

    @property
    def _connected(self) -> AsyncClient:
        if self._client is None:
            raise RuntimeError("the environment has not been started, or has been stopped")
        return self._client


# --------------------------------------------------------------------------------------------------- results, errors


def _exec_result(result: models.ExecResult, timeout_sec: float | None) -> ExecResult:
    notes = []
    if result.reason == "timed_out":
        notes.append(f"command timed out after {timeout_sec} seconds; everything it started was killed")
    elif result.reason == "out_of_memory":
        notes.append("command killed: the sandbox was out of memory")
    elif result.message:
        notes.append(result.message)
    stderr = result.stderr
    for note in notes:
        stderr += f"{'' if not stderr or stderr.endswith('\n') else '\n'}{note}\n"
    return ExecResult(stdout=result.stdout, stderr=stderr, return_code=result.exit_code)


def _limits_met(result: models.ExecResult) -> str | None:
    """The sandbox's limits that a command met, in words."""
    hit = set(result.limits_hit) | ({"memory"} if result.reason == "out_of_memory" else set())
    if not hit:
        return None
    names = {"memory": "the limit of memory", "pids": "the limit of processes", "disk": "the limit of storage"}
    text = ", ".join(names.get(limit, limit) for limit in sorted(hit))
    kills = result.oom_kills or 0
    return text + (f" ({kills} process{'es' if kills > 1 else ''} killed)" if kills else "")


@contextlib.contextmanager
def _infrastructure(action: str) -> Iterator[None]:
    """Turns the client's errors into the classes whose names Harbor's table knows."""
    try:
        yield
    except BerthError as error:
        _raise_for_harbor(action, error)
    except TimeoutError as error:
        # Harbor takes a TimeoutError for the end of its own budget.
        raise RuntimeRequestError(f"cannot {action}: {error or 'timed out'}") from error


def _raise_for_harbor(action: str, error: BerthError) -> NoReturn:
    text = f"cannot {action}: {error}"
    if about_path := _PATH_ERRORS.get(error.code):
        raise about_path(text) from error
    if error.kind == "user":
        raise ValueError(text) from error
    raise RuntimeRequestError(f"{text} [{error.code}]") from error


def _build_failure(error: BerthError, environment_dir: Path) -> str:
    """The message for a task that has no usable image, with all that a task's author needs."""
    details = error.details if isinstance(error.details, Mapping) else {}
    excerpt = details.get("excerpt")
    if not isinstance(error, BuildFailed) or not details:
        return f"{environment_dir}: {error}" + (f"\n{excerpt}" if isinstance(excerpt, str) else "")
    try:
        failure = models.BuildFailure.from_json(details)
    except TypeError:
        return f"{environment_dir}: {error}"
    ended = "" if failure.exit_code is None else f" with exit code {failure.exit_code}"
    tail = failure.output_tail[-_OUTPUT_TAIL:]
    lines = [
        f"{environment_dir}: step {failure.step} of {failure.steps} failed{ended}"
        f" ({failure.file}, line {failure.line}): {failure.instruction}",
        str(error),
    ]
    if tail:
        lines += [f"last {len(tail)} lines of its output:", *tail]
    return "\n".join(lines)
