"""The test stand of `millis tune`: a Triton of its own, the gateway's way to it, and bounded closed-loop load.

Configurations are measured as the gateway runs them, through `Lane`, on copies of the repository's configs with links
to its versions. The repository itself, and a Triton that serves it, are never touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2 as triton

from millis_pipeline.configuration import LARGEST_REQUEST, Configuration, configured, write_config
from millis_server import selfcheck
from millis_server.catalogue import Served
from millis_server.errors import MillisError
from millis_server.manifest import Manifest
from millis_server.tokenizer import Row, Tokenizer
from millis_server.triton.backend.engine import DEFAULT_ENGINES
from millis_server.triton.client import TritonClient
from millis_server.triton.lane import Lane
from millis_server.triton.launcher import EmbeddedTriton, TritonFailed

START_SECONDS = 60.0
LOAD_SECONDS = 120.0
INFER_SECONDS = 30.0
UNLOAD_SECONDS = 15.0
VERSION = "1"
MIN_CALLS = 20
"""Calls of a lone caller that are measured however long they take."""


class CannotRun(RuntimeError):
    """A configuration that does not load, or does not answer as its manifest says; the message is the reason."""


@dataclass(frozen=True)
class Subject:
    """A variant to be measured.

    Attributes:
        manifest: of its newest version.
        folder: of that version.
        config: as in the repository.
        tokenizer: of the version.
        rows: what is asked, in turn.
    """

    manifest: Manifest
    folder: Path
    config: triton.ModelConfig
    tokenizer: Tokenizer
    rows: Sequence[Row]

    @property
    def engine(self) -> str:
        """The one that the variant's quality was measured with."""
        return DEFAULT_ENGINES[self.manifest.precision]


@dataclass(frozen=True)
class Measured:
    """What a configuration did.

    Attributes:
        p50_ms, p99_ms: of a lone caller, from the gateway's lane and back.
        per_second: texts a second at saturation; None when it was not measured.
        loaded_p99_ms: at saturation.
    """

    p50_ms: float
    p99_ms: float
    per_second: float | None = None
    loaded_p99_ms: float | None = None


class Stand:
    """Loads configurations into a running Triton, side by side under names of their own."""

    def __init__(self, repository: Path, server: EmbeddedTriton, client: TritonClient) -> None:
        self._repository = repository
        self._server = server
        self._client = client

    @asynccontextmanager
    async def loaded(self, slot: str, subject: Subject, configuration: Configuration) -> AsyncIterator[Served]:
        """A configuration, loaded, checked and warm, for the length of a `with` block.

        Raises:
            CannotRun: it does not load, or fails its self-check.
        """
        manifest = subject.manifest.model_copy(update={"model": "tune", "variant": slot})
        config = configured(subject.config, configuration)
        config.name = manifest.triton_model
        folder = self._repository / manifest.triton_model
        folder.mkdir(exist_ok=True)
        (folder / VERSION).unlink(missing_ok=True)
        (folder / VERSION).symlink_to(subject.folder.resolve())
        write_config(folder, config)
        try:
            try:
                await self._client.load(manifest.triton_model)
                max_batch = min(LARGEST_REQUEST, configuration.max_batch)
                lane = Lane(self._client, manifest, VERSION, configuration.lanes, max_batch, configuration.workers)
                served = Served(manifest, VERSION, subject.tokenizer, lane)
                await selfcheck.check(served)
            except (MillisError, selfcheck.SelfCheckFailed) as error:
                raise CannotRun(str(error)) from error
            yield served
        finally:
            await self._unload(manifest.triton_model)

    async def check(self) -> None:
        """Tells a configuration that cannot run from a Triton that is gone.

        Raises:
            TritonFailed: it is gone.
        """
        if not await self._client.is_ready():
            await self._server.stop()
            raise TritonFailed(await self._server.last_words())

    async def _unload(self, name: str) -> None:
        """Unloads a slot and waits until its process is gone, which would take time from the next one."""
        with contextlib.suppress(MillisError, TimeoutError):
            await self._client.unload(name)
            async with asyncio.timeout(UNLOAD_SECONDS):
                while (await self._client.versions(name)).get(VERSION, "unloaded") != "unloaded":
                    await asyncio.sleep(0.05)


@asynccontextmanager
async def open_stand() -> AsyncIterator[Stand]:
    """A stand with its Triton, which is gone at the end, however that comes.

    Raises:
        TritonFailed: it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="millis-tune-") as scratch:
        repository = Path(scratch) / "repository"
        repository.mkdir()
        server = EmbeddedTriton(repository, Path(scratch))
        client = TritonClient(server.url, INFER_SECONDS, LOAD_SECONDS)
        try:
            await server.start(START_SECONDS)
            yield Stand(repository, server, client)
        finally:
            client.close()
            await server.stop()


async def lone_caller(served: Served, rows: Sequence[Row], seconds: float) -> Measured:
    """One caller, who asks again as soon as it is answered.

    Raises:
        CannotRun: an answer failed.
    """
    times = await _closed_loop(served, rows, 1, seconds)
    p50, p99 = np.percentile(times, (50, 99))
    return Measured(1e3 * float(p50), 1e3 * float(p99))


async def saturated(served: Served, rows: Sequence[Row], callers: int, seconds: float) -> tuple[float, float]:
    """Many callers, as many as keep every batch full.

    Returns:
        Texts a second, and p99 in milliseconds.

    Raises:
        CannotRun: an answer failed.
    """
    began = time.perf_counter()
    times = await _closed_loop(served, rows, callers, seconds)
    wall = time.perf_counter() - began
    return len(times) / wall, 1e3 * float(np.percentile(times, 99))


async def answers(served: Served, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
    """Outputs of rows, asked one by one.

    Raises:
        CannotRun: an answer failed.
    """
    lane = _lane(served)
    try:
        return [(await lane.run([row])).outputs[0] for row in rows]
    except MillisError as error:
        raise CannotRun(str(error)) from error


def _lane(served: Served) -> Lane:
    assert isinstance(served.lane, Lane), "a model that generates text is refused by its plan. This is a bug."
    return served.lane


async def _closed_loop(served: Served, rows: Sequence[Row], callers: int, seconds: float) -> list[float]:
    lane = _lane(served)
    times: list[float] = []
    ends = time.perf_counter() + seconds

    async def work(turn: int) -> None:
        began = time.perf_counter()
        while began < ends or len(times) < MIN_CALLS:
            await lane.run([rows[turn % len(rows)]])
            now = time.perf_counter()
            times.append(now - began)
            began = now
            turn += callers

    try:
        async with asyncio.TaskGroup() as group:
            for caller in range(callers):
                group.create_task(work(caller))
    except* MillisError as failed:
        raise CannotRun(str(failed.exceptions[0])) from failed
    return times
