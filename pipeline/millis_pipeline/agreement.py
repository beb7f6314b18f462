"""Whether two engines give a variant's texts the same answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from millis_server.manifest import Manifest

Outputs = Sequence[NDArray[np.float32]]


def agreement(manifest: Manifest, ours: Outputs, theirs: Outputs) -> float:
    """Share of the answers that are the same.

    Args:
        manifest: of the variant.
        ours: outputs for some rows: logits [labels], for tokens [tokens, labels]; a vector [dimensions]; a score [1].
        theirs: another engine's, for the same rows.

    Returns:
        Of texts with the same labels, of tokens with the same label; for embeddings the mean cosine; for a
        cross-encoder of the pairs of rows that are in the same order (from Kendall's tau).
    """
    if manifest.task == "embedding":
        return float(np.mean([_cosine(mine, other) for mine, other in zip(ours, theirs, strict=True)]))
    if manifest.task == "cross-encoder":
        tau = kendalltau([float(output[0]) for output in ours], [float(output[0]) for output in theirs]).statistic
        return float(1 + tau) / 2
    same: list[bool] = []
    for mine, other in zip(ours, theirs, strict=True):
        same += [a == b for a, b in zip(_answers(manifest, mine), _answers(manifest, other), strict=True)]
    return sum(same) / len(same)


def _answers(manifest: Manifest, output: NDArray[np.float32]) -> list[int] | list[list[bool]]:
    """The label of a text or of each token; of a text with several labels one answer, all of which must be the same."""
    if manifest.multi_label:
        return [(output >= 0).tolist()]
    labels: list[int] = np.atleast_1d(output.argmax(axis=-1)).tolist()
    return labels


def _cosine(mine: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(mine @ other / (np.linalg.norm(mine) * np.linalg.norm(other)))
