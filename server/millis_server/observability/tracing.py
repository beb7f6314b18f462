"""Traces of calls, sent to an OpenTelemetry collector by OTLP.

A call's spans are made when it has ended, of the times that were taken anyway: one for the call, a child of the
caller's span when it sent a `traceparent` (W3C Trace Context), and one for each stage below it. So no caller waits for
them, and where no collector is named they cost nothing. Batches are sent by a thread of the SDK's. The
SDK's own variables hold: `OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME`, `OTEL_EXPORTER_OTLP_HEADERS` and the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from time import perf_counter_ns, time_ns

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from millis_server.generation import Finished
from millis_server.infer import Times
from millis_server.observability.generation import OPERATION, PROVIDER

EXPORT_SECONDS = 2
"""How long a batch may take to be sent, also the last one, for which a gateway that stops waits."""

FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Codes that are the service's own failures, by the semantic conventions for gRPC; the others are the caller's."""

Attributes = dict[str, str | int | float]


@dataclass(frozen=True, slots=True)
class _Work:
    """What was done for a call.

    Attributes:
        ended: reading of the clock when it was done, in nanoseconds.
        stages: name and seconds of each, one after the other, up to `ended`.
        attributes: of the call.
    """

    ended: int
    stages: Sequence[tuple[str, float]]
    attributes: Attributes


_WORK: ContextVar[_Work | None] = ContextVar("work", default=None)
"""Of the call whose task asks: every call has one of its own."""


class Tracing:
    """Makes and sends the spans.

    Args:
        endpoint: host:port of the collector, without TLS.
    """

    def __init__(self, endpoint: str) -> None:
        named = Resource({"service.name": "millis"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=named)
        self._provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(endpoint, insecure=True, timeout=EXPORT_SECONDS))
        )
        self._tracer = self._provider.get_tracer("millis_server")
        self._propagator = TraceContextTextMapPropagator()
        # Spans want the time of day, and stages are read off a clock that nobody sets.
        self._epoch = time_ns() - perf_counter_ns()

    def computed(self, times: Times, tokens: int) -> None:
        """Keeps what the call under way was answered with, until it ends."""
        stages = (
            ("tokenize", times.tokenize),
            ("queue", times.queue),
            ("infer", times.infer),
            ("postprocess", times.postprocess),
        )
        _WORK.set(_Work(perf_counter_ns(), stages, {"millis.tokens": tokens}))

    def generated(self, finished: Finished) -> None:
        """Keeps what the generation under way came to, until it ends."""
        manifest = finished.choice.served.manifest
        stages = (
            ("tokenize", finished.tokenize),
            ("queue", finished.queue),
            ("first token", finished.first - finished.tokenize - finished.queue),
            ("further tokens", finished.total - finished.first),
        )
        attributes: Attributes = {
            "gen_ai.operation.name": OPERATION,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": manifest.model,
            "gen_ai.response.model": f"{manifest.triton_model}/{finished.choice.served.version}",
            "gen_ai.usage.input_tokens": finished.prompt_tokens,
            "gen_ai.usage.output_tokens": sum(finished.tokens),
        }
        _WORK.set(_Work(perf_counter_ns(), stages, attributes))

    def answered(
        self, rpc: str, model: str, variant: str, code: str, began: float, metadata: Mapping[str, str]
    ) -> None:
        """Makes the spans of a call that ended.

        Args:
            rpc: full name of the method, for example `millis.v1.InferenceService/ClassifyText`.
            model: that answered, or that was asked for; empty when there is none.
            variant: that answered; empty when none did.
            code: name of the gRPC status code.
            began: reading of `perf_counter` when it came.
            metadata: that the caller sent.
        """
        attributes: Attributes = {"rpc.system.name": "grpc", "rpc.method": rpc, "rpc.response.status_code": code}
        attributes |= {name: value for name, value in (("millis.model", model), ("millis.variant", variant)) if value}
        work = _WORK.get()
        if work is not None:
            attributes |= work.attributes
        # Once the response is on its way.
        asyncio.get_running_loop().call_soon(self._make, attributes, work, began, perf_counter_ns(), metadata)

    def _make(
        self, attributes: Attributes, work: _Work | None, began: float, ended: int, metadata: Mapping[str, str]
    ) -> None:
        span = self._tracer.start_span(
            str(attributes["rpc.method"]),
            context=self._propagator.extract(metadata),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=self._epoch + int(began * 1e9),
        )
        if attributes["rpc.response.status_code"] in FAULTS:
            span.set_status(Status(StatusCode.ERROR))
        if work is not None and span.is_recording():
            within = set_span_in_context(span)
            begins = self._epoch + work.ended - int(sum(seconds for _, seconds in work.stages) * 1e9)
            for name, seconds in work.stages:
                ends = begins + int(seconds * 1e9)
                self._tracer.start_span(name, context=within, start_time=begins).end(ends)
                begins = ends
        span.end(self._epoch + ended)

    def close(self) -> None:
        """Sends what is left; takes `EXPORT_SECONDS` where no collector answers."""
        self._provider.shutdown()
