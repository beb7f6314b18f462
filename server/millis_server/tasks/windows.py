"""Overlapping windows, for texts longer than the model can read.

The rule: neighbouring windows share `overlap` tokens, and each token takes its output from the window in which it
is farthest from an edge, the earlier window on a tie. The beginning and the end of the text are no edges.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def cut(tokens: int, capacity: int, overlap: int) -> list[tuple[int, int]]:
    """Places of the windows over `tokens` tokens.

    Args:
        tokens: length of the text.
        capacity: most tokens of one window, special tokens not counted.
        overlap: tokens that neighbours share, less than `capacity`.

    Returns:
        [start, end) of each window; the last one is as long as the others where the text allows.
    """
    if tokens <= capacity:
        return [(0, tokens)]
    starts = list(range(0, tokens - capacity, capacity - overlap))
    starts.append(tokens - capacity)
    return [(start, start + capacity) for start in starts]


def join(windows: Sequence[tuple[int, int]], outputs: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Joins outputs [tokens of the window, …] of each window into one [tokens of the text, …]."""
    if len(windows) == 1:
        return outputs[0]
    total = windows[-1][1]
    joined = np.empty((total, *outputs[0].shape[1:]), np.float32)
    margin = np.full(total, -1)
    for (start, end), output in zip(windows, outputs, strict=True):
        places = np.arange(start, end)
        before = places - start if start > 0 else np.full(end - start, total)
        after = end - 1 - places if end < total else np.full(end - start, total)
        here = np.minimum(before, after)
        better = here > margin[start:end]
        joined[start:end][better] = output[better]
        margin[start:end] = np.maximum(margin[start:end], here)
    return joined
