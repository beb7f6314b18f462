"""Places at an engine that generates: who may begin, and who waits, in the order of coming.

An engine has memory for so many tokens and a speed for so many texts side by side. A generation takes its places and
its memory before it begins and keeps them to its end, so what has begun is never pushed out by what comes later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import ceil
from time import perf_counter

from millis_server.errors import DeadlineUnreachable, Overloaded

GAIN = 1 / 8
"""Share of a generation's time that goes into the mean of what was seen."""

MIN_RETRY_SECONDS = 0.1
"""Shortest delay told to a caller who is refused."""


class _Waiting:
    __slots__ = ("granted", "tokens", "width")

    def __init__(self, width: int, tokens: int) -> None:
        self.width = width
        self.tokens = tokens
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Places:
    """Places at one engine.

    Args:
        streams: texts side by side.
        tokens: for which the engine has memory.
        max_waiting: most callers who wait; more are refused.
    """

    def __init__(self, streams: int, tokens: int, max_waiting: int) -> None:
        self._streams = self._free_streams = streams
        self._free_tokens = tokens
        self._max_waiting = max_waiting
        self._waiting: deque[_Waiting] = deque()
        self._held = 0.0
        """Mean seconds for which a place was taken; 0 before the first."""

    @property
    def taken(self) -> int:
        """Places in use."""
        return self._streams - self._free_streams

    @property
    def waiting(self) -> int:
        """Callers who wait."""
        return len(self._waiting)

    @asynccontextmanager
    async def take(self, width: int, tokens: int, time_left: float | None) -> AsyncIterator[None]:
        """Holds places for the length of an `async with` block, after waiting for them.

        Args:
            width: places, no more than there are.
            tokens: memory, no more than there is.
            time_left: seconds until the caller's deadline; None is no deadline.

        Raises:
            Overloaded: too many wait already.
            DeadlineUnreachable: the turn would come after the deadline, by how long generations took of late.
        """
        if self._waiting or width > self._free_streams or tokens > self._free_tokens:
            self._refuse_in_vain(time_left)
            await self._turn(_Waiting(width, tokens))
        else:
            self._free_streams -= width
            self._free_tokens -= tokens
        began = perf_counter()
        try:
            yield
        finally:
            held = perf_counter() - began
            self._held += GAIN * (held - self._held) if self._held else held
            self._free_streams += width
            self._free_tokens += tokens
            self._grant()

    def _refuse_in_vain(self, time_left: float | None) -> None:
        rounds = ceil((len(self._waiting) + 1) / self._streams)
        expected = rounds * self._held
        retry_after = max(expected, MIN_RETRY_SECONDS)
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(
                f"{self.taken} texts are being generated and {len(self._waiting)} callers wait; "
                f"the limit is {self._max_waiting}",
                retry_after,
            )
        if time_left is not None and expected > time_left:
            raise DeadlineUnreachable(
                f"{len(self._waiting)} callers wait before this one, whose turn would come in about {expected:.1f} s; "
                f"its deadline is in {time_left:.1f} s",
                retry_after,
            )

    async def _turn(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        try:
            await waiting.granted
        except asyncio.CancelledError:
            if waiting.granted.done() and not waiting.granted.cancelled():
                # Granted in the same moment: give it back.
                self._free_streams += waiting.width
                self._free_tokens += waiting.tokens
            else:
                self._waiting.remove(waiting)
            self._grant()
            raise

    def _grant(self) -> None:
        """Lets those in who fit, the first first: a large one is not overtaken for ever by small ones."""
        while self._waiting:
            first = self._waiting[0]
            if first.granted.cancelled():
                # It removes itself when its task runs.
                return
            if first.width > self._free_streams or first.tokens > self._free_tokens:
                return
            self._waiting.popleft()
            self._free_streams -= first.width
            self._free_tokens -= first.tokens
            first.granted.set_result(None)
