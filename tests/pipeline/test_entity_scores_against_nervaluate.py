"""Entity scores against an independent implementation: the strict schema of nervaluate."""

from __future__ import annotations

import random

import pytest
from nervaluate import Evaluator

from millis_pipeline.data import to_iob2
from millis_pipeline.evaluate import entity_scores

TAGS = ("O", "O", "O", "B-LOC", "I-LOC", "B-PER", "I-PER")
LABELS = ["LOC", "PER"]


def texts(generator: random.Random, count: int) -> list[list[str]]:
    return [to_iob2(generator.choices(TAGS, k=12)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_precision_recall_and_f1_are_those_of_nervaluate(seed: int) -> None:
    generator = random.Random(seed)
    gold = texts(generator, 40)
    # Half of the predictions are right, so that every count is well above zero.
    predicted = [
        tags if generator.random() < 0.5 else other for tags, other in zip(gold, texts(generator, 40), strict=True)
    ]
    theirs = Evaluator(gold, predicted, tags=LABELS, loader="list").evaluate()
    ours = entity_scores(gold, predicted)
    overall = theirs["overall"]["strict"]
    assert ours.value == pytest.approx(overall.f1)
    micro = ours.averages[0]
    assert (micro.precision, micro.recall) == (pytest.approx(overall.precision), pytest.approx(overall.recall))
    for row in ours.per_label:
        strict = theirs["entities"][row.name]["strict"]
        assert (row.precision, row.recall, row.f1, row.support) == (
            pytest.approx(strict.precision),
            pytest.approx(strict.recall),
            pytest.approx(strict.f1),
            strict.possible,
        )
