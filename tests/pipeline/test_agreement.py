"""How far two engines answer alike, task by task."""

import numpy as np
import pytest

from millis_pipeline.agreement import agreement


def outputs(*rows: list) -> list[np.ndarray]:
    return [np.array(row, np.float32) for row in rows]


def test_of_texts_with_one_label_it_is_the_share_with_the_same():
    ours, theirs = outputs([1, 0], [0, 1], [3, 2], [1, 2]), outputs([2, 1], [0, 5], [2, 3], [0, 9])
    assert agreement("text-classification", False, ours, theirs) == 0.75


def test_of_texts_with_many_labels_all_must_be_the_same():
    ours, theirs = outputs([1, -1], [1, 1]), outputs([2, -3], [1, -1])
    assert agreement("text-classification", True, ours, theirs) == 0.5


def test_of_tokens_it_is_the_share_with_the_same_label():
    ours, theirs = outputs([[1, 0], [0, 1], [1, 0]], [[1, 0]]), outputs([[1, 0], [1, 0], [1, 0]], [[2, 0]])
    assert agreement("token-classification", False, ours, theirs) == 0.75


def test_of_vectors_it_is_the_mean_cosine():
    assert agreement("embedding", False, outputs([1, 0], [0, 2]), outputs([3, 0], [2, 0])) == pytest.approx(0.5)


def test_of_scores_it_is_the_share_of_pairs_in_the_same_order():
    ours, theirs = outputs([1.0], [2.0], [3.0]), outputs([0.1], [0.3], [0.2])
    assert agreement("cross-encoder", False, ours, theirs) == pytest.approx(2 / 3)


def test_scores_that_tell_nothing_apart_agree_with_nothing():
    assert agreement("cross-encoder", False, outputs([1.0], [1.0], [1.0]), outputs([0.1], [0.3], [0.2])) == 0.0
