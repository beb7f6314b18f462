"""Closed-loop load: a fixed number of callers, each asking again as soon as it is answered."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Measurement:
    """What one side did under one load.

    Attributes:
        times: seconds of each request.
        wall: seconds from the first request to the last answer.
    """

    times: Sequence[float]
    wall: float

    def percentile(self, percent: float) -> float:
        """A percentile of the request times, in milliseconds."""
        return 1e3 * float(np.percentile(self.times, percent))

    @property
    def throughput(self) -> float:
        """Requests a second."""
        return len(self.times) / self.wall


def merged(parts: Sequence[Measurement]) -> Measurement:
    """Several rounds as one."""
    return Measurement([time for part in parts for time in part.times], sum(part.wall for part in parts))


def threads(ask: Callable[[int], object], callers: int, requests: int) -> Measurement:
    """Load from threads. `ask` is given a running number."""
    numbers = iter(range(requests))
    lock = threading.Lock()
    times: list[float] = []

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            began = time.perf_counter()
            ask(number)
            times.append(time.perf_counter() - began)

    workers = [threading.Thread(target=work) for _ in range(callers)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return Measurement(times, time.perf_counter() - began)


async def tasks(ask: Callable[[int], Awaitable[object]], callers: int, requests: int) -> Measurement:
    """Load from tasks of one event loop. `ask` is given a running number."""
    numbers = itertools.count()
    times: list[float] = []

    async def work() -> None:
        while (number := next(numbers)) < requests:
            began = time.perf_counter()
            await ask(number)
            times.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(callers)))
    return Measurement(times, time.perf_counter() - began)
