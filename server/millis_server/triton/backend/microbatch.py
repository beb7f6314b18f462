"""Splits a dynamic batch of unequal lengths into engine calls that waste little on padding.

A CPU gains nothing from padding: a batch padded to its longest text is slower than its texts one by one as
soon as lengths differ much. So texts are sorted by length and neighbours share a call only while the padding
stays small, the idea of length bucketing (as in fairseq's and OpenNMT's token-budget batches), here over what
happens to be in the queue. benchmarks/results/padding.md has the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # at run time this folder is no package: Triton's stub puts it on the path
    from millis_server.triton.backend.cascade import Stage
    from millis_server.triton.backend.engine import Engine, Feeds

HIDDEN = "hidden_states"
MASK = "attention_mask"

MAX_PADDING = 0.05
"""Largest share of padded tokens in one engine call, relative to its real tokens, unless the config says
otherwise."""

MAX_TOKENS = 1024
"""Largest number of tokens, padding included, in one engine call: a larger one is no faster for each token
(measured with a 6-layer MiniLM) and delays the others."""

Output = NDArray[np.float32]
Row = dict[str, NDArray[Any]]
"""Inputs of one text, as long as it is."""


class Answer(NamedTuple):
    """What came of one request."""

    output: Output
    """[texts, …], or [texts, tokens, …] as wide as the request's own padding, zeros where the mask is 0."""
    padding: NDArray[np.int32] | None
    """Tokens that the engine computed beside the real ones of each text (in the stage with the most of them), INT32
    [texts, 1]; None where there were none."""
    layers: NDArray[np.int32] | None
    """Layers that each text went through, INT32 [texts, 1]; None for a model that is one graph."""


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
    stages: Sequence[Stage],
    requests: Sequence[Feeds],
    shares: int = 1,
    pool: Executor | None = None,
    max_padding: float | None = MAX_PADDING,
) -> list[Answer]:
    """Runs requests of different lengths through the graphs of a model with little padding.

    After each graph of a cascade the texts that it answered leave, and the rest are grouped anew.

    Args:
        stages: the model.
        requests: for each request its input tensors by name, INT64 [texts, tokens], padded on the right where
            `attention_mask` is 0.
        shares: workers to spread the rows over, the calling thread among them.
        pool: the other workers.
        max_padding: as for `plan`.
    """
    if len(requests) == 1 and len(requests[0][MASK]) == 1:
        return [_run_lone(stages, requests[0])]
    lengths = [int(length) for feeds in requests for length in feeds[MASK].sum(axis=1)]
    places = [(feeds, row) for feeds in requests for row in range(len(feeds[MASK]))]
    rows: list[Row] = [
        {name: feed[row, :length] for name, feed in feeds.items()}
        for (feeds, row), length in zip(places, lengths, strict=True)
    ]
    outputs: list[Output] = [_NOT_RUN] * len(rows)
    padding = [0] * len(rows)
    layers = [0] * len(rows)
    going = list(range(len(rows)))
    for stage in stages:
        ran = _run_rows(
            stage.engine, [rows[row] for row in going], [lengths[row] for row in going], shares, pool, max_padding
        )
        left = []
        for row, (values, width) in zip(going, ran, strict=True):
            padding[row] = max(padding[row], width - lengths[row])
            layers[row] = stage.layers
            outputs[row] = values[0]
            if stage.threshold is not None and values[1] < stage.threshold:
                rows[row] = {HIDDEN: values[2][: lengths[row]], MASK: rows[row][MASK]}
                left.append(row)
        going = left
        if not going:
            break
    return _regroup(requests, outputs, padding, layers)


def _run_lone(stages: Sequence[Stage], feeds: Feeds) -> Answer:
    """A text that is alone: no copy, no padding, no change of thread."""
    for stage in stages:
        values = stage.engine.run(feeds)
        if stage.threshold is None or values[1][0] >= stage.threshold:
            break
        feeds = {HIDDEN: values[2], MASK: feeds[MASK]}
    return Answer(values[0], None, np.array([[stage.layers]], np.int32) if stage.layers else None)


def _run_rows(
    engine: Engine,
    rows: Sequence[Row],
    lengths: Sequence[int],
    shares: int,
    pool: Executor | None,
    max_padding: float | None,
) -> list[tuple[list[Output], int]]:
    """Runs rows through one graph; returns the outputs of each, and how wide it was when it was computed."""
    ran: list[tuple[list[Output], int]] = [([], 0)] * len(rows)

    def run_groups(groups: list[list[int]]) -> None:
        for group in groups:
            width = max(lengths[row] for row in group)
            outputs = engine.run({name: _stack([rows[row][name] for row in group], width) for name in engine.inputs})
            for place, row in enumerate(group):
                ran[row] = ([output[place] for output in outputs], width)

    first, *others = plan(lengths, shares if pool else 1, max_padding)
    running = [pool.submit(run_groups, share) for share in others] if pool else []
    run_groups(first)
    for share in running:
        share.result()
    return ran


def _stack(rows: Sequence[NDArray[Any]], width: int) -> NDArray[Any]:
    """Rows side by side. Shorter ones are filled with zeros, which the mask, filled the same way, hides."""
    stacked = np.zeros((len(rows), width, *rows[0].shape[1:]), rows[0].dtype)
    for place, row in zip(stacked, rows, strict=True):
        place[: len(row)] = row
    return stacked


def _regroup(
    requests: Sequence[Feeds], outputs: Sequence[Output], padding: Sequence[int], layers: Sequence[int]
) -> list[Answer]:
    regrouped = []
    start = 0
    for feeds in requests:
        count, width = feeds[MASK].shape
        rows = outputs[start : start + count]
        padded, computed = padding[start : start + count], layers[start : start + count]
        start += count
        if rows[0].ndim == 2:
            whole = np.zeros((count, width, rows[0].shape[1]), rows[0].dtype)
            for target, row in zip(whole, rows, strict=True):
                kept = min(len(row), width)
                target[:kept] = row[:kept]
        else:
            whole = np.stack(rows)
        regrouped.append(Answer(whole, _column(padded), _column(computed)))
    return regrouped


def _column(counts: Sequence[int]) -> NDArray[np.int32] | None:
    """INT32 [texts, 1], or None where there is nothing to tell."""
    return np.array(counts, np.int32)[:, None] if any(counts) else None
