"""Measures predictions: per label, averaged, and with a 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support
from sklearn.preprocessing import MultiLabelBinarizer

Z = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""

RESAMPLES = 1000
AVERAGES = ("micro", "macro", "weighted")


@dataclass(frozen=True)
class Row:
    """Scores of one label, or of one average."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Score:
    """What a model is worth.

    Attributes:
        metric: its name.
        value: of the metric; at most 1, and the higher the better.
        low, high: ends of its 95 % interval.
        examples: number of texts, pairs or queries.
    """

    metric: str
    value: float
    low: float
    high: float
    examples: int

    def as_text(self) -> str:
        """A line for the terminal."""
        return f"{self.metric} {self.value:.4f} (95 % interval {self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True)
class LabelScores(Score):
    """What predicted labels are worth, in all and label by label.

    The metric is `accuracy`, `micro_f1` (multi-label) or `entity_f1` (tokens); the interval is Wilson's for accuracy, a
    bootstrap over texts for F1.

    Attributes:
        per_label: one row for each label.
        averages: micro, macro and weighted.
    """

    per_label: tuple[Row, ...]
    averages: tuple[Row, ...]

    def as_text(self) -> str:
        """A table for the terminal, in the form of scikit-learn's classification report."""
        width = max(len(row.name) for row in (*self.per_label, *self.averages)) + 2
        lines = [f"{'':{width}}{'precision':>10}{'recall':>10}{'f1':>10}{'support':>10}"]
        lines += [
            f"{row.name:{width}}{row.precision:>10.4f}{row.recall:>10.4f}{row.f1:>10.4f}{row.support:>10}"
            for row in (*self.per_label, *self.averages)
        ]
        return "\n".join([*lines, "", super().as_text()])


def classification_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], labels: Sequence[str], *, multi_label: bool
) -> LabelScores:
    """Scores text classification.

    Args:
        gold: true labels of each text.
        predicted: predicted labels of each text.
        labels: all labels.
        multi_label: whether a text can have several: then the metric is micro F1, else accuracy.
    """
    binarizer = MultiLabelBinarizer(classes=list(labels))
    truth, guess = binarizer.fit_transform(gold), binarizer.transform(predicted)
    precision, recall, f1, support = precision_recall_fscore_support(truth, guess, average=None, zero_division=0)
    rows = tuple(
        Row(label, float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
        for i, label in enumerate(labels)
    )
    averages = tuple(_average(truth, guess, name) for name in AVERAGES)
    if multi_label:
        counts = np.stack([(truth & guess).sum(1), guess.sum(1), truth.sum(1)], axis=1)
        low, high = _bootstrap_f1(counts)
        return LabelScores("micro_f1", averages[0].f1, low, high, len(gold), rows, averages)
    correct = sum(list(ours) == list(theirs) for ours, theirs in zip(gold, predicted, strict=True))
    low, high = wilson_interval(correct, len(gold))
    return LabelScores("accuracy", correct / len(gold), low, high, len(gold), rows, averages)


def entity_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> LabelScores:
    """Scores entities as the CoNLL evaluation does: an entity counts when label and both ends are right.

    Args:
        gold: true tags of each text, IOB2.
        predicted: predicted tags of each text; an I- that continues nothing begins an entity.
    """
    truth = [entities(tags) for tags in gold]
    guess = [entities(tags) for tags in predicted]
    labels = sorted({label for found in (*truth, *guess) for label, _, _ in found})
    per_label = {label: _counts(truth, guess, label).sum(0) for label in labels}
    rows = tuple(_row(label, counts) for label, counts in per_label.items())
    counts = _counts(truth, guess)
    support = np.array([row.support for row in rows], float)
    micro = _row("micro avg", counts.sum(0))
    averages = (micro, _mean("macro avg", rows, np.ones(len(rows))), _mean("weighted avg", rows, support))
    low, high = _bootstrap_f1(counts)
    return LabelScores("entity_f1", micro.f1, low, high, len(gold), rows, averages)


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Entities of a text as (label, first word, last word)."""
    found = set()
    start, label = 0, ""
    for index, tag in enumerate([*tags, "O"]):
        prefix, name = tag[:1], tag[2:]
        if label and (prefix != "I" or name != label):
            found.add((label, start, index - 1))
            label = ""
        if prefix in ("B", "I") and not label:
            start, label = index, name
    return found


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    share = correct / total
    centre = share + Z * Z / (2 * total)
    spread = Z * sqrt(share * (1 - share) / total + Z * Z / (4 * total * total))
    scale = 1 + Z * Z / total
    return (centre - spread) / scale, (centre + spread) / scale


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of a mean, by the bootstrap."""
    generator = np.random.default_rng(0)
    means = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def _bootstrap_f1(counts: NDArray[np.int64]) -> tuple[float, float]:
    """95 % interval of micro F1, texts drawn anew; `counts` is [texts, (right, predicted, true)]."""
    generator = np.random.default_rng(0)
    scores = []
    for _ in range(RESAMPLES):
        right, guessed, true = counts[generator.integers(0, len(counts), len(counts))].sum(0)
        scores.append(2 * right / (guessed + true) if guessed + true else 0.0)
    low, high = np.percentile(scores, (2.5, 97.5))
    return float(low), float(high)


def _counts(
    truth: Sequence[set[tuple[str, int, int]]], guess: Sequence[set[tuple[str, int, int]]], label: str | None = None
) -> NDArray[np.int64]:
    """[texts, (right, predicted, true)], of one label or of all."""

    def size(found: set[tuple[str, int, int]]) -> int:
        return sum(label is None or name == label for name, _, _ in found)

    pairs = zip(truth, guess, strict=True)
    return np.array([(size(true & ours), size(ours), size(true)) for true, ours in pairs], np.int64)


def _row(name: str, counts: NDArray[np.int64]) -> Row:
    right, guessed, true = (int(count) for count in counts)
    precision = right / guessed if guessed else 0.0
    recall = right / true if true else 0.0
    f1 = 2 * right / (guessed + true) if guessed + true else 0.0
    return Row(name, precision, recall, f1, true)


def _mean(name: str, rows: Sequence[Row], weights: NDArray[np.float64]) -> Row:
    total = float(weights.sum()) or 1.0
    columns = np.array([(row.precision, row.recall, row.f1) for row in rows]).reshape(-1, 3)
    precision, recall, f1 = (columns * weights[:, None]).sum(0) / total
    return Row(name, float(precision), float(recall), float(f1), sum(row.support for row in rows))


def _average(truth: NDArray[np.int64], guess: NDArray[np.int64], name: str) -> Row:
    precision, recall, f1, _ = precision_recall_fscore_support(truth, guess, average=name, zero_division=0)
    return Row(f"{name} avg", float(precision), float(recall), float(f1), int(truth.sum()))
