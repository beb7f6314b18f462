"""Time of the bare engine for a request, from the points of a measured profile."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence

from millis_server.manifest import LatencyProfile


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
