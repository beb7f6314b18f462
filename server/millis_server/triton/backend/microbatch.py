"""Splits a dynamic batch of unequal lengths into engine calls that waste little on padding.

A CPU gains nothing from padding: a batch padded to its longest text is slower than its texts one by one as
soon as lengths differ much. So texts are sorted by length and neighbours share a call only while the padding
stays small, the idea of length bucketing (as in fairseq's and OpenNMT's token-budget batches), here over what
happens to be in the queue. benchmarks/results/padding.md has the figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # at run time this folder is no package: Triton's stub puts it on the path
    from millis_server.triton.backend.engine import Engine

MASK = "attention_mask"

MAX_PADDING = 0.05
"""Largest share of padded tokens in one engine call, relative to its real tokens, unless the config says
otherwise."""

MAX_TOKENS = 1024
"""Largest number of tokens, padding included, in one engine call: a larger one is no faster for each token
(measured with a 6-layer MiniLM) and delays the others."""

Feeds = dict[str, NDArray[np.int64]]
Output = NDArray[np.float32]
Row = tuple[Feeds, int]
Padding = NDArray[np.int32]
"""Tokens that the engine computed beside the real ones of each text: INT32 [texts, 1]."""

_NOT_RUN = np.empty(0, np.float32)


def plan(lengths: Sequence[int], shares: int = 1, max_padding: float | None = MAX_PADDING) -> list[list[list[int]]]:
    """Groups rows by length and spreads the groups over workers.

    Args:
        lengths: real tokens of each row.
        shares: number of workers.
        max_padding: largest share of padded tokens in a group. None pads as is usual elsewhere, for a device
            that fills with one large call: each worker gets an equal part of the rows as they came, in one group.

    Returns:
        For each worker that has work its groups of row indices. Each row is in exactly one group, and a group's
        width is the length of its longest row.
    """
    if max_padding is None:
        part = -(-len(lengths) // shares)
        return [[list(range(start, min(start + part, len(lengths))))] for start in range(0, len(lengths), part)]
    # No group may be larger than a worker's fair share, or one worker would do all the work of a uniform batch.
    budget = min(MAX_TOKENS, -(-sum(lengths) // shares))
    groups: list[list[int]] = []
    group: list[int] = []
    real = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[row]
        padded = length * (len(group) + 1)
        if group and (padded > budget or padded > (1 + max_padding) * (real + length)):
            groups.append(group)
            group, real = [], 0
        group.append(row)
        real += length
    if group:
        groups.append(group)
    return _spread(groups, lengths, shares)


def _spread(groups: list[list[int]], lengths: Sequence[int], shares: int) -> list[list[list[int]]]:
    """Largest group first, each to the worker with the least to do (Graham 1969, LPT)."""
    loads = [0] * shares
    spread: list[list[list[int]]] = [[] for _ in range(shares)]
    for group in sorted(groups, key=lambda group: len(group) * lengths[group[-1]], reverse=True):
        least = loads.index(min(loads))
        loads[least] += len(group) * lengths[group[-1]]
        spread[least].append(group)
    return [share for share in spread if share]


def run_unpadded(
    engine: Engine,
    requests: list[Feeds],
    shares: int = 1,
    pool: Executor | None = None,
    max_padding: float | None = MAX_PADDING,
) -> list[tuple[Output, Padding | None]]:
    """Runs requests of different lengths through the engine with little padding.

    Args:
        engine: what runs the dense tensors.
        requests: for each request its input tensors by name, INT64 [texts, tokens], padded on the right where
            `attention_mask` is 0.
        shares: workers to spread the rows over, the calling thread among them.
        pool: the other workers.
        max_padding: as for `plan`.

    Returns:
        For each request its output: [texts, …], or [texts, tokens, …] as wide as the request's own padding,
        zeros where the mask is 0. And the padding that was computed, or None when there was none.
    """
    if len(requests) == 1 and len(requests[0][MASK]) == 1:
        return [(engine.run(requests[0]), None)]
    rows: list[Row] = [(feeds, row) for feeds in requests for row in range(len(feeds[MASK]))]
    lengths = [int(length) for feeds in requests for length in feeds[MASK].sum(axis=1)]
    outputs: list[Output] = [_NOT_RUN] * len(rows)
    widths = [0] * len(rows)

    def run_groups(groups: list[list[int]]) -> None:
        for group in groups:
            width = max(lengths[position] for position in group)
            feeds = _stack(engine.inputs, [rows[position] for position in group], width)
            for position, output in zip(group, engine.run(feeds), strict=True):
                outputs[position] = output
                widths[position] = width

    first, *others = plan(lengths, shares if pool else 1, max_padding)
    running = [pool.submit(run_groups, share) for share in others] if pool else []
    run_groups(first)
    for share in running:
        share.result()
    padding = np.subtract(widths, lengths, dtype=np.int32)[:, None]
    return list(zip(_regroup(requests, outputs), _padding_of(requests, padding), strict=True))


def _stack(inputs: Sequence[str], rows: list[Row], width: int) -> Feeds:
    return {name: np.stack([_cut(feeds[name][row], width) for feeds, row in rows]) for name in inputs}


def _cut(tokens: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """One row, `width` tokens wide. A row from a narrower request is filled with zeros, which the mask, filled
    the same way, hides from the model."""
    cut = tokens[:width]
    return cut if len(cut) == width else np.pad(cut, (0, width - len(cut)))


def _padding_of(requests: list[Feeds], padding: Padding) -> Iterator[Padding | None]:
    start = 0
    for feeds in requests:
        part = padding[start : start + len(feeds[MASK])]
        start += len(part)
        yield part if part.any() else None


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
