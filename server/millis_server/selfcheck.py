"""Asks a freshly loaded version what its manifest says it must answer, before it takes traffic."""

import asyncio
from contextlib import aclosing
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from millis_server.catalogue import Served
from millis_server.manifest import SelfCheck
from millis_server.tasks.generation import Prompt, TextGeneration
from millis_server.tokenizer import Row
from millis_server.triton.lane import Lane
from millis_server.triton.streams import Streams

WARM_TOKENS = (8, 16, 32, 64, 128)
"""Lengths run once before traffic: the engine allocates its memory for a length on first use."""

TIMED_TOKENS = (16, 64)
TIMED_RUNS = 5
"""Lone texts of each length that tell how fast a version is on this machine, with this config. They take as long as ten
answers do: of a six-layer model in fp32 some 0.25 s on a core without AVX-512."""


class SelfCheckFailed(ValueError):
    """A version that does not answer what it answered when it was exported."""


async def check(served: Served) -> None:
    """Runs the manifest's self-checks through tokenizer and Triton, warms the engine, and sees how fast it is here.

    Raises:
        SelfCheckFailed: an answer differs by more than the manifest's tolerance.
        MillisError: Triton could not answer.
    """
    manifest = served.manifest
    lane = served.lane
    if isinstance(lane, Streams):
        await _check_generation(lane)
        return
    for expected in manifest.self_check:
        ran = await lane.run([_row(served, expected)])
        _compare(expected, _flat(ran.outputs[0]), manifest.tolerance)
    first = _row(served, manifest.self_check[0])
    filler = first.ids[len(first.ids) // 2]
    for tokens in WARM_TOKENS:
        if tokens <= manifest.max_tokens:
            row = Row([filler] * tokens)
            await asyncio.gather(lane.run([row]), lane.run([row]))
    served.pace.calibrate(await _timed(lane, filler, manifest.max_tokens))


async def _timed(lane: Lane, filler: int, max_tokens: int) -> list[tuple[int, float]]:
    """Seconds that lone texts take now, by their tokens."""
    seen = []
    for tokens in TIMED_TOKENS:
        length = min(tokens, max_tokens)
        for _ in range(TIMED_RUNS):
            began = perf_counter()
            await lane.run([Row([filler] * length)])
            seen.append((length, perf_counter() - began))
    return seen


async def _check_generation(streams: Streams) -> None:
    """Has a model that generates make the texts of its manifest, always taking the most likely token."""
    generation = streams.manifest.generation
    assert generation is not None, "only models that generate have streams. This is a bug."
    for check in generation.checks:
        made = await _tokens(streams, check.prompt, len(check.expected))
        if made != check.expected:
            raise SelfCheckFailed(
                f"self-check: a prompt of {len(check.prompt)} tokens was answered with tokens {made}, "
                f"not {check.expected}"
            )


async def _tokens(streams: Streams, ids: tuple[int, ...], count: int) -> tuple[int, ...]:
    task = TextGeneration(ids=ids, max_tokens=count, ignore_eos=True)
    prompt = Prompt("", ids, count, 1, len(ids) + count)
    async with streams.places.take(1, prompt.tokens, None), aclosing(streams.generate(task, prompt)) as chunks:
        return tuple([token async for chunk in chunks for token in chunk.tokens])


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
