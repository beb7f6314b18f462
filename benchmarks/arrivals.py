"""Open-loop load: requests are sent when the plan says so, however the service fares (Schroeder et al. 2006).

A caller of closed-loop load who waits for an answer does not ask, so a slow service is asked less and looks better.
Here the times of a Poisson process are drawn before, a request's time counts from its intended moment, and what the
generator itself was late is part of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Sent(Generic[Outcome]):
    """One request.

    Attributes:
        late: seconds between the intended and the true moment of sending.
        took: seconds between the intended moment of sending and the outcome.
        outcome: as `ask` returned it.
    """

    late: float
    took: float
    outcome: Outcome


def poisson(rate: float, seconds: float, most: int, seed: int) -> Sequence[float]:
    """Draws the moments of a Poisson process.

    Args:
        rate: mean requests in a second.
        seconds: length.
        most: largest number of requests, a guard.
        seed: of the draw.
    """
    draws = np.random.default_rng(seed)
    gaps = draws.exponential(1 / rate, min(most, int(rate * seconds * 1.5) + 100))
    moments = np.cumsum(gaps)
    return [float(moment) for moment in moments[moments < seconds]]


async def open_loop(ask: Callable[[int, float], Awaitable[Outcome]], moments: Sequence[float]) -> list[Sent[Outcome]]:
    """Sends one request at each moment and waits for all outcomes.

    Args:
        ask: is given a running number and the seconds that the request is late already; it must not raise.
        moments: seconds from now, in order.
    """
    tasks: list[asyncio.Task[Sent[Outcome]]] = []
    began = time.perf_counter()

    async def send(number: int, intended: float) -> Sent[Outcome]:
        late = time.perf_counter() - intended
        outcome = await ask(number, late)
        return Sent(late, time.perf_counter() - intended, outcome)

    for number, moment in enumerate(moments):
        intended = began + moment
        if (pause := intended - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        tasks.append(asyncio.create_task(send(number, intended)))
    return list(await asyncio.gather(*tasks))
