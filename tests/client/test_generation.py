"""Streams of text, on both clients, over real gRPC."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

import millis
from millis.testing import FakeError, FakeGateway, generated
from millis.v1 import inference_pb2 as pb
from tests.client.twins import AnyClient, maybe_await, take

Messages = Iterator[pb.GenerateTextResponse]


async def drain(stream: Any) -> list[millis.TextDelta]:
    return list(stream) if isinstance(stream, Iterator) else [delta async for delta in stream]


async def leave(stream: Any) -> None:
    """Goes through the `with` block of a stream after one delta."""
    if isinstance(stream, millis.GenerationStream):
        with stream:
            next(stream)
    else:
        async with stream:
            await anext(stream)


def endless(request: pb.GenerateTextRequest) -> Messages:
    started, delta, _ = generated("on ")
    yield started
    while True:
        yield delta


class Paused:
    """A script that waits after its first delta until the test lets it go on."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def __call__(self, request: pb.GenerateTextRequest) -> Messages:
        started, first, second, finished = generated("first", " second")
        yield started
        yield first
        self.go_on.wait(30)
        yield second
        yield finished


@pytest.fixture
def paused(gateway: FakeGateway) -> Iterator[Paused]:
    script = Paused()
    gateway.script("GenerateText", script)
    yield script
    script.go_on.set()


async def test_deltas_come_and_then_how_it_ended(client: AnyClient) -> None:
    stream = client.generate("a b", model="m", logprobs=True, client_request_id="r-1")
    before = (stream.started, stream.finished)
    (first,) = await take(stream, 1)
    at_first = (stream.started, stream.finished)
    (second,) = await drain(stream)
    served_by = millis.ServedBy("m", "1", "int8", False, "fake gateway")
    started = millis.Info(served_by, millis.Usage(inputs=1, tokens=4), None, "disabled", (), "r-1")
    usage = millis.Usage(inputs=1, tokens=4, generated_tokens=2)
    finished = stream.finished
    assert before == (None, None)
    assert at_first == (started, None)
    assert [first, second] == [
        millis.TextDelta(0, "a ", (first.token_ids[0],), (-0.25,)),
        millis.TextDelta(0, "b", (second.token_ids[0],), (-0.25,)),
    ]
    assert finished == millis.Generated((millis.Completion(0, "stop", 2),), finished.info, finished.timing)
    assert finished.info == millis.Info(served_by, usage, None, "disabled", (), "r-1")
    assert finished.timing == millis.GenerationTiming(0.0, 0.001, 0.001, 0.002)


async def test_one_token_has_no_time_per_token(client: AnyClient) -> None:
    stream = client.generate("word")
    await maybe_await(stream.text())
    timing = stream.finished.timing
    assert (timing.queue_s, timing.time_to_first_token_s, timing.total_s) == (0.0, 0.001, 0.001)
    assert timing.time_per_token_s is None


async def test_deltas_arrive_before_the_end(client: AnyClient, paused: Paused) -> None:
    stream = client.generate("t")
    (first,) = await take(stream, 1)
    assert (first.text, stream.finished) == ("first", None)
    paused.go_on.set()
    assert [delta.text for delta in await drain(stream)] == [" second"]


async def test_text_is_the_whole_of_answer_0(client: AnyClient) -> None:
    assert await maybe_await(client.generate("a b c").text()) == "a b c"
    stream = client.generate("a b c")
    await take(stream, 2)
    assert [await maybe_await(stream.text()) for _ in range(2)] == ["a b c"] * 2


async def test_several_answers_come_whole_and_text_is_the_first(client: AnyClient) -> None:
    stream = client.generate("a b", n=2)
    deltas = await drain(stream)
    assert [(delta.index, delta.text, len(delta.token_ids)) for delta in deltas] == [(0, "a b", 2), (1, "a b", 2)]
    assert stream.finished.completions == (millis.Completion(0, "stop", 2), millis.Completion(1, "stop", 2))
    assert await maybe_await(stream.text()) == "a b"


@pytest.mark.parametrize(
    ("options", "text", "reason", "tokens"),
    [
        ({"max_tokens": 2}, "one two ", "length", 2),
        ({"max_tokens": 3}, "one two three", "stop", 3),
        ({"stop": "two"}, "one ", "stop", 1),
        ({"stop": ["three", "wo"]}, "one t", "stop", 2),
        ({"choices": ["yes", "no"]}, "yes", "stop", 1),
        ({"max_tokens": 4, "ignore_eos": True}, "one two threeone ", "length", 4),
    ],
)
async def test_the_fake_obeys(client: AnyClient, options: Any, text: str, reason: str, tokens: int) -> None:
    stream = client.generate("one two three", **options)
    assert await maybe_await(stream.text()) == text
    assert stream.finished.completions == (millis.Completion(0, reason, tokens),)


async def test_the_fake_reads_chats_and_tokens(client: AnyClient) -> None:
    chat = [millis.Message("system", "be brief"), millis.Message("user", "hello you")]
    assert await maybe_await(client.generate(chat).text()) == "hello you"
    assert await maybe_await(client.generate([1, 23]).text()) == "1 23"


@pytest.mark.parametrize("end", ["cancel", "leave"])
async def test_who_leaves_early_cancels_the_call_at_the_gateway(
    client: AnyClient, gateway: FakeGateway, end: str
) -> None:
    gateway.script("GenerateText", endless)
    stream = client.generate("t")
    if end == "leave":
        await leave(stream)
    else:
        await take(stream, 1)
        stream.cancel()
    assert await asyncio.to_thread(gateway.requests[0].cancelled.wait, 30)
    with pytest.raises(millis.RequestCancelledError):
        await drain(stream)
    with pytest.raises(millis.RequestCancelledError):
        await maybe_await(stream.text())
    assert stream.finished is None


def test_a_blocking_stream_that_nobody_holds_is_cancelled(gateway: FakeGateway) -> None:
    gateway.script("GenerateText", endless)
    with millis.Client(gateway.target) as client:
        for delta in client.generate("t"):
            assert delta.text == "on "
            break
        assert gateway.requests[0].cancelled.wait(30)


async def test_cancelling_after_the_end_changes_nothing(client: AnyClient, gateway: FakeGateway) -> None:
    stream = client.generate("a b")
    await drain(stream)
    stream.cancel()
    assert (await maybe_await(stream.text()), gateway.requests[0].cancelled.is_set()) == ("a b", False)


def test_another_thread_ends_a_stream_that_waits(gateway: FakeGateway, paused: Paused) -> None:
    with millis.Client(gateway.target) as client:
        stream = client.generate("t")
        next(stream)
        timer = threading.Timer(0.1, stream.cancel)
        timer.start()
        with pytest.raises(millis.RequestCancelledError):
            next(stream)
        timer.join()


async def test_cancelling_the_task_cancels_the_call(gateway: FakeGateway, paused: Paused) -> None:
    async with millis.AsyncClient(gateway.target) as client:
        stream = client.generate("t")
        await anext(stream)
        waiting = asyncio.create_task(stream.text())
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await asyncio.to_thread(gateway.requests[0].cancelled.wait, 30)
        with pytest.raises(millis.RequestCancelledError):
            await stream.text()


async def test_closing_the_client_ends_a_stream_that_waits(gateway: FakeGateway, paused: Paused) -> None:
    client = millis.AsyncClient(gateway.target)
    stream = client.generate("t")
    await anext(stream)
    waiting = asyncio.create_task(stream.text())
    await asyncio.sleep(0.05)
    await client.close()
    with pytest.raises(millis.RequestCancelledError):
        await waiting


async def test_a_closed_client_generates_nothing(client: AnyClient) -> None:
    await maybe_await(client.close())
    with pytest.raises(millis.ClientClosedError):
        client.generate("t")


async def test_an_error_in_the_middle_comes_after_the_text_before_it(client: AnyClient, gateway: FakeGateway) -> None:
    error = FakeError(grpc.StatusCode.INTERNAL, "the engine died", reason="BACKEND_FAULT")
    gateway.script("GenerateText", [*generated("half", " a text")[:2], error])
    stream = client.generate("t")
    (delta,) = await take(stream, 1)
    assert delta.text == "half"
    for _ in range(2):  # and again whenever it is asked
        with pytest.raises(millis.InternalError) as caught:
            await maybe_await(stream.text())
        assert (str(caught.value), caught.value.reason) == ("the engine died", "BACKEND_FAULT")
    assert (stream.finished, gateway.requests[0].cancelled.is_set()) == (None, False)


async def test_a_refusal_is_an_error_of_the_stream(client: AnyClient, gateway: FakeGateway) -> None:
    gateway.script("GenerateText", FakeError(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", retry_after=0.5))
    stream = client.generate("t")
    with pytest.raises(millis.ResourceExhaustedError) as caught:
        await take(stream, 1)
    assert (stream.started, caught.value.retry_after) == (None, 0.5)


async def test_a_stream_without_its_end_is_the_gateways_bug(client: AnyClient, gateway: FakeGateway) -> None:
    gateway.script("GenerateText", generated("a")[:-1])
    with pytest.raises(millis.InternalError) as caught:
        await maybe_await(client.generate("t").text())
    assert str(caught.value) == "the gateway answered a stream without its last message. This is a bug in the gateway."


async def test_an_event_of_a_newer_gateway_is_passed_over(client: AnyClient, gateway: FakeGateway) -> None:
    gateway.script("GenerateText", [pb.GenerateTextResponse(), *generated("a")])
    assert await maybe_await(client.generate("t").text()) == "a"


async def test_unavailable_is_retried_until_the_first_message(client: AnyClient, gateway: FakeGateway) -> None:
    gone = FakeError(grpc.StatusCode.UNAVAILABLE)
    gateway.script("GenerateText", gone, gone, [*generated("half")[:2], gone], generated("never asked"))
    stream = client.generate("t")
    with pytest.raises(millis.UnavailableError):
        await drain(stream)
    assert (stream.started is not None, len(gateway.requests)) == (True, 3)


@pytest.mark.parametrize(
    ("settings", "options", "low", "high"),
    [
        ({}, {}, 100, 121),
        ({"timeout": 5}, {}, 100, 121),
        ({"timeout": 600}, {}, 500, 601),
        ({}, {"timeout": 5}, 0, 6),
    ],
)
async def test_it_has_longer_than_other_calls(
    kind: Callable[..., AnyClient], gateway: FakeGateway, settings: Any, options: Any, low: int, high: int
) -> None:
    client = kind(gateway.target, **settings)
    await maybe_await(client.generate("t", **options).text())
    await maybe_await(client.close())
    left = gateway.requests[0].time_left
    assert left is not None and low < left < high


async def test_a_client_without_a_limit_sets_none(kind: Callable[..., AnyClient], gateway: FakeGateway) -> None:
    client = kind(gateway.target, timeout=None)
    await maybe_await(client.generate("t").text())
    await maybe_await(client.close())
    assert gateway.requests[0].time_left is None


async def test_a_stream_ends_at_its_timeout(client: AnyClient, gateway: FakeGateway, paused: Paused) -> None:
    stream = client.generate("t", timeout=0.3)
    with pytest.raises(millis.DeadlineExceededError) as caught:
        await drain(stream)
    assert str(caught.value) == f"the gateway at {gateway.target} gave no full answer within the timeout of 0.3 s"
    assert await asyncio.to_thread(gateway.requests[0].cancelled.wait, 30)


def test_threads_stream_side_by_side(gateway: FakeGateway) -> None:
    texts: dict[int, str] = {}
    with millis.Client(gateway.target) as client:
        threads = [
            threading.Thread(target=lambda number=number: texts.update({number: client.generate(f"a {number}").text()}))
            for number in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert texts == {number: f"a {number}" for number in range(20)}
