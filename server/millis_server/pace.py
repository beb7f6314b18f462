"""How fast one model version is: by its profile, by what it did when it was loaded, and by what was seen since."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from statistics import median
from time import perf_counter

from millis_server.engine_time import EngineTime
from millis_server.manifest import LatencyProfile

PATH_SECONDS = 0.002
"""Time of one request outside the engine, on an idle machine: gateway, wire and Triton (`make bench` measures it)."""

LARGEST_FACTOR = 4.0
"""Factors stay within this, up or down, and a seen time counts as no more than this of the predicted one: a single
stalled answer must not shut a version out."""

FORGET_SECONDS = 10.0
"""What is not renewed for so long begins to fade, with the same half-life: a version that looked slow is given another
chance."""

TYPICAL_TOKENS = 16


class Factor:
    """How much longer than predicted something takes; it fades to 1 when nothing renews it."""

    __slots__ = ("_renewed", "_value")

    def __init__(self) -> None:
        self._value = 1.0
        self._renewed = 0.0

    def at(self, now: float) -> float:
        """The factor as it stands at `now`, on the clock of `perf_counter`."""
        return 1 + (self._value - 1) * kept(now - self._renewed)

    def add(self, change: float, now: float) -> None:
        """Moves it."""
        self._value = min(max(self.at(now) + change, 1 / LARGEST_FACTOR), LARGEST_FACTOR)
        self._renewed = now


def kept(age: float) -> float:
    """What is left of something learned so many seconds ago; all of it at first, or rare calls would teach nothing."""
    return float(0.5 ** max(age / FORGET_SECONDS - 1, 0.0))


class Pace:
    """How fast one model version is known to be.

    Args:
        model: logical model name.
        profile: from its manifest; without points its time is not predicted.
        workers: engine calls that it runs side by side.
        rows_at_once: most rows of one call that its lane takes before it looks at other calls.

    Attributes:
        model, workers, rows_at_once: as given.
        engine: its measured time; None when nothing was measured.
        scale: of that time, and of the path around it, on this machine and with the version's config; 1 at most.
        factor: of its own time, learned from answers.
    """

    __slots__ = ("_typical", "engine", "factor", "model", "rows_at_once", "scale", "workers")

    def __init__(self, model: str, profile: LatencyProfile | None, workers: int = 2, rows_at_once: int = 64) -> None:
        self.model = model
        self.workers = workers
        self.rows_at_once = rows_at_once
        self.engine = EngineTime(profile) if profile is not None and profile.points else None
        self._typical = self.engine.seconds(1, TYPICAL_TOKENS) if self.engine else inf
        self.scale = 1.0
        self.factor = Factor()

    @property
    def typical(self) -> float:
        """Engine time of one short text, to compare versions by; infinite when nothing was measured."""
        return self.scale * self._typical

    def calibrate(self, seen: Sequence[tuple[int, float]]) -> None:
        """Sets out from what this machine, and the version's config, make of the profile.

        Without it a profile from a slower machine, or of another engine, would keep the version from being asked, and
        so from being known better; a version that is faster is held to that. One that is slower only begins so, for
        what looks too slow is not asked and would never learn that it is not. What other work does to a measurement
        only adds to it: it may say by its median that the version is faster, and only by its least that it is slower.

        Args:
            seen: tokens of a lone text, and the seconds that it took through the lane, at least once.
        """
        if self.engine is None:
            return
        shares = [seconds / (PATH_SECONDS + self.engine.seconds(1, tokens)) for tokens, seconds in seen]
        usual = median(shares)
        if usual < 1:
            self.scale = max(usual, 1 / LARGEST_FACTOR)
        else:
            self.factor.add(max(0.0, min(shares) - 1), perf_counter())
