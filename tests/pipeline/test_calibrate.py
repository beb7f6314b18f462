"""Thresholds, found on paper."""

from __future__ import annotations

import numpy as np
import pytest

from millis_pipeline.calibrate import Trace, calibrate, leave_at

TEXTS = 400


def traced(confidence: list[np.ndarray], right: list[np.ndarray]) -> Trace:
    """One label for each text: right or not, always one predicted, one true."""
    ones = np.ones(TEXTS, np.int64)
    return Trace(np.stack(confidence), np.stack([np.stack([r.astype(np.int64), ones, ones], 1) for r in right]))


def test_a_text_leaves_at_the_first_exit_where_it_is_confident_enough() -> None:
    confidence = np.array([[0.9, 0.5, 0.2, 0.8], [0.1, 0.7, 0.3, 0.9]])
    assert leave_at(confidence, (0.8, 0.7)).tolist() == [0, 1, 2, 0]
    assert leave_at(confidence, (np.inf, 0.7)).tolist() == [2, 1, 2, 1]


def test_exactly_those_leave_whose_answer_is_as_good() -> None:
    sure = np.linspace(0, 1, TEXTS)
    early, last = sure >= 0.5, np.ones(TEXTS, bool)
    found = calibrate(traced([sure], [early, last]), [1.0, 4.0], max_loss=0.0)
    assert found is not None
    (threshold,) = found.thresholds
    assert threshold is not None and 0.5 <= threshold < 0.55
    assert found.loss == 0
    assert found.saved == pytest.approx(0.8 * (sure >= threshold).mean())


def test_an_agreed_loss_lets_more_texts_leave() -> None:
    sure = np.linspace(0, 1, TEXTS)
    early, last = sure >= 0.5, np.ones(TEXTS, bool)
    strict, lax = (calibrate(traced([sure], [early, last]), [1.0, 4.0], loss) for loss in (0.0, 0.1))
    assert strict is not None and lax is not None
    assert strict.saved < lax.saved
    assert 0 < lax.loss <= 0.1


def test_a_loss_that_other_texts_would_exceed_is_not_taken() -> None:
    generator = np.random.default_rng(0)
    sure = generator.random(TEXTS)
    early = generator.random(TEXTS) < 0.9
    last = np.ones(TEXTS, bool)
    found = calibrate(traced([sure], [early, last]), [1.0, 4.0], max_loss=0.1)
    assert found is None or found.loss < 0.09


def test_an_exit_that_is_always_wrong_is_never_used() -> None:
    sure = np.linspace(0, 1, TEXTS)
    wrong, right = np.zeros(TEXTS, bool), np.ones(TEXTS, bool)
    assert calibrate(traced([sure], [wrong, right]), [1.0, 4.0], max_loss=0.005) is None
    found = calibrate(traced([sure, sure], [wrong, right, right]), [1.0, 1.0, 4.0], max_loss=0.005)
    assert found is not None
    assert found.thresholds == (None, 0.0)


def test_what_saves_next_to_nothing_is_not_worth_an_exit() -> None:
    sure = np.linspace(0, 1, TEXTS)
    right = np.ones(TEXTS, bool)
    assert calibrate(traced([sure], [right, right]), [4.0, 0.1], max_loss=0.0) is None
