"""Splits a dynamic batch of unequal lengths into engine calls that waste little on padding.

A CPU gains nothing from padding: a batch padded to its longest text is slower than its texts one by one as
soon as lengths differ much. So texts are sorted by length and neighbours share a call only while the padding
stays small, the idea of length bucketing (as in fairseq's and OpenNMT's token-budget batches), here over what
happens to be in the queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

Feeds = dict[str, NDArray[np.int64]]
Output = NDArray[np.float32]

if TYPE_CHECKING:  # at run time this folder is no package: Triton's stub puts it on the path
    from millis_server.triton.backend.engine import Engine

MASK = "attention_mask"

MAX_PADDING = 0.05
"""Largest share of padded tokens in one engine call, relative to its real tokens."""

MAX_TOKENS = 2048
"""Largest number of tokens, padding included, in one engine call: beyond it the activations of a small
encoder leave the processor's cache and a larger call only delays the others."""

_NOT_RUN = np.empty(0, np.float32)


def plan(lengths: Sequence[int]) -> list[list[int]]:
    """Groups rows by length.

    Args:
        lengths: real tokens of each row.

    Returns:
        Groups of row indices, the shortest rows first. Each row is in exactly one group. A group's width is the
        length of its last row.
    """
    groups: list[list[int]] = []
    group: list[int] = []
    real = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[row]
        padded = length * (len(group) + 1)
        if group and (padded > MAX_TOKENS or padded > (1 + MAX_PADDING) * (real + length)):
            groups.append(group)
            group, real = [], 0
        group.append(row)
        real += length
    if group:
        groups.append(group)
    return groups


def run_unpadded(engine: Engine, requests: list[Feeds]) -> list[Output]:
    """Runs requests of different lengths through the engine with little padding.

    Args:
        engine: what runs the dense tensors.
        requests: for each request its input tensors by name, INT64 [texts, tokens], padded on the right where
            `attention_mask` is 0.

    Returns:
        For each request its output: [texts, …], or [texts, tokens, …] as wide as the request's own padding,
        zeros where the mask is 0.
    """
    if len(requests) == 1 and (len(requests[0][MASK]) == 1 or requests[0][MASK].all()):
        return [engine.run(requests[0])]
    rows = [(feeds, row) for feeds in requests for row in range(len(feeds[MASK]))]
    lengths = [int(length) for feeds in requests for length in feeds[MASK].sum(axis=1)]
    outputs: list[Output] = [_NOT_RUN] * len(rows)
    for group in plan(lengths):
        width = lengths[group[-1]]
        feeds = {
            name: np.stack([_cut(rows[position][0][name], rows[position][1], width) for position in group])
            for name in engine.inputs
        }
        for position, output in zip(group, engine.run(feeds), strict=True):
            outputs[position] = output
    return _regroup(requests, outputs)


def _cut(feed: NDArray[np.int64], row: int, width: int) -> NDArray[np.int64]:
    """One row, `width` tokens wide. A row from a narrower request is filled with zeros, which the mask, filled
    the same way, hides from the model."""
    tokens = feed[row, :width]
    return tokens if len(tokens) == width else np.pad(tokens, (0, width - len(tokens)))


def _regroup(requests: list[Feeds], outputs: list[Output]) -> list[Output]:
    regrouped = []
    start = 0
    for feeds in requests:
        count, width = feeds[MASK].shape
        rows = outputs[start : start + count]
        start += count
        if rows[0].ndim == 2:
            whole = np.zeros((count, width, rows[0].shape[1]), rows[0].dtype)
            for target, row in zip(whole, rows, strict=True):
                kept = min(len(row), width)
                target[:kept] = row[:kept]
            regrouped.append(whole)
        else:
            regrouped.append(np.stack(rows))
    return regrouped
