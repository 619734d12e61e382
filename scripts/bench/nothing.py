"""An environment that does nothing, fast: what is left of a trial's time is Harbor's own."""

from __future__ import annotations

from pathlib import Path
from typing import override

from harbor.environments.base import BaseEnvironment, ExecResult
from harbor.environments.capabilities import EnvironmentCapabilities


class NothingEnvironment(BaseEnvironment):
    """Every command succeeds; every file that is asked for is empty, but for the reward, which is 1."""

    @staticmethod
    @override
    def type() -> str:
        return "nothing"

    @property
    @override
    def capabilities(self) -> EnvironmentCapabilities:
        return EnvironmentCapabilities()

    @override
    def _validate_definition(self) -> None:
        pass

    @override
    async def start(self, force_build: bool) -> None:
        pass

    @override
    async def stop(self, delete: bool) -> None:
        pass

    @override
    async def exec(self, command: str, *_: object, **__: object) -> ExecResult:
        return ExecResult(stdout="", stderr="", return_code=0)

    @override
    async def upload_file(self, source_path: Path | str, target_path: str) -> None:
        pass

    @override
    async def upload_dir(self, source_dir: Path | str, target_dir: str) -> None:
        pass

    @override
    async def download_file(self, source_path: str, target_path: Path | str) -> None:
        Path(target_path).touch()

    @override
    async def download_dir(self, source_dir: str, target_dir: Path | str) -> None:
        target = Path(target_dir)
        target.mkdir(parents=True, exist_ok=True)
        if target.name == "verifier":
            (target / "reward.txt").write_text("1\n")

    @override
    async def download_dir_with_exclusions(
        self, source_dir: str, target_dir: Path | str, *_: object, **__: object
    ) -> None:
        await self.download_dir(source_dir, target_dir)

    @override
    async def download_dir_filtered(self, source_dir: str, target_dir: Path | str, *_: object, **__: object) -> None:
        await self.download_dir(source_dir, target_dir)
