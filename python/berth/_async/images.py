"""What a client can ask for about images: getting, building, keeping them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Unpack

from berth import _build, _calls, _tar, errors
from berth._async.link import Link
from berth._build import BuildSettings
from berth._calls import Call
from berth.models import (
    ArchiveFormat,
    BuildResult,
    Image,
    Page,
    ProgressCallback,
    PruneReport,
    PullPolicy,
    ReplayResult,
    VerifyReport,
)

_BuildCall = Callable[[int], Call[BuildResult]]


class Images(Link):
    """The calls about images."""

    async def images(self) -> Page[Image]:
        """The images of the daemon's store."""
        return await self.call(_calls.list_images())

    async def image(self, reference: str) -> Image:
        """The image of that reference or id."""
        return await self.call(_calls.get_image(reference))

    async def delete_image(self, reference: str) -> None:
        """Removes a reference, or an image by id."""
        await self.call(_calls.delete_image(reference))

    async def tag_image(self, image: str, reference: str) -> Image:
        """Points another reference at an image."""
        return await self.call(_calls.tag_image(image, reference))

    async def pull_image(
        self,
        reference: str,
        *,
        policy: PullPolicy = "always",
        username: str | None = None,
        password: str | None = None,
        cache: bool = False,
        on_progress: ProgressCallback | None = None,
    ) -> Image:
        """Fetches an image from its registry, with ``cache`` also the build cache that was pushed with it."""
        call = _calls.pull_image(reference, policy, username, password, cache)
        return await self._progress(call, on_progress)

    async def push_image(
        self,
        reference: str,
        *,
        to: str | None = None,
        username: str | None = None,
        password: str | None = None,
        cache: bool = False,
        on_progress: ProgressCallback | None = None,
    ) -> Image:
        """Sends an image to the registry that ``to``, or else ``reference``, names; with ``cache`` also the build cache."""
        return await self._progress(_calls.push_image(reference, to, username, password, cache), on_progress)

    async def import_image(
        self,
        archive: Path | str,
        *,
        reference: str | None = None,
        format: ArchiveFormat | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> Image:
        """Takes an image from an archive of this machine."""
        return await self._progress(_calls.import_image(reference, format), on_progress, _file_chunks(Path(archive)))

    async def export_images(
        self, images: Sequence[str], archive: Path | str, *, format: ArchiveFormat | None = None, cache: bool = False
    ) -> None:
        """Writes images, with ``cache`` also the build cache, to an archive of this machine.

        ``archive`` is there only when it is whole.
        """
        call = _calls.export_images(images, format, cache)
        await self._download(call, lambda stream: _tar.save(stream, Path(archive)))

    async def bootstrap_image(
        self,
        reference: str,
        *,
        mirror: str | None = None,
        packages: Sequence[str] = (),
        on_progress: ProgressCallback | None = None,
    ) -> Image:
        """Makes a base image (``debian:SUITE``) from a Debian mirror."""
        return await self._progress(_calls.bootstrap_image(reference, mirror, packages), on_progress)

    async def prune_images(
        self,
        *,
        all: bool = False,
        unused_for_seconds: int | None = None,
        keep_bytes: int | None = None,
        cache_mounts: bool = False,
        dry_run: bool = False,
        on_progress: ProgressCallback | None = None,
    ) -> PruneReport:
        """Removes layers that no image names; with ``all`` images that nothing uses, too."""
        call = _calls.prune_images(
            all=all,
            unused_for_seconds=unused_for_seconds,
            keep_bytes=keep_bytes,
            cache_mounts=cache_mounts,
            dry_run=dry_run,
        )
        return await self._progress(call, on_progress)

    async def verify_images(self, *, deep: bool = False, on_progress: ProgressCallback | None = None) -> VerifyReport:
        """Looks whether the store holds what it should; with ``deep`` every byte of it."""
        return await self._progress(_calls.verify_images(deep), on_progress)

    async def build_image(
        self,
        context: Path | str | None,
        *,
        on_progress: ProgressCallback | None = None,
        **settings: Unpack[BuildSettings],
    ) -> BuildResult:
        """Builds a Dockerfile with the directory ``context``; None is an empty one.

        The context is sent only where the daemon has not built the same already.
        """
        return await self._built(context, settings, _calls.build_image, on_progress)

    async def base_of_build(
        self,
        context: Path | str | None,
        *,
        on_progress: ProgressCallback | None = None,
        **settings: Unpack[BuildSettings],
    ) -> Image:
        """The image that the stage to build begins with, pulled where it is missing: what to make a sandbox of in which
        the Dockerfile is then replayed."""
        return (await self._built(context, settings, _calls.base_of_build, on_progress)).image

    async def replay(
        self,
        sandbox: str,
        context: Path | str | None,
        *,
        on_progress: ProgressCallback | None = None,
        **settings: Unpack[BuildSettings],
    ) -> ReplayResult:
        """Runs a Dockerfile's steps in a sandbox that was made of its base."""
        request = await self._prepared(context, settings, asks_first=False)
        return await self._progress(_calls.replay(sandbox, request.length), on_progress, request.body(True))

    async def _built(
        self,
        context: Path | str | None,
        settings: BuildSettings,
        call: Callable[[int], Call[BuildResult]],
        on_progress: ProgressCallback | None,
    ) -> BuildResult:
        for attempt in range(_build.ATTEMPTS):
            request = await self._prepared(context, settings)
            try:
                if request.asks_first:
                    try:
                        return await self._progress(call(request.length), on_progress, request.body(False))
                    except errors.Conflict as error:
                        if error.code != _build.NEEDED:
                            raise
                return await self._progress(call(request.length), on_progress, request.body(True))
            except errors.BerthError as error:
                if not request.may_try_again(error, attempt):
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _prepared(
        self, context: Path | str | None, settings: BuildSettings, asks_first: bool = True
    ) -> _build.Request:
        request = _build.Request(_build.options(settings), None if context is None else Path(context))
        await asyncio.to_thread(request.prepare, asks_first)
        return request


def _file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_tar.CHUNK):
            yield chunk
