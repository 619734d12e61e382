"""Agents that fail in the ways that an agent can."""

from __future__ import annotations

from typing import override

from harbor.agents.installed.base import BaseInstalledAgent
from harbor.environments.base import BaseEnvironment
from harbor.models.agent.context import AgentContext


class _Agent(BaseInstalledAgent):
    @staticmethod
    @override
    def name() -> str:
        return "berth-test"

    @override
    def version(self) -> str:
        return "1"

    @override
    async def install(self, environment: BaseEnvironment) -> None:
        await self.exec_as_root(environment, "true")


class FailingAgent(_Agent):
    """Its command exits non-zero."""

    @override
    async def run(self, instruction: str, environment: BaseEnvironment, context: AgentContext) -> None:
        await self.exec_as_agent(environment, "echo 'to stdout'; echo 'to stderr' >&2; exit 3")


class OutstayingAgent(_Agent):
    """Runs beyond its time, with processes that do not want to die."""

    @override
    async def run(self, instruction: str, environment: BaseEnvironment, context: AgentContext) -> None:
        stubborn = "trap '' TERM HUP INT; while :; do sleep 7777; done"
        await self.exec_as_agent(
            environment, f'touch /started; setsid sh -c "{stubborn}" & (sh -c "{stubborn}" &); sleep 7777'
        )


class WaitingAgent(_Agent):
    """Says when it runs, and waits for the daemon to be killed."""

    @override
    async def run(self, instruction: str, environment: BaseEnvironment, context: AgentContext) -> None:
        from pathlib import Path

        Path("/run/berth-host/ready").touch()
        # Without a pipe, and by hand: the image has no bash for `set -o pipefail`.
        await environment.exec("sleep 600")


class CountingAgent(_Agent):
    """Says when it runs, and writes down what its command told over a daemon that is killed and started again."""

    @override
    async def run(self, instruction: str, environment: BaseEnvironment, context: AgentContext) -> None:
        from pathlib import Path

        Path("/run/berth-host/ready").touch()
        done = await environment.exec("echo ran >>/count; echo ran; sleep 8; echo ended")
        assert (await environment.exec("cat /count")).stdout == "ran\n"
        Path("/run/berth-host/counted").write_text(done.stdout or "")
