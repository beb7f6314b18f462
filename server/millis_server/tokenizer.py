"""Turns texts into token ids with the model's own `tokenizer.json`, and never pads.

Padding and truncation that a checkpoint's file may carry are switched off (all-MiniLM-L6-v2, for one, pads every
text to 128 tokens), so that a short text costs a short text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tokenizers

Truncation = Literal["end", "start", "error"]


@dataclass(frozen=True, slots=True)
class Row:
    """One input of the model: a text, a pair, or a window of a text."""

    ids: Sequence[int]
    """Token ids, special tokens included."""
    type_ids: Sequence[int] | None = None
    """Segment of each token; None is all zeros."""


@dataclass(frozen=True, slots=True)
class TextTokens:
    """The tokens of one text with their places, and the special tokens that belong around them."""

    ids: list[int]
    """Without special tokens."""
    tokens: list[str]
    offsets: list[tuple[int, int]]
    """Code points, [start, end)."""
    word_ids: list[int | None]
    """Index of the word, as the pre-tokenizer split the text."""
    prefix: list[int]
    """Ids of the special tokens before the text."""
    suffix: list[int]
    """Ids of the special tokens after it."""


class TooLong(ValueError):
    """An input has more tokens than allowed, and truncation is `error`."""

    def __init__(self, index: int, tokens: int) -> None:
        super().__init__(index, tokens)
        self.index = index
        self.tokens = tokens


class QueryTooLong(ValueError):
    """The first text of a pair leaves no place for the second."""


class Tokenizer:
    """The tokenizer of one model version.

    Args:
        path: `tokenizer.json`.
        max_tokens: most tokens of an input, special ones included.
    """

    def __init__(self, path: Path, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._plain = _load(path)
        self._pairs = {side: _load(path) for side in ("right", "left")}
        for side, pair in self._pairs.items():
            pair.enable_truncation(max_tokens, strategy="only_second", direction=side)

    def rows(self, texts: Sequence[str], truncation: Truncation) -> tuple[list[Row], list[int]]:
        """Tokenizes texts, one row each.

        Returns:
            The rows, and the indices of the texts that were truncated.

        Raises:
            TooLong: a text is longer than `max_tokens` and `truncation` is `error`.
        """
        rows = []
        truncated = []
        # The fast form leaves out the offsets, which nobody needs here.
        for index, encoding in enumerate(self._plain.encode_batch_fast(list(texts))):
            ids = encoding.ids
            if len(ids) > self.max_tokens:
                if truncation == "error":
                    raise TooLong(index, len(ids))
                truncated.append(index)
                ids = self._cut(ids, encoding.special_tokens_mask, truncation)
            rows.append(Row(ids))
        return rows, truncated

    def pair_rows(self, first: str, seconds: Sequence[str], truncation: Truncation) -> tuple[list[Row], list[int]]:
        """Tokenizes pairs of one text with each of many, one row each; only the second text is shortened.

        Raises:
            TooLong: a pair is longer than `max_tokens` and `truncation` is `error`; the index is the second's.
            QueryTooLong: `first` alone leaves no place for another text.
        """
        pair_special = self._plain.num_special_tokens_to_add(is_pair=True)
        first_tokens = len(self._plain.encode(first, add_special_tokens=False).ids)
        if first_tokens + pair_special >= self.max_tokens:
            raise QueryTooLong(
                f"has {first_tokens} tokens; with {pair_special} special ones and at least 1 of a document "
                f"the limit is {self.max_tokens}"
            )
        pair = self._pairs["left" if truncation == "start" else "right"]
        rows = []
        truncated = []
        for index, encoding in enumerate(pair.encode_batch([(first, second) for second in seconds])):
            if encoding.overflowing:
                if truncation == "error":
                    whole = self._plain.encode(first, seconds[index])
                    raise TooLong(index, len(whole.ids))
                truncated.append(index)
            rows.append(Row(encoding.ids, encoding.type_ids))
        return rows, truncated

    def text_tokens(self, text: str) -> TextTokens:
        """Tokenizes one text in full, with the place of each token."""
        encoding = self._plain.encode(text)
        special = encoding.special_tokens_mask
        start = special.index(0) if 0 in special else len(special)
        end = len(special) - special[::-1].index(0) if 0 in special else start
        ids = encoding.ids
        return TextTokens(
            ids=ids[start:end],
            tokens=encoding.tokens[start:end],
            offsets=encoding.offsets[start:end],
            word_ids=encoding.word_ids[start:end],
            prefix=ids[:start],
            suffix=ids[end:],
        )

    def encoding(self, text: str, add_special_tokens: bool) -> tokenizers.Encoding:
        """The tokenizer's own view of one text, untruncated."""
        return self._plain.encode(text, add_special_tokens=add_special_tokens)

    def _cut(self, ids: list[int], special: list[int], truncation: Truncation) -> list[int]:
        """Drops tokens of the text, never special ones."""
        start = special.index(0)
        end = len(special) - special[::-1].index(0)
        keep = self.max_tokens - start - (len(ids) - end)
        if truncation == "start":
            return ids[:start] + ids[end - keep :]
        return ids[: start + keep] + ids[end:]


def _load(path: Path) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
