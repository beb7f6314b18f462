"""Sends what is made for one request back through Triton."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from millis_server.triton.generation_backend.detokenize import Detokenizer
    from millis_server.triton.generation_backend.generator import Piece, Request
    from millis_server.triton.generation_backend.parameters import Asked
else:
    from detokenize import Detokenizer
    from generator import Piece, Request
    from parameters import Asked

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Stream:
    """One request under way, see `loop.Receiver`.

    Args:
        sender: Triton's, for this request. It must get a final response, or the request is never freed.
        asked: the request.
        tokenizer: of the model.
    """

    def __init__(self, sender: Any, asked: Asked, tokenizer: tokenizers.Tokenizer) -> None:
        self.request: Request = asked.request
        self._sender = sender
        self._asked = asked
        self._tokenizer = tokenizer
        self._texts = [Detokenizer(tokenizer, self.request.prompt, asked.stops) for _ in range(self.request.n)]
        self._going = self.request.n
        self._whole: list[tuple[Piece, str]] = []

    def take(self, pieces: Sequence[Piece]) -> bool:
        """Sends what came; returns whether more is wanted."""
        for piece in pieces:
            detokenizer = self._texts[piece.sequence]
            text = detokenizer.take(piece.tokens)
            finish = "stop" if detokenizer.stopped else piece.finish
            if finish:
                text += detokenizer.end()
                self._going -= 1
            self._emit(piece._replace(finish=finish), text)
        return self._going > 0

    def left(self) -> bool:
        """Whether the caller has gone."""
        return bool(self._sender.is_cancelled())

    def fail(self, error: Exception, cancelled: bool = False) -> None:
        """Ends with an error."""
        failure(self._sender, error, cancelled)

    def _emit(self, piece: Piece, text: str) -> None:
        if self._asked.stream:
            self._send([piece], [text])
            return
        self._whole.append((piece, text))
        if not self._going:
            for sequence in range(self.request.n):
                parts = [(piece, text) for piece, text in self._whole if piece.sequence == sequence]
                self._going = self.request.n - sequence - 1
                self._send([part for part, _ in parts], [text for _, text in parts])

    def _send(self, pieces: Sequence[Piece], texts: Sequence[str]) -> None:
        last = pieces[-1]
        made = sum(piece.made for piece in pieces)
        tokens = [token for piece in pieces for token in piece.tokens]
        logprobs = [value for piece in pieces for value in piece.logprobs]
        # A tensor costs time in every piece of every text, so what says nothing is left out.
        tensors = [
            pb_utils.Tensor("text_output", np.array(["".join(texts).encode()], np.object_)),
            pb_utils.Tensor("token_ids", np.array(tokens, np.int32)),
        ]
        if self.request.n > 1:
            tensors.append(pb_utils.Tensor("sequence", np.array([last.sequence], np.int32)))
        if logprobs:
            tensors.append(pb_utils.Tensor("token_logprobs", np.array(logprobs, np.float32)))
        flags = self._asked.flags
        if last.finish and "finish_reason" in flags:
            tensors.append(pb_utils.Tensor("finish_reason", np.array([last.finish.encode()], np.object_)))
        if made != len(tokens) and "num_output_tokens" in flags:
            tensors.append(pb_utils.Tensor("num_output_tokens", np.array([made], np.uint32)))
        if "num_input_tokens" in flags:
            tensors.append(pb_utils.Tensor("num_input_tokens", np.array([len(self.request.prompt)], np.uint32)))
        if "logprobs" in flags:
            tensors.append(pb_utils.Tensor("logprobs", np.array([self._described(tokens, logprobs)], np.object_)))
        self._sender.send(pb_utils.InferenceResponse(tensors), 0 if self._going else FINAL)

    def _described(self, tokens: Sequence[int], logprobs: Sequence[float]) -> bytes:
        """Log-probabilities in vLLM's form."""
        return json.dumps(
            [
                {token: {"logprob": value, "rank": None, "decoded_token": self._tokenizer.id_to_token(token)}}
                for token, value in zip(tokens, logprobs, strict=False)
            ]
        ).encode()


def failure(sender: Any, error: Exception, cancelled: bool = False) -> None:
    """Ends a request with an error."""
    code = pb_utils.TritonError.CANCELLED if cancelled else pb_utils.TritonError.INTERNAL
    message = f"{type(error).__name__}: {error}"
    sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code)), FINAL)
