"""Work of the service itself on long texts: it is admitted as all work is, and leaves the event loop free."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import grpc
import grpc.aio
import pytest

from millis.v1 import inference_pb2 as pb
from millis.v1 import inference_pb2_grpc
from millis_server.answering import Around
from millis_server.cache import AnswerCache
from millis_server.catalogue import Catalogue
from millis_server.infer import INLINE_CHARACTERS, Inference
from millis_server.observability.metrics import Metrics
from millis_server.prediction import Predictor
from millis_server.requests import RequestReader
from millis_server.service import InferenceService
from tests.server.test_routing import variant

TOKEN = SimpleNamespace(ids=[7], tokens=["order"], offsets=[(0, 5)], special_tokens_mask=[0])
ADMITTED = 10


class WaitingTokenizer:
    """Goes on only when the event loop does, except with texts of one word."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def encoding(self, text: str, special: bool) -> SimpleNamespace:
        assert special
        if len(text) > INLINE_CHARACTERS:
            self.begun.set()
            assert self.go_on.wait(5), "tokenizing held up the event loop"
        return TOKEN


@pytest.fixture
async def served():
    """A stub of a real gRPC server, and the tokenizer behind it."""
    light, tokenizer, catalogue, predictor = (
        variant("light", 0.9, 1.0),
        WaitingTokenizer(),
        Catalogue(),
        Predictor(),
    )
    object.__setattr__(light.current, "tokenizer", tokenizer)
    catalogue.variants["intent-light"] = light
    path = Inference(catalogue, None, AnswerCache(0), predictor, ADMITTED)
    metrics = Metrics(catalogue, AnswerCache(0), [], lambda: 0)
    service = InferenceService(path, None, catalogue, RequestReader(1024, 65536), predictor, Around(metrics))
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel), tokenizer
    await server.stop(None)


async def test_more_texts_to_tokenize_than_the_gateway_admits_are_refused(served):
    stub, _ = served
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Tokenize(pb.TokenizeRequest(model="intent", texts=["order"] * (ADMITTED + 1)))
    expected = "0 inputs are being worked on and the call has 11; the limit is 10"
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, expected)


async def test_other_calls_are_answered_while_a_long_text_is_tokenized(served):
    stub, tokenizer = served
    long = asyncio.ensure_future(stub.Tokenize(pb.TokenizeRequest(texts=["order " * INLINE_CHARACTERS])))
    await asyncio.to_thread(tokenizer.begun.wait, 5)
    short = await stub.Tokenize(pb.TokenizeRequest(texts=["order"]), timeout=5)
    assert not long.done()
    tokenizer.go_on.set()
    results = list((await long).results)
    assert (results, [token.id for token in results[0].tokens]) == (list(short.results), [7])
