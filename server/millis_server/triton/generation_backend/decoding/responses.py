"""What is made for one request, and the way back through Triton to a caller who asked in a request of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tokenizers
import triton_python_backend_utils as pb_utils

from .detokenize import Detokenizer
from .generator import Piece, Request
from .parameters import Asked

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Outlet(Protocol):
    """Where the pieces of one request go."""

    def send(self, piece: Piece, text: str, last: bool) -> None:
        """Sends a piece with its text; `last` is the last one of the request."""

    def fail(self, error: Exception, cancelled: bool) -> None:
        """Ends with an error."""

    def left(self) -> bool:
        """Whether the caller has gone."""


class Stream:
    """One request under way, see `loop.Receiver`.

    Args:
        outlet: where its pieces go.
        asked: the request.
        tokenizer: of the model.
    """

    def __init__(self, outlet: Outlet, asked: Asked, tokenizer: tokenizers.Tokenizer) -> None:
        self.request: Request = asked.request
        self._outlet = outlet
        self._texts = [Detokenizer(tokenizer, self.request.prompt, asked.stops) for _ in range(self.request.n)]
        self._going = set(range(self.request.n))
        self._told = False

    def take(self, pieces: Sequence[Piece]) -> bool:
        """Sends what came; returns whether more is wanted."""
        for piece in pieces:
            # A step may have made more of a text than what a stop text leaves of it.
            if piece.sequence in self._going:
                self._send(piece)
        return bool(self._going)

    def left(self) -> bool:
        """Whether the caller has gone."""
        return self._outlet.left()

    def fail(self, error: Exception, cancelled: bool = False) -> None:
        """Ends with an error; nothing when the end has been told."""
        if not self._told:
            self._told = True
            self._outlet.fail(error, cancelled)

    def _send(self, piece: Piece) -> None:
        piece, text = self._until_stop(piece)
        if piece.finish:
            self._going.discard(piece.sequence)
        self._outlet.send(piece, text, not self._going)
        self._told = not self._going

    def _until_stop(self, piece: Piece) -> tuple[Piece, str]:
        """A piece with its text, up to the token that completes a stop text."""
        detokenizer = self._texts[piece.sequence]
        text = ""
        for count, token in enumerate(piece.tokens, 1):
            text += detokenizer.take([token])
            if detokenizer.stopped:
                tokens, logprobs = piece.tokens[:count], piece.logprobs[:count]
                return piece._replace(tokens=tokens, logprobs=logprobs, made=count, finish="stop"), text
        if not piece.finish:
            return piece, text
        text += detokenizer.end()
        return piece._replace(finish="stop") if detokenizer.stopped else piece, text


class Refused:
    """A request that could not be read. The engine's thread tells its caller, because only it writes to outlets.

    Args:
        outlet: where the error goes.
        error: what is wrong.
    """

    def __init__(self, outlet: Outlet, error: Exception) -> None:
        self._outlet = outlet
        self._error = error

    @property
    def request(self) -> Request:
        """Raises what is wrong."""
        raise self._error

    def take(self, pieces: Sequence[Piece]) -> bool:
        """Nothing is made for it."""
        return False

    def left(self) -> bool:
        """Whether the caller has gone."""
        return self._outlet.left()

    def fail(self, error: Exception, cancelled: bool = False) -> None:
        """Ends with an error."""
        self._outlet.fail(error, cancelled)


class Responses:
    """The outlet of a request that Triton answers by itself, with the tensors of vLLM's backend.

    Args:
        sender: Triton's, for this request. It must get a final response, or the request is never freed.
        asked: the request.
        tokenizer: of the model.
    """

    def __init__(self, sender: Any, asked: Asked, tokenizer: tokenizers.Tokenizer) -> None:
        self._sender = sender
        self._asked = asked
        self._tokenizer = tokenizer
        self._parts: list[list[tuple[Piece, str]]] = [[] for _ in range(asked.request.n)]

    def send(self, piece: Piece, text: str, last: bool) -> None:
        """Sends a piece, or keeps it until the end: for a caller who wants no stream, or several texts."""
        self._parts[piece.sequence].append((piece, text))
        if last or (self._asked.stream and len(self._parts) == 1):
            self._respond(last)
            self._parts = [[] for _ in self._parts]

    def left(self) -> bool:
        """Whether the caller has gone."""
        return bool(self._sender.is_cancelled())

    def fail(self, error: Exception, cancelled: bool) -> None:
        """Ends with an error."""
        failure(self._sender, error, cancelled)

    def _respond(self, last: bool) -> None:
        """Sends the parts of each text as one value, as vLLM's backend does."""
        tokens = [[token for piece, _ in parts for token in piece.tokens] for parts in self._parts]
        flags = self._asked.flags
        # A tensor costs time in every piece of every text, so there is none that was not asked for.
        tensors = [
            strings("text_output", ["".join(text for _, text in parts) for parts in self._parts]),
            numbers("token_ids", [token for each in tokens for token in each], np.int32),
        ]
        if "finish_reason" in flags:
            # vLLM says "None" while a text goes on.
            tensors.append(strings("finish_reason", [parts[-1][0].finish or "None" for parts in self._parts]))
        if "num_output_tokens" in flags:
            made = [sum(piece.made for piece, _ in parts) for parts in self._parts]
            tensors.append(numbers("num_output_tokens", made, np.uint32))
        if "num_input_tokens" in flags:
            tensors.append(numbers("num_input_tokens", [len(self._asked.request.prompt)], np.uint32))
        if "logprobs" in flags:
            told = [[value for piece, _ in parts for value in piece.logprobs] for parts in self._parts]
            tensors.append(strings("logprobs", list(map(self._described, tokens, told))))
        self._sender.send(pb_utils.InferenceResponse(tensors), FINAL if last else 0)

    def _described(self, tokens: Sequence[int], logprobs: Sequence[float]) -> str:
        """Log-probabilities in vLLM's form."""
        return json.dumps(
            [
                {token: {"logprob": value, "rank": None, "decoded_token": self._tokenizer.id_to_token(token)}}
                for token, value in zip(tokens, logprobs, strict=False)
            ]
        )


def strings(name: str, texts: Sequence[str]) -> Any:
    """A tensor of texts."""
    return pb_utils.Tensor(name, np.array([text.encode() for text in texts], np.object_))


def numbers(name: str, values: Sequence[int], kind: type[np.integer[Any]]) -> Any:
    """A tensor of numbers."""
    return pb_utils.Tensor(name, np.array(values, kind))


def failure(sender: Any, error: Exception, cancelled: bool = False) -> None:
    """Ends a request with an error."""
    code = pb_utils.TritonError.CANCELLED if cancelled else pb_utils.TritonError.INTERNAL
    message = f"{type(error).__name__}: {error}"
    sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code)), FINAL)
