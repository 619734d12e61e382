"""The Harbor provider against a daemon of the tests: what Harbor's base class promises, in fewer calls."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("harbor")

from berth import _http, models
from berth.harbor import BerthEnvironment, RuntimeRequestError
from fake_daemon import FakeDaemon
from harbor.environments.base import BaseEnvironment, SandboxBuildFailedError
from harbor.environments.capabilities import EnvironmentResourceCapabilities
from harbor.models.task.config import EnvironmentConfig, NetworkMode, NetworkPolicy
from harbor.models.trial.paths import TrialPaths

BASE_ARGUMENTS = inspect.signature(BaseEnvironment.__init__).parameters
FRACTIONAL_CPUS = "fractional_cpus" in EnvironmentResourceCapabilities.model_fields
SINCE_0_25 = "auto_mounts" in BASE_ARGUMENTS


def make(
    daemon: FakeDaemon | None,
    tmp_path: Path,
    config: EnvironmentConfig | None = None,
    dockerfile: str | None = "FROM scratch",
    **kwargs: Any,
) -> BerthEnvironment:
    directory = tmp_path / "task/environment"
    directory.mkdir(parents=True, exist_ok=True)
    if dockerfile is not None:
        (directory / "Dockerfile").write_text(dockerfile)
    trial = TrialPaths(tmp_path / "trial")
    trial.mkdir()
    if daemon is not None:
        kwargs.setdefault("host", daemon.host)
    logs = {"type": "bind", "source": str(trial.agent_dir.resolve()), "target": str(tmp_path / "box/logs")}
    if SINCE_0_25:
        kwargs.setdefault("auto_mounts", [logs])
    else:
        kwargs["mounts"] = [{**logs, "bind": {"selinux": "z"}}, *kwargs.get("mounts", ())]
    return BerthEnvironment(
        environment_dir=directory,
        environment_name="Square 2",
        session_id="square-2__abc/def__env",
        trial_paths=trial,
        task_env_config=config or EnvironmentConfig(),
        **kwargs,
    )


@pytest.fixture
async def env(daemon: FakeDaemon, tmp_path: Path) -> AsyncIterator[BerthEnvironment]:
    environment = make(daemon, tmp_path)
    await environment.start(force_build=False)
    yield environment
    await environment.stop(delete=True)


# ------------------------------------------------------------------------------------------------------ construction


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"pul": "always"}, r"'pul' \(did you mean 'pull'\?\); valid keys are allow_unenforced_storage, boot, host"),
        ({"snapshot_id": "x"}, r"snapshot_id='x': berth has no snapshots yet"),
        ({"boot": "replya"}, r"boot='replya' is not valid \(did you mean 'replay'\?\); it takes image, replay"),
        ({"boot": "image", "use_oci_image_build": "false"}, "contradict each other"),
        ({"use_oci_image_build": "maybe"}, "takes true or false"),
        ({"preinstall_packages": "git"}, "takes a list of names"),
        ({"preinstall_packages": ["git", 1]}, "takes a list of names"),
        ({"preinstall_packages": '["git", ""]'}, "takes a list of names"),
        ({"pull": "alway"}, r"pull='alway' is not valid \(did you mean 'always'\?\)"),
        ({"pull": True}, "takes missing, always, never"),
        ({"mode": "docker"}, "one mode, 'auto'"),
        ({"no_new_privileges": "maybe"}, "takes true or false"),
        ({"startup_timeout_sec": "soon"}, "number of seconds"),
        ({"startup_timeout_sec": True}, "number of seconds"),
        ({"startup_timeout_sec": -1}, "number of seconds"),
        ({"host": "ssh://x"}, "no address of a daemon"),
        ({"host": 5}, "takes an address"),
        *([({"auto_mounting": True}, "does not support automatic host mounts")] if SINCE_0_25 else []),
        ({"stream": True}, "does not support stream"),
        ({"network_policy": NetworkPolicy(network_mode=NetworkMode.ALLOWLIST, allowed_hosts=["a.b"])}, "allowlist"),
        ({"mounts": [{"type": "volume", "source": "v", "target": "/v"}]}, "'volume' is not supported"),
        ({"mounts": [{"type": "bind", "source": "rel", "target": "/v"}]}, "absolute"),
        ({"mounts": [{"type": "bind", "source": "/a", "target": "/v", "x": 1}]}, "does not know x"),
        (
            {"host": "tcp://10.0.0.1:1", "mounts": [{"type": "bind", "source": "/a", "target": "/v"}]},
            "cannot mount paths of this machine",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(None, tmp_path, **keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"pull": "always", "mode": "auto", "host": "unix:///x"},
        {"no_new_privileges": "True", "startup_timeout_sec": "30"},
        {"no_new_privileges": False, "startup_timeout_sec": 0},
        {"boot": "image", "use_oci_image_build": True, "preinstall_packages": '["git", "jq"]'},
        {"boot": "replay", "use_oci_image_build": "no", "preinstall_packages": ["git"]},
    ],
)
def test_what_can_be_honoured_is_accepted(tmp_path: Path, keys: dict[str, Any]) -> None:
    make(None, tmp_path, **keys)


def test_tasks_that_cannot_run_here(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "task/environment")):
        make(None, tmp_path, dockerfile=None)
    with pytest.raises(RuntimeError, match="GPU"):
        make(None, tmp_path, EnvironmentConfig(gpus=1))
    (tmp_path / "task/environment/docker-compose.yaml").write_text("services: {}")
    with pytest.raises(ValueError, match="does not run docker-compose tasks"):
        make(None, tmp_path)


def test_only_what_exists_is_declared(tmp_path: Path) -> None:
    declared = {name for name, there in make(None, tmp_path).capabilities.model_dump().items() if there}
    assert declared == {"disable_internet"}
    declared = {name for name, there in BerthEnvironment.resource_capabilities().model_dump().items() if there}
    everywhere = {"cpu_limit", "cpu_request", "memory_limit", "memory_request"}
    assert declared == everywhere | ({"fractional_cpus"} if FRACTIONAL_CPUS else set())


def test_preflight(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTH_HOST", daemon.host)
    BerthEnvironment.preflight()
    monkeypatch.setattr(_http, "RETRY_PAUSES", ())
    monkeypatch.setenv("BERTH_HOST", "unix:///nowhere.sock")
    with pytest.raises(SystemExit) as caught:
        BerthEnvironment.preflight()
    assert str(caught.value).startswith("berth: no daemon answers at unix:///nowhere.sock")
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------- start and stop


async def test_start_asks_for_what_the_task_declares(daemon: FakeDaemon, tmp_path: Path) -> None:
    cpus = 0.5 if FRACTIONAL_CPUS else 2
    config = EnvironmentConfig(cpus=cpus, memory_mb=256, storage_mb=512, workdir=str(tmp_path), env={"TASK": "1"})
    environment = make(
        daemon,
        tmp_path,
        config,
        network_policy=NetworkPolicy(network_mode=NetworkMode.NO_NETWORK),
        persistent_env={"MORE": "2"},
        mounts=[{"type": "bind", "source": "/etc/hostname", "target": "/h", "read_only": True}],
        no_new_privileges="true",
    )
    await environment.start(force_build=False)
    (options, names), (creation,) = daemon.builds[0], daemon.creations
    assert options == {"tags": ["localhost/harbor/square-2:latest"]}
    assert names == ["Dockerfile"]
    assert creation["resources"] == {"cpus": cpus, "memory_mb": 256, "storage_mb": 512}
    assert creation["network"] == "no-network"
    assert creation["env"] == {"TASK": "1", "MORE": "2"}
    assert creation["workdir"] == str(tmp_path)
    assert creation["mounts"] == [{"source": "/etc/hostname", "target": "/h", "read_only": True}]
    assert creation["no_new_privileges"] is True
    assert creation["lease"] in daemon.leases
    assert creation["labels"] == {"harbor.session": "square-2__abc/def__env", "harbor.task": "Square 2"}
    assert creation["name"].startswith("square-2__abc-def__env-")
    assert len(creation["name"]) <= 63
    assert (tmp_path / "box/logs").stat().st_mode & 0o777 == 0o777
    await environment.stop(delete=True)
    assert not daemon.sandboxes
    await environment.stop(delete=True)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("limit", {"cpus": 2, "memory_mb": 256}),
        ("request", {"cpu_request": 2, "memory_request_mb": 256}),
        ("guarantee", {"cpus": 2, "cpu_request": 2, "memory_mb": 256, "memory_request_mb": 256}),
        ("ignore", {}),
    ],
)
async def test_harbors_policies_become_limits_and_requests(
    daemon: FakeDaemon, tmp_path: Path, policy: str, expected: dict[str, int]
) -> None:
    environment = make(
        daemon,
        tmp_path,
        EnvironmentConfig(cpus=2, memory_mb=256),
        cpu_enforcement_policy=policy,
        memory_enforcement_policy=policy,
    )
    await environment.start(force_build=False)
    assert daemon.creations[0]["resources"] == expected
    await environment.stop(delete=True)


async def test_waiting_for_room_is_told_and_is_no_part_of_the_limit(
    daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr("berth.harbor._LOOK", 0.05)
    daemon.script.queued_for = 0.6
    environment = make(daemon, tmp_path, startup_timeout_sec=0.3, logger=logging.getLogger("t"))
    await environment.start(force_build=False)
    assert "waiting for room: place 2 of the queue, for memory in use" in caplog.text
    await environment.stop(delete=True)


async def test_a_start_is_few_requests(daemon: FakeDaemon, env: BerthEnvironment) -> None:
    calls = [path for _, path in daemon.requests if "lease" not in path]
    assert len(calls) == 4, calls  # Is it built? Build, create, directories.


async def test_a_later_trial_sends_no_context(daemon: FakeDaemon, tmp_path: Path) -> None:
    for _ in range(2):
        environment = make(daemon, tmp_path)
        await environment.start(force_build=False)
        await environment.stop(delete=True)
    assert (len(daemon.asked), len(daemon.builds), len(daemon.creations)) == (2, 1, 2)


@pytest.mark.parametrize("keys", [{"boot": "replay"}, {"use_oci_image_build": "false"}])
async def test_a_replay_runs_the_steps_in_the_trials_own_sandbox(
    daemon: FakeDaemon, tmp_path: Path, caplog: pytest.LogCaptureFixture, keys: dict[str, Any]
) -> None:
    caplog.set_level(logging.DEBUG)
    environment = make(daemon, tmp_path, preinstall_packages=["git"], logger=logging.getLogger("t"), **keys)
    await environment.start(force_build=False)
    assert daemon.creations[0]["image"] == "sha256:base"
    assert daemon.creations[0]["no_new_privileges"] is False
    assert daemon.replays == [({"packages": ["git"]}, ["Dockerfile"])]
    assert not daemon.builds
    assert "key=k3y replayed steps=2" in caplog.text
    await environment.stop(delete=True)
    details = {"step": 1, "steps": 1, "instruction": "RUN x", "file": "Dockerfile", "line": 2, "output_tail": []}
    daemon.script.build_error = {"code": "build_failed", "kind": "user", "message": "it failed", "details": details}
    with pytest.raises(SandboxBuildFailedError, match="Dockerfile, line 2"):
        await make(daemon, tmp_path, **keys).start(force_build=False)
    assert not daemon.sandboxes


async def test_packages_come_on_top_of_built_and_of_pulled_images(daemon: FakeDaemon, tmp_path: Path) -> None:
    built = make(daemon, tmp_path, preinstall_packages='["git", "jq"]')
    await built.start(force_build=True)
    await built.stop(delete=True)
    assert daemon.builds[0][0]["packages"] == ["git", "jq"]
    assert (daemon.builds[0][0]["no_cache"], daemon.builds[0][0]["pull"]) == (True, "refresh")
    config = EnvironmentConfig(docker_image="debian:bookworm")
    pulled = make(daemon, tmp_path, config, dockerfile=None, preinstall_packages=["git"], boot="replay")
    await pulled.start(force_build=False)
    assert daemon.builds[-1] == ({"dockerfile_text": "FROM debian:bookworm\n", "packages": ["git"]}, [])
    assert daemon.creations[-1]["image"] == "sha256:built"
    await pulled.stop(delete=True)


async def test_what_is_not_enforced_and_what_was_resolved_is_logged(
    daemon: FakeDaemon, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    daemon.script.storage_enforced = False
    environment = make(
        daemon,
        tmp_path,
        EnvironmentConfig(storage_mb=512),
        logger=logging.getLogger("t"),
        allow_unenforced_storage=True,
    )
    await environment.start(force_build=True)
    await environment.stop(delete=False)
    assert daemon.creations[0]["storage_unenforced"] == "allow"
    assert "storage_mb=512 is not enforced" in caplog.text
    assert "image resolution: key=k3y hit steps=1 cached=1 -> sha256:built" in caplog.text
    assert "step 1/1: FROM scratch (cached)" in caplog.text
    (kept,) = daemon.sandboxes.values()
    assert kept["lease"] is None
    assert f"berth sandbox exec {kept['name']} -- sh" in caplog.text
    assert daemon.builds[0][0]["no_cache"] is True


@pytest.mark.parametrize(("force", "policy"), [(False, "missing"), (True, "always")])
async def test_prebuilt_images_and_their_files(daemon: FakeDaemon, tmp_path: Path, force: bool, policy: str) -> None:
    config = EnvironmentConfig(docker_image="debian:bookworm")
    environment = make(daemon, tmp_path, config, dockerfile=None)
    (environment.environment_dir / "data").write_text("data")
    await environment.start(force_build=force)
    assert daemon.pulls == [{"reference": "debian:bookworm", "policy": policy}]
    assert daemon.creations[0]["image"] == "sha256:pulled"
    assert Path(daemon.workdir, "data").read_text() == "data"
    assert not daemon.exec_requests
    await environment.stop(delete=True)


async def test_a_build_failure_says_all(daemon: FakeDaemon, tmp_path: Path) -> None:
    details = {
        "step": 2,
        "steps": 3,
        "instruction": "RUN false",
        "file": "Dockerfile",
        "line": 4,
        "exit_code": 1,
        "output_tail": [f"line {n}" for n in range(60)],
    }
    daemon.script.build_error = {"code": "build_failed", "kind": "user", "message": "it failed", "details": details}
    environment = make(daemon, tmp_path)
    with pytest.raises(SandboxBuildFailedError) as caught:
        await environment.start(force_build=False)
    text = str(caught.value)
    assert "step 2 of 3 failed with exit code 1 (Dockerfile, line 4): RUN false" in text
    assert "last 50 lines" in text
    assert "line 10\n" in text
    assert "line 9\n" not in text
    assert not daemon.creations


async def test_failures_have_the_names_of_harbors_table(daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.script.build_error = {"code": "dockerfile_invalid", "kind": "user", "message": "Dockerfile:1: FORM?"}
    with pytest.raises(SandboxBuildFailedError, match="FORM"):
        await make(daemon, tmp_path).start(force_build=False)
    daemon.script.build_error = {"code": "disk_full", "kind": "capacity", "message": "no space"}
    with pytest.raises(RuntimeRequestError, match="no space"):
        await make(daemon, tmp_path).start(force_build=False)
    daemon.script.build_error = None
    daemon.script.create_error = {"status": 503, "code": "no_addresses", "message": "none left"}
    with pytest.raises(RuntimeRequestError, match="none left"):
        await make(daemon, tmp_path).start(force_build=False)
    daemon.script.pull_error = {"code": "image_not_found", "kind": "not_found", "message": "no such image"}
    with pytest.raises(SandboxBuildFailedError, match="no such image"):
        config = EnvironmentConfig(docker_image="x")
        await make(daemon, tmp_path, config).start(force_build=False)
    assert RuntimeRequestError.__name__ == "RuntimeRequestError"


async def test_a_start_that_is_given_up_leaves_nothing(daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.script.create_delay = 0.4
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(make(daemon, tmp_path).start(force_build=False), 0.2)
    assert len(daemon.creations) == 1
    assert not daemon.sandboxes
    with pytest.raises(RuntimeRequestError, match=r"startup_timeout_sec=0\.1"):
        await make(daemon, tmp_path, startup_timeout_sec=0.1).start(force_build=False)
    assert not daemon.sandboxes


async def test_stop_never_raises(daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await make(daemon, tmp_path).stop(delete=True)
    monkeypatch.setattr(_http, "RETRY_PAUSES", ())
    for delete in (True, False):
        environment = make(daemon, tmp_path)
        await environment.start(force_build=False)
        moved = daemon.socket.with_suffix(".away")
        daemon.socket.rename(moved)
        await environment._connected._http.aclose()  # type: ignore[union-attr]
        environment._connected._http = None
        await environment.stop(delete=delete)
        moved.rename(daemon.socket)


# --------------------------------------------------------------------------------------------------------------- exec


async def test_exec(env: BerthEnvironment, daemon: FakeDaemon) -> None:
    result = await env.exec("echo out; echo err >&2; exit 7")
    assert (result.stdout, result.stderr, result.return_code) == ("out\n", "err\n", 7)
    result = await env.exec("")
    assert (result.stdout, result.return_code) == ("", 0)
    result = await env.exec("printf some; sleep 100", timeout_sec=1)
    assert (result.stdout, result.return_code) == ("some", 124)
    assert "timed out after 1 seconds" in (result.stderr or "")
    result = await env.exec("true", cwd="/no such dir")
    assert result.return_code == 127
    assert "/no such dir" in (result.stderr or "")


async def test_exec_tells_limits(env: BerthEnvironment, daemon: FakeDaemon, caplog: pytest.LogCaptureFixture) -> None:
    daemon.script.exec_end = {"exit_code": 1, "limits_hit": ["disk", "pids"]}
    with caplog.at_level(logging.WARNING):
        assert (await env.exec("true")).return_code == 1
    assert "exit code 1 met the limit of storage, the limit of processes" in caplog.text
    daemon.script.exec_end = {"exit_code": 137, "reason": "out_of_memory", "signal": 9, "oom_kills": 1}
    with caplog.at_level(logging.WARNING):
        result = await env.exec("true")
    assert "exit code 137 met the limit of memory (1 process killed)" in caplog.text
    assert "out of memory" in (result.stderr or "")
    caplog.clear()
    daemon.script.exec_end = {}
    with caplog.at_level(logging.WARNING):
        await env.exec("false")
    assert not caplog.text


async def test_a_command_that_fails_on_a_full_machine_is_no_result(env: BerthEnvironment, daemon: FakeDaemon) -> None:
    daemon.script.exec_end = {"exit_code": 1, "machine_disk_full": True}
    with pytest.raises(RuntimeRequestError, match="machine was full"):
        await env.exec("true")


async def test_exec_scopes(env: BerthEnvironment, daemon: FakeDaemon) -> None:
    chunks: list[tuple[str, str]] = []

    async def callback(text: str, stream: str) -> None:
        chunks.append((stream, text))

    with env.with_default_user(1000), env.scoped_exec_env({"A": "scope"}), env.scoped_output_callback(callback):
        result = await env.exec("printf '%s' \"$A $B\"", env={"A": "call", "B": "ü\n"}, timeout_sec=0)
    assert result.stdout == "scope ü\n"
    assert chunks == [("stdout", "scope ü\n")]
    assert daemon.exec_requests[-1]["user"] == "1000"
    assert "timeout_seconds" not in daemon.exec_requests[-1]
    await env.exec("true", user="root")
    assert daemon.exec_requests[-1]["user"] == "root"
    await env.exec("true")
    assert "user" not in daemon.exec_requests[-1]


async def test_an_agents_budget_kills_its_command(env: BerthEnvironment, daemon: FakeDaemon, tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(env.exec(f"(sleep 1; touch {tmp_path}/late) & sleep 100"), 0.3)
    assert len(daemon.kills) == 1
    assert (await env.exec("echo still here")).stdout == "still here\n"
    await asyncio.sleep(1)
    assert not (tmp_path / "late").exists()


async def test_a_lost_daemon_is_never_a_result(env: BerthEnvironment, daemon: FakeDaemon) -> None:
    daemon.script.drop_exec = True
    env._connected.patience = 0.5
    with pytest.raises(RuntimeRequestError):
        await env.exec("echo half")
    daemon.script.drop_exec = False
    daemon.sandboxes.clear()
    with pytest.raises(RuntimeRequestError):
        await env.exec("true")
    with pytest.raises(RuntimeRequestError):
        await env.is_dir("/tmp")
    with pytest.raises(RuntimeRequestError):
        await env.ensure_dirs(["/tmp"])


@pytest.mark.parametrize("wanted", [False, True])
async def test_the_verifier_runs_beside_what_was_left_unless_told_otherwise(
    daemon: FakeDaemon, tmp_path: Path, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = make(daemon, tmp_path, quiesce_before_verifier=str(wanted))
    await environment.start(force_build=False)
    await environment.exec("true")
    assert daemon.count("POST", "quiesce") == 0
    await environment.exec("rm -f -- /logs/verifier/reward.txt /logs/verifier/reward.json", user="root")
    assert daemon.count("POST", "quiesce") == wanted

    async def uploaded(*_: object) -> models.ArchiveReport:
        return models.ArchiveReport()

    # Paths of the sandbox are this machine's here.
    monkeypatch.setattr(environment._connected, "upload_dir", uploaded)
    await environment.upload_dir(tmp_path, "/tests")
    assert daemon.count("POST", "quiesce") == 2 * wanted
    await environment.stop(delete=True)


# -------------------------------------------------------------------------------------------------------------- files


async def test_uploads(env: BerthEnvironment, tmp_path: Path) -> None:
    source, box = tmp_path / "script.sh", tmp_path / "box"
    source.write_text("run")
    source.chmod(0o755)
    await env.upload_file(source, str(box / "made/for/it.sh"))
    assert (box / "made/for/it.sh").stat().st_mode & 0o777 == 0o755
    await env.upload_file(source, str(box / "made"))
    assert (box / "made/script.sh").read_text() == "run"
    (tmp_path / "dir/empty").mkdir(parents=True)
    (tmp_path / "dir/link").symlink_to("/absolute")
    await env.upload_dir(tmp_path / "dir", str(box / "made"))
    assert (box / "made/empty").is_dir()
    assert os.readlink(box / "made/link") == "/absolute"
    assert (box / "made/script.sh").exists()
    with pytest.raises(FileNotFoundError):
        await env.upload_dir(tmp_path / "none", str(box))


async def test_downloads(env: BerthEnvironment, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    box, target = tmp_path / "box/data", tmp_path / "target"
    box.mkdir()
    (box / "file").write_text("file")
    (box / "escape").symlink_to("/etc/passwd")
    await env.download_dir(str(box), target)
    assert sorted(path.name for path in target.iterdir()) == ["file"]
    assert "1 entries were refused" in caplog.text
    await env.download_file(str(box / "file"), target)
    await env.download_file(str(box / "file"), target / "renamed")
    assert (target / "renamed").read_text() == "file"
    for missing in (env.download_dir(f"{box}/no", tmp_path / "t2"), env.download_file(f"{box}/no", tmp_path / "t3")):
        with pytest.raises(FileNotFoundError):
            await missing
    with pytest.raises(NotADirectoryError):
        await env.download_dir(str(box / "file"), tmp_path / "t2")
    with pytest.raises(IsADirectoryError):
        await env.download_file(str(box), tmp_path / "t3")
    assert not (tmp_path / "t2").exists()
    assert not (tmp_path / "t3").exists()


def corpus(root: Path) -> None:
    rng = random.Random(7)
    names = ["a.log", "b.txt", "reward.txt", ".hidden", "with space", "ü.log", "x.tar.gz", "[odd].log"]
    for directory in ("", "sub", "sub/deep", "logs", ".dot", "other dir"):
        (root / directory).mkdir(parents=True, exist_ok=True)
        for name in rng.sample(names, 6):
            path = root / directory / name
            path.write_bytes(rng.randbytes(rng.randrange(2000)))
            path.chmod(rng.choice([0o644, 0o755, 0o600, 0o666]))
    (root / "link").symlink_to("a.log")
    (root / "dirlink").symlink_to("sub")
    (root / "void").mkdir()
    os.mkfifo(root / "fifo")
    (root / "one").write_text("linked")
    os.link(root / "one", root / "sub/two")
    os.link(root / "one", root / "zz")


FILTERS: list[dict[str, Any]] = [
    {},
    {"include": ["*.log"]},
    {"exclude": ["*.log"]},
    {"include": ["sub/*"]},
    {"include": ["sub/*"], "exclude": ["*/deep/*"]},
    {"exclude": ["*"], "protect": ["reward.txt", "b.txt", "missing"]},
    {"include": ["*.nothing"]},
    {"include": [".*", "*/.*"], "protect": ["sub/a.log"]},
    {"include": ["[[]odd].log"]},
    {"include": ["sub/two", "zz"]},
    {"include": ["sub/two"]},
    {"exclude": ["one", "sub/*"]},
    {"exclude": ["other dir", "*space"]},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
async def test_filtered_downloads_equal_the_bases(
    env: BerthEnvironment, daemon: FakeDaemon, tmp_path: Path, filters: dict[str, Any]
) -> None:
    corpus(tmp_path / "corpus")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    before = len(daemon.requests)
    await env.download_dir_filtered(source_dir=str(tmp_path / "corpus"), target_dir=ours, **filters)
    assert len(daemon.requests) - before == 1
    await BaseEnvironment.download_dir_filtered(env, source_dir=str(tmp_path / "corpus"), target_dir=theirs, **filters)
    assert listing(ours) == listing(theirs)


def listing(root: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mode & 0o777)
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("exclude", [[], ["*.log"], ["sub"], ["sub/deep"], ["one", "./zz"], ["a*"]], ids=str)
async def test_downloads_with_exclusions_equal_the_bases(
    env: BerthEnvironment, daemon: FakeDaemon, tmp_path: Path, exclude: list[str]
) -> None:
    corpus(tmp_path / "corpus")
    (tmp_path / "corpus/fifo").unlink()
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    before = len(daemon.requests)
    await env.download_dir_with_exclusions(source_dir=str(tmp_path / "corpus"), target_dir=ours, exclude=exclude)
    assert len(daemon.requests) - before == 1
    if exclude == ["one", "./zz"]:
        # The content went with the first name; the base's extraction gives up altogether there.
        return
    await BaseEnvironment.download_dir_with_exclusions(
        env, source_dir=str(tmp_path / "corpus"), target_dir=theirs, exclude=exclude
    )
    assert listing(ours) == listing(theirs)
    assert {p.relative_to(ours) for p in ours.rglob("*")} == {p.relative_to(theirs) for p in theirs.rglob("*")}


# -------------------------------------------------------------------------------------------------- paths, directories


async def test_probes(env: BerthEnvironment, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    (tmp_path / "ld").symlink_to(tmp_path)
    assert await env.is_dir(str(tmp_path))
    assert await env.is_dir(str(tmp_path / "ld"))
    assert not await env.is_dir(str(tmp_path / "f"))
    assert await env.is_file(str(tmp_path / "f"))
    assert not await env.is_file(str(tmp_path / "none"))
    assert not await env.is_file(str(tmp_path / "f/below"), user="nobody")


async def test_directories_equal_the_bases(env: BerthEnvironment, tmp_path: Path) -> None:
    for kind in ("ours", "theirs"):
        root = tmp_path / kind
        (root / "full/sub").mkdir(parents=True)
        (root / "full/.dot").write_text("")
        (root / "file").write_text("")
        (root / "link").symlink_to(root / "full")
        (root / "gone/x").mkdir(parents=True)
        (root / "private").mkdir(mode=0o700)
        owner: Any = env if kind == "ours" else BaseEnvironment
        args = [] if kind == "ours" else [env]
        codes = []
        for call in (
            owner.ensure_dirs(*args, [root / "new/deep", root / "private"]),
            owner.ensure_dirs(*args, [str(root / "plain")], chmod=False),
            owner.ensure_dirs(*args, [str(root / "file")]),
            owner.empty_dirs(*args, [str(root / "full"), str(root / "link"), str(root / "fresh")]),
            owner.empty_dirs(*args, [str(root / "file")], chmod=False),
            owner.reset_dirs(*args, remove_dirs=[root / "gone"], create_dirs=[root / "gone", root / "b"]),
            owner.reset_dirs(*args, remove_dirs=[], create_dirs=[root / "c", root / "d"], chmod_dirs=[root / "d"]),
        ):
            result = await call
            codes.append(min(result.return_code, 1))
        assert codes == [0, 0, 1, 0, 0, 0, 0]
        assert await owner.ensure_dirs(*args, []) is None
    ours, theirs = (
        {str(p.relative_to(r)): (p.is_symlink(), oct(p.lstat().st_mode)) for p in r.rglob("*")}
        for r in (tmp_path / "ours", tmp_path / "theirs")
    )
    assert ours == theirs


async def test_directories_of_a_plain_user_are_made_by_it(env: BerthEnvironment, daemon: FakeDaemon) -> None:
    with env.with_default_user("alice"):
        await env.ensure_dirs(["/tmp"], chmod=False)
    assert daemon.exec_requests[-1]["user"] == "alice"


async def test_services(env: BerthEnvironment) -> None:
    assert (await env.service_exec("echo x", service="main")).stdout == "x\n"
    with pytest.raises(Exception, match="does not support") as caught:
        await env.service_exec("echo x", service="db")
    assert type(caught.value).__name__ == "ServiceOperationsUnsupportedError"
