import json

import grpc

from millis.testing import FakeError, FakeGateway
from millis.v1 import inference_pb2 as pb
from millis.v1 import types_pb2
from tests.client.conftest import Run


def test_bench_measures_every_level(run: Run, gateway: FakeGateway) -> None:
    code, out, err = run("bench", "--concurrency", "1,3", "--requests", "7", "--json", "--text", "a", "--text", "b")
    reports = [json.loads(line) for line in out.splitlines()]
    assert [(each["concurrency"], each["requests"], each["errors"]) for each in reports] == [(1, 7, 0), (3, 7, 0)]
    assert all(0 < each["p50_ms"] <= each["p90_ms"] <= each["p99_ms"] and each["per_second"] > 0 for each in reports)
    assert {text for request in gateway.requests for text in request.message.texts} == {"a", "b"}
    assert {request.message.options.cache_policy for request in gateway.requests} == {types_pb2.CACHE_POLICY_BYPASS}
    assert (code, err) == (0, "")


def test_bench_measures_the_cache_when_it_is_asked_to(run: Run, gateway: FakeGateway) -> None:
    assert run("bench", "--concurrency", "1", "--requests", "1", "--cache", "default")[0] == 0
    assert {request.message.options.cache_policy for request in gateway.requests} == {types_pb2.CACHE_POLICY_DEFAULT}


def test_bench_counts_errors_and_ends_with_code_1(run: Run, gateway: FakeGateway) -> None:
    full = FakeError(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full")
    gateway.script("EmbedText", *[pb_answer] * 10, *[full] * 3)
    code, out, err = run("bench", "--call", "embed", "--concurrency", "2", "--requests", "5")
    assert (code, out.splitlines()[0].split()) == (
        1,
        ["CONCURRENCY", "REQUESTS", "ERRORS", "P50", "MS", "P90", "MS", "P99", "MS", "REQUESTS/S"],
    )
    assert out.splitlines()[1].split()[:3] == ["2", "2", "3"]
    assert err == "millis bench: 3 errors, the first: queue full\n"


def pb_answer(request: pb.EmbedTextRequest) -> pb.EmbedTextResponse:
    return pb.EmbedTextResponse(
        results=[pb.Embedding(data=b"\0\0\0\0")] * len(request.texts),
        dimensions=1,
        encoding="EMBEDDING_ENCODING_FLOAT32",
    )


def test_bench_says_at_once_that_nothing_answers(run: Run, gateway: FakeGateway) -> None:
    gateway.script("ClassifyText", FakeError(grpc.StatusCode.NOT_FOUND, "no model"))
    assert run("bench") == (1, "", "millis: no model\n")
