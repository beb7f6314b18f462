"""What each caller used, where the gateway knows its callers."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from millis_server.access.guard import Guard


class CallerReadings(Collector):
    """Read off at each scrape, on the scrape's thread.

    Args:
        guard: knows them.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def collect(self) -> Iterator[Metric]:
        """All readings."""
        calls = CounterMetricFamily("millis_caller_calls", "Calls made with a caller's key.", labels=("caller",))
        refused = CounterMetricFamily(
            "millis_caller_quota_refusals", "Of these, for want of quota.", labels=("caller",)
        )
        tokens = CounterMetricFamily(
            "millis_caller_tokens", "Tokens of a caller's texts, prompts and generated texts.", labels=("caller",)
        )
        for caller in self._guard.callers:
            calls.add_metric((caller.name,), caller.calls)
            refused.add_metric((caller.name,), caller.refused)
            tokens.add_metric((caller.name,), caller.used)
        yield from (calls, refused, tokens)
