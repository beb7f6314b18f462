"""Predicts when a version would answer a request, and learns from what it sees.

A prediction has three parts:

- the engine's own time, from the manifest's latency profile, by number and length of texts (`EngineTime`);
- the work that is already there. The lanes of a model's variants are counted as one queue: whatever of it comes
  later must not break what was promised before. Other models work beside it, and take an equal share of the cores
  for as long as they have work (processor sharing, Kleinrock 1967);
- the path around the engine.

The parts are weighted by what was seen: the version's own time by a factor of its own (pace.py), the wait by one of the
model's, both learned from every answer by normalised least mean squares (Widrow and Hoff 1960), which blames each part
for as much of an error as it was of the prediction. What is promised is longer by a margin, a share of the expected
time, that grows with every promise that was broken and shrinks a little with every one that was kept, so that 995 of
1,000 are kept in the long run whatever the load does (the idea of adaptive conformal inference, Gibbs and Candès 2021).

Everything here runs on the event loop and costs microseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, inf
from time import perf_counter
from typing import NamedTuple

from millis_server.errors import DeadlinePassed
from millis_server.manifest import Manifest
from millis_server.pace import LARGEST_FACTOR, PATH_SECONDS, Factor, Pace, kept

PATH_WORK_SECONDS = 0.001
"""Part of it that keeps a core busy, in which nothing else is computed: a crowd of small requests is more path than
engine."""

GAIN = 1 / 16
"""Share of an error that one answer mends: a few dozen answers, a fraction of a second under load."""

KEPT = 0.995
"""Share of promises to be kept: a little more than the 99 of 100 that are wanted, because the way back to the caller is
not seen here, and because no minute is like the long run."""

CLOCK_SECONDS = 1e-9
"""A time is later than another by more than this: the clock's resolution, below which sums of floats differ too."""

MARGIN_STEP = 0.1
"""What a broken promise adds to the margin; a kept one takes a 199th of that away."""

FIRST_MARGIN = 0.3
"""Before anything was learned, and again after a silence: without it the first promises after one would be broken until
they have taught how much longer answers can take."""

LARGEST_MARGIN = 2.0
"""Promises are at most this longer than expected: more says that the machine is beyond prediction."""

TOKENS_PER_CHARACTER = 0.3
"""Before any text was seen; English has 0.2 to 0.25 in a WordPiece vocabulary."""

SPECIAL_TOKENS = 2
"""Around each text, in the BERT and RoBERTa families."""


class _Queue:
    """What is under way for one model, and how its waiting is known to go.

    Attributes:
        calls: requests under way.
        ahead: engine time of these that is before a new one, in seconds of one thread.
        factor: of the wait.
        density: tokens in a character of the model's texts.
    """

    __slots__ = ("_margin", "_renewed", "ahead", "calls", "density", "factor")

    def __init__(self) -> None:
        self.calls = 0
        self.ahead = 0.0
        self.factor = Factor()
        self.density = TOKENS_PER_CHARACTER
        self._margin = FIRST_MARGIN
        self._renewed = 0.0

    def margin(self, now: float) -> float:
        """How much longer than the expected time a promise is, as a share of it."""
        return FIRST_MARGIN + (self._margin - FIRST_MARGIN) * kept(now - self._renewed)

    def learn_promise(self, broken: bool, now: float) -> None:
        """Widens the margin after a promise that was broken, and narrows it a little after one that was kept."""
        change = (KEPT if broken else KEPT - 1) * MARGIN_STEP
        self._margin = min(max(self.margin(now) + change, 0.0), LARGEST_MARGIN)
        self._renewed = now


class Load(NamedTuple):
    """The size of a request before it is tokenized.

    Attributes:
        rows: estimated rows of the model's input.
        tokens: estimated tokens of each.
    """

    rows: int
    tokens: float


class Forecast(NamedTuple):
    """When one version would answer; a tuple, because one is made for each variant of each request.

    Attributes:
        pace: of the version.
        ahead: engine time that this request will put before later ones, in seconds of one thread.
        own: seconds that it takes by itself, by profile.
        wait: seconds of the work before it, by profile.
        at_rest: expected seconds to the answer on an idle machine.
        expected: expected seconds to the answer.
        promised: seconds that nearly every such request keeps; infinite when the version was never measured.
    """

    pace: Pace
    ahead: float
    own: float
    wait: float
    at_rest: float
    expected: float
    promised: float

    @property
    def promised_wait(self) -> float:
        """What of the promise is waiting, its margin included."""
        return self.promised * (1 - self.at_rest / self.expected)


@dataclass(slots=True)
class Booking:
    """A request under way.

    Attributes:
        tells: whether its time tells how fast the version is. That of an answer from the cache does not.
    """

    tells: bool = True


class Predictor:
    """Predicts for all versions of all models: they share one machine."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        """By logical model; a few dozen bytes for each name that the repository ever had."""

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return not any(queue.calls for queue in self._queues.values())

    @property
    def backlog(self) -> dict[str, float]:
        """Engine time under way by model, in seconds of one thread."""
        return {model: queue.ahead for model, queue in self._queues.items()}

    def load(self, manifest: Manifest, inputs: int, characters: int) -> Load:
        """Estimates the size of a request from its characters, by the tokens that the model's texts had so far."""
        tokens = SPECIAL_TOKENS + self._queue(manifest.model).density * characters / inputs
        if tokens <= manifest.max_tokens:
            return Load(inputs, tokens)
        if not manifest.per_token:
            return Load(inputs, manifest.max_tokens)
        windows = ceil(tokens / manifest.max_tokens)
        return Load(inputs * windows, tokens / windows)

    def learn_density(self, model: str, rows: int, tokens: int, characters: int) -> None:
        """Takes in how many tokens a request's characters became; none of its texts may have been truncated."""
        if characters:
            queue = self._queue(model)
            queue.density += GAIN * (max(tokens - SPECIAL_TOKENS * rows, 0) / characters - queue.density)

    def forecast(self, pace: Pace, load: Load) -> Forecast:
        """Predicts when a version would answer a request that came now."""
        if pace.engine is None:
            return Forecast(pace, 0.0, 0.0, 0.0, inf, inf, inf)
        queue = self._queue(pace.model)
        work = pace.scale * pace.engine.seconds(load.rows, load.tokens)
        share = queue.ahead + work
        beside = sum([min(other.ahead, share) for other in self._queues.values() if other is not queue])
        wait = (queue.ahead + beside) / pace.workers
        # A lone row runs on one thread; several are spread over the workers.
        own = pace.scale * PATH_SECONDS + work / min(load.rows, pace.workers)
        now = perf_counter()
        at_rest = pace.factor.at(now) * own
        expected = at_rest + queue.factor.at(now) * wait
        ahead = PATH_WORK_SECONDS + work * min(1.0, pace.rows_at_once / load.rows)
        return Forecast(pace, ahead, own, wait, at_rest, expected, expected * (1 + queue.margin(now)))

    @contextmanager
    def under_way(self, forecast: Forecast, promised: bool = True) -> Iterator[Booking]:
        """Books a request's work for the length of a `with` block, and learns how long it took if that tells anything.

        The margin learns only from requests that were `promised` a time: a crowd of callers who do not care how long
        it takes says nothing of the promises to those who do.

        A caller that left or whose deadline passed is a lower bound of the time, and is learned from when it is
        above what was expected: else only the fast answers of a slow machine would count. Its work is freed at once,
        though Triton may still be at it: that is one Triton request for each place of a lane at most.
        """
        queue = self._queue(forecast.pace.model)
        queue.calls += 1
        queue.ahead += forecast.ahead
        booking = Booking()
        began = perf_counter()
        try:
            yield booking
        except (asyncio.CancelledError, DeadlinePassed):
            if (took := perf_counter() - began) > forecast.expected:
                self._learn(forecast, queue, took, promised)
            raise
        else:
            if booking.tells:
                self._learn(forecast, queue, perf_counter() - began, promised)
        finally:
            queue.calls -= 1
            # Sums of floats do not come back to 0 by themselves.
            queue.ahead = queue.ahead - forecast.ahead if queue.calls else 0.0

    def _learn(self, forecast: Forecast, queue: _Queue, took: float, promised: bool) -> None:
        own, wait, expected = forecast.own, forecast.wait, forecast.expected
        if not own:
            return
        now = perf_counter()
        error = GAIN * (min(took, LARGEST_FACTOR * expected) - expected) / (own * own + wait * wait)
        forecast.pace.factor.add(error * own, now)
        queue.factor.add(error * wait, now)
        if promised:
            queue.learn_promise(took - forecast.promised > CLOCK_SECONDS, now)

    def _queue(self, model: str) -> _Queue:
        queue = self._queues.get(model)
        if queue is None:
            queue = self._queues[model] = _Queue()
        return queue
