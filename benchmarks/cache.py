"""What a cache hit costs, beside an empty unary call on the same server and the same question past the cache.

All sides ask one after the other, in turn, in one run, over one channel:

    python -m benchmarks.cache --repository model_repository --model intent

Sides: `empty call` is grpc.health.v1 Check; `hit` asks texts that the cache knows; `bypass` asks the same texts with
CACHE_POLICY_BYPASS; `miss` asks with CACHE_POLICY_REFRESH, which computes and writes.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import platform
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path

import grpc
import numpy as np
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tqdm import tqdm

from benchmarks.gateway import running_gateway
from benchmarks.load import Measurement, merged, tasks
from millis.v1 import inference_pb2, inference_pb2_grpc, types_pb2
from millis_pipeline.latency import machine

LIBRARIES = ("grpcio", "tokenizers", "uvloop", "prometheus-client")
CACHE_BYTES = 64 * 1024 * 1024
EMPTY = "empty call"

Ask = Callable[[int], Awaitable[object]]


def main() -> None:
    """Measures and prints a Markdown table."""
    arguments = _parser().parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    print(f"Machine: {machine()}; Python {platform.python_version()}; {versions}\n")
    with running_gateway(arguments.repository, "--cache-bytes", str(CACHE_BYTES), *arguments.options) as gateway:
        uvloop.run(_measure(gateway.target, arguments))


async def _measure(target: str, arguments: argparse.Namespace) -> None:
    texts = _texts(arguments.texts)
    async with grpc.aio.insecure_channel(target) as channel:
        sides = _sides(channel, arguments.model, arguments.variant, texts)
        tokens = await _warm(channel, sides, arguments.model, arguments.variant, texts)
        print(
            f"{arguments.model} {arguments.variant}, {len(texts)} texts of {tokens:.0f} tokens on average, one caller\n"
        )
        parts: dict[str, list[Measurement]] = {name: [] for name in sides}
        with tqdm(total=arguments.rounds * len(sides), unit="part", leave=False) as progress:
            for _ in range(arguments.rounds):
                for name, ask in sides.items():
                    parts[name].append(await tasks(ask, 1, arguments.requests))
                    progress.update()
    _print_table(parts)


def _sides(channel: grpc.aio.Channel, model: str, variant: str, texts: list[str]) -> dict[str, Ask]:
    check = health_pb2_grpc.HealthStub(channel).Check
    classify = inference_pb2_grpc.InferenceServiceStub(channel).ClassifyText
    nothing = health_pb2.HealthCheckRequest()

    def asking(policy: types_pb2.CachePolicy.ValueType) -> Ask:
        options = types_pb2.RequestOptions(cache_policy=policy, slo=types_pb2.Slo(pin_variant=variant))
        requests = [inference_pb2.ClassifyTextRequest(model=model, texts=[text], options=options) for text in texts]
        return lambda number: classify(requests[number % len(requests)])

    return {
        EMPTY: lambda _: check(nothing),
        "hit": asking(types_pb2.CACHE_POLICY_DEFAULT),
        "bypass": asking(types_pb2.CACHE_POLICY_BYPASS),
        "miss": asking(types_pb2.CACHE_POLICY_REFRESH),
    }


async def _warm(channel: grpc.aio.Channel, sides: dict[str, Ask], model: str, variant: str, texts: list[str]) -> float:
    """Fills the cache, checks that it answers, and returns the mean number of tokens of a text."""
    for ask in sides.values():
        await tasks(ask, 1, len(texts))
    classify = inference_pb2_grpc.InferenceServiceStub(channel).ClassifyText
    options = types_pb2.RequestOptions(slo=types_pb2.Slo(pin_variant=variant))
    answers = await asyncio.gather(
        *(classify(inference_pb2.ClassifyTextRequest(model=model, texts=[text], options=options)) for text in texts)
    )
    missed = [answer for answer in answers if answer.info.cache_status != types_pb2.CACHE_STATUS_HIT]
    if missed:
        raise SystemExit(f"{len(missed)} of {len(texts)} texts are not in the cache")
    return float(np.mean([answer.info.usage.tokens for answer in answers]))


def _print_table(parts: dict[str, list[Measurement]]) -> None:
    print("| side | p50 ms | p90 ms | p99 ms | over the empty call, p50 ms | requests/s |")
    print("|---|---|---|---|---|---|")
    for name, rounds in parts.items():
        whole = merged(rounds)
        # Round by round, so that a change of the machine's speed meets both sides of a difference.
        over = np.median(
            [mine.percentile(50) - empty.percentile(50) for mine, empty in zip(rounds, parts[EMPTY], strict=True)]
        )
        print(
            f"| {name} | {whole.percentile(50):.2f} | {whole.percentile(90):.2f} | {whole.percentile(99):.2f} "
            f"| {over:+.2f} | {whole.throughput:.0f} |"
        )


def _texts(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(dict.fromkeys(row["text"] for row in csv.DictReader(file)))[:256]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="intent", help="a text classifier")
    parser.add_argument("--variant", default="int8")
    parser.add_argument("--texts", type=Path, default=Path("pipeline/recipes/intent/test.csv"), help="CSV, column text")
    parser.add_argument("--requests", type=int, default=400, help="of each side, in each round")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("options", nargs="*", help="further options of `millis serve`, after --")
    return parser


if __name__ == "__main__":
    main()
