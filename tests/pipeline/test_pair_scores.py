"""What models are worth on pairs: against hand-made figures, scipy's bootstrap, and models that tell nothing apart."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import bootstrap, spearmanr

from millis_pipeline.evaluate import Score
from millis_pipeline.pair_scores import pair_score, same_order
from millis_pipeline.pairs import PairExamples


def alike(scores: list[float]) -> PairExamples:
    return PairExamples([("a", "b")] * len(scores), scores, list(range(len(scores))), ranked=False, path=Path())


def ranked(**queries: list[float]) -> PairExamples:
    pairs = [(query, str(place)) for query, scores in queries.items() for place in range(len(scores))]
    return PairExamples(
        pairs, [score for scores in queries.values() for score in scores], [0] * len(pairs), ranked=True, path=Path()
    )


def test_a_correlation_and_its_interval_are_those_of_the_textbook() -> None:
    # One pair of neighbours changed places: 1 - 6 * 2 / (10 * 99). Bonett and Wright's spread is by hand.
    score = pair_score(alike([1, 2, 3, 4, 5, 6, 7, 8, 10, 9]), np.arange(10.0))
    value = 1 - 12 / 990
    spread = 1.959964 * math.sqrt((1 + value**2 / 2) / 7)
    assert score == Score(
        "spearman",
        pytest.approx(value),
        pytest.approx(math.tanh(math.atanh(value) - spread)),
        pytest.approx(math.tanh(math.atanh(value) + spread)),
        10,
    )


def test_the_interval_of_a_correlation_is_near_the_bootstraps() -> None:
    generator = np.random.default_rng(0)
    scores = np.round(generator.uniform(0, 5, 400), 1)
    found = scores + generator.normal(0, 1.5, 400)
    score = pair_score(alike(scores.tolist()), found)
    drawn = bootstrap(
        (found, scores),
        lambda x, y: spearmanr(x, y).statistic,
        n_resamples=500,
        paired=True,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert (score.low, score.high) == (pytest.approx(drawn.low, abs=0.015), pytest.approx(drawn.high, abs=0.015))
    assert score.low < score.value < score.high


@pytest.mark.parametrize(
    ("similarities", "value"),
    [([0.1, 0.2, 0.3, 0.4], 1.0), ([0.4, 0.3, 0.2, 0.1], -1.0), ([0.5] * 4, 0.0), ([0.1, math.nan, 0.3, 0.4], 0.0)],
)
def test_a_correlation_may_be_perfect_or_below_0_and_is_0_without_an_order(
    similarities: list[float], value: float
) -> None:
    score = pair_score(alike([1, 2, 3, 4]), np.array(similarities))
    end = math.tanh(1.959964)
    assert score == Score(
        "spearman",
        pytest.approx(value),
        pytest.approx(-end if value == 0 else value),
        pytest.approx(end if value == 0 else value),
        4,
    )


def test_the_place_of_the_first_relevant_document_counts_for_each_query() -> None:
    examples = ranked(first=[0, 2, 0], third=[1, 0, 0], second=[0, 1, 1, 0])
    similarities = np.array([0.1, 0.9, 0.2, 0.3, 0.8, 0.7, 5.0, 4.0, 3.0, 2.0])
    score = pair_score(examples, similarities)
    assert (score.metric, score.value, score.examples) == ("mrr", pytest.approx((1 + 1 / 3 + 1 / 2) / 3), 3)
    # The least and the most that three queries drawn anew can have, each in one of 27 draws.
    assert (score.low, score.high) == (pytest.approx(1 / 3), pytest.approx(1.0))


@pytest.mark.parametrize("similarity", [0.5, math.nan])
def test_a_model_that_tells_nothing_apart_does_not_seem_to_rank_well(similarity: float) -> None:
    score = pair_score(ranked(one=[1, 0, 0, 0], two=[1, 0, 0, 0]), np.full(8, similarity))
    assert score == Score("mrr", 0.25, 0.25, 0.25, 2)


def test_agreement_of_rankings_is_the_share_of_documents_in_the_same_order_query_by_query() -> None:
    queries = ["a", "b", "a", "a", "b"]
    theirs = np.array([1.0, 2.0, 2.0, 3.0, 1.0])
    assert same_order(queries, np.array([10.0, 9.0, 20.0, 30.0, 8.0]), theirs) == 1.0
    # Of the three pairs of `a` one is turned, and the one of `b`.
    assert same_order(queries, np.array([10.0, 8.0, 30.0, 20.0, 9.0]), theirs) == pytest.approx((2 / 3 + 0) / 2)
    assert same_order(queries, np.full(5, 7.0), theirs) == 0.0
