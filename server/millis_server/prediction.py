"""Predicts when a version would answer a request, and learns from what it sees.

A prediction has three parts:

- the engine's own time, from the manifest's latency profile, by number and length of texts (`EngineTime`);
- the work that is already there. The lanes of a model's variants are counted as one queue: whatever of it comes
  later must not break what was promised before. Other models work beside it, and take an equal share of the cores
  for as long as they have work (processor sharing, Kleinrock 1967);
- the path around the engine.

The sum is corrected by what was seen. Each version keeps the mean of the ratio of seen to predicted times, and how far
ratios lie above it; every answer moves both a little, as TCP times its retransmissions (Jacobson and Karels 1988). So
the time promised is one that nearly every request keeps, and little more than that on a quiet machine.

Everything here runs on the event loop and costs microseconds.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from time import perf_counter

from millis_server.errors import DeadlinePassed
from millis_server.manifest import LatencyProfile, Manifest

PATH_SECONDS = 0.002
"""Time of one request outside the engine, on an idle machine: gateway, wire and Triton (`make bench` measures it)."""

MEAN_GAIN = 1 / 16
LATENESS_GAIN = 1 / 8
"""Share of a new sample in mean and lateness: a few dozen answers, a fraction of a second under load."""

MARGIN = 6.0
"""Times the mean lateness that a promised time has above the mean: 99 % of a normal distribution."""

FIRST_LATENESS = 0.05
"""Lateness before anything was seen."""

LARGEST_CORRECTION = 8.0
"""Samples beyond this factor, up or down, count as this factor: one stalled answer must not shut a version out."""

FORGET_SECONDS = 10.0
"""Half-life of a correction that is not renewed: a version that looked slow is given another chance."""

TYPICAL_TOKENS = 16

TOKENS_PER_CHARACTER = 0.3
"""Before any text was seen; English has 0.2 to 0.25 in a WordPiece vocabulary."""

DENSITY_GAIN = 1 / 32
SPECIAL_TOKENS = 2
"""Around each text, in the BERT and RoBERTa families."""


class EngineTime:
    """Time of the bare engine with one thread, interpolated between the points of a measured profile.

    Args:
        profile: with at least one point.
    """

    def __init__(self, profile: LatencyProfile) -> None:
        curves: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        for point in profile.points:
            curves[point.batch].append((point.tokens, point.p50_ms / 1e3))
        self._curves = [(batch, _Curve(sorted(points))) for batch, points in sorted(curves.items())]

    def seconds(self, texts: int, tokens: float) -> float:
        """Returns the time for `texts` texts of `tokens` tokens each.

        Between two measured batches time grows in a line, beyond the largest in proportion. It is never more than
        that of the texts one by one, which is how the backend would run them.
        """
        smaller, curve = self._curves[0]
        one_by_one = curve.at(tokens) * texts / smaller
        if texts <= smaller:
            return one_by_one
        below = one_by_one * smaller / texts
        for batch, curve in self._curves[1:]:
            above = curve.at(tokens)
            if texts <= batch:
                between = below + (above - below) * (texts - smaller) / (batch - smaller)
                return min(between, one_by_one)
            smaller, below = batch, above
        return min(below * texts / smaller, one_by_one)


class _Curve:
    """Seconds by tokens: lines between points, level before the first, the last line drawn on after the last."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        self._tokens = [tokens for tokens, _ in points]
        self._seconds = [seconds for _, seconds in points]

    def at(self, tokens: float) -> float:
        places, seconds = self._tokens, self._seconds
        if tokens <= places[0]:
            return seconds[0]
        if len(places) == 1:
            return seconds[0] * tokens / places[0]
        right = min(bisect_right(places, tokens), len(places) - 1)
        left = right - 1
        slope = (seconds[right] - seconds[left]) / (places[right] - places[left])
        return seconds[left] + slope * (tokens - places[left])


class Pace:
    """How fast one model version is known to be.

    Args:
        model: logical model name.
        profile: from its manifest; without points its time is not predicted.

    Attributes:
        model: as given.
        engine: its measured time; None when nothing was measured.
        typical: engine time of one short text, to compare versions by; infinite when nothing was measured.
    """

    __slots__ = ("_lateness", "_mean", "_seen", "engine", "model", "typical")

    def __init__(self, model: str, profile: LatencyProfile | None) -> None:
        self.model = model
        self.engine = EngineTime(profile) if profile is not None and profile.points else None
        self.typical = self.engine.seconds(1, TYPICAL_TOKENS) if self.engine else inf
        self._mean = 1.0
        self._lateness = FIRST_LATENESS
        self._seen = 0.0

    def correction(self, now: float) -> tuple[float, float]:
        """Mean and lateness of seen to predicted time as they stand at `now`, faded when nothing renewed them."""
        kept = 0.5 ** ((now - self._seen) / FORGET_SECONDS)
        return 1 + (self._mean - 1) * kept, FIRST_LATENESS + (self._lateness - FIRST_LATENESS) * kept

    def learn(self, ratio: float, now: float) -> None:
        """Takes in the ratio of a seen to a predicted time."""
        mean, lateness = self.correction(now)
        ratio = min(max(ratio, 1 / LARGEST_CORRECTION), LARGEST_CORRECTION)
        self._mean = mean + MEAN_GAIN * (ratio - mean)
        self._lateness = lateness + LATENESS_GAIN * (max(ratio - mean, 0.0) - lateness)
        self._seen = now


@dataclass(frozen=True, slots=True)
class Load:
    """The size of a request before it is tokenized.

    Attributes:
        rows: estimated rows of the model's input.
        tokens: estimated tokens of each.
    """

    rows: int
    tokens: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """When one version would answer.

    Attributes:
        pace: of the version.
        ahead: engine time that this request will put before later ones, in seconds of one thread.
        uncorrected: seconds to the answer by profile and backlog alone.
        seconds: the same, corrected, with the margin that nearly every request keeps; infinite when unmeasured.
        alone: what `seconds` would be if nothing else were under way.
    """

    pace: Pace
    ahead: float
    uncorrected: float
    seconds: float
    alone: float


class Predictor:
    """Predicts for all versions of all models: they share one machine.

    Args:
        workers: engine calls that the machine runs side by side.
        rows_at_once: most rows of one call that a lane takes before it looks at other calls.
    """

    def __init__(self, workers: int, rows_at_once: int) -> None:
        self._workers = workers
        self._rows_at_once = rows_at_once
        self._calls: Counter[str] = Counter()
        self._ahead: dict[str, float] = {}
        self._densities: dict[str, float] = {}

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return not self._ahead

    @property
    def backlog(self) -> dict[str, float]:
        """Engine time under way by model, in seconds of one thread; models without any are left out."""
        return dict(self._ahead)

    def load(self, manifest: Manifest, inputs: int, characters: int) -> Load:
        """Estimates the size of a request from its characters, by the tokens that the model's texts had so far."""
        density = self._densities.get(manifest.model, TOKENS_PER_CHARACTER)
        tokens = SPECIAL_TOKENS + density * characters / inputs
        if tokens <= manifest.max_tokens:
            return Load(inputs, tokens)
        if not manifest.per_token:
            return Load(inputs, manifest.max_tokens)
        windows = -(-tokens // manifest.max_tokens)
        return Load(int(inputs * windows), tokens / windows)

    def learn_density(self, manifest: Manifest, rows: int, tokens: int, characters: int) -> None:
        """Takes in how many tokens a request's characters became; none of its texts may have been truncated."""
        if not characters:
            return
        density = self._densities.get(manifest.model, TOKENS_PER_CHARACTER)
        seen = max(tokens - SPECIAL_TOKENS * rows, 0) / characters
        self._densities[manifest.model] = density + DENSITY_GAIN * (seen - density)

    def forecast(self, pace: Pace, load: Load) -> Forecast:
        """Predicts when a version would answer a request that came now."""
        if pace.engine is None:
            return Forecast(pace, 0.0, 0.0, inf, inf)
        work = pace.engine.seconds(load.rows, load.tokens)
        before = self._ahead.get(pace.model, 0.0)
        beside = sum([min(ahead, before + work) for model, ahead in self._ahead.items() if model != pace.model])
        wait = (before + beside) / self._workers
        # A lone row runs on one thread; several are spread over the workers.
        alone = PATH_SECONDS + work / min(load.rows, self._workers)
        ahead = work * min(1.0, self._rows_at_once / load.rows)
        mean, lateness = pace.correction(perf_counter())
        factor = mean + MARGIN * lateness
        return Forecast(pace, ahead, alone + wait, factor * (alone + wait), factor * alone)

    @contextmanager
    def under_way(self, forecast: Forecast) -> Iterator[None]:
        """Books a request's work for the length of a `with` block, and learns how long it took.

        A caller that left or whose deadline passed is a lower bound of the time, and is learned from when it is
        above what is known: else only the fast answers of a slow machine would count. Its work is freed at once,
        though Triton may still be at it: that is one Triton request for each place of a lane at most.
        """
        model = forecast.pace.model
        self._calls[model] += 1
        self._ahead[model] = self._ahead.get(model, 0.0) + forecast.ahead
        began = perf_counter()
        try:
            yield
        except (asyncio.CancelledError, DeadlinePassed):
            _learn(forecast, began, at_least=True)
            raise
        else:
            _learn(forecast, began)
        finally:
            self._calls[model] -= 1
            if self._calls[model]:
                self._ahead[model] -= forecast.ahead
            else:
                # Sums of floats do not come back to 0 by themselves.
                del self._calls[model], self._ahead[model]


def _learn(forecast: Forecast, began: float, at_least: bool = False) -> None:
    if not forecast.uncorrected:
        return
    now = perf_counter()
    ratio = (now - began) / forecast.uncorrected
    if not at_least or ratio > forecast.pace.correction(now)[0]:
        forecast.pace.learn(ratio, now)
