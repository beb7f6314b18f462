"""Token classification: entities, which are pieces of a text with a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from millis_server.errors import InputTooLong, InvalidField
from millis_server.manifest import Manifest, TaskName
from millis_server.tasks import Prepared, windows
from millis_server.tasks.activations import softmax
from millis_server.tasks.entities import Aggregation, Piece, find_entities
from millis_server.tokenizer import Row, TextTokens, Tokenizer, Truncation
from millis_server.words import Words, given_words, split_words


@dataclass(frozen=True, slots=True)
class TaggedToken:
    """One token with its most likely label."""

    token: str
    label: str
    score: float
    start: int
    """Code points."""
    end: int


@dataclass(frozen=True, slots=True)
class TaggedText:
    """The entities of one text."""

    text: str
    """The text that positions count in."""
    entities: list[Piece]
    tokens: list[TaggedToken]
    """Empty unless asked for."""
    windows: int


@dataclass(frozen=True, slots=True)
class _Read:
    """How one text was read: its tokens, its words and the windows over its tokens."""

    text: str
    words: Words
    tokens: TextTokens
    windows: list[tuple[int, int]]


@dataclass(slots=True)
class TokenClassification:
    """Asks for the entities of texts, or of lists of words.

    Attributes:
        texts: the texts; for lists of words None.
        word_lists: lists of words instead.
        aggregation: how token labels become entities.
        min_score: lowest score of an entity.
        include_tokens: whether every token is returned too.
        window_overlap: tokens that windows share; None is a quarter of the window.
        truncation: with `error` long texts are refused instead of read in windows.
    """

    texts: Sequence[str] | None
    word_lists: Sequence[Sequence[str]] | None = None
    aggregation: Aggregation = "first"
    min_score: float = 0.0
    include_tokens: bool = False
    window_overlap: int | None = None
    truncation: Truncation = "end"
    name: ClassVar[str] = "ClassifyTokens"
    answered_by: ClassVar[tuple[TaskName, ...]] = ("token-classification",)
    _read: list[_Read] = field(default_factory=list, init=False)

    @property
    def inputs(self) -> int:
        """Number of texts."""
        return len(self.texts if self.texts is not None else self.word_lists or ())

    @property
    def characters(self) -> int:
        """Length of all texts together."""
        if self.texts is not None:
            return sum(map(len, self.texts))
        return sum(len(word) for words in self.word_lists or () for word in words)

    def preprocess(self, manifest: Manifest, tokenizer: Tokenizer) -> Prepared:
        """One row for each window of each text."""
        rows = []
        for index, (text, words) in enumerate(self._split()):
            tokens = tokenizer.text_tokens(text)
            special = len(tokens.prefix) + len(tokens.suffix)
            places = windows.cut(len(tokens.ids), *self._window(index, len(tokens.ids), special, manifest))
            self._read.append(_Read(text, words, tokens, places))
            rows += [Row([*tokens.prefix, *tokens.ids[start:end], *tokens.suffix]) for start, end in places]
        return Prepared(rows, [])

    def postprocess(self, manifest: Manifest, outputs: list[NDArray[np.float32]]) -> list[TaggedText]:
        """Entities of each text. `outputs`: logits [at least the row's tokens, labels] of each window."""
        results = []
        first = 0
        for read in self._read:
            logits = [
                output[len(read.tokens.prefix) :][: end - start]
                for (start, end), output in zip(read.windows, outputs[first : first + len(read.windows)], strict=True)
            ]
            first += len(read.windows)
            results.append(self._tag(manifest, read, softmax(windows.join(read.windows, logits))))
        return results

    def _split(self) -> list[tuple[str, Words]]:
        if self.texts is not None:
            return [(text, split_words(text)) for text in self.texts]
        return [given_words(list(words)) for words in self.word_lists or ()]

    def _window(self, index: int, tokens: int, special: int, manifest: Manifest) -> tuple[int, int]:
        """Capacity and overlap of the windows over a text of so many tokens."""
        capacity = manifest.max_tokens - special
        overlap = capacity // 4 if self.window_overlap is None else self.window_overlap
        if overlap > capacity // 2:
            raise InvalidField(
                "window_overlap",
                f"is {overlap}, at most {capacity // 2} of the {capacity} tokens of a window",
            )
        if tokens > capacity and self.truncation == "error":
            name = f"texts[{index}]" if self.texts is not None else f"word_lists[{index}]"
            limit = f"the limit of {manifest.model} is {manifest.max_tokens}"
            raise InputTooLong(name, f"has {tokens + special} tokens, {limit}")
        return capacity, overlap

    def _tag(self, manifest: Manifest, read: _Read, scores: NDArray[np.float32]) -> TaggedText:
        offsets = [_without_space(read.text, start, end) for start, end in read.tokens.offsets]
        entities = find_entities(scores, offsets, read.words, manifest.labels, self.aggregation)
        tokens = []
        if self.include_tokens:
            best = scores.argmax(axis=1).tolist()
            tokens = [
                TaggedToken(token, manifest.labels[label], float(row[label]), start, end)
                for token, label, row, (start, end) in zip(read.tokens.tokens, best, scores, offsets, strict=True)
            ]
        kept = [entity for entity in entities if entity.score >= self.min_score]
        return TaggedText(read.text, kept, tokens, len(read.windows))


def _without_space(text: str, start: int, end: int) -> tuple[int, int]:
    """A token's place without the space that some tokenizers count to it."""
    while start < end and text[start].isspace():
        start += 1
    return start, end
