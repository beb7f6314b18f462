"""Calibrates early exits: how confident an input must be at each exit so that leaving there costs no more than agreed.

Every graph of the cascade is run on every text of data that was set aside. Then combinations of thresholds are tried
on paper, cheapest first, until one holds: what it loses against going all the way must stay below the limit in 84 of
100 resamples of the texts too, or a lucky set would decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from millis_pipeline.checkpoint import Checkpoint
from millis_pipeline.evaluate import entities
from millis_pipeline.run import BATCH, Rows
from millis_pipeline.verify import EvaluationSet, predict
from millis_server.triton.backend.cascade import Stage
from millis_server.triton.backend.microbatch import HIDDEN, MASK

STEPS = 24
"""Thresholds that are tried at each exit, beside none at all; spread evenly over the texts, not over the scale."""

RESAMPLES = 200
SURE = 84
"""Percentile of the resampled losses that must hold: one standard error."""

MARGIN = 0.02
"""Confidence that lies no nearer to a threshold does not cross it by rounding."""

WORTH = 0.95
"""Leaving early must bring the mean time below this share of that of going all the way; less is not worth a head."""


@dataclass(frozen=True)
class Calibration:
    """What leaving early is worth, on the data set aside.

    Attributes:
        thresholds: of each exit but the last; None where nobody shall leave.
        loss: quality that it costs against going all the way.
        saved: share of the mean time that it saves.
    """

    thresholds: tuple[float | None, ...]
    loss: float
    saved: float

    def as_text(self, layers: Sequence[int], texts: int) -> str:
        """In words, for manifest and report; `layers` are those of the exits that have a threshold."""
        used = [threshold for threshold in self.thresholds if threshold is not None]
        leave = ", ".join(f"{threshold:.3f} after layer {layer}" for threshold, layer in zip(used, layers, strict=True))
        return (
            f"calibrated on {texts} texts set aside: a text leaves with a confidence of at least {leave}; "
            f"there that loses {max(self.loss, 0):.4f} and saves {100 * self.saved:.0f} % of the time"
        )


@dataclass(frozen=True)
class Trace:
    """What every exit says of every text.

    Attributes:
        confidence: FLOAT [exits but the last, texts].
        counts: INT [exits, texts, 3]: right, predicted and true answers of each text (labels, or entities).
    """

    confidence: NDArray[np.float64]
    counts: NDArray[np.int64]


def trace(checkpoint: Checkpoint, stages: Sequence[Stage], held_out: EvaluationSet) -> Trace:
    """Runs every graph on every text, whatever its confidence."""
    texts = len(held_out.inputs)
    outputs: list[list[NDArray[np.float32]]] = [[np.empty(0, np.float32)] * texts for _ in stages]
    confidence = np.zeros((len(stages) - 1, texts))
    rows = held_out.rows
    order = sorted(range(texts), key=lambda text: len(rows.encodings[text].ids))
    for start in tqdm(range(0, texts, BATCH), desc="calibration", unit="batch", leave=False, disable=None):
        part = order[start : start + BATCH]
        _trace_batch(checkpoint, stages, rows, part, outputs, confidence)
    counts = [_counts(held_out, predict(checkpoint, held_out, answers)) for answers in outputs]
    return Trace(confidence, np.stack(counts))


def _trace_batch(
    checkpoint: Checkpoint,
    stages: Sequence[Stage],
    rows: Rows,
    part: Sequence[int],
    outputs: list[list[NDArray[np.float32]]],
    confidence: NDArray[np.float64],
) -> None:
    given = rows.feeds(part, checkpoint.inputs)
    feeds: dict[str, NDArray[np.int64] | NDArray[np.float32]] = dict(given)
    for exit, stage in enumerate(stages):
        answer, *onward = stage.engine.run(feeds)
        for text, output in zip(part, answer, strict=True):
            outputs[exit][text] = output[: len(rows.encodings[text].ids)] if output.ndim == 2 else output
        if onward:
            confidence[exit, part] = onward[0]
            feeds = {HIDDEN: onward[1], MASK: given[MASK]}


def calibrate(found: Trace, costs: Sequence[float], max_loss: float) -> Calibration | None:
    """Finds the thresholds that save most time at an agreed loss.

    Args:
        found: on data that nobody has learned from.
        costs: time of each graph, in any unit.
        max_loss: most that may be lost against going all the way.

    Returns:
        What was found, or None when no thresholds that hold are worth it.
    """
    all_the_way = _quality(found.counts[-1].sum(0))
    reached = np.cumsum(costs)
    tried = []
    combinations = list(product(*(_candidates(scores) for scores in found.confidence)))
    for thresholds in tqdm(combinations, desc="thresholds", unit="combination", leave=False, disable=None):
        leaves = leave_at(found.confidence, thresholds)
        counts = _chosen(found.counts, leaves)
        loss = all_the_way - _quality(counts.sum(0))
        if loss <= max_loss:
            tried.append((float(reached[leaves].mean()), loss, thresholds))
    tried.sort(key=lambda one: one[:2])
    # An iterator, of which the bar shows no share: it ends at the first that holds.
    for cost, loss, thresholds in tqdm(iter(tried), desc="resampling", unit="combination", leave=False, disable=None):
        if cost >= WORTH * reached[-1]:
            break
        if _likely_loss(found, leave_at(found.confidence, thresholds)) <= max_loss:
            finite = tuple(None if np.isinf(threshold) else float(threshold) for threshold in thresholds)
            return Calibration(finite, float(loss), 1 - cost / float(reached[-1]))
    return None


def leave_at(confidence: NDArray[np.float64], thresholds: Sequence[float]) -> NDArray[np.int64]:
    """Exit at which each text leaves: the first one at which it is confident enough, or else the last."""
    stays = np.ones(confidence.shape[1], bool)
    exits = np.zeros(confidence.shape[1], np.int64)
    for scores, threshold in zip(confidence, thresholds, strict=True):
        stays &= scores < threshold
        exits += stays
    return exits


def steady(stages: Sequence[Stage], rows: Rows, names: Sequence[str], count: int) -> list[int]:
    """The first inputs that are nowhere near a threshold, run alone; the first of all where there are none."""
    found: list[int] = []
    for index in range(len(rows.encodings)):
        if len(found) < count and _is_steady(stages, rows.feeds([index], names)):
            found.append(index)
    return found or list(range(min(count, len(rows.encodings))))


def _is_steady(stages: Sequence[Stage], given: Mapping[str, NDArray[np.int64]]) -> bool:
    feeds: Mapping[str, NDArray[np.int64] | NDArray[np.float32]] = dict(given)
    for stage in stages:
        if stage.threshold is None:
            break
        _, confidence, hidden = stage.engine.run(feeds)
        if abs(confidence[0] - stage.threshold) < MARGIN:
            return False
        if confidence[0] >= stage.threshold:
            break
        feeds = {HIDDEN: hidden, MASK: given[MASK]}
    return True


def _candidates(scores: NDArray[np.float64]) -> list[float]:
    """Thresholds for one exit: never, and quantiles of the confidence there."""
    return [np.inf, *np.unique(np.quantile(scores, np.linspace(0, 1, STEPS))).tolist()]


def _likely_loss(found: Trace, leaves: NDArray[np.int64]) -> float:
    """The loss that so many of 100 resamples do not exceed."""
    generator = np.random.default_rng(0)
    ours, theirs = _chosen(found.counts, leaves), found.counts[-1]
    losses = []
    for _ in range(RESAMPLES):
        drawn = generator.integers(0, len(leaves), len(leaves))
        losses.append(_quality(theirs[drawn].sum(0)) - _quality(ours[drawn].sum(0)))
    return float(np.percentile(losses, SURE))


def _chosen(counts: NDArray[np.int64], leaves: NDArray[np.int64]) -> NDArray[np.int64]:
    chosen: NDArray[np.int64] = counts[leaves, np.arange(len(leaves))]
    return chosen


def _quality(counts: NDArray[np.int64]) -> float:
    """F1 of (right, predicted, true): for one label for each text it is the accuracy."""
    right, predicted, true = (int(count) for count in counts)
    return 2 * right / (predicted + true) if predicted + true else 0.0


def _counts(data: EvaluationSet, predicted: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """INT [texts, 3]: answers that are right, predicted, and true."""
    if data.tags:
        pairs = [(entities(ours), entities(true)) for ours, true in zip(predicted, data.tags, strict=True)]
        return np.array([(len(ours & true), len(ours), len(true)) for ours, true in pairs], np.int64)
    labels = [(set(ours), set(true)) for ours, true in zip(predicted, data.labels, strict=True)]
    return np.array([(len(ours & true), len(ours), len(true)) for ours, true in labels], np.int64)
