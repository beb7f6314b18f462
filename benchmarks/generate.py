"""What the service adds to a generation: the bare engine, Triton around it, and the whole service, side by side.

    python -m benchmarks.generate --shape 0.5b
    python -m benchmarks.generate --shape 7b --engine transformers --device cuda --callers 1 8 64

Sides: `engine` is the backend's own engine class in a process of its own, stepped by nobody else; `triton` is
ModelStreamInfer on our backend; `sdk` is `millis.AsyncClient.generate`. Each is asked by 1 and by 8 callers in turn,
with the same prompts and as many tokens. Beside that: transformers' `generate`, the floor that memory bandwidth sets,
a prompt whose beginning is in the prefix cache, a caller who comes late, and prompt lookup.

Random weights make the engine do all of its work; what they say means nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import numpy as np
import uvloop

import millis
from benchmarks.decoders import SHAPES, Setup, build, checkpoint_of
from benchmarks.gateway import running_gateway
from benchmarks.generation_sides import (
    PROMPT_TOKENS,
    BareEngine,
    Timed,
    ask_sdk,
    ask_transformers,
    ask_triton,
    cuda_read_bandwidth,
    prompts,
    read_bandwidth,
)
from millis_pipeline.latency import machine
from millis_server.manifest import EngineName, Manifest
from millis_server.manifest_files import read_manifest
from millis_server.triton.streams import Streams, TritonStreams

LIBRARIES = ("openvino-genai", "nvidia-pytriton", "grpcio", "transformers", "torch")
"""Their versions are printed."""
TOKENS = 64
PREFIX_TOKENS = 512
CROWD = 8
"""Callers for each place, when all come at once."""


HEAD = (
    "| callers | side | first token p50 / p90 / p99 ms | over engine | mean | next token p50 / p90 / p99 ms | "
    "over engine | tokens/s | of engine |\n|---|---|---|---|---|---|---|---|---|"
)


def side_by_side(
    repository: Path, folder: Path, callers_at_once: Sequence[int], rounds: int, say: Callable[[str], None]
) -> None:
    """Measures all sides in turn and prints the table and what else the service promises."""
    manifest = read_manifest(folder)
    generation, name = manifest.generation, manifest.model
    assert generation is not None
    vocabulary = generation.vocabulary
    engine = BareEngine(
        folder,
        generation.engine,
        device=generation.device,
        max_streams=generation.max_streams,
        cache_tokens=generation.cache_tokens,
    )
    found: dict[tuple[int, str], Timed] = {}
    with running_gateway(repository) as running, uvloop_runner() as runner:
        client = runner.run(_client(running.target))
        triton = TritonStreams(running.triton_grpc)
        streams = runner.run(_streams(triton, manifest, folder.name))
        sides: dict[str, Callable[[list[list[int]]], Timed]] = {
            "engine": lambda given: engine.ask(given, TOKENS),
            "triton": lambda given: runner.run(ask_triton(streams, given, TOKENS)),
            "sdk": lambda given: runner.run(ask_sdk(client, given, TOKENS, name))[0],
        }
        # torch and transformers are in this process: a collection that walks them takes longer than many a text.
        gc.collect()
        gc.freeze()
        for number in range(rounds + 1):
            for callers in callers_at_once:
                order = list(sides)
                for side in order[number % 3 :] + order[: number % 3]:
                    # Prompts of its own for each: a prompt seen before would come from the prefix cache.
                    seed = hash((number, callers, side)) % (1 << 32)
                    timed = sides[side](prompts(callers, vocabulary, seed))
                    if number:  # the first round warms up
                        found.setdefault((callers, side), Timed()).merge(timed)
        say(HEAD)
        for (callers, side), timed in sorted(
            found.items(), key=lambda pair: (pair[0][0], list(sides).index(pair[0][1]))
        ):
            say(timed.row(callers, side, found[callers, "engine"]))
        say("")
        several = found[max(callers_at_once), "sdk"]
        _late_caller(runner, client, name, vocabulary, several, say)
        _cached_prefix(runner, client, name, vocabulary, say)
        _crowd(runner, client, manifest, several, say)
        runner.run(client.close())
        runner.run(triton.close())
    engine.close()
    bandwidth = cuda_read_bandwidth() if generation.device == "cuda" else read_bandwidth()
    _floor(manifest.size_bytes, bandwidth, found[min(callers_at_once), "sdk"], say)


def _late_caller(
    runner: asyncio.Runner,
    client: millis.AsyncClient,
    name: str,
    vocabulary: int,
    several: Timed,
    say: Callable[[str], None],
) -> None:
    given = prompts(5, vocabulary, 77)
    # In the first quarter of the others' texts, however fast the model is.
    late = float(np.median(several.first) + TOKENS / 4 * np.median(several.between))
    _, seen = runner.run(ask_sdk(client, given, 2 * TOKENS, name, (0, 0, 0, 0, late)))
    first = seen[4][1] - seen[4][0]
    ended = min(times[-1] for times in seen[:4]) - seen[4][0]
    say(
        f"A fifth caller who comes while 4 texts are being made has the first token after {1e3 * first:.0f} ms; the "
        f"first of the others ends {1e3 * ended:.0f} ms after that caller came."
    )


def _cached_prefix(
    runner: asyncio.Runner, client: millis.AsyncClient, name: str, vocabulary: int, say: Callable[[str], None]
) -> None:
    cold, warm = [], []
    for seed in range(5):
        (prefix,) = prompts(1, vocabulary, 1000 + seed, PREFIX_TOKENS)
        for place, times in ((0, cold), (1, warm)):
            (end,) = prompts(1, vocabulary, 2000 + 2 * seed + place, 16)
            timed, _ = runner.run(ask_sdk(client, [prefix + end], 2, name))
            times.append(timed.first[0])
    before, after = 1e3 * np.median(cold), 1e3 * np.median(warm)
    say(
        f"A prompt of {PREFIX_TOKENS + 16} tokens begins after {before:.1f} ms, one with the same first "
        f"{PREFIX_TOKENS} after {after:.1f} ms: {before / after:.1f} times sooner (medians of 5)."
    )


def _crowd(
    runner: asyncio.Runner,
    client: millis.AsyncClient,
    manifest: Manifest,
    several: Timed,
    say: Callable[[str], None],
) -> None:
    generation = manifest.generation
    assert generation is not None
    size = CROWD * generation.max_streams
    timed, _ = runner.run(ask_sdk(client, prompts(size, generation.vocabulary, 3000), TOKENS, manifest.model))
    crowd, few = (1e3 * np.percentile(one.between, (50, 90)) for one in (timed, several))
    waited = np.percentile(timed.first, (50, 100))
    say(
        f"{size} callers at once on {generation.max_streams} places: all have their {TOKENS} tokens after "
        f"{timed.wall:.1f} s; next token {crowd[0]:.2f} ms (p90 {crowd[1]:.2f}), with as many as places "
        f"{few[0]:.2f} ({few[1]:.2f}); first token after {waited[0]:.1f} s, the last caller's after {waited[1]:.1f} s."
    )


def _floor(size: int, bandwidth: float, sdk: Timed, say: Callable[[str], None]) -> None:
    floor = size / bandwidth
    token = float(np.median(sdk.between))
    say(
        f"Memory reads {bandwidth / 1e9:.1f} GB/s; {size / 1e6:.0f} MB of weights in each step set a floor of "
        f"{1e3 * floor:.2f} ms per token. The service with the fewest callers reaches {100 * floor / token:.0f} %."
    )


async def _client(target: str) -> millis.AsyncClient:
    client = millis.AsyncClient(target)
    await client.wait_ready()
    return client


async def _streams(triton: TritonStreams, manifest: Manifest, number: str) -> Streams:
    return Streams(triton, manifest, number, max_waiting=64, patience=30.0)


@contextmanager
def uvloop_runner() -> Iterator[asyncio.Runner]:
    """One event loop for the whole run."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="0.5b")
    parser.add_argument("--engine", choices=get_args(EngineName), default="openvino_genai")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda is for the engine transformers")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8], help="numbers of callers at once")
    parser.add_argument("--weights", help="variant to measure; the default is the shape's first")
    parser.add_argument("--rounds", type=int, default=5, help="rounds counted, after one that warms up")
    parser.add_argument("--folder", type=Path, default=Path(".millis/bench_generate"), help="what is built stays here")
    parser.add_argument("--without-transformers", action="store_true", help="leave out the slow comparison")
    arguments = parser.parse_args()
    setup = Setup(arguments.engine, arguments.device, max(arguments.callers))
    repository = build(arguments.folder, arguments.shape, setup)
    shape = SHAPES[arguments.shape]
    weights = arguments.weights or setup.weights(arguments.shape)[0]
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    print(f"Machine: {machine()}; Python {sys.version.split()[0]}; {libraries}\n")
    print(f"{shape.what}, {weights}, engine {setup.engine} on {setup.device}, {setup.places} places")
    print(f"prompts of {PROMPT_TOKENS} tokens, texts of {TOKENS}, {arguments.rounds} rounds\n")
    folder = repository / f"{setup.model(arguments.shape)}-{weights}" / "1"
    side_by_side(repository, folder, arguments.callers, arguments.rounds, print)
    if not arguments.without_transformers:
        (prompt,) = prompts(1, shape.config.vocab_size, 5)
        token = ask_transformers(checkpoint_of(arguments.folder, arguments.shape), prompt, 32, arguments.device)
        precision = "bf16" if arguments.device == "cuda" else "fp32"
        print(f"transformers' generate ({precision}, 1 caller): {1e3 * token:.1f} ms per token.")


if __name__ == "__main__":
    main()
