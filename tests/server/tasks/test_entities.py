import numpy as np
import pytest

from millis_server.tasks.entities import Piece, find_entities
from millis_server.words import split_words

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TEXT = "Ann Lee, Rome"
OFFSETS = [(0, 1), (1, 3), (4, 7), (7, 8), (9, 13)]  # A ##nn Lee , Rome


def scores(*labels: str, sure: float = 0.9) -> np.ndarray:
    rows = np.full((len(labels), len(LABELS)), (1 - sure) / (len(LABELS) - 1), np.float32)
    for row, label in zip(rows, labels, strict=True):
        row[LABELS.index(label)] = sure
    return rows


def found(rows: np.ndarray, aggregation: str) -> list[tuple[str, str]]:
    pieces = find_entities(rows, OFFSETS, split_words(TEXT), LABELS, aggregation)
    return [(TEXT[piece.start : piece.end], piece.label) for piece in pieces]


def test_words_of_one_label_join_and_carry_place_score_and_words():
    rows = scores("B-PER", "I-PER", "I-PER", "O", "B-LOC")
    pieces = find_entities(rows, OFFSETS, split_words(TEXT), LABELS, "first")
    assert pieces == [Piece(0, 7, "PER", pytest.approx(0.9), 0, 1), Piece(9, 13, "LOC", pytest.approx(0.9), 3, 3)]


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("first", [("Ann", "PER"), ("Rome", "LOC")]),
        ("max", [("Ann", "LOC"), ("Rome", "LOC")]),
        ("simple", [("A", "PER"), ("nn", "LOC"), ("Rome", "LOC")]),
        ("none", [("A", "PER"), ("nn", "LOC"), ("Rome", "LOC")]),
    ],
)
def test_the_strategies_differ_where_the_tokens_of_a_word_do(aggregation, expected):
    rows = scores("B-PER", "B-LOC", "O", "O", "B-LOC")
    rows[1] = scores("B-LOC", sure=0.99)
    assert found(rows, aggregation) == expected


def test_average_weighs_all_tokens_of_a_word():
    rows = scores("B-PER", "B-LOC", "O", "O", "O")
    rows[0], rows[1] = [0.1, 0.5, 0.0, 0.4, 0.0], [0.1, 0.1, 0.0, 0.8, 0.0]
    assert found(rows, "average") == [("Ann", "LOC")]


def test_a_new_b_prefix_begins_a_new_entity():
    assert found(scores("B-PER", "I-PER", "B-PER", "O", "O"), "first") == [("Ann", "PER"), ("Lee", "PER")]


def test_an_i_that_continues_nothing_begins_an_entity():
    assert found(scores("O", "O", "I-LOC", "O", "O"), "first") == [("Lee", "LOC")]
