"""Traces that the gateway sends: to a collector that listens, and to one that is not there."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

import millis
from benchmarks.gateway import Running, running_gateway
from millis.v1 import inference_pb2, inference_pb2_grpc
from tests import tiny_generation
from tests.conftest import Published
from tests.gateway.test_metrics import free_port

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = ("traceparent", f"00-{TRACE}-{CALLER}-01")
NOT_SAMPLED = ("traceparent", f"00-{TRACE}-{CALLER}-00")
INFERENCE = "millis.v1.InferenceService"
TOKENS = 5
PATIENCE_SECONDS = 20


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self._requests: queue.Queue[trace_service_pb2.ExportTraceServiceRequest] = queue.Queue()
        self.services: set[str] = set()

    def Export(  # noqa: N802  # the proto names it
        self, request: trace_service_pb2.ExportTraceServiceRequest, _context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        """One batch."""
        self._requests.put(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self, name: str) -> list[Span]:
        """Waits for the span of a call; returns it and those below it, by their begin."""
        found: list[Span] = []
        ends = time.monotonic() + PATIENCE_SECONDS
        while not any(span.name == name for span in found):
            request = self._requests.get(timeout=max(0.01, ends - time.monotonic()))
            for resource in request.resource_spans:
                self.services |= {
                    one.value.string_value for one in resource.resource.attributes if one.key == "service.name"
                }
                found += [span for scope in resource.scope_spans for span in scope.spans]
        call = next(span for span in found if span.name == name)
        return [
            call,
            *sorted((s for s in found if s.parent_span_id == call.span_id), key=lambda s: s.start_time_unix_nano),
        ]


@pytest.fixture(scope="module")
def endpoint_and_collector() -> Iterator[tuple[str, Collector]]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", collector
    server.stop(None)


@pytest.fixture(scope="module")
def collector(endpoint_and_collector: tuple[str, Collector]) -> Collector:
    return endpoint_and_collector[1]


@pytest.fixture(scope="module")
def repository(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`intent` and `writer`, which generates."""
    folder = tmp_path_factory.mktemp("tracing") / "repository"
    published.intent_alone(folder)
    tiny_generation.publish_language_model(folder, "writer", tiny_generation.language_model("llama"))
    return folder


@pytest.fixture(scope="module")
def traced(repository: Path, endpoint_and_collector: tuple[str, Collector]) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with running_gateway(repository, "--otlp-endpoint", endpoint_and_collector[0]) as running:
            yield running


@pytest.fixture(scope="module")
def stub(traced: Running) -> Iterator[inference_pb2_grpc.InferenceServiceStub]:
    with grpc.insecure_channel(traced.target) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


def attributes(span: Span) -> dict[str, str | int]:
    return {
        one.key: one.value.string_value if one.value.HasField("string_value") else one.value.int_value
        for one in span.attributes
    }


def classify(stub: inference_pb2_grpc.InferenceServiceStub, model: str, parent: tuple[str, str]) -> None:
    request = inference_pb2.ClassifyTextRequest(model=model, texts=["where is my order"])
    request.options.slo.pin_variant = "int8"
    stub.ClassifyText(request, metadata=(parent,))


def test_a_call_is_a_child_of_its_callers_span_with_a_span_for_each_stage(stub, collector):
    classify(stub, "intent", SAMPLED)
    call, *stages = collector.spans(f"{INFERENCE}/ClassifyText")
    assert (call.trace_id.hex(), call.parent_span_id.hex(), call.kind) == (TRACE, CALLER, Span.SPAN_KIND_SERVER)
    assert attributes(call) == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{INFERENCE}/ClassifyText",
        "rpc.response.status_code": "OK",
        "millis.model": "intent",
        "millis.variant": "int8",
        "millis.tokens": 6,
    }
    assert [stage.name for stage in stages] == ["tokenize", "queue", "infer", "postprocess"]
    times = [call.start_time_unix_nano, *(s.start_time_unix_nano for s in stages), stages[-1].end_time_unix_nano]
    assert [*times, call.end_time_unix_nano] == sorted([*times, call.end_time_unix_nano])
    assert abs(call.end_time_unix_nano - time.time_ns()) < 60e9
    assert collector.services == {"millis"}


def test_a_call_that_fails_has_its_code_and_only_the_services_own_failures_are_errors(stub, collector, traced):
    with pytest.raises(grpc.RpcError):
        classify(stub, "nobody", SAMPLED)
    (call,) = collector.spans(f"{INFERENCE}/ClassifyText")
    assert (attributes(call)["rpc.response.status_code"], call.status.code) == ("NOT_FOUND", Status.STATUS_CODE_UNSET)
    with millis.Client(traced.target) as client:
        client.models.unload("intent")
        with pytest.raises(grpc.RpcError):
            classify(stub, "intent", SAMPLED)
        client.models.load("intent")
    (call,) = collector.spans(f"{INFERENCE}/ClassifyText")
    assert (attributes(call)["rpc.response.status_code"], call.status.code) == ("UNAVAILABLE", Status.STATUS_CODE_ERROR)
    assert collector.spans("millis.v1.ModelService/LoadModel")[0].parent_span_id == b""


def test_what_the_caller_does_not_sample_is_not_sent(stub, collector):
    classify(stub, "intent", NOT_SAMPLED)
    stub.Tokenize(inference_pb2.TokenizeRequest(model="intent", texts=["order"]))
    # Spans are sent in the order in which they ended.
    (call,) = collector.spans(f"{INFERENCE}/Tokenize")
    assert call.trace_id.hex() != TRACE


def test_a_generation_says_what_it_read_and_made(stub, collector):
    request = inference_pb2.GenerateTextRequest(model="writer", prompt="where is my order")
    request.max_tokens = TOKENS
    request.ignore_eos = True
    assert len(list(stub.GenerateText(request, metadata=(SAMPLED,)))) > 1
    call, *stages = collector.spans(f"{INFERENCE}/GenerateText")
    assert [stage.name for stage in stages] == ["tokenize", "queue", "first token", "further tokens"]
    assert attributes(call) == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{INFERENCE}/GenerateText",
        "rpc.response.status_code": "OK",
        "millis.model": "writer",
        "millis.variant": "fp32",
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "millis",
        "gen_ai.request.model": "writer",
        "gen_ai.response.model": "writer-fp32/1",
        "gen_ai.usage.input_tokens": len(tiny_generation.bytes_tokenizer().encode("where is my order")),
        "gen_ai.usage.output_tokens": TOKENS,
    }


def test_a_collector_that_is_not_there_holds_up_no_call_and_no_stop(published, tmp_path):
    repository = published.intent_alone(tmp_path / "repository")
    with (
        running_gateway(repository, "--otlp-endpoint", f"127.0.0.1:{free_port()}") as running,
        millis.Client(running.target) as client,
    ):
        assert len(client.classify(["where is my order"] * 3, model="intent")) == 3
        running.process.terminate()
        assert running.process.wait(PATIENCE_SECONDS) == 0
