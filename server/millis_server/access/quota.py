"""How much of something a caller may use in a minute.

A token bucket that may go into debt. What a call costs is known only when its texts are tokenized, or its answer is
made; so a call is let in while the allowance is not used up, pays what it really took, and who overdrew waits until
the debt is paid off. Over any longer time the use is the limit and no more.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

MINUTE_S = 60.0


class Allowance:
    """So many units a minute, of which a minute's worth may be used at once.

    Args:
        per_minute: units.
        clock: seconds, never going back.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._left = float(per_minute)
        self._at = clock()

    @property
    def left(self) -> float:
        """Units that may be used now; negative is a debt."""
        now = self._clock()
        self._left = min(float(self.per_minute), self._left + (now - self._at) * self.per_minute / MINUTE_S)
        self._at = now
        return self._left

    def spend(self, units: int) -> None:
        """Takes units, also those that are not left."""
        self._left = self.left - units

    def wait(self, units: float) -> float:
        """Seconds until so many units are left; 0 when they are."""
        return max(0.0, units - self.left) * MINUTE_S / self.per_minute

    def go_on_from(self, before: Allowance) -> None:
        """Takes over the use of an allowance that this one replaces, so that reading a file anew forgives nothing."""
        self.spend(round(before.per_minute - before.left))
