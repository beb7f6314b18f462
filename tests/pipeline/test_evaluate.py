import numpy as np
import pytest

from millis_pipeline.evaluate import (
    Row,
    classification_scores,
    entities,
    entity_scores,
    mean_interval,
    wilson_interval,
)


def test_classification_is_scored_label_by_label_and_averaged():
    gold = [["a"], ["a"], ["b"], ["c"]]
    predicted = [["a"], ["b"], ["b"], ["c"]]
    scores = classification_scores(gold, predicted, ("a", "b", "c"), multi_label=False)
    assert (scores.metric, scores.value, scores.examples) == ("accuracy", 0.75, 4)
    assert scores.per_label == (
        Row("a", 1.0, 0.5, pytest.approx(2 / 3), 2),
        Row("b", 0.5, 1.0, pytest.approx(2 / 3), 1),
        Row("c", 1.0, 1.0, 1.0, 1),
    )
    assert scores.averages == (
        Row("micro avg", 0.75, 0.75, 0.75, 4),
        Row("macro avg", pytest.approx(5 / 6), pytest.approx(5 / 6), pytest.approx(7 / 9), 4),
        Row("weighted avg", 0.875, 0.75, 0.75, 4),
    )


def test_several_labels_are_scored_by_micro_f1():
    scores = classification_scores([["a", "b"], []], [["a"], ["b"]], ("a", "b"), multi_label=True)
    assert (scores.metric, scores.value) == ("micro_f1", 0.5)


def test_an_entity_counts_only_when_label_and_both_ends_are_right():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "B-LOC"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["B-LOC", "I-LOC"]]
    scores = entity_scores(gold, predicted)
    assert scores.per_label == (Row("LOC", 0.5, pytest.approx(1 / 3), 0.4, 3), Row("PER", 0.0, 0.0, 0.0, 1))
    assert (scores.metric, scores.value) == ("entity_f1", pytest.approx(2 / 7))
    assert scores.low <= scores.value <= scores.high


def test_an_i_that_continues_nothing_begins_an_entity():
    assert entities(["I-PER", "B-PER", "I-LOC", "O", "I-LOC"]) == {
        *(("PER", 0, 0), ("PER", 1, 1), ("LOC", 2, 2), ("LOC", 4, 4))
    }


def test_intervals_are_those_of_the_textbook():
    assert wilson_interval(81, 100) == (pytest.approx(0.7222, abs=1e-4), pytest.approx(0.8749, abs=1e-4))
    assert mean_interval(np.ones(20)) == (1.0, 1.0)
