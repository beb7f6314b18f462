from __future__ import annotations

import random

import pytest
import torch

from millis_pipeline.data import TextExamples, TokenExamples
from millis_pipeline.examples import IGNORED, Example, Task, batches, pad, prepare, word_at, word_starts
from tests import tiny

TAGS = ("O", "B-PER", "I-PER")


def task(tokens: bool = False, multi_label: bool = False, labels: tuple[str, ...] = ("a", "b")) -> Task:
    return Task(labels, tokens, multi_label, pad_id=0)


def test_every_token_of_a_word_is_labelled_and_special_tokens_are_not() -> None:
    tokenizer = tiny.wordpiece_tokenizer()
    words = ["Zürich", "met", "Angelaorder", "Timfox"]
    examples = TokenExamples([words], [["B-PER", "O", "B-PER", "I-PER"]], [1])
    (example,) = prepare(examples, tokenizer, task(tokens=True, labels=TAGS), 64)
    assert example.ids == tokenizer(" ".join(words))["input_ids"]
    pieces = [len(tokenizer(word)["input_ids"]) - 2 for word in words]
    assert min(pieces[2:]) > 1
    assert example.words == [None, *(word for word, count in enumerate(pieces) for _ in range(count)), None]
    begin, inside = TAGS.index("B-PER"), TAGS.index("I-PER")
    expected = [begin, *[inside] * (pieces[0] - 1), *[0] * pieces[1]]
    expected += [begin, *[inside] * (pieces[2] - 1), *[inside] * pieces[3]]
    assert example.target == [IGNORED, *expected, IGNORED]
    assert example.gold == ["B-PER", "O", "B-PER", "I-PER"]


def test_texts_are_cut_with_their_targets() -> None:
    tokenizer = tiny.wordpiece_tokenizer()
    examples = TokenExamples([["fox"] * 50], [["O"] * 50], [1])
    (example,) = prepare(examples, tokenizer, task(tokens=True, labels=TAGS), 8)
    assert (len(example.ids), len(example.target), len(example.words), len(example.gold)) == (8, 8, 8, 50)


def test_targets_of_texts_are_a_number_or_a_row() -> None:
    tokenizer = tiny.wordpiece_tokenizer()
    single = prepare(TextExamples(["fox", "dog"], [["b"], ["a"]], [2, 3]), tokenizer, task(), 64)
    assert [example.target for example in single] == [1, 0]
    several = TextExamples(["fox", "dog"], [["b", "a"], []], [2, 3])
    assert [example.target for example in prepare(several, tokenizer, task(multi_label=True), 64)] == [[1, 1], [0, 0]]


def test_words_are_found_by_the_end_of_a_token() -> None:
    starts = word_starts(["Tim", "我", "Cook"])
    assert starts.tolist() == [0, 4, 6, 11]
    # "Tim 我 Cook": the third token takes the space before it, as byte-level tokenizers do.
    assert [word_at(starts, end) for end in (3, 5, 10)] == [0, 1, 2]


def test_rows_are_padded_to_the_longest() -> None:
    ids, mask = pad([Example([5, 6, 7], 0, [], []), Example([8], 0, [], [])], pad_id=1)
    assert torch.equal(ids, torch.tensor([[5, 6, 7], [8, 1, 1]]))
    assert torch.equal(mask, torch.tensor([[1, 1, 1], [1, 0, 0]]))


@pytest.mark.parametrize("size", [1, 4, 64])
def test_batches_hold_every_example_once_in_an_order_of_the_seed(size: int) -> None:
    examples = [Example([0] * (number % 7 + 1), number, [], []) for number in range(150)]

    def drawn(seed: int) -> list[list[int]]:
        return [[example.target for example in batch] for batch in batches(examples, size, random.Random(seed))]

    assert sorted(number for batch in drawn(1) for number in batch) == list(range(150))
    assert max(len(batch) for batch in drawn(1)) == size
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
