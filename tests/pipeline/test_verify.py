"""What a variant is judged by beside PyTorch: agreement, and the largest difference."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from millis_pipeline.assess import EXPORTED, _compare
from millis_pipeline.candidates import Candidate
from millis_pipeline.checkpoint import Checkpoint
from millis_pipeline.run import Feeds, Runner, tokenize
from millis_pipeline.variants import VariantRecipe
from millis_pipeline.verify import EvaluationSet, Judgement, VerificationError, judge
from millis_server.manifest import TaskName
from tests import tiny

NAN = math.nan


def checkpoint(task: TaskName, *, multi_label: bool = False) -> Checkpoint:
    return Checkpoint(
        source="x",
        task=task,
        module=nn.Identity(),
        tokenizer=tiny.wordpiece_tokenizer(),
        inputs=("input_ids", "attention_mask"),
        max_tokens=64,
        labels=("a", "b", "c"),
        multi_label=multi_label,
    )


def texts(given: Checkpoint, *inputs: str) -> EvaluationSet:
    return EvaluationSet("", inputs, tokenize(given.tokenizer.backend_tokenizer, inputs, 64, 0))


def judged(given: Checkpoint, evaluation: EvaluationSet, ours: list[object], theirs: list[object]) -> Judgement:
    outputs, reference = ([np.array(row, np.float32) for row in rows] for rows in (ours, theirs))
    return judge(given, evaluation, outputs, evaluation, reference)


def test_texts_with_several_labels_agree_when_all_their_labels_do() -> None:
    given = checkpoint("text-classification", multi_label=True)
    evaluation = texts(given, "order", "fox", "Paris")
    ours: list[object] = [[1, 1, -1], [-1, -1, -1], [1, -1, -1]]
    theirs: list[object] = [[1, 1, -1], [1, -1, -1], [1, 1, 1]]
    assert judged(given, evaluation, ours, theirs) == Judgement(None, None, 1 / 3, 2.0, 3)
    one = texts(given, "order")
    assert judged(given, one, [[1, 1, -1]], [[-1, -1, -1]]) == Judgement(None, None, 0.0, 2.0, 1)


def test_tokens_agree_word_by_word_also_where_the_first_text_has_one_word() -> None:
    given = checkpoint("token-classification")
    a, b = [2, 0, 0], [0, 2, 0]
    evaluation = texts(given, "fox", "where is my")
    plain = judged(given, evaluation, [[a], [a, a, b]], [[a], [a, a, a]])
    assert plain == Judgement(None, None, 0.75, 2.0, 2)
    with_words = replace(evaluation, words=[["fox"], ["where", "is", "my"]])
    # [CLS], the words, [SEP]: all but the last word are tagged alike.
    widths = [len(encoding.ids) for encoding in evaluation.rows.encodings]
    ours, theirs = ([[a] * width for width in widths] for _ in range(2))
    ours[1][-2] = b
    assert judged(given, with_words, ours, theirs) == Judgement(None, None, 0.75, 2.0, 2)


def test_a_difference_that_is_not_a_number_is_not_lost_behind_other_texts() -> None:
    given = checkpoint("text-classification")
    evaluation = texts(given, "order", "fox")
    assert math.isnan(judged(given, evaluation, [[0, 0, 0], [NAN, 0, 0]], [[0, 0, 0], [0, 0, 0]]).max_difference)


def test_a_student_that_computes_no_number_for_one_text_is_refused() -> None:
    given = checkpoint("text-classification")
    evaluation = texts(given, "fox", "where is my order")

    def answering(last: float) -> Runner:
        def run(feeds: Feeds) -> NDArray[np.float32]:
            output = np.zeros((len(feeds["input_ids"]), 3), np.float32)
            output[-1, 0] = last
            return output

        return run

    candidate = Candidate(VariantRecipe(name="student"), Path(), given, ())
    with pytest.raises(VerificationError) as caught:
        _compare(candidate, evaluation, answering(NAN), answering(0.0), EXPORTED)
    assert str(caught.value) == "student: the exported graph differs from PyTorch by nan, the limit is 0.001"
