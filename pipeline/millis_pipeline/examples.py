"""Turns labelled data into what training and evaluation run on: token ids with their targets."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from millis_pipeline.data import TextExamples, TokenExamples

IGNORED = -100
"""Label of positions that no loss is taken at."""


@dataclass(frozen=True)
class Example:
    """One tokenized text with its target.

    Attributes:
        ids: token ids, special tokens included.
        target: class number, a 0/1 row (multi-label), or a label number for each token; None where none is known.
        gold: labels, or tags of the words.
        words: for each token the index of its word, None elsewhere.
    """

    ids: list[int]
    target: Any
    gold: list[str]
    words: list[int | None]


AnExample = TypeVar("AnExample", bound=Example)


@dataclass(frozen=True)
class Task:
    """What differs between the tasks.

    Attributes:
        labels: names in the order of the outputs.
        tokens: whether tokens are labelled.
        multi_label: whether a text can have several labels.
        pad_id: token id that fills shorter rows.
    """

    labels: tuple[str, ...]
    tokens: bool
    multi_label: bool
    pad_id: int


def prepare(examples: TextExamples | TokenExamples, tokenizer: Any, task: Task, max_tokens: int) -> list[Example]:
    """Tokenizes examples, cut to `max_tokens`, with their targets."""
    number = {label: index for index, label in enumerate(task.labels)}
    if isinstance(examples, TokenExamples):
        return [
            _token_example(words, tags, tokenizer, number, max_tokens)
            for words, tags in zip(examples.words, examples.tags, strict=True)
        ]
    encoded = tokenizer(examples.texts, truncation=True, max_length=max_tokens)["input_ids"]
    result = []
    for ids, labels in zip(encoded, examples.labels, strict=True):
        target = [int(label in labels) for label in task.labels] if task.multi_label else number[labels[0]]
        result.append(Example(ids, target, labels, []))
    return result


def _token_example(
    words: Sequence[str], tags: list[str], tokenizer: Any, number: dict[str, int], max_tokens: int
) -> Example:
    """Tokenizes the words joined with one space, as the gateway reads a text, and labels every token of a word.

    The first token of a word has the word's tag, the others its continuation (I-), so that a model also answers
    for texts in which words are cut elsewhere.
    """
    encoded = tokenizer(" ".join(words), truncation=True, max_length=max_tokens, return_offsets_mapping=True)
    starts = word_starts(words)
    target: list[int] = []
    places: list[int | None] = []
    before = None
    for start, end in encoded["offset_mapping"]:
        if end <= start:
            target.append(IGNORED)
            places.append(None)
            continue
        word = word_at(starts, end)
        tag = tags[word]
        continued = word == before and tag != "O"
        target.append(number["I-" + tag[2:]] if continued else number[tag])
        places.append(word)
        before = word
    return Example(encoded["input_ids"], target, tags, places)


def pad(batch: Sequence[Example], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, INT64 [texts, tokens], padded on the right to the longest."""
    width = max(len(example.ids) for example in batch)
    ids = torch.full((len(batch), width), pad_id)
    mask = torch.zeros((len(batch), width), dtype=torch.int64)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        mask[row, : len(example.ids)] = 1
    return ids, mask


def word_starts(words: Sequence[str]) -> NDArray[np.int64]:
    """Where each word begins in the words joined with one space, and where the next one would."""
    return np.cumsum([0, *(len(word) + 1 for word in words)])


def word_at(starts: NDArray[np.int64], end: int) -> int:
    """The word that a token belongs to, by the token's end.

    Its last character decides: some tokenizers count the space before a word to its first token.
    """
    return int(np.searchsorted(starts, end - 1, side="right")) - 1


def batches(examples: Sequence[AnExample], size: int, shuffle: random.Random) -> Iterator[list[AnExample]]:
    """Batches of like length in random order: texts are shuffled, sorted by length within big pieces, cut."""
    order = list(examples)
    shuffle.shuffle(order)
    piece = 16 * size
    cut = []
    for start in range(0, len(order), piece):
        part = sorted(order[start : start + piece], key=lambda example: len(example.ids))
        cut += [part[place : place + size] for place in range(0, len(part), size)]
    shuffle.shuffle(cut)
    yield from cut
