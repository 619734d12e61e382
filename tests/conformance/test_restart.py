"""Items 21, 55 and 62 of the contract: a daemon that is killed, and started again, under running commands.

`restarter.sh` keeps the daemon that BERTH_TEST_RESTARTER names the directory of: it kills and restarts it when asked.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import berth
import pytest
from world import FULL, IMAGE

RESTARTER = os.environ.get("BERTH_TEST_RESTARTER", "")
if not RESTARTER:
    pytest.skip("SKIP: no daemon to kill is named by BERTH_TEST_RESTARTER", allow_module_level=True)

HOST = f"unix://{RESTARTER}/victim.sock"


def kill_and_wait() -> None:
    """Has the daemon killed by SIGKILL; returns when its successor answers."""
    request = Path(RESTARTER, "kill")
    request.touch()
    deadline = time.monotonic() + 60
    while request.exists():
        assert time.monotonic() < deadline, "the daemon did not come back"
        time.sleep(0.02)


@pytest.fixture
def box() -> Iterator[berth.Sandbox]:
    with berth.Client(HOST) as client:
        with client.create_sandbox(IMAGE, network="no-network", allow_unenforced_storage=True) as made:
            yield made


async def test_d55_d62_commands_go_on_over_daemons_that_are_killed(box: berth.Sandbox) -> None:
    rounds = 20 if FULL else 3
    lines = 400 * rounds
    command = "echo ran >>/count; for i in $(seq {0}); do echo $i; echo e$i >&2; sleep 0.005; done; exit {1}"
    async with berth.AsyncClient(HOST) as client:
        running = [asyncio.create_task(client.exec(box.id, command.format(lines, code))) for code in range(5)]
        for _ in range(rounds):
            await asyncio.sleep(0.7)
            await asyncio.to_thread(kill_and_wait)
        done = await asyncio.gather(*running)
        for code, told in enumerate(done):
            assert told.exit_code == code
            assert told.stdout == "".join(f"{n}\n" for n in range(1, lines + 1))
            assert told.stderr == "".join(f"e{n}\n" for n in range(1, lines + 1))
        assert (await client.exec(box.id, "wc -l </count")).stdout == "5\n", "each ran once"


async def test_d56_a_command_that_is_cancelled_while_the_daemon_is_away_is_dead_too(box: berth.Sandbox) -> None:
    async with berth.AsyncClient(HOST) as client:
        running = asyncio.create_task(client.exec(box.id, "echo x; trap '' TERM; while :; do sleep 4262; done"))
        await asyncio.sleep(1)
        restart = asyncio.create_task(asyncio.to_thread(kill_and_wait))
        await asyncio.sleep(0.05)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await restart
        left = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q 'sleep [4]262' && echo $p; done; true"
        assert (await client.exec(box.id, left)).stdout == ""


def test_what_was_detached_is_found_by_the_next_daemon_and_client(box: berth.Sandbox) -> None:
    box.exec_detached("seq 1000; sleep 2; seq 1000; exit 9", id="detached")
    kill_and_wait()
    with berth.Client(HOST) as other:
        told = other.exec_result(box.id, "detached")
        assert (told.exit_code, told.gaps) == (9, [])
        assert told.stdout == "".join(f"{n}\n" for n in range(1, 1001)) * 2
        kill_and_wait()
        assert other.exec_info(box.id, "detached").status is not None
        assert other.exec_result(box.id, "detached").stdout == told.stdout
