"""What padding costs: mixed-length traffic through a real Triton, grouped by length and padded to the longest.

The same texts of 5 to 200 tokens are asked one by one by many callers, through the gateway's lanes, in one run:

    python -m benchmarks.padding --repository model_repository --model intent --variant int8

Sides, each the same weights in the same Triton, loaded side by side and measured in turn:

- `grouped` is what the pipeline publishes: rows of like length share an engine call while padding stays below 5 %;
- `to longest, 2 workers` pads the rows as they came, an equal part for each worker, to the longest of the part;
- `to longest, 2 threads` runs a whole batch padded to its longest as one engine call of two threads, as a plain
  server does.

`padding` is what the engine computed beside real tokens, as the backend counts it, relative to them.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import random
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from tqdm import tqdm
from tritonclient.grpc import model_config_pb2 as triton

from benchmarks.load import Measurement, merged, tasks
from millis_pipeline.configuration import write_config
from millis_pipeline.machine import machine
from millis_pipeline.publish import triton_config
from millis_server.manifest import TOKENIZER_FILE, Manifest
from millis_server.manifest_files import read_manifest
from millis_server.tokenizer import Row, Tokenizer
from millis_server.triton.client import TritonClient
from millis_server.triton.lane import Lane
from millis_server.triton.launcher import EmbeddedTriton

SIDES = {
    "grouped": {},
    "to longest, 2 workers": {"max_padding": "unlimited"},
    "to longest, 2 threads": {"max_padding": "unlimited", "workers": "1", "intra_op_threads": "2"},
}
SHORTEST, LONGEST = 5, 200
TEXTS = 1000
LANES, MAX_BATCH = 2, 32


@dataclass
class Side:
    """One way to batch.

    Attributes:
        lane: to its model.
        parts: what was measured, round by round.
    """

    lane: Lane
    parts: list[Measurement]


def main() -> None:
    """Measures and prints a Markdown table for each number of callers."""
    arguments = _parser().parse_args()
    folder = arguments.repository / f"{arguments.model}-{arguments.variant}"
    newest = max((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    manifest = read_manifest(newest)
    rows = mixed_rows(
        Tokenizer(newest / TOKENIZER_FILE, manifest.max_tokens), read_texts(arguments.texts), arguments.seed
    )
    lengths = [len(row.ids) for row in rows]
    print(
        f"{machine()}; {arguments.model} {arguments.variant}; {len(rows)} texts of {min(lengths)} to {max(lengths)} "
        f"tokens, mean {np.mean(lengths):.0f}, median {np.median(lengths):.0f}; {arguments.rounds} rounds of "
        f"{arguments.requests} texts\n"
    )
    asyncio.run(_compare(newest, manifest, rows, arguments))


async def _compare(newest: Path, manifest: Manifest, rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="millis-padding-") as scratch:
        repository = Path(scratch) / "repository"
        names = {side: f"side-{place}" for place, side in enumerate(SIDES)}
        for side, parameters in SIDES.items():
            _lay_out(repository / names[side], newest, manifest, parameters)
        server = EmbeddedTriton(repository, Path(scratch))
        client = TritonClient(server.url, infer_timeout=60, load_timeout=60)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(server.stop)
            stack.callback(client.close)
            await server.start(60)
            sides = {}
            for side, name in names.items():
                await client.load(name)
                model, variant = name.split("-")
                named = manifest.model_copy(update={"model": model, "variant": variant})
                sides[side] = Side(Lane(client, named, "1", LANES, MAX_BATCH), [])
            for callers in arguments.concurrency:
                await _measure(sides, rows, callers, arguments)
                _print_table(sides, callers)


async def _measure(sides: dict[str, Side], rows: Sequence[Row], callers: int, arguments: argparse.Namespace) -> None:
    """Each round runs every side on the same texts, so that a change of the machine's speed meets them all."""
    for side in sides.values():
        await _ask(side, rows, callers, callers)  # warm
        side.lane.tokens = side.lane.padded_tokens = 0
        side.parts = []
    for number in tqdm(range(arguments.rounds), desc=f"{callers} callers", unit="round", leave=False, disable=None):
        start = number * arguments.requests % len(rows)
        turn = [*rows[start:], *rows[:start]]
        for side in list(sides.values())[:: 1 if number % 2 else -1]:
            side.parts.append(await _ask(side, turn, callers, arguments.requests))


async def _ask(side: Side, rows: Sequence[Row], callers: int, requests: int) -> Measurement:
    return await tasks(lambda number: side.lane.run([rows[number % len(rows)]]), callers, requests)


def _print_table(sides: dict[str, Side], callers: int) -> None:
    grouped = merged(sides["grouped"].parts).throughput
    print(f"{callers} callers:\n")
    print("| side | padding | texts/s | tokens/s | p50 ms | p99 ms | grouped is faster by |")
    print("|---|---|---|---|---|---|---|")
    for name, side in sides.items():
        whole = merged(side.parts)
        print(
            f"| {name} | {100 * side.lane.padded_tokens / side.lane.tokens:.1f} % | {whole.throughput:.0f} "
            f"| {side.lane.tokens / whole.wall:.0f} | {whole.percentile(50):.0f} | {whole.percentile(99):.0f} "
            f"| {grouped / whole.throughput:.2f} |"
        )
    print()


def _lay_out(folder: Path, version: Path, manifest: Manifest, parameters: dict[str, str]) -> None:
    """A model of the published weights with the published config, but for the parameters."""
    folder.mkdir(parents=True)
    (folder / "1").symlink_to(version.resolve())
    config = text_format.Parse(triton_config(manifest), triton.ModelConfig())
    config.name = folder.name
    for name, value in parameters.items():
        config.parameters[name].string_value = value
    write_config(folder, config)


def read_texts(path: Path) -> list[str]:
    """Texts of a CSV file: its column `text`, or else its first one."""
    with path.open(encoding="utf-8", newline="") as file:
        return [row.get("text") or next(iter(row.values())) for row in csv.DictReader(file)]


def mixed_rows(tokenizer: Tokenizer, texts: Sequence[str], seed: int) -> list[Row]:
    """Texts of lengths spread evenly from 5 to 200 tokens, made by joining texts and cutting the last one short."""
    choice = random.Random(seed)
    rows = []
    for _ in range(TEXTS):
        wanted = choice.randint(SHORTEST, LONGEST)
        joined = choice.choice(texts)
        while len((row := tokenizer.rows([joined], "end")[0][0]).ids) < wanted:
            joined += " " + choice.choice(texts)
        # Between the special tokens at its ends.
        rows.append(Row([*row.ids[: wanted - 1], row.ids[-1]]))
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="intent")
    parser.add_argument("--variant", default="int8")
    parser.add_argument("--texts", type=Path, default=Path("pipeline/recipes/intent/test.csv"), help="CSV of texts")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--requests", type=int, default=300, help="of each side, in each round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
