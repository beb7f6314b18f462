"""Whether two ways of computing a model give its texts the same answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from millis_pipeline.pair_scores import same_order
from millis_server.manifest import TaskName

Outputs = Sequence[NDArray[np.float32]]


def agreement(task: TaskName, multi_label: bool, ours: Outputs, theirs: Outputs) -> float:
    """Share of the answers that are the same.

    Args:
        task: of the model.
        multi_label: whether a text can have several labels.
        ours: outputs for some rows: logits [labels], for tokens [tokens, labels]; a vector [dimensions]; a score [1].
        theirs: another engine's, for the same rows.

    Returns:
        Of texts with the same labels, of tokens with the same label; for embeddings the mean cosine; for a
        cross-encoder of the pairs of rows that are in the same order (from Kendall's tau).
    """
    if task == "embedding":
        return float((unit_length(ours) * unit_length(theirs)).sum(axis=1).mean())
    if task == "cross-encoder":
        one_query = [""] * len(ours)
        return same_order(one_query, *(np.array([output[0] for output in side], np.float64) for side in (ours, theirs)))
    same: list[bool] = []
    for mine, other in zip(ours, theirs, strict=True):
        same += [a == b for a, b in zip(_answers(multi_label, mine), _answers(multi_label, other), strict=True)]
    return sum(same) / len(same)


def _answers(multi_label: bool, output: NDArray[np.float32]) -> list[int] | list[list[bool]]:
    """The label of a text or of each token; of a text with several labels one answer, all of which must be the same."""
    if multi_label:
        return [(output >= 0).tolist()]
    labels: list[int] = np.atleast_1d(output.argmax(axis=-1)).tolist()
    return labels


def unit_length(vectors: Outputs) -> NDArray[np.float64]:
    """Vectors of length 1 in the same directions, [vectors, dimensions]."""
    whole = np.stack(vectors).astype(np.float64)
    unit: NDArray[np.float64] = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    return unit
