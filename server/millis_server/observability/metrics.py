"""Prometheus metrics: what is counted while requests run, and what is read off when somebody asks.

A request is counted once, by `Metrics.answered`, which answering.py calls for every RPC; a handler cannot forget it.
What the gateway knows anyway (cache, pending inputs, states of models) costs a request nothing: `_Readings` looks at
it at each scrape. docs/metrics.md lists every metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from millis_server.access.guard import Guard
from millis_server.cache import AnswerCache
from millis_server.catalogue import Catalogue, State
from millis_server.generation import Finished
from millis_server.observability.callers import CallerReadings
from millis_server.observability.generation import GenerationMetrics, GenerationReadings
from millis_server.triton.lane import Lane

BUCKETS = (
    *(0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.006, 0.008),
    *(0.012, 0.016, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
)
"""Seconds. Dense from a cache hit (some 0.1 ms in the gateway) to a small model's answer (some ms)."""


Decisions = Mapping[tuple[str, str, str], int]
"""Number of requests by model, variant and cause."""


class Metrics:
    """The metrics of one gateway, in a registry of their own.

    Args:
        catalogue: the models; a name that is none of them never becomes a label, or callers could fill the memory.
        cache: read at each scrape.
        decisions: of routing, by model, variant and cause, of each path of requests; read at each scrape.
        pending: number of inputs being worked on, read at each scrape.
        guard: knows what each caller used, read at each scrape; None where everybody may call.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        cache: AnswerCache,
        decisions: Sequence[Decisions],
        pending: Callable[[], int],
        guard: Guard | None = None,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's own
        self._catalogue = catalogue
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "millis_requests",
            "Calls that ended, by gRPC status code.",
            ("rpc", "model", "variant", "code"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "millis_request_seconds",
            "Time from the arrival of a call in the gateway to its end.",
            ("rpc", "model", "variant"),
            registry=self.registry,
            buckets=BUCKETS,
        )
        self._queue = self._stage("millis_queue_seconds", "Waiting in the gateway for a place at the model.")
        self._infer = self._stage("millis_infer_seconds", "From handing the tensors to Triton to having its answer.")
        # Series are looked up once and kept: `labels()` costs more than counting.
        self._calls: dict[tuple[str, str, str, str], tuple[Counter, Histogram]] = {}
        self._stages: dict[tuple[str, str], tuple[Histogram, Histogram]] = {}
        self._generation = GenerationMetrics(self.registry)
        self.registry.register(GenerationReadings(catalogue))
        self.registry.register(_Readings(catalogue, cache, decisions, pending))
        if guard is not None:
            self.registry.register(CallerReadings(guard))
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def listen(self, host: str, port: int) -> WSGIServer:
        """Answers scrapes from a thread of its own.

        Raises:
            OSError: nobody can listen there.
        """
        server, _ = start_http_server(port, host, self.registry)
        return server

    def answered(self, rpc: str, model: str, variant: str, code: str, seconds: float) -> None:
        """Counts a call that ended.

        Args:
            rpc: name of the method, for example `ClassifyText`.
            model: that answered, or that was asked for; empty when there is none.
            variant: that answered; empty when none did.
            code: name of the gRPC status code.
            seconds: that it took.
        """
        key = (rpc, model, variant, code)
        series = self._calls.get(key)
        if series is None:
            if model and model not in self._catalogue.models():
                self.answered(rpc, "", "", code, seconds)
                return
            series = self._requests.labels(*key), self._seconds.labels(rpc, model, variant)
            self._calls[key] = series
        series[0].inc()
        series[1].observe(seconds)

    def computed(self, model: str, variant: str, queue: float, infer: float) -> None:
        """Counts the stages, in seconds, of a call for which the model worked."""
        stages = self._stages.get((model, variant))
        if stages is None:
            stages = self._queue.labels(model, variant), self._infer.labels(model, variant)
            self._stages[model, variant] = stages
        stages[0].observe(queue)
        stages[1].observe(infer)

    def generated(self, finished: Finished) -> None:
        """Counts a generation that came to its end."""
        self._generation.finished(finished)

    def _stage(self, name: str, meaning: str) -> Histogram:
        return Histogram(name, meaning, ("model", "variant"), registry=self.registry, buckets=BUCKETS)


class _Readings(Collector):
    """What is read off at a scrape. It runs on the scrape's thread: it only looks, and copies what may change."""

    def __init__(
        self,
        catalogue: Catalogue,
        cache: AnswerCache,
        decisions: Sequence[Decisions],
        pending: Callable[[], int],
    ) -> None:
        self._catalogue = catalogue
        self._cache = cache
        self._decisions = decisions
        self._pending = pending

    def collect(self) -> Iterator[Metric]:
        """All readings."""
        yield GaugeMetricFamily("millis_pending_inputs", "Inputs being worked on.", self._pending())
        yield self._states()
        yield self._routing()
        yield from self._tokens()
        yield self._exits()
        yield from self._cache_totals()
        yield from self._cache_counts()

    def _states(self) -> Metric:
        states = GaugeMetricFamily(
            "millis_model_state", "1 for the state a variant is in.", labels=("model", "variant", "version", "state")
        )
        for variant in list(self._catalogue.variants.values()):
            manifest, served = variant.manifest, variant.current
            for state in State:
                labels = (manifest.model, manifest.variant, served.version if served else "", state.value)
                states.add_metric(labels, float(variant.state is state))
        return states

    def _tokens(self) -> Iterator[Metric]:
        labels = ("model", "variant", "version")
        real = CounterMetricFamily(
            "millis_computed_tokens", "Tokens of inputs that the engine computed.", labels=labels
        )
        padded = CounterMetricFamily("millis_padded_tokens", "Tokens of padding that it computed.", labels=labels)
        for variant in list(self._catalogue.variants.values()):
            if (served := variant.current) is not None and isinstance(served.lane, Lane):
                names = (variant.manifest.model, variant.manifest.variant, served.version)
                real.add_metric(names, served.lane.tokens)
                padded.add_metric(names, served.lane.padded_tokens)
        yield real
        yield padded

    def _exits(self) -> Metric:
        exits = CounterMetricFamily(
            "millis_exits",
            "Rows that a variant with early exits answered, by the layers they went through.",
            labels=("model", "variant", "version", "layers"),
        )
        for variant in list(self._catalogue.variants.values()):
            if (served := variant.current) is not None and isinstance(served.lane, Lane):
                for layers, rows in list(served.lane.exits.items()):
                    names = (variant.manifest.model, variant.manifest.variant, served.version, str(layers))
                    exits.add_metric(names, rows)
        return exits

    def _routing(self) -> Metric:
        routing = CounterMetricFamily(
            "millis_routing_decisions",
            "Requests by the variant that was chosen for them (none for a refused one) and why.",
            labels=("model", "variant", "cause"),
        )
        for decisions in self._decisions:
            for labels, count in list(decisions.items()):
                routing.add_metric(labels, count)
        return routing

    def _cache_totals(self) -> Iterator[Metric]:
        cache = self._cache
        yield GaugeMetricFamily("millis_cache_entries", "Rows in the answer cache.", len(cache))
        yield GaugeMetricFamily("millis_cache_bytes", "Memory of the answer cache.", cache.bytes)
        yield GaugeMetricFamily("millis_cache_max_bytes", "Most memory it may take; 0 is off.", cache.max_bytes)
        yield CounterMetricFamily("millis_cache_evictions", "Rows dropped for want of room.", cache.evictions)

    def _cache_counts(self) -> Iterator[Metric]:
        rows = CounterMetricFamily(
            "millis_cache_rows",
            "Rows by result: hit, miss, or shared with another caller who was having it computed.",
            labels=("model", "variant", "result"),
        )
        saved = CounterMetricFamily(
            "millis_cache_saved_seconds",
            "Hits times the mean time that a row of the variant took of late.",
            labels=("model", "variant"),
        )
        for (model, variant), counts in list(self._cache.counts.items()):
            rows.add_metric((model, variant, "hit"), counts.hits)
            rows.add_metric((model, variant, "miss"), counts.misses)
            rows.add_metric((model, variant, "shared"), counts.shared)
            saved.add_metric((model, variant), counts.saved_seconds)
        yield rows
        yield saved
