"""What becomes of the pieces of a text on their way to its caller, without Triton: its module stands in here."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from millis_server.triton.generation_backend.decoding.generator import Piece, Request
from tests import tiny_generation as tiny

TEXT = "the quick brown fox, order 66 it is"
STOP = "fox"
FINAL = 1


@dataclass
class Tensor:
    name: str
    values: np.ndarray


@dataclass
class Response:
    tensors: list[Tensor] = field(default_factory=list)
    error: Exception | None = None


class TritonError(Exception):
    CANCELLED, INTERNAL = 1, 2


class Sender:
    """Triton's; like it, it takes nothing after the final response."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self._closed = False

    def send(self, response: Response | None = None, flags: int = 0) -> None:
        assert not self._closed, "a response after the final one"
        self._closed = flags == FINAL
        if response is not None:
            told = {tensor.name: tensor.values.tolist() for tensor in response.tensors}
            self.sent.append(told | ({"error": response.error.args[0]} if response.error else {}))

    def is_cancelled(self) -> bool:
        return False


@pytest.fixture
def responses(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module under test."""
    stand_in = ModuleType("triton_python_backend_utils")
    stand_in.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    stand_in.Tensor, stand_in.InferenceResponse, stand_in.TritonError = Tensor, Response, TritonError
    stand_in.get_input_tensor_by_name = lambda request, name: None
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stand_in)
    from millis_server.triton.generation_backend.decoding import responses

    monkeypatch.setattr(responses, "pb_utils", stand_in)
    return responses


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.bytes_tokenizer().backend_tokenizer


def asked(responses: ModuleType, n: int = 1, stops: tuple[str, ...] = (STOP,), flags: tuple[str, ...] = ()) -> Any:
    return responses.Asked(Request([5], n=n, logprobs=True), stops, stream=True, flags=frozenset(flags))


def whole(tokenizer, text: str, sequence: int = 0, finish: str = "length") -> Piece:
    tokens = tokenizer.encode(text).ids
    return Piece(7, sequence, tokens, [-float(place) for place in range(len(tokens))], len(tokens), finish)


def until_stop(tokenizer) -> list[int]:
    """Tokens of TEXT up to the one that completes the stop text."""
    tokens = tokenizer.encode(TEXT).ids
    return next(tokens[:count] for count in range(len(tokens)) if STOP in tokenizer.decode(tokens[:count]))


class Heard:
    """An outlet that keeps what comes."""

    def __init__(self) -> None:
        self.sent: list[tuple[Piece, str, bool]] = []
        self.failures: list[str] = []

    def send(self, piece: Piece, text: str, last: bool) -> None:
        self.sent.append((piece, text, last))

    def fail(self, error: Exception, cancelled: bool) -> None:
        self.failures.append(str(error))

    def left(self) -> bool:
        return False


def test_of_texts_that_come_whole_nothing_is_told_beyond_their_stop_text(responses, tokenizer):
    heard = Heard()
    stream = responses.Stream(heard, asked(responses, n=2), tokenizer)
    other = whole(tokenizer, "nothing of the kind", 1)
    assert stream.take([whole(tokenizer, TEXT), other]) is False
    kept = until_stop(tokenizer)
    assert len(kept) < len(tokenizer.encode(TEXT).ids)
    logprobs = [-float(place) for place in range(len(kept))]
    assert heard.sent == [
        (Piece(7, 0, kept, logprobs, len(kept), "stop"), TEXT[: TEXT.index(STOP)], False),
        (other, "nothing of the kind", True),
    ]


def test_pieces_of_one_step_after_the_stop_text_are_left_out_and_the_end_is_told_once(responses, tokenizer):
    sender = Sender()
    told = asked(responses, flags=("finish_reason", "num_output_tokens"))
    stream = responses.Stream(responses.Responses(sender, told, tokenizer), told, tokenizer)
    tokens = tokenizer.encode(TEXT).ids
    assert stream.take([Piece(7, 0, [token], [-1.0], 1, "") for token in tokens]) is False
    stream.fail(RuntimeError("too late"))
    kept = until_stop(tokenizer)
    assert [sent["token_ids"] for sent in sender.sent] == [[token] for token in kept]
    assert sum(sent["num_output_tokens"][0] for sent in sender.sent) == len(kept)
    assert b"".join(sent["text_output"][0] for sent in sender.sent).decode() == TEXT[: TEXT.index(STOP)]
    assert [sent["finish_reason"] for sent in sender.sent] == [[b"None"]] * (len(kept) - 1) + [[b"stop"]]


def test_a_text_that_fails_before_its_end_is_told_so_once(responses, tokenizer):
    sender = Sender()
    told = asked(responses)
    stream = responses.Stream(responses.Responses(sender, told, tokenizer), told, tokenizer)
    assert stream.take([whole(tokenizer, "the quick", finish="")]) is True
    stream.fail(RuntimeError("broken"))
    stream.fail(RuntimeError("broken again"))
    assert sender.sent[1:] == [{"error": "RuntimeError: broken"}]


def test_a_stop_text_that_only_the_end_makes_certain_ends_the_text_too(responses):
    half = Tokenizer(
        models.BPE({"x": 0, "ð": 1, "xð": 2}, [("x", "ð")])
    )  # the last is an x and the half of a character
    half.decoder = decoders.ByteLevel()
    heard = Heard()
    stream = responses.Stream(heard, asked(responses, stops=("x",)), half)
    assert stream.take([Piece(7, 0, [2], [-1.0], 1, "length")]) is False
    assert heard.sent == [(Piece(7, 0, [2], [-1.0], 1, "stop"), "", True)]


def test_what_is_sent_in_vain_fails_the_text(responses, tokenizer):
    class Deaf(Heard):
        def send(self, piece: Piece, text: str, last: bool) -> None:
            raise UnicodeError("cannot be told")

    deaf = Deaf()
    stream = responses.Stream(deaf, asked(responses), tokenizer)
    with pytest.raises(UnicodeError):
        stream.take([whole(tokenizer, TEXT)])
    stream.fail(UnicodeError("cannot be told"))
    assert deaf.failures == ["cannot be told"]
