"""The calls, on both clients, over real gRPC."""

import asyncio
import threading
from datetime import timedelta
from typing import Any

import grpc
import pytest

import millis
from millis.testing import FakeError, FakeGateway, classified
from millis.types import Classification, Entity, Label, Ranked, Span, TokenClassification
from millis.v1 import inference_pb2 as pb
from millis.v1 import types_pb2
from tests.client.twins import AnyClient, maybe_await

UNIT = "code_point"
OTHER = {"Authorization": "Basic x"}


async def test_one_text_gives_one_classification(client: AnyClient, gateway: FakeGateway) -> None:
    gateway.script("ClassifyText", classified("refund"))
    result = await maybe_await(client.classify("I want my money back"))
    assert result == Classification((Label("refund", 1.0),), result.info)
    assert (result.label, result.score) == ("refund", 1.0)


async def test_a_list_gives_results_in_order_with_info(client: AnyClient) -> None:
    results = await maybe_await(client.classify(["first", "second", "third"], client_request_id="r-1"))
    singles = [await maybe_await(client.classify(text)) for text in ("first", "second", "third")]
    assert list(results) == singles
    assert (len(results), results[1], results[1:]) == (3, singles[1], tuple(singles[1:]))
    assert results.info == millis.Info(
        served_by=millis.ServedBy("fake", "1", "int8", False, "fake gateway"),
        usage=millis.Usage(inputs=3, tokens=9),
        timing=None,
        cache="disabled",
        truncated_inputs=(),
        client_request_id="r-1",
    )


async def test_no_label_above_the_floor_is_none(client: AnyClient) -> None:
    result = await maybe_await(client.classify("a text", min_score=0.999))
    assert (result.labels, result.label, result.score) == ((), None, 0.0)


async def test_every_option_reaches_the_gateway(client: AnyClient, gateway: FakeGateway) -> None:
    common: dict[str, Any] = {
        "model": "m",
        "version": "2",
        "variant": "int8",
        "latency_target": 0.0125,
        "min_quality": 0.5,
        "truncation": "error",
        "cache": "bypass",
        "include_timing": True,
        "offset_unit": "utf8_byte",
        "client_request_id": "id",
    }
    await maybe_await(client.classify("t", top_k=0, min_score=0.25, **common))
    await maybe_await(
        client.tag("t", aggregation="max", min_score=0.25, include_tokens=True, window_overlap=0, **common)
    )
    await maybe_await(client.embed("t", normalize=False, dimensions=4, encoding="int8", **common))
    await maybe_await(client.rank("q", ["d"], top_k=1, **common))
    await maybe_await(client.tokenize("t", add_special_tokens=False, **common))

    options = types_pb2.RequestOptions(
        client_request_id="id",
        slo=types_pb2.Slo(min_quality=0.5, pin_variant="int8"),
        cache_policy=types_pb2.CACHE_POLICY_BYPASS,
        truncation=types_pb2.TRUNCATION_STRATEGY_ERROR,
        include_timing=True,
        offset_unit=types_pb2.OFFSET_UNIT_UTF8_BYTE,
    )
    options.slo.latency_target.FromMicroseconds(12_500)
    named: dict[str, Any] = {"model": "m", "version": "2", "options": options}
    assert [request.message for request in gateway.requests] == [
        pb.ClassifyTextRequest(texts=["t"], top_k=0, min_score=0.25, **named),
        pb.ClassifyTokensRequest(
            texts=["t"],
            aggregation=pb.AGGREGATION_STRATEGY_MAX,
            min_score=0.25,
            include_tokens=True,
            window_overlap=0,
            **named,
        ),
        pb.EmbedTextRequest(texts=["t"], normalize=False, dimensions=4, encoding=pb.EMBEDDING_ENCODING_INT8, **named),
        pb.RankTextsRequest(query="q", documents=["d"], top_k=1, **named),
        pb.TokenizeRequest(texts=["t"], add_special_tokens=False, **named),
    ]


async def test_an_option_left_out_or_none_is_not_sent(client: AnyClient, gateway: FakeGateway) -> None:
    await maybe_await(client.classify("t"))
    await maybe_await(client.classify("t", model=None, top_k=None, variant=None, latency_target=None))
    assert [request.message for request in gateway.requests] == [pb.ClassifyTextRequest(texts=["t"])] * 2


async def test_timing_comes_when_asked(client: AnyClient) -> None:
    result = await maybe_await(client.classify("t", include_timing=True))
    assert result.info.timing == millis.Timing(1.0, 0.0, 0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("unit", "spans"),
    [
        ("code_point", [(2, 8), (9, 10)]),
        ("utf8_byte", [(5, 12), (13, 15)]),
        ("utf16_code_unit", [(3, 9), (10, 11)]),
    ],
)
async def test_spans_cut_the_entity_in_every_unit(client: AnyClient, unit: Any, spans: list[tuple[int, int]]) -> None:
    text = "😀 Zürich Ω"
    result = await maybe_await(client.tag(text, offset_unit=unit))
    assert [(each.span.start, each.span.end) for each in result.entities] == spans
    assert [each.span.cut(text) for each in result.entities] == [each.text for each in result.entities]


async def test_one_word_list_gives_one_result_with_word_indices(client: AnyClient) -> None:
    result = await maybe_await(client.tag(words=["in", "Paris"]))
    entity = Entity("Paris", "NAME", 0.75, Span(3, 8, UNIT), first_word=1, last_word=1)
    assert result == TokenClassification((entity,), (), 1, result.info)


async def test_a_list_of_word_lists_gives_results(client: AnyClient, gateway: FakeGateway) -> None:
    results = await maybe_await(client.tag(words=[["in", "Paris"], ("nowhere",)]))
    assert [len(each.entities) for each in results] == [1, 0]
    assert gateway.requests[0].message == pb.ClassifyTokensRequest(
        word_lists=[pb.WordList(words=["in", "Paris"]), pb.WordList(words=["nowhere"])]
    )


async def test_tokens_come_when_asked(client: AnyClient) -> None:
    result = await maybe_await(client.tag("in Paris", include_tokens=True))
    assert result.tokens == (
        millis.ClassifiedToken("in", "O", 0.75, Span(0, 2, UNIT)),
        millis.ClassifiedToken("Paris", "B-NAME", 0.75, Span(3, 8, UNIT)),
    )


async def test_rank_gives_the_callers_documents_best_first(client: AnyClient, gateway: FakeGateway) -> None:
    documents = ["a b", "c d", "a b c d"]
    ranking = await maybe_await(client.rank("c d", documents, top_k=2))
    assert ranking == millis.Ranking((Ranked(1, 1.0, "c d"), Ranked(2, 0.5, "a b c d")), ranking.info, "probability")
    assert not gateway.requests[0].message.return_documents


async def test_tokenize_tells_ids_spans_and_the_limit(client: AnyClient) -> None:
    result = await maybe_await(client.tokenize("hi you"))
    assert [(each.text, each.span, each.special) for each in result.tokens] == [
        ("[CLS]", Span(0, 0, UNIT), True),
        ("hi", Span(0, 2, UNIT), False),
        ("you", Span(3, 6, UNIT), False),
        ("[SEP]", Span(0, 0, UNIT), True),
    ]
    assert (result.ids[0], result.ids[-1], result.max_tokens) == (101, 102, 128)


async def test_the_default_timeout_is_the_deadline_of_a_call(client: AnyClient, gateway: FakeGateway) -> None:
    await maybe_await(client.classify("t"))
    await maybe_await(client.classify("t", timeout=timedelta(seconds=5)))
    first, second = (request.time_left for request in gateway.requests)
    assert first is not None and 20 < first < 31  # gRPC rounds up
    assert second is not None and 0 < second < 6


async def test_a_call_without_an_answer_ends_at_its_timeout(client: AnyClient, gateway: FakeGateway) -> None:
    gone = threading.Event()
    gateway.script("ClassifyText", lambda request: gone.wait(30) and classified("late"))
    with pytest.raises(millis.DeadlineExceededError) as caught:
        await maybe_await(client.classify("t", timeout=0.1))
    gone.set()
    assert str(caught.value) == f"the gateway at {gateway.target} gave no full answer within the timeout of 0.1 s"


async def test_unavailable_is_retried(client: AnyClient, gateway: FakeGateway) -> None:
    gateway.script("ClassifyText", *[FakeError(grpc.StatusCode.UNAVAILABLE)] * 2, classified("in the end"))
    result = await maybe_await(client.classify("t"))
    assert (result.label, len(gateway.requests)) == ("in the end", 3)


@pytest.mark.parametrize("name", ["INTERNAL", "RESOURCE_EXHAUSTED", "ABORTED", "UNKNOWN"])
async def test_nothing_but_unavailable_is_retried(client: AnyClient, gateway: FakeGateway, name: str) -> None:
    gateway.script("ClassifyText", FakeError(grpc.StatusCode[name]), classified("never asked"))
    with pytest.raises(millis.StatusError):
        await maybe_await(client.classify("t"))
    assert len(gateway.requests) == 1


async def test_retries_end_after_the_configured_attempts(kind: type[AnyClient], gateway: FakeGateway) -> None:
    gateway.script("ClassifyText", *[FakeError(grpc.StatusCode.UNAVAILABLE)] * 3)
    client = kind(gateway.target, retry=millis.RetryConfig(attempts=2))
    with pytest.raises(millis.UnavailableError):
        await maybe_await(client.classify("t"))
    assert len(gateway.requests) == 2
    await maybe_await(client.close())


async def test_a_key_goes_with_every_call(
    kind: type[AnyClient], gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLIS_API_KEY", " from-the-environment\n")
    for client in (kind(gateway.target), kind(gateway.target, api_key="own"), kind(gateway.target, metadata=OTHER)):
        await maybe_await(client.classify("t"))
        await maybe_await(client.close())
    sent = [request.metadata["authorization"] for request in gateway.requests]
    assert sent == ["Bearer from-the-environment", "Bearer own", "Basic x"]


@pytest.mark.parametrize(
    ("key", "environment", "metadata", "message"),
    [
        ("a key", "", None, "api_key: a key is printable ASCII without spaces"),
        ("", "", None, "api_key: a key is printable ASCII without spaces"),
        (None, "schlüssel", None, "MILLIS_API_KEY: a key is printable ASCII without spaces"),
        ("key", "", OTHER, "api_key and metadata's authorization are both given"),
    ],
)
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(
    kind: type[AnyClient],
    monkeypatch: pytest.MonkeyPatch,
    key: str | None,
    environment: str,
    metadata: dict[str, str] | None,
    message: str,
) -> None:
    monkeypatch.setenv("MILLIS_API_KEY", environment)
    with pytest.raises(ValueError) as caught:
        kind("host:1", api_key=key, metadata=metadata)
    assert str(caught.value) == message


async def test_metadata_goes_with_every_call(kind: type[AnyClient], gateway: FakeGateway) -> None:
    client = kind(gateway.target, metadata={"Authorization": "Bearer token"})
    await maybe_await(client.classify("t"))
    await maybe_await(client.models.list())
    assert [request.metadata["authorization"] for request in gateway.requests] == ["Bearer token"] * 2
    await maybe_await(client.close())


async def test_a_response_of_the_wrong_size_is_the_gateways_bug(client: AnyClient, gateway: FakeGateway) -> None:
    gateway.script("ClassifyText", classified("only one"))
    with pytest.raises(millis.InternalError) as caught:
        await maybe_await(client.classify(["a", "b"]))
    assert str(caught.value) == "the gateway answered 1 results for 2 inputs. This is a bug in the gateway."


async def test_wait_ready_returns_when_the_gateway_serves(client: AnyClient, gateway: FakeGateway) -> None:
    gateway.serving = False
    timer = threading.Timer(0.2, setattr, (gateway, "serving", True))
    timer.start()
    await maybe_await(client.wait_ready(30))
    assert gateway.serving
    timer.join()


async def test_wait_ready_ends_at_its_timeout(client: AnyClient, gateway: FakeGateway) -> None:
    gateway.serving = False
    with pytest.raises(millis.DeadlineExceededError) as caught:
        await maybe_await(client.wait_ready(timedelta(milliseconds=200)))
    assert str(caught.value) == f"the gateway at {gateway.target} was not ready within 0.2 s"


async def test_a_closed_client_says_so(client: AnyClient) -> None:
    await maybe_await(client.classify("t"))
    await maybe_await(client.close())
    await maybe_await(client.close())
    with pytest.raises(millis.ClientClosedError):
        await maybe_await(client.classify("t"))


async def test_cancelling_a_task_cancels_its_call(gateway: FakeGateway) -> None:
    arrived, gone = threading.Event(), threading.Event()

    def never(request: pb.ClassifyTextRequest) -> pb.ClassifyTextResponse:
        arrived.set()
        gone.wait(30)
        return classified("late")

    gateway.script("ClassifyText", never)
    async with millis.AsyncClient(gateway.target) as client:
        task = asyncio.create_task(client.classify("t"))
        await asyncio.to_thread(arrived.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    gone.set()


async def test_closing_an_async_client_does_not_look_like_a_cancelled_task(gateway: FakeGateway) -> None:
    arrived, gone = threading.Event(), threading.Event()

    def never(request: pb.ClassifyTextRequest) -> pb.ClassifyTextResponse:
        arrived.set()
        gone.wait(30)
        return classified("late")

    gateway.script("ClassifyText", never)
    client = millis.AsyncClient(gateway.target)
    task = asyncio.create_task(client.classify("t"))
    await asyncio.to_thread(arrived.wait, 30)
    await client.close()
    with pytest.raises(millis.RequestCancelledError):
        await task
    gone.set()


def test_an_async_client_belongs_to_one_loop(gateway: FakeGateway) -> None:
    client = millis.AsyncClient(gateway.target)
    first = asyncio.new_event_loop()
    first.run_until_complete(client.classify("t"))
    second = asyncio.new_event_loop()
    with pytest.raises(RuntimeError, match=r"^this AsyncClient belongs to another event loop"):
        second.run_until_complete(client.classify("t"))
    second.close()
    first.run_until_complete(client.close())
    first.close()


def test_threads_share_a_client(gateway: FakeGateway) -> None:
    texts = [f"text {number}" for number in range(40)]
    answers: dict[str, Classification] = {}
    with millis.Client(gateway.target) as client:
        expected = dict(zip(texts, client.classify(texts), strict=True))
        threads = [
            threading.Thread(target=lambda text=text: answers.update({text: client.classify(text)})) for text in texts
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == expected


def test_a_client_finds_a_gateway_that_came_back(gateway: FakeGateway) -> None:
    with millis.Client(gateway.target) as client:
        client.classify("t")
        gateway.stop()
        with FakeGateway(port=int(gateway.target.rpartition(":")[2])) as again:
            client.wait_ready(30)
            assert client.classify("t").label is not None
            assert len(again.requests) == 1
