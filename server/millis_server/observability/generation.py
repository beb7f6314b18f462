"""Metrics of generations, under the names of OpenTelemetry's semantic conventions for generative AI.

Prometheus spells them with underscores and the unit: `gen_ai.server.time_to_first_token` in seconds becomes
`gen_ai_server_time_to_first_token_seconds`.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from millis_server.catalogue import Catalogue
from millis_server.generation import Finished
from millis_server.triton.streams import Streams

FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0),
)
"""The conventions' buckets, with more of them below 20 ms, where small models are."""

TOKEN_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.4, 0.75, 2.5)
REQUEST_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
USAGE_BUCKETS = tuple(4.0**power for power in range(14))

LABELS = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_response_model")
OPERATION = "generate_content"
PROVIDER = "millis"


class GenerationMetrics:
    """What is counted when a generation ends.

    Args:
        registry: to register with.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, meaning, (*LABELS, *labels), registry=registry, buckets=buckets)

        self._first = histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From the arrival of a GenerateText to its first token.",
            FIRST_TOKEN_BUCKETS,
        )
        self._token = histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Mean time of a text from one token to the next, after the first.",
            TOKEN_BUCKETS,
        )
        self._request = histogram(
            "gen_ai_server_request_duration_seconds", "From the arrival of a GenerateText to its end.", REQUEST_BUCKETS
        )
        self._usage = histogram(
            "gen_ai_client_token_usage", "Tokens of a prompt, and of its texts.", USAGE_BUCKETS, "gen_ai_token_type"
        )

    def finished(self, finished: Finished) -> None:
        """Counts a generation that came to its end."""
        manifest = finished.choice.served.manifest
        labels = (OPERATION, PROVIDER, manifest.model, f"{manifest.triton_model}/{finished.choice.served.version}")
        self._first.labels(*labels).observe(finished.first)
        if finished.per_token is not None:
            self._token.labels(*labels).observe(finished.per_token)
        self._request.labels(*labels).observe(finished.total)
        self._usage.labels(*labels, "input").observe(finished.prompt_tokens)
        self._usage.labels(*labels, "output").observe(sum(finished.tokens))


class GenerationReadings(Collector):
    """What is read off at a scrape.

    Args:
        catalogue: the models.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def collect(self) -> Iterator[Metric]:
        """All readings."""
        labels = ("model", "variant", "version")
        places = GaugeMetricFamily("millis_generation_places", "Texts being generated.", labels=labels)
        waiting = GaugeMetricFamily("millis_generation_waiting", "Callers who wait for a place.", labels=labels)
        tokens = CounterMetricFamily(
            "millis_generation_tokens", "Tokens generated, also for callers who left.", labels=labels
        )
        for variant in list(self._catalogue.variants.values()):
            served = variant.current
            if served is not None and isinstance(served.lane, Streams):
                names = (variant.manifest.model, variant.manifest.variant, served.version)
                places.add_metric(names, served.lane.places.taken)
                waiting.add_metric(names, served.lane.places.waiting)
                tokens.add_metric(names, served.lane.tokens)
        yield places
        yield waiting
        yield tokens
