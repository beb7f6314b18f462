"""Bad input: a clear error that names field, limit and value, with google.rpc details; and the service goes on."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

import millis
from millis.v1 import inference_pb2 as inference
from millis.v1 import inference_pb2_grpc, models_pb2, models_pb2_grpc
from millis.v1 import types_pb2 as types

pytestmark = pytest.mark.usefixtures("service_goes_on")

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


def classify(**fields: object) -> inference.ClassifyTextRequest:
    return inference.ClassifyTextRequest(**{"model": "intent", "texts": ["fox"], **fields})


def tag(**fields: object) -> inference.ClassifyTokensRequest:
    return inference.ClassifyTokensRequest(**fields)


def embed(**fields: object) -> inference.EmbedTextRequest:
    return inference.EmbedTextRequest(**{"texts": ["fox"], **fields})


def options(**fields: object) -> types.RequestOptions:
    return types.RequestOptions(**fields)


@pytest.fixture
def stub(gateway):
    with grpc.insecure_channel(gateway.target) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


@pytest.fixture
def service_goes_on(client):
    yield
    assert client.classify("where is my order", model="intent").label in ("cancel", "order", "refund")


def details(error: grpc.RpcError) -> dict[str, object]:
    """google.rpc details by message name."""
    (raw,) = [value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"]
    status = status_pb2.Status.FromString(raw)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    found = {}
    for packed in status.details:
        message = getattr(error_details_pb2, packed.type_url.rpartition(".")[2])()
        packed.Unpack(message)
        found[type(message).__name__] = message
    assert found["ErrorInfo"].domain == "millis.dev"
    return found


FIELD_ERRORS = [
    (classify(texts=[]), "texts", "is empty; give 1 to 1024"),
    (classify(texts=["fox", ""]), "texts[1]", "is empty or blank"),
    (classify(texts=[" \n\t"]), "texts[0]", "is empty or blank"),
    (classify(texts=["x" * 1_000_000]), "texts[0]", "has 1000000 bytes, the limit is 65536"),
    (classify(texts=["北" * 30_000]), "texts[0]", "has 90000 bytes, the limit is 65536"),
    (classify(texts=["a\0b"]), "texts[0]", "contains a NUL character at position 1"),
    (classify(texts=["fox"] * 10_000), "texts", "has 10000 entries, the limit is 1024"),
    (classify(min_score=1.5), "min_score", "is 1.5, it must be 0 to 1"),
    (classify(min_score=float("nan")), "min_score", "is nan, it must be 0 to 1"),
    (classify(options=options(truncation=9)), "options.truncation", "is 9, which is no value of its enum"),
    (
        classify(options=options(client_request_id="x" * 129)),
        "options.client_request_id",
        "has 129 characters, the limit is 128",
    ),
    (classify(model="x" * 20_000), "model", "has 20000 characters, the limit is 128"),
    (classify(version="7" * 129), "version", "has 129 characters, the limit is 128"),
    (
        classify(options=options(slo=types.Slo(pin_variant="x" * 129))),
        "options.slo.pin_variant",
        "has 129 characters, the limit is 128",
    ),
    (
        inference.TokenizeRequest(texts=["fox"], model="x" * 20_000),
        "model",
        "has 20000 characters, the limit is 128",
    ),
    (
        classify(options=options(slo=types.Slo(min_quality=2))),
        "options.slo.min_quality",
        "is 2, it must be 0 to 1",
    ),
    (tag(), "texts", "is empty; give 1 to 1024"),
    (
        tag(texts=["a"], word_lists=[inference.WordList(words=["a"])]),
        "word_lists",
        "is filled, and so is texts; fill one of them",
    ),
    (tag(word_lists=[inference.WordList()]), "word_lists[0].words", "is empty; a list needs at least 1 word"),
    (
        tag(word_lists=[inference.WordList(words=["a b"])]),
        "word_lists[0].words[0]",
        "contains a space; a word is a piece without spaces",
    ),
    (tag(texts=["a"], aggregation=17), "aggregation", "is 17, which is no value of its enum"),
    (tag(texts=["a"], window_overlap=40), "window_overlap", "is 40, at most 31 of the 62 tokens of a window"),
    (embed(dimensions=33), "dimensions", "is 33, vectors of embed have 32"),
    (embed(normalize=False), "normalize", "is false, but embed scales its vectors to length 1 as part of the model"),
    (inference.RankTextsRequest(query=" ", documents=["a"]), "query", "is empty or blank"),
    (inference.RankTextsRequest(query="a", documents=["b", ""]), "documents[1]", "is empty or blank"),
    (
        inference.ClassifyTextRequest(texts=["fox"]),
        "model",
        "is empty, and ClassifyText has no default; name one of intent, topics",
    ),
    (
        inference.TokenizeRequest(texts=["fox"]),
        "model",
        "is empty, and Tokenize has no default; name one of embed, intent, ner, rerank, topics",
    ),
]

METHODS = {
    inference.ClassifyTextRequest: "ClassifyText",
    inference.ClassifyTokensRequest: "ClassifyTokens",
    inference.EmbedTextRequest: "EmbedText",
    inference.RankTextsRequest: "RankTexts",
    inference.TokenizeRequest: "Tokenize",
}


@pytest.mark.parametrize(("request_", "field", "problem"), FIELD_ERRORS, ids=lambda value: str(value)[:40])
def test_a_wrong_field_is_named_with_its_limit(stub, request_, field, problem):
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, METHODS[type(request_)])(request_)
    assert (caught.value.code(), caught.value.details()) == (INVALID, f"{field}: {problem}")
    found = details(caught.value)
    assert found["ErrorInfo"].reason == "INVALID_FIELD"
    (violation,) = found["BadRequest"].field_violations
    assert (violation.field, violation.description) == (field, problem)


LONG = " ".join(["order"] * 100)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (classify(texts=["fox", LONG]), "texts[1]: has 102 tokens, the limit of intent is 64"),
        (tag(texts=[LONG]), "texts[0]: has 102 tokens, the limit of ner is 64"),
        (embed(texts=[LONG]), "texts[0]: has 102 tokens, the limit of embed is 64"),
        (
            inference.RankTextsRequest(query="fox", documents=["a", LONG]),
            "documents[1]: has 104 tokens, the limit of rerank is 64",
        ),
    ],
)
def test_a_text_that_is_too_long_is_refused_when_the_caller_wants_to_know(stub, request_, message):
    request_.options.truncation = types.TRUNCATION_STRATEGY_ERROR
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, METHODS[type(request_)])(request_)
    assert (caught.value.code(), caught.value.details()) == (INVALID, message)
    assert details(caught.value)["ErrorInfo"].reason == "INPUT_TOO_LONG"


def test_a_query_that_leaves_no_place_for_a_document_is_refused(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.RankTexts(inference.RankTextsRequest(query=LONG, documents=["fox"]))
    assert caught.value.code() == INVALID
    assert details(caught.value)["BadRequest"].field_violations[0].field == "query"


@pytest.mark.parametrize(
    ("request_", "kind", "name", "message"),
    [
        (
            classify(model="nope"),
            "model",
            "nope",
            "no model 'nope'; models are: embed, intent, ner, rerank, topics",
        ),
        (classify(version="7"), "version", "7", "version '7' of 'intent' is not loaded; loaded are: 1"),
        (
            classify(options=options(slo=types.Slo(pin_variant="int3"))),
            "variant",
            "int3",
            "model 'intent' has no variant 'int3'; variants are: fp32, int8",
        ),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(stub, request_, kind, name, message):
    with pytest.raises(grpc.RpcError) as caught:
        stub.ClassifyText(request_)
    assert (caught.value.code(), caught.value.details()) == (NOT_FOUND, message)
    resource = details(caught.value)["ResourceInfo"]
    assert (resource.resource_type, resource.resource_name) == (f"millis.dev/{kind}", name)


def test_a_model_of_another_task_is_refused(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.ClassifyText(classify(model="embed"))
    expected = "model 'embed' is for embedding; ClassifyText needs text-classification"
    assert (caught.value.code(), caught.value.details()) == (PRECONDITION, expected)
    assert details(caught.value)["ErrorInfo"].reason == "TASK_MISMATCH"


def test_a_quality_that_no_variant_has_is_refused(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.ClassifyText(classify(options=options(slo=types.Slo(min_quality=0.5))))
    assert caught.value.code() == PRECONDITION
    assert details(caught.value)["ErrorInfo"].reason == "QUALITY_UNAVAILABLE"


@pytest.mark.parametrize("method", ["GetModel", "LoadModel", "UnloadModel", "WatchModels"])
def test_a_name_longer_than_any_model_has_is_refused(gateway, method):
    with grpc.insecure_channel(gateway.target) as channel, pytest.raises(grpc.RpcError) as caught:
        answer = getattr(models_pb2_grpc.ModelServiceStub(channel), method)
        request = getattr(models_pb2, f"{method}Request")(name="x" * 20_000)
        list(answer(request)) if method == "WatchModels" else answer(request)
    expected = "name: has 20000 characters, the limit is 128"
    assert (caught.value.code(), caught.value.details()) == (INVALID, expected)


def test_the_longest_name_comes_back_in_the_error(stub):
    name = "\U0010ffff" * 128
    with pytest.raises(grpc.RpcError) as caught:
        stub.ClassifyText(classify(model=name))
    assert caught.value.code() == NOT_FOUND
    assert details(caught.value)["ResourceInfo"].resource_name == name


@pytest.mark.parametrize("token", ["€", "x", "YWJj!"])
def test_a_page_token_of_somebody_else_is_refused(gateway, token):
    with grpc.insecure_channel(gateway.target) as channel, pytest.raises(grpc.RpcError) as caught:
        models_pb2_grpc.ModelServiceStub(channel).ListModels(models_pb2.ListModelsRequest(page_token=token))
    expected = "page_token: is not one that ListModels returned"
    assert (caught.value.code(), caught.value.details()) == (INVALID, expected)


def test_a_message_over_the_limit_is_refused_by_grpc(gateway):
    unlimited = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(gateway.target, options=unlimited) as channel, pytest.raises(grpc.RpcError) as caught:
        inference_pb2_grpc.InferenceServiceStub(channel).ClassifyText(classify(texts=["x" * 60_000] * 300))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_lone_surrogate_never_leaves_the_sdk(client):
    with pytest.raises(millis.InvalidArgumentError, match=r"texts\[1\]"):
        client.classify(["fox", "bad \ud800"], model="intent")


def test_a_deadline_that_nothing_can_keep_is_refused_at_once(client):
    texts = ["order " * 70] * 1000
    with ThreadPoolExecutor(1) as caller:
        other = caller.submit(client.embed, texts, cache="bypass")  # an idle gateway would let it try
        time.sleep(0.05)
        with pytest.raises(millis.ResourceExhaustedError) as refused:
            client.embed(texts, timeout=0.05)
    assert refused.value.details.reason == "DEADLINE_UNREACHABLE"
    assert len(other.result()) == 1000
