"""The requests of `generate`; both clients build them here."""

from typing import Any

import pytest

import millis
from millis import _generation
from millis.errors import FieldViolation
from millis.testing import FakeGateway
from millis.v1 import inference_pb2 as pb
from millis.v1 import types_pb2
from tests.client.twins import AnyClient, maybe_await

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}}
CHAT = pb.Chat(
    messages=[
        pb.ChatMessage(role=pb.CHAT_ROLE_SYSTEM, content="be brief"),
        pb.ChatMessage(role=pb.CHAT_ROLE_USER, content="hi"),
        pb.ChatMessage(role=pb.CHAT_ROLE_ASSISTANT, content="hello"),
    ]
)


async def test_every_option_reaches_the_gateway(client: AnyClient, gateway: FakeGateway) -> None:
    stream = client.generate(
        "once",
        model="m",
        version="2",
        variant="int4",
        sampling=millis.Sampling(0.5, 0.75, 40, 0.125, 7, 1.5, 0.25, -0.5),
        max_tokens=16,
        stop=["\n", "END"],
        logprobs=True,
        n=2,
        beams=3,
        regex="[a-z]+",
        ignore_eos=True,
        client_request_id="id",
        include_timing=True,
    )
    await maybe_await(stream.text())
    assert gateway.requests[0].message == pb.GenerateTextRequest(
        model="m",
        version="2",
        prompt="once",
        sampling=pb.Sampling(
            temperature=0.5,
            top_p=0.75,
            top_k=40,
            min_p=0.125,
            seed=7,
            repetition_penalty=1.5,
            presence_penalty=0.25,
            frequency_penalty=-0.5,
        ),
        max_tokens=16,
        stop=["\n", "END"],
        logprobs=True,
        n=2,
        beams=3,
        regex="[a-z]+",
        ignore_eos=True,
        options=types_pb2.RequestOptions(
            client_request_id="id", slo=types_pb2.Slo(pin_variant="int4"), include_timing=True
        ),
    )


async def test_an_option_left_out_or_none_is_not_sent(client: AnyClient, gateway: FakeGateway) -> None:
    await maybe_await(client.generate("t").text())
    await maybe_await(client.generate("t", model=None, sampling=None, max_tokens=None, stop=None, n=None).text())
    assert [request.message for request in gateway.requests] == [pb.GenerateTextRequest(prompt="t")] * 2


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (
            lambda: _generation.request(
                [
                    millis.Message("system", "be brief"),
                    millis.Message("user", "hi"),
                    millis.Message("assistant", "hello"),
                ]
            ),
            pb.GenerateTextRequest(chat=CHAT),
        ),
        (
            lambda: _generation.request(
                (
                    {"role": "system", "content": "be brief"},
                    millis.Message("user", "hi"),
                    {"content": "hello", "role": "assistant"},
                )
            ),
            pb.GenerateTextRequest(chat=CHAT),
        ),
        (
            lambda: _generation.request([0, 1, 2**32 - 1]),
            pb.GenerateTextRequest(token_ids=pb.TokenIds(ids=[0, 1, 2**32 - 1])),
        ),
        (
            lambda: _generation.request("t", sampling=millis.Sampling()),
            pb.GenerateTextRequest(prompt="t", sampling=pb.Sampling()),
        ),
        (lambda: _generation.request("t", stop="END"), pb.GenerateTextRequest(prompt="t", stop=["END"])),
        (
            lambda: _generation.request("t", json_schema=SCHEMA),
            pb.GenerateTextRequest(
                prompt="t", json_schema='{"type": "object", "properties": {"name": {"type": "string"}}}'
            ),
        ),
        (
            lambda: _generation.request("t", json_schema='{"type":"object"}'),
            pb.GenerateTextRequest(prompt="t", json_schema='{"type":"object"}'),
        ),
        (lambda: _generation.request("t", regex="a+"), pb.GenerateTextRequest(prompt="t", regex="a+")),
        (
            lambda: _generation.request("t", choices=["yes", "no"]),
            pb.GenerateTextRequest(prompt="t", choices=pb.Choices(texts=["yes", "no"])),
        ),
        (lambda: _generation.request("t", choices=[]), pb.GenerateTextRequest(prompt="t", choices=pb.Choices())),
        (lambda: _generation.request("t", max_tokens=0), pb.GenerateTextRequest(prompt="t", max_tokens=0)),
    ],
)
def test_arguments_become_the_request(build: Any, expected: pb.GenerateTextRequest) -> None:
    assert build() == expected


@pytest.mark.parametrize(
    ("build", "field", "description"),
    [
        (lambda: _generation.request("a\ud83d"), "prompt", "lone surrogate U+D83D at offset 1 has no UTF-8 form"),
        (lambda: _generation.request([]), "prompt", "an empty list is neither a conversation nor tokens"),
        (lambda: _generation.request([1, -2]), "prompt[1]", "-2 is out of the field's range"),
        (
            lambda: _generation.request([millis.Message("robot", "hi")]),  # type: ignore[arg-type]
            "prompt[0].role",
            "'robot' is not one of system, user, assistant",
        ),
        (
            lambda: _generation.request([{"role": "user", "content": "\ud83d"}]),
            "prompt[0].content",
            "lone surrogate U+D83D at offset 0 has no UTF-8 form",
        ),
        (
            lambda: _generation.request("t", sampling=millis.Sampling(seed=-1)),
            "sampling.seed",
            "-1 is out of the field's range",
        ),
        (lambda: _generation.request("t", max_tokens=-1), "max_tokens", "-1 is out of the field's range"),
    ],
)
def test_a_value_that_cannot_be_sent_is_named(build: Any, field: str, description: str) -> None:
    with pytest.raises(millis.InvalidArgumentError) as caught:
        build()
    assert caught.value.field_violations == (FieldViolation(field, description),)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: _generation.request(b"t"),
            "prompt must be a str, a list of messages or a list of token ids, not bytes",
        ),
        (
            lambda: _generation.request({"role": "user", "content": "hi"}),
            "prompt must be a str, a list of messages or a list of token ids, not dict",
        ),
        (lambda: _generation.request(["t"]), "prompt[0] must be a token id or a Message, not str"),
        (lambda: _generation.request([1, 2.5]), "prompt[1] must be a token id or a Message, not float"),
        (
            lambda: _generation.request([millis.Message("user", "hi"), 1]),
            "prompt[1] must be a Message or a dict, as prompt[0] is, not int",
        ),
        (
            lambda: _generation.request([{"role": "user", "text": "hi"}]),
            "prompt[0] must have 'role' and 'content', and nothing else; it has 'role', 'text'",
        ),
        (
            lambda: _generation.request([{"role": "user", "content": 7}]),
            "prompt[0].content cannot be a int: 7",
        ),
        (lambda: _generation.request("t", sampling={"seed": 1}), "sampling must be a Sampling, not dict"),  # type: ignore[arg-type]
        (lambda: _generation.request("t", stop=1), "stop must be a str or a list of str, not int"),
        (lambda: _generation.request("t", choices="yes"), "choices must be a list of str, not str"),
        (
            lambda: _generation.request("t", regex="a", choices=["a"]),
            "give one of json_schema, regex and choices",
        ),
    ],
)
def test_a_wrong_type_is_a_type_error(build: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        build()
    assert str(caught.value) == message


async def test_nothing_is_sent_when_an_argument_cannot_be(client: AnyClient, gateway: FakeGateway) -> None:
    with pytest.raises(millis.InvalidArgumentError):
        client.generate([])
    assert gateway.requests == []
