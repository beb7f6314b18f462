"""What is refused before the wire; the same for both clients, because both build requests here."""

from datetime import timedelta
from typing import Any

import pytest

import millis
from millis import _calls
from millis.errors import FieldViolation
from millis.testing import FakeGateway
from tests.client.twins import AnyClient, maybe_await

LONE = "ab\ud83d"


@pytest.mark.parametrize(
    ("build", "field", "description"),
    [
        (lambda: _calls.classify(["fine", LONE]), "texts[1]", "lone surrogate U+D83D at offset 2 has no UTF-8 form"),
        (lambda: _calls.classify(LONE), "texts[0]", "lone surrogate U+D83D at offset 2 has no UTF-8 form"),
        (lambda: _calls.rank(LONE, ["d"]), "query", "lone surrogate U+D83D at offset 2 has no UTF-8 form"),
        (lambda: _calls.rank("q", [LONE]), "documents[0]", "lone surrogate U+D83D at offset 2 has no UTF-8 form"),
        (
            lambda: _calls.tag(None, [["a"], [LONE]]),
            "words[1][0]",
            "lone surrogate U+D83D at offset 2 has no UTF-8 form",
        ),
        (lambda: _calls.tag(None, [LONE]), "words[0]", "lone surrogate U+D83D at offset 2 has no UTF-8 form"),
        (lambda: _calls.embed("t", model=LONE), "model", "lone surrogate U+D83D at offset 2 has no UTF-8 form"),
        (lambda: _calls.classify("t", top_k=-1), "top_k", "-1 is out of the field's range"),
        (lambda: _calls.embed("t", dimensions=2**40), "dimensions", "1099511627776 is out of the field's range"),
        (
            lambda: _calls.embed("t", encoding="float8"),
            "encoding",
            "'float8' is not one of float32, float16, int8, binary",
        ),
        (lambda: _calls.classify("t", truncation="middle"), "truncation", "'middle' is not one of end, start, error"),
        (
            lambda: _calls.classify("t", latency_target=float("nan")),
            "latency_target",
            "must be a finite number of seconds, got nan",
        ),
        (
            lambda: _calls.seconds("timeout", float("inf")),
            "timeout",
            "must be a finite number of seconds, got inf",
        ),
    ],
)
def test_a_value_that_cannot_be_sent_is_named(build: Any, field: str, description: str) -> None:
    with pytest.raises(millis.InvalidArgumentError) as caught:
        build()
    assert str(caught.value) == f"{field}: {description}"
    assert caught.value.field_violations == (FieldViolation(field, description),)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: _calls.classify(None), "texts must be a str or a list of str, not NoneType"),
        (lambda: _calls.classify(b"t"), "texts must be a str or a list of str, not bytes"),
        (lambda: _calls.classify({"t": 1}), "texts must be a str or a list of str, not dict"),
        (lambda: _calls.classify(["t", 7]), "texts[1] must be a str, not int"),
        (lambda: _calls.classify(["t", b"t"]), "texts[1] must be a str, not bytes"),
        (lambda: _calls.rank("q", "d"), "documents must be a list of str, not str"),
        (lambda: _calls.rank(b"q", ["d"]), "query must be a str, not bytes"),
        (lambda: _calls.rank(1, ["d"]), "query cannot be a int: 1"),
        (lambda: _calls.tag(None, None), "give either texts or words"),
        (lambda: _calls.tag("t", ["t"]), "give either texts or words"),
        (lambda: _calls.tag(None, "words"), "words must be a list of str, not str"),
        (lambda: _calls.tag(None, [["a"], "b c"]), "words[1] must be a list of str, not str"),
        (lambda: _calls.classify("t", top_k="3"), "top_k cannot be a str: '3'"),
        (lambda: _calls.classify("t", model=3), "model cannot be a int: 3"),
        (lambda: _calls.classify("t", truncation=1), "truncation must be a str, not int"),
        (
            lambda: _calls.classify("t", latency_target="1s"),
            "latency_target must be seconds as a number or a timedelta, not str",
        ),
        (lambda: _calls.classify("t", modle="m"), "call_options() got an unexpected keyword argument 'modle'"),
    ],
)
def test_a_wrong_type_is_a_type_error(build: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        build()
    assert str(caught.value) == message


async def test_nothing_is_sent_when_a_text_cannot_be(client: AnyClient, gateway: FakeGateway) -> None:
    with pytest.raises(millis.InvalidArgumentError):
        await maybe_await(client.classify(["fine", LONE]))
    assert gateway.requests == []


async def test_limits_are_the_gateways_word(client: AnyClient, gateway: FakeGateway) -> None:
    for texts in ([], [""], ["a\0b"]):
        await maybe_await(client.classify(texts))
    assert [list(request.message.texts) for request in gateway.requests] == [[], [""], ["a\0b"]]


def test_times_are_seconds_or_timedelta() -> None:
    assert (_calls.seconds("t", 2), _calls.seconds("t", 0.5), _calls.seconds("t", timedelta(minutes=1))) == (2, 0.5, 60)


def test_any_iterable_of_texts_is_taken() -> None:
    assert list(_calls.classify(text for text in ("a", "b")).texts) == ["a", "b"]
