"""The answer cache: what a model computed for a row of tokens, kept for the next one who asks the same.

The key is the lane's identity and the row's token ids. A lane is one loaded version of one variant, and no two lanes
of a process share an identity, so model, variant, version, weights and task are all in it: an answer of another
version cannot be found, even when a version number comes back with other weights. What options change (truncation,
windows, the query of a pair) is in the token ids; what they do not change (`top_k`, `encoding`, …) is computed from
the cached output anew, so that callers with different options share it.

Equal rows that are asked for at the same time are computed once (single flight, as Go's `singleflight.Group`):
callers join the flight under way. It belongs to none of them: it ends early only when all have left, and what fails
is told to all and kept for nobody.
"""

from __future__ import annotations

import asyncio
import sys
from array import array
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from millis_server.tokenizer import Row
from millis_server.triton.lane import Deadline, Lane, Ran

Policy = Literal["default", "bypass", "refresh"]
Status = Literal["disabled", "hit", "miss", "partial", "bypassed"]
Output = NDArray[np.float32]

NODE_BYTES = 112
"""Memory of an entry beside its key and its output: its place in the ordered dictionary (tests/server/test_cache.py
compares the sum with what Python really allocates)."""

SLICE = 1000
"""Entries looked at between two turns of the event loop when those of a version are dropped: about 0.5 ms."""

SMOOTHING = 0.1
"""Weight of the newest flight in the running mean of what a row costs."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """The model's outputs, and where they came from."""

    rows: list[Output]
    """One for each row, in order."""
    queued: float
    """Longest time in the lane's queue, in seconds; 0 when all was known."""
    status: Status
    padded: int = 0
    """Tokens that the engine computed beside those of the rows."""
    layers: int = 0
    """Layers that the rows went through, added up; 0 for a model without early exits."""
    own: bool = True
    """Whether all of it was computed for this call alone, so that the time it took tells how long rows take."""


@dataclass(slots=True)
class Counts:
    """What the cache did for one variant, in rows."""

    hits: int = 0
    misses: int = 0
    shared: int = 0
    """Not kept, but being computed for another caller, or twice in one call."""
    saved_seconds: float = 0.0
    """Hits times what a row cost of late."""
    row_seconds: float = 0.0
    """Running mean of the time from asking to the answer, divided by the rows of the flight."""


class _Flight:
    """Rows being computed, and how many callers wait for them."""

    __slots__ = ("callers", "deadline", "future", "places", "started")

    def __init__(self, future: asyncio.Future[Ran], keys: Iterable[bytes], deadline: Deadline) -> None:
        self.future = future
        self.deadline = deadline
        self.places = {key: place for place, key in enumerate(keys)}
        self.callers = 0
        self.started = perf_counter()


class AnswerCache:
    """Outputs by lane and token ids, the least recently used dropped first. For one event loop.

    Args:
        max_bytes: most memory, keys and bookkeeping included; 0 switches the cache off.

    Attributes:
        bytes: memory in use.
        evictions: entries dropped for want of room.
        counts: by model and variant.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.evictions = 0
        self.counts: dict[tuple[str, str], Counts] = {}
        self._entries: OrderedDict[bytes, Output] = OrderedDict()
        self._flights: dict[bytes, _Flight] = {}

    def __len__(self) -> int:
        return len(self._entries)

    async def run(self, lane: Lane, rows: Sequence[Row], policy: Policy, expires: float = inf) -> Outputs:
        """Returns the outputs of rows, from memory where it has them and from the lane where not.

        Args:
            lane: the version that answers.
            rows: at least one.
            policy: `bypass` neither reads nor writes, `refresh` only writes.
            expires: when the answer is worth nothing any more, on the clock of `perf_counter`.

        Raises:
            MillisError: as `Lane.run`.
        """
        if not self.max_bytes or policy == "bypass":
            ran = await lane.run(rows, expires)
            status: Status = "bypassed" if self.max_bytes else "disabled"
            return Outputs(ran.outputs, ran.queued, status, ran.padded, ran.layers)
        keys = [_key(lane, row) for row in rows]
        found = self._find(keys) if policy == "default" else {}
        hits = len([key for key in keys if key in found])
        counts = self._counts_of(lane)
        counts.hits += hits
        counts.saved_seconds += hits * counts.row_seconds
        if hits == len(keys):
            return Outputs([found[key] for key in keys], 0.0, "hit", own=False)
        wanted = {key: row for key, row in zip(keys, rows, strict=True) if key not in found}
        counts.shared += len(keys) - hits - len(wanted)
        flights = self._flights_for(lane, wanted, len(rows), expires, join=policy == "default")
        own = len(flights) == 1 and not flights[0].callers and len(flights[0].places) == len(keys)
        queued, padded, layers = await _land(flights, found, wanted)
        return Outputs([found[key] for key in keys], queued, "partial" if hits else "miss", padded, layers, own)

    async def keep_only(self, lanes: Collection[Lane]) -> None:
        """Drops what other lanes than these computed.

        Flights under way may still write for a lane that has gone; nobody asks for that any more, and it ages out.
        """
        kept = {lane.identity for lane in lanes}
        for number, key in enumerate(list(self._entries), 1):
            if key[:8] not in kept and key in self._entries:
                self._drop(key)
            if number % SLICE == 0:
                await asyncio.sleep(0)

    def _find(self, keys: Sequence[bytes]) -> dict[bytes, Output]:
        found = {}
        for key in keys:
            if (output := self._entries.get(key)) is not None:
                self._entries.move_to_end(key)
                found[key] = output
        return found

    def _flights_for(
        self, lane: Lane, wanted: dict[bytes, Row], size: int, expires: float, join: bool
    ) -> list[_Flight]:
        """The flights that bring what is wanted: those under way, and one of our own for the rest.

        Who joins a flight waits for all of it. So a call of `size` rows joins only flights of as many rows or fewer:
        a lone text never waits for a list of a thousand that happens to hold it. A flight goes on as long as the most
        patient of those who wait for it.
        """
        joined = {}
        if join and self._flights:
            for key in wanted:
                flight = self._flights.get(key)
                # A flight without callers is being cancelled.
                if flight is None or not flight.callers:
                    continue
                if len(flight.places) <= size:
                    joined[key] = flight
                    flight.deadline.at = max(flight.deadline.at, expires)
        own = {key: row for key, row in wanted.items() if key not in joined}
        counts = self._counts_of(lane)
        counts.shared += len(joined)
        counts.misses += len(own)
        flights = list(set(joined.values()))
        if own:
            flights.append(self._take_off(lane, own, expires))
        return flights

    def _take_off(self, lane: Lane, rows: dict[bytes, Row], expires: float) -> _Flight:
        deadline = Deadline(expires)
        flight = _Flight(lane.start(list(rows.values()), deadline), rows, deadline)
        for key in rows:
            self._flights[key] = flight
        # The first callback of the future: what it brings is kept before those who wait for it go on.
        flight.future.add_done_callback(lambda _: self._landed(lane, rows, flight))
        return flight

    def _landed(self, lane: Lane, rows: dict[bytes, Row], flight: _Flight) -> None:
        for key in rows:
            if self._flights.get(key) is flight:  # a refresh may have taken its place
                del self._flights[key]
        if flight.future.cancelled() or flight.future.exception() is not None:
            return
        outputs = flight.future.result().outputs
        counts = self._counts_of(lane)
        row_seconds = (perf_counter() - flight.started) / len(outputs)
        counts.row_seconds += (SMOOTHING if counts.row_seconds else 1.0) * (row_seconds - counts.row_seconds)
        for (key, row), output in zip(rows.items(), outputs, strict=True):
            self._keep(key, output[: len(row.ids)] if lane.manifest.per_token else output)

    def _keep(self, key: bytes, output: Output) -> None:
        if key in self._entries:
            self._drop(key)
        # A copy: the output is a view, and would keep the answer to a whole batch in memory.
        kept = output.copy()
        kept.setflags(write=False)
        size = _size(key, kept)
        if size > self.max_bytes:
            return
        self._entries[key] = kept
        self.bytes += size
        while self.bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))
            self.evictions += 1

    def _drop(self, key: bytes) -> None:
        self.bytes -= _size(key, self._entries.pop(key))

    def _counts_of(self, lane: Lane) -> Counts:
        manifest = lane.manifest
        name = (manifest.model, manifest.variant)
        counts = self.counts.get(name)
        if counts is None:
            counts = self.counts[name] = Counts()
        return counts


async def _land(
    flights: Sequence[_Flight], found: dict[bytes, Output], wanted: Collection[bytes]
) -> tuple[float, int, int]:
    """Waits for flights and adds what they bring to `found`.

    A caller that leaves, or hears of a failure, ends the flights that nobody else waits for.

    Returns:
        The longest time in the lane's queue, in seconds, and the tokens of padding and the layers that the wanted rows
        went through: their even share, where a flight brings rows of other callers too.
    """
    for flight in flights:
        flight.callers += 1
    longest, padded, layers = 0.0, 0, 0
    try:
        for flight in flights:
            ran = await asyncio.shield(flight.future)
            rows = len(flight.places)
            share = 1.0 if rows == 1 else len(flight.places.keys() & wanted) / rows
            longest = max(longest, ran.queued)
            padded, layers = padded + round(ran.padded * share), layers + round(ran.layers * share)
            for key, place in flight.places.items():
                found.setdefault(key, ran.outputs[place])
    finally:
        for flight in flights:
            flight.callers -= 1
            if not flight.callers:
                flight.future.cancel()
    return longest, padded, layers


def _key(lane: Lane, row: Row) -> bytes:
    """Identity and token ids, and for a pair the segments after a -1, which is no token."""
    ids = array("i", row.ids)
    if row.type_ids is not None:
        ids.append(-1)
        ids.extend(row.type_ids)
    return lane.identity + ids.tobytes()


def _size(key: bytes, output: Output) -> int:
    return sys.getsizeof(key) + sys.getsizeof(output) + NODE_BYTES
