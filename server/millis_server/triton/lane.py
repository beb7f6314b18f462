"""Shares Triton requests between concurrent calls to one model version.

A lone call goes to Triton at once. When as many Triton requests are under way as the model can work on, texts
wait here, and the next request takes all that wait (up to a limit), whatever call they belong to: batches form
while the model is busy and nobody waits for a timer. This saves most of the cost of a Triton request under load;
Triton's dynamic batcher still joins the requests of several gateways.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import Sequence
from math import inf
from time import perf_counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from millis_server.errors import DeadlinePassed
from millis_server.manifest import Manifest
from millis_server.tokenizer import Row
from millis_server.triton.client import TritonClient, infer_path
from millis_server.triton.tensors import pack, unpack

_numbers = itertools.count()


class Ran(NamedTuple):
    """What came of the rows of one call."""

    outputs: list[NDArray[np.float32]]
    """One for each row, in order; for tokens [at least the row's tokens, labels]."""
    queued: float
    """Longest time, in seconds, that a part waited in the lane's queue."""
    padded: int
    """Tokens that the engine computed for these rows beside their own."""
    layers: int
    """Layers that the rows went through, added up; 0 for a model without early exits."""


class Deadline:
    """When an answer is worth nothing any more; who joins those that wait for it may put it off.

    Args:
        at: on the clock of `perf_counter`.
    """

    __slots__ = ("at",)

    def __init__(self, at: float) -> None:
        self.at = at


class _Entry:
    """Rows of one call that travel together."""

    __slots__ = ("deadline", "done", "enqueued", "rows")

    def __init__(self, rows: Sequence[Row], done: asyncio.Future[Ran], deadline: Deadline) -> None:
        self.rows = rows
        self.done = done
        self.deadline = deadline
        self.enqueued = perf_counter()


class Lane:
    """The way to one model version. Who chose it to answer holds it with `with` until the answer is there.

    Args:
        client: connection to Triton.
        manifest: of the version.
        version: as in the repository.
        width: Triton requests under way at once.
        max_batch: most rows in one Triton request.
        workers: engine calls that the version runs side by side.

    Attributes:
        manifest, workers: as given.
        rows_at_once: most rows of one call that go to Triton before other calls have their turn.
        identity: 8 bytes that no other lane of this process has or had, not even one to the same version loaded anew.
        tokens: real tokens computed so far.
        padded_tokens: tokens computed so far beside the real ones.
        exits: rows answered so far, by the number of layers they went through; empty without early exits.
    """

    def __init__(
        self, client: TritonClient, manifest: Manifest, version: str, width: int, max_batch: int, workers: int = 1
    ) -> None:
        self._client = client
        self.manifest = manifest
        self.workers = workers
        self.rows_at_once = width * max_batch
        self.identity = next(_numbers).to_bytes(8)
        self._path = infer_path(manifest.triton_model, version)
        self._free = width
        self._width = width
        self._max_batch = max_batch
        self._waiting: deque[_Entry] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._holders = 0
        self._released: asyncio.Event | None = None
        """Only when somebody drains."""
        self.tokens = 0
        self.padded_tokens = 0
        self.exits: Counter[int] = Counter()

    async def run(self, rows: Sequence[Row], expires: float = inf) -> Ran:
        """Runs rows through the model.

        Args:
            rows: as `start`.
            expires: when the answer is worth nothing any more, on the clock of `perf_counter`.

        Raises:
            DeadlinePassed: a part of it was not sent before `expires`.
            MillisError: as `TritonClient.infer`.
        """
        return await self.start(rows, Deadline(expires))

    def start(self, rows: Sequence[Row], deadline: Deadline) -> asyncio.Future[Ran]:
        """Sends rows on their way and returns at once; who cancels the future has left.

        A long list is cut into requests of rows of like length and never holds more than the lane's width of
        places in the queue, so that a short call that comes later does not wait for all of it.

        Args:
            rows: at least one.
            deadline: what has not been sent by then never is.
        """
        if len(rows) <= self._max_batch:
            return self._enter(rows, deadline)
        return asyncio.get_running_loop().create_task(self._run_long(rows, deadline))

    async def _run_long(self, rows: Sequence[Row], deadline: Deadline) -> Ran:
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
        parts = [order[start : start + self._max_batch] for start in range(0, len(order), self._max_batch)]
        places = asyncio.Semaphore(self._width)

        async def run_part(part: list[int]) -> Ran:
            async with places:
                return await self._enter([rows[index] for index in part], deadline)

        outputs: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(rows)
        try:
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(run_part(part)) for part in parts]
        except ExceptionGroup as failed:
            # The first failure cancelled the other parts; the caller hears of it as of any single failure.
            raise failed.exceptions[0] from None
        ran = [task.result() for task in running]
        for part, done in zip(parts, ran, strict=True):
            for index, row in zip(part, done.outputs, strict=True):
                outputs[index] = row
        return Ran(
            outputs,
            max(done.queued for done in ran),
            sum(done.padded for done in ran),
            sum(done.layers for done in ran),
        )

    def __enter__(self) -> None:
        self._holders += 1

    def __exit__(self, *_: object) -> None:
        self._holders -= 1
        if self._released is not None and not self._holders:
            self._released.set()

    async def drain(self) -> None:
        """Waits until nobody holds the lane, and nothing is waiting or under way."""
        while self._holders or self._tasks:
            if self._holders:
                # A request that is still being tokenized has sent nothing yet, but will.
                self._released = self._released or asyncio.Event()
                self._released.clear()
                await self._released.wait()
            else:
                await asyncio.wait(self._tasks)

    def _enter(self, rows: Sequence[Row], deadline: Deadline) -> asyncio.Future[Ran]:
        entry = _Entry(rows, asyncio.get_running_loop().create_future(), deadline)
        self._waiting.append(entry)
        if self._free:
            self._send()
        return entry.done

    def _send(self) -> None:
        """Starts one Triton request with what waits, but for callers who left or whose time is over."""
        batch: list[_Entry] = []
        count = 0
        now = perf_counter()
        while self._waiting:
            entry = self._waiting[0]
            if entry.deadline.at <= now and not entry.done.done():
                # gRPC cancels the handler too, but may come to it later than the lane does.
                entry.done.set_exception(DeadlinePassed("the deadline passed before the model was free"))
            if not entry.done.done():
                if batch and count + len(entry.rows) > self._max_batch:
                    break
                batch.append(entry)
                count += len(entry.rows)
            self._waiting.popleft()
        if not batch:
            return
        self._free -= 1
        task = asyncio.get_running_loop().create_task(self._infer(batch))
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    async def _infer(self, batch: list[_Entry]) -> None:
        manifest = self.manifest
        rows = batch[0].rows if len(batch) == 1 else [row for entry in batch for row in entry.rows]
        sent = perf_counter()
        try:
            body, header_length = pack(manifest.inputs, manifest.pad_id, rows)
            answer = await self._client.infer(self._path, body, header_length)
            output, padding, layers = unpack(answer, rows, manifest.per_token, bool(manifest.exits))
        except Exception as error:  # every caller of the batch must hear of it
            for entry in batch:
                if not entry.done.done():
                    entry.done.set_exception(error)
            return
        self.tokens += sum([len(row.ids) for row in rows])
        if padding is not None:
            self.padded_tokens += int(padding.sum())
        if layers is not None:
            self.exits.update(layers.tolist())
        start = 0
        for entry in batch:
            end = start + len(entry.rows)
            if not entry.done.done():
                padded = 0 if padding is None else int(padding[start:end].sum())
                gone = 0 if layers is None else int(layers[start:end].sum())
                entry.done.set_result(Ran(list(output[start:end]), sent - entry.enqueued, padded, gone))
            start = end

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._free += 1
        if self._waiting:
            self._send()
