"""The fake gateway keeps the promises that users' tests build on."""

import threading
from collections.abc import Iterator

import grpc
import pytest

import millis
from millis.testing import FakeError, FakeGateway, classified, generated
from millis.v1 import inference_pb2 as pb


def test_equal_texts_get_equal_answers_from_any_gateway() -> None:
    answers = []
    for _ in range(2):
        with FakeGateway() as gateway, millis.Client(gateway.target) as client:
            answers.append(
                (client.classify("t", top_k=0), client.tag("A b"), client.embed("t"), client.tokenize("a b"))
            )
    assert answers[0] == answers[1]


def test_a_script_is_used_up_in_order_and_then_the_default_comes_back(gateway: FakeGateway) -> None:
    gateway.script("ClassifyText", classified("first"), lambda request: classified(request.texts[0].upper()))
    gateway.script("ClassifyText", lambda request: FakeError(grpc.StatusCode.ABORTED, "third"))
    with millis.Client(gateway.target) as client:
        default = client.classify("t", model="other")
        assert default.label == "first"
        assert client.classify("second").label == "SECOND"
        with pytest.raises(millis.StatusError, match=r"^third$"):
            client.classify("t")
        assert client.classify("t").label in ("negative", "neutral", "positive")


def test_requests_are_recorded_with_metadata_and_deadline(gateway: FakeGateway) -> None:
    with millis.Client(gateway.target, timeout=None, metadata={"team": "search"}) as client:
        client.embed("t")
    (request,) = gateway.requests
    assert (request.method, request.message) == ("EmbedText", pb.EmbedTextRequest(texts=["t"]))
    assert (request.metadata["team"], request.time_left) == ("search", None)


@pytest.mark.parametrize("method", ["classify", "WatchModels", ""])
def test_a_script_for_no_rpc_is_refused(gateway: FakeGateway, method: str) -> None:
    with pytest.raises(ValueError) as caught:
        gateway.script(method, classified("x"))
    assert str(caught.value) == (
        f"method: {method!r} is not one of ClassifyText, ClassifyTokens, EmbedText, GenerateText, GetModel, "
        "ListModels, LoadModel, RankTexts, Tokenize, UnloadModel"
    )


def test_gateways_do_not_share_a_port() -> None:
    with FakeGateway() as one, FakeGateway() as two:
        assert one.target != two.target


def test_a_gateway_stops_while_a_watch_runs() -> None:
    with FakeGateway() as gateway, millis.Client(gateway.target) as client:
        stream = client.models.watch()
        next(stream)
        gateway.stop()
        stream.close()


def test_generated_is_the_stream_of_a_text(gateway: FakeGateway) -> None:
    gateway.script("GenerateText", generated("Hello", " world"), lambda request: generated(request.prompt.upper()))
    with millis.Client(gateway.target) as client:
        stream = client.generate("t")
        assert [delta.text for delta in stream] == ["Hello", " world"]
        assert stream.finished is not None
        assert stream.finished.completions == (millis.Completion(0, "stop", 2),)
        assert [client.generate("t").text() for _ in range(2)] == ["T", "t"]


def test_a_request_remembers_that_its_caller_left(gateway: FakeGateway) -> None:
    gone = threading.Event()

    def waiting(request: pb.GenerateTextRequest) -> Iterator[pb.GenerateTextResponse]:
        yield from generated("a")[:2]
        gone.wait(30)

    gateway.script("GenerateText", waiting)
    with millis.Client(gateway.target) as client:
        with client.generate("left") as stream:
            next(stream)
        client.generate("stayed").text()
    left, stayed = gateway.requests
    assert (left.cancelled.wait(30), stayed.cancelled.is_set()) == (True, False)
    gone.set()
