"""The example runs, against a gateway with made-up answers."""

from __future__ import annotations

import re

import grpc
import pytest

from examples import grounded_answer
from millis.testing import FakeError, FakeGateway, generated
from millis.v1 import inference_pb2 as pb

QUESTION = "How do I cancel a gift card that I have bought?"


def run(gateway: FakeGateway, *options: str) -> int:
    return grounded_answer.main([QUESTION, "--target", gateway.target, *options])


@pytest.mark.parametrize("top", [1, 2])
def test_the_best_articles_are_what_the_model_answers_from(capsys: pytest.CaptureFixture[str], top: int) -> None:
    with FakeGateway() as gateway:
        gateway.script("GenerateText", generated("Not", " at", " all."))
        assert run(gateway, "--top", str(top)) == 0
        ranked, asked = (request.message for request in gateway.requests)
    assert (ranked.model, ranked.query, ranked.top_k) == ("embed", QUESTION, top)
    assert asked.model == "assistant"
    system, user = asked.chat.messages
    assert (system.role, user) == (pb.CHAT_ROLE_SYSTEM, pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=QUESTION))
    head, *articles = system.content.split("\n\n")
    assert head == "Answer from this text."
    assert len(articles) == top
    assert set(articles) <= set(ranked.documents)
    text, _, *sources, first = capsys.readouterr().out.splitlines()
    assert text == "Not at all."
    titles = [article.partition(":")[0] for article in articles]
    assert [re.sub(r" \(\d\.\d\d\)$", "", source) for source in sources] == [f"source: {title}" for title in titles]
    assert re.fullmatch(r"first token after \d+ ms", first)


def test_a_failure_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeGateway() as gateway:
        gateway.script("RankTexts", FakeError(grpc.StatusCode.NOT_FOUND, "there is no model embed"))
        assert run(gateway) == 1
    assert capsys.readouterr().err == "grounded_answer: there is no model embed\n"
