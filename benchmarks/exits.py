"""What early exits save: a variant with exits against the same one without, over a whole test set, through the gateway.

    python -m benchmarks.exits --repository REPOSITORY --model snips --plain int8 --exits exits-int8 \\
        --texts validate.csv --label-column intent

Both sides answer every text of the set, one by one and then with many callers, in turn, in rounds, in one run. The
layers that a text went through are those that the response tells (`Usage.layers`); compute is their mean share of the
model's layers.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from tqdm import tqdm

import millis
from benchmarks.gateway import running_gateway
from benchmarks.load import Measurement, merged, tasks
from millis_pipeline.evaluate import wilson_interval
from millis_pipeline.machine import machine


@dataclass
class Side:
    """One variant and what it did.

    Attributes:
        model: logical name.
        variant: that is asked.
        labels: that it answered, by text.
        layers: that texts went through.
        measured: by number of callers.
    """

    model: str
    variant: str
    labels: dict[int, str | None] = field(default_factory=dict)
    layers: Counter[int] = field(default_factory=Counter)
    measured: dict[int, list[Measurement]] = field(default_factory=dict)


def main() -> None:
    """Measures and prints Markdown tables."""
    arguments = _parser().parse_args()
    with arguments.texts.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    texts = [row[arguments.text_column] for row in rows]
    gold = [row[arguments.label_column] for row in rows]
    sides = [Side(arguments.plain_model or arguments.model, arguments.plain), Side(arguments.model, arguments.exits)]
    print(f"Machine: {machine()}; {arguments.model}, {len(texts)} texts\n")
    with running_gateway(arguments.repository) as gateway:
        with millis.Client(gateway.target) as client:
            variants = {variant.name: variant for variant in client.models.get(arguments.model).variants}
            exits = variants[arguments.exits].exits
        if not exits:
            raise SystemExit(f"--exits: variant {arguments.exits!r} has no early exits")
        uvloop.run(_measure(gateway.target, sides, texts, arguments))
    _print(sides, gold, exits, arguments)


async def _measure(target: str, sides: list[Side], texts: list[str], arguments: argparse.Namespace) -> None:
    """Each round runs every side under every load, so that a change of the machine's speed meets them all."""
    async with millis.AsyncClient(target) as client:

        def ask_for(side: Side):  # type: ignore[no-untyped-def]  # a coroutine function for `tasks`
            async def ask(number: int) -> None:
                text = number % len(texts)
                answer = await client.classify(texts[text], model=side.model, variant=side.variant, timeout=60)
                side.labels[text] = answer.label
                side.layers[answer.info.usage.layers] += 1

            return ask

        with tqdm(total=arguments.rounds * len(arguments.callers) * len(sides), unit="part", leave=False) as progress:
            for _ in range(arguments.rounds):
                for callers in arguments.callers:
                    for side in sides:
                        part = await tasks(ask_for(side), callers, len(texts))
                        side.measured.setdefault(callers, []).append(part)
                        progress.update()
                        await asyncio.sleep(0.2)


def _print(sides: list[Side], gold: list[str], exits: tuple[millis.Exit, ...], arguments: argparse.Namespace) -> None:
    depth = exits[-1].layers
    print("| variant | accuracy (95 % interval) | compute, mean share of layers |")
    print("|---|---|---|")
    for side in sides:
        right = sum(side.labels[text] == label for text, label in enumerate(gold))
        low, high = wilson_interval(right, len(gold))
        mean = sum(layers * count for layers, count in side.layers.items()) / side.layers.total()
        share = mean / depth if mean else 1.0
        print(f"| {side.variant} | {right / len(gold):.4f} ({low:.4f} to {high:.4f}) | {100 * share:.1f} % |")
    left = {layers: 100 * count / sides[1].layers.total() for layers, count in sorted(sides[1].layers.items())}
    print("\nLeft after layer: " + ", ".join(f"{layers}: {share:.1f} %" for layers, share in left.items()) + "\n")
    print("| callers | variant | p50 ms | p90 ms | p99 ms | requests/s | of without exits |")
    print("|---|---|---|---|---|---|---|")
    for callers in arguments.callers:
        plain = merged(sides[0].measured[callers])
        for side in sides:
            whole = merged(side.measured[callers])
            print(
                f"| {callers} | {side.variant} | {whole.percentile(50):.2f} | {whole.percentile(90):.2f} "
                f"| {whole.percentile(99):.2f} | {whole.throughput:.0f} | {whole.throughput / plain.throughput:.2f} |"
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--plain", default="int8", help="variant without exits")
    parser.add_argument(
        "--plain-model", help="that has it, where the gate did not publish it beside the one with exits"
    )
    parser.add_argument("--exits", default="exits-int8", help="the same with exits")
    parser.add_argument("--texts", type=Path, required=True, help="CSV")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=3)
    return parser


if __name__ == "__main__":
    main()
