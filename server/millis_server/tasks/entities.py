"""Joins labelled tokens into entities, with the strategies of transformers' token-classification pipeline.

Two things differ from the library: words are those of millis_server.words for every tokenizer, and a token that
is only a space belongs to no word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from millis_server.words import Words

Aggregation = Literal["first", "average", "max", "simple", "none"]
OUTSIDE = "O"


@dataclass(frozen=True, slots=True)
class Piece:
    """A labelled piece of a text: an entity, or part of one."""

    start: int
    """Code points."""
    end: int
    label: str
    """Without prefix once joined."""
    score: float
    first: int
    """Index of the first word (of the token, for `simple` and `none`)."""
    last: int


def find_entities(
    scores: NDArray[np.float32],
    offsets: Sequence[tuple[int, int]],
    words: Words,
    labels: Sequence[str],
    aggregation: Aggregation,
) -> list[Piece]:
    """Finds the entities of a text.

    Args:
        scores: [tokens, labels], softmax.
        offsets: place of each token, code points, without leading spaces.
        words: the words of the text.
        labels: names in the order of `scores`, with B- and I- prefixes or without.
        aggregation: how tokens become words; `simple` and `none` leave words aside.

    Returns:
        Entities in the order of the text.
    """
    if aggregation in ("simple", "none"):
        pieces = _token_pieces(scores, offsets, words, labels)
    else:
        pieces = _word_pieces(scores, offsets, words, labels, aggregation)
    if aggregation == "none":
        return [
            Piece(piece.start, piece.end, _split(piece.label)[1], piece.score, piece.first, piece.last)
            for piece in pieces
            if piece.label != OUTSIDE
        ]
    return _join(pieces)


def _token_pieces(
    scores: NDArray[np.float32], offsets: Sequence[tuple[int, int]], words: Words, labels: Sequence[str]
) -> list[Piece]:
    best = scores.argmax(axis=1).tolist()
    return [
        Piece(
            start,
            end,
            labels[best[token]],
            float(scores[token, best[token]]),
            words.at[start],
            words.at[end - 1],
        )
        for token, (start, end) in enumerate(offsets)
        if end > start
    ]


def _word_pieces(
    scores: NDArray[np.float32],
    offsets: Sequence[tuple[int, int]],
    words: Words,
    labels: Sequence[str],
    aggregation: Aggregation,
) -> list[Piece]:
    """One piece for each word that a token begins in; a token over several words counts for the first."""
    tokens_of: dict[int, list[int]] = {}
    for token, (start, end) in enumerate(offsets):
        if end > start:
            tokens_of.setdefault(words.at[start], []).append(token)
    pieces = []
    for word, tokens in tokens_of.items():
        if aggregation == "first":
            row = scores[tokens[0]]
        elif aggregation == "average":
            row = scores[tokens].mean(axis=0)
        else:
            row = scores[max(tokens, key=lambda token: float(scores[token].max()))]
        best = int(row.argmax())
        # A token that reaches into the next words (one token for two Chinese characters, say) brings them along.
        end = max(words.spans[word][1], max(offsets[token][1] for token in tokens))
        last = words.at[end - 1]
        pieces.append(Piece(words.spans[word][0], end, labels[best], float(row[best]), word, last))
    return pieces


def _join(pieces: Sequence[Piece]) -> list[Piece]:
    """Joins neighbours: a B- prefix or another label begins a new entity, O ends one."""
    entities = []
    group: list[Piece] = []
    current = ""
    for piece in [*pieces, None]:
        prefix, label = _split(piece.label) if piece else ("", OUTSIDE)
        if group and (label != current or prefix == "B"):
            score = sum(member.score for member in group) / len(group)
            entities.append(Piece(group[0].start, group[-1].end, current, score, group[0].first, group[-1].last))
            group = []
        if piece and label != OUTSIDE:
            group.append(piece)
            current = label
    return entities


def _split(label: str) -> tuple[str, str]:
    """Prefix (B, I or nothing) and name of a label."""
    if label[:2] in ("B-", "I-"):
        return label[0], label[2:]
    return "", label
