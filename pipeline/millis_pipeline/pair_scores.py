"""Measures models on pairs of texts: how well cosines follow people's scores, and how high answers are ranked."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from millis_pipeline.evaluate import Score, Z, mean_interval
from millis_pipeline.pairs import PairExamples, by_query

Values = NDArray[np.float64]

SPEARMAN, MRR = "spearman", "mrr"
"""Names of the metrics."""

FIRM = 1 - 1e-12
"""Largest correlation that Fisher's z is taken of: that of 1 is infinite."""


def pair_score(examples: PairExamples, similarities: Values) -> Score:
    """Scores the similarity that a model found in each pair: MRR for rankings, Spearman's for pairs of like texts."""
    if examples.ranked:
        return mean_reciprocal_rank(examples, similarities)
    return rank_correlation(similarities, examples.scores)


def rank_correlation(similarities: Values, scores: Sequence[float]) -> Score:
    """Spearman's correlation, -1 to 1, of similarities with people's scores.

    Its interval is by Fisher's z, with the variance that Bonett and Wright 2000 ("Sample size requirements for
    estimating Pearson, Kendall and Spearman correlations") give for Spearman's: (1 + r² / 2) / (n - 3).
    """
    # Without different similarities, or with one that is no number, there is no order to compare.
    ordered = np.isfinite(similarities).all() and np.ptp(similarities) > 0
    value = float(spearmanr(similarities, scores).statistic) if ordered else 0.0
    spread = Z * sqrt((1 + value**2 / 2) / (len(scores) - 3))
    low, high = np.tanh(np.arctanh(np.clip(value, -FIRM, FIRM)) + np.array([-spread, spread]))
    return Score(SPEARMAN, value, float(low), float(high), len(scores))


def mean_reciprocal_rank(examples: PairExamples, similarities: Values) -> Score:
    """Mean over the queries of 1 / place of the first relevant document; the interval is a bootstrap over queries."""
    ranks = []
    relevant = np.array(examples.scores) > 0
    for indices in by_query([query for query, _ in examples.pairs]).values():
        found, answers = similarities[indices], relevant[indices]
        # Whoever is not certainly below the best answer stands before it, also with an equal score or none (NaN): a
        # model that tells nothing apart must not seem to rank well.
        before = ~(found[~answers] < found[answers].max())
        ranks.append(1 / (1 + before.sum()))
    values = np.array(ranks)
    return Score(MRR, float(values.mean()), *mean_interval(values), len(values))


def same_order(queries: Sequence[str], ours: Values, theirs: Values) -> float:
    """Mean over the queries of the share of pairs of documents that two models put in the same order.

    It is Kendall's tau-b, brought from -1…1 to 0…1; 0 where one of the models puts a query's documents in no order.
    """
    taus = [kendalltau(ours[indices], theirs[indices]).statistic for indices in by_query(queries).values()]
    return float(np.nan_to_num((np.array(taus) + 1) / 2).mean())
