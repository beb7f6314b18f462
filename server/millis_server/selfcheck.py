"""Asks a freshly loaded version what its manifest says it must answer, before it takes traffic."""

import asyncio

import numpy as np
from numpy.typing import NDArray

from millis_server.catalogue import Served
from millis_server.manifest import SelfCheck
from millis_server.tokenizer import Row

WARM_TOKENS = (8, 16, 32, 64, 128)
"""Lengths run once before traffic: the engine allocates its memory for a length on first use."""


class SelfCheckFailed(ValueError):
    """A version that does not answer what it answered when it was exported."""


async def check(served: Served) -> None:
    """Runs the manifest's self-checks through tokenizer and Triton, and warms the engine.

    Raises:
        SelfCheckFailed: an answer differs by more than the manifest's tolerance.
        MillisError: Triton could not answer.
    """
    manifest = served.manifest
    for expected in manifest.self_check:
        ran = await served.lane.run([_row(served, expected)])
        _compare(expected, _flat(ran.outputs[0]), manifest.tolerance)
    first = _row(served, manifest.self_check[0])
    filler = first.ids[len(first.ids) // 2]
    for tokens in WARM_TOKENS:
        if tokens <= manifest.max_tokens:
            row = Row([filler] * tokens)
            await asyncio.gather(served.lane.run([row]), served.lane.run([row]))


def _row(served: Served, check: SelfCheck) -> Row:
    if check.pair is None:
        rows, _ = served.tokenizer.rows([check.text], "end")
    else:
        rows, _ = served.tokenizer.pair_rows(check.text, [check.pair], "end")
    return rows[0]


def _flat(output: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a self-check compares: the output, or for tokens that of the first token."""
    return output[0] if output.ndim == 2 else output


def _compare(check: SelfCheck, output: NDArray[np.float32], tolerance: float) -> None:
    expected = np.asarray(check.expected, np.float32)
    if expected.shape != output.shape:
        raise SelfCheckFailed(
            f"self-check: {check.text[:40]!r} answered {output.shape[0]} values, not {expected.shape[0]}"
        )
    difference = float(np.abs(output - expected).max())
    if not difference <= tolerance:
        raise SelfCheckFailed(
            f"self-check: the answer to {check.text[:40]!r} differs by {difference:.3g}, the limit is {tolerance:g}"
        )
