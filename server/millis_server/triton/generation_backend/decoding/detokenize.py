"""Turns tokens into text while they come: whole characters only, and never a piece of a stop text."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers.decoders import DecodeStream

INVALID_PREFIX = "Invalid prefix encountered"
"""How tokenizers says that a decoder cannot go on from the tokens before, as after some special ones."""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """The text of one sequence.

    Args:
        tokenizer: of the model.
        prompt: token ids before the text, which decide whether it begins with a space.
        stops: texts at which it ends.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(list(prompt), skip_special_tokens=True)
        self._undecoded: list[int] = []
        self._stops = stops
        self._held = ""
        self.stopped = False

    def take(self, tokens: Sequence[int]) -> str:
        """Takes tokens in and returns the text that is certain now; sets `stopped` when a stop text has come."""
        text = "".join([self._decode(token) for token in tokens])
        if not self._stops:
            return text
        return self._until_stop(text)

    def end(self) -> str:
        """The rest of the text, once no token comes any more. Half a character at its end is left out."""
        if self.stopped:
            return ""
        rest = self._tokenizer.decode(self._undecoded).rstrip(REPLACEMENT) if self._undecoded else ""
        self._undecoded = []
        text = self._until_stop(rest) if self._stops else rest
        if self.stopped:
            return text
        text, self._held = text + self._held, ""
        return text

    def _decode(self, token: int) -> str:
        self._undecoded.append(token)
        try:
            text = self._stream.step(self._tokenizer, token)
        except Exception as error:  # tokenizers raises nothing more particular
            if not str(error).startswith(INVALID_PREFIX):
                raise
            self._stream = DecodeStream(skip_special_tokens=True)
            text = self._stream.step(self._tokenizer, token)
        if text is None:
            return ""
        self._undecoded.clear()
        return text

    def _until_stop(self, text: str) -> str:
        text = self._held + text
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        certain, self._held = text[: len(text) - keep], text[len(text) - keep :]
        return certain


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
