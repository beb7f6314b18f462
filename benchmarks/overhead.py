"""What the service costs: the bare engine, the same through Triton, through the gateway and through the SDK.

All sides answer the same texts one by one, in turn, in one run:

    python -m benchmarks.overhead --repository model_repository --model intent

Sides: `engine` is ONNX Runtime in this process on token ids, with as many threads calling it as the backend has
workers; `engine, empty call` follows it with a health check, a gRPC call that does nothing: what any service that
answers by gRPC from another process costs on this machine at least; `triton` adds Triton and the backend;
`gateway` adds tokenizing, routing and gRPC, called with raw stubs; `sdk` is `millis.Client` (one thread for each
caller), `sdk (async)` is `millis.AsyncClient`.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import platform
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tqdm import tqdm

import millis
from benchmarks.gateway import Running, running_gateway
from benchmarks.load import Measurement, merged, tasks, threads
from millis.v1 import inference_pb2, inference_pb2_grpc, types_pb2
from millis_pipeline.latency import machine
from millis_server.manifest import TOKENIZER_FILE, WEIGHTS_FILE, Manifest
from millis_server.manifest_files import read_manifest
from millis_server.tokenizer import Row, Tokenizer
from millis_server.triton.client import TritonClient, infer_path
from millis_server.triton.tensors import pack, unpack

WORKERS = 2
"""Workers of the backend, as the pipeline publishes models."""

LIBRARIES = ("onnxruntime", "nvidia-pytriton", "grpcio", "tokenizers", "numpy")
ENGINE = "engine"
EMPTY_CALL = "engine, empty call"

Side = Callable[[int, int], Measurement]
"""Measures (callers, requests)."""


@dataclass(frozen=True)
class Subject:
    """What is asked of which model.

    Attributes:
        manifest: of the variant.
        version: that answers.
        folder: of the version.
        texts: asked in turn.
        rows: their tokens.
    """

    manifest: Manifest
    version: str
    folder: Path
    texts: list[str]
    rows: list[Row]


def main() -> None:
    """Measures and prints a Markdown table for each variant."""
    arguments = _parser().parse_args()
    print(f"Machine: {machine()}; Python {platform.python_version()}; {_versions()}")
    with running_gateway(arguments.repository) as gateway:
        for variant in arguments.variants:
            subject = _subject(arguments.repository, arguments.model, variant, arguments.texts)
            lengths = [len(row.ids) for row in subject.rows]
            print(f"\n{arguments.model} {variant}, {len(lengths)} texts of {np.mean(lengths):.0f} tokens on average\n")
            with _sides(subject, gateway) as sides:
                _print_table(sides, arguments.concurrency, arguments.requests, arguments.rounds)


def _print_table(sides: dict[str, Side], concurrency: list[int], requests: int, rounds: int) -> None:
    """Each round runs every side under every load, so that a change of the machine's speed meets them all."""
    parts: dict[tuple[str, int], list[Measurement]] = {(name, c): [] for c in concurrency for name in sides}
    with tqdm(total=rounds * len(parts), unit="part", leave=False) as progress:
        for callers in concurrency:
            for side in sides.values():
                side(callers, max(4 * callers, 20))  # warm
            for _ in range(rounds):
                for name, side in sides.items():
                    parts[name, callers].append(side(callers, requests))
                    progress.update()
    print("| callers | side | p50 ms | p90 ms | p99 ms | over engine, p50 ms | requests/s | of engine |")
    print("|---|---|---|---|---|---|---|---|")
    for callers in concurrency:
        engine = merged(parts[ENGINE, callers])
        for name in sides:
            whole = merged(parts[name, callers])
            over = np.median(
                [
                    side.percentile(50) - bare.percentile(50)
                    for side, bare in zip(parts[name, callers], parts[ENGINE, callers], strict=True)
                ]
            )
            print(
                f"| {callers} | {name} | {whole.percentile(50):.2f} | {whole.percentile(90):.2f} "
                f"| {whole.percentile(99):.2f} | {over:+.2f} | {whole.throughput:.0f} "
                f"| {100 * whole.throughput / engine.throughput:.0f} % |"
            )


@contextmanager
def _sides(subject: Subject, gateway: Running) -> Iterator[dict[str, Side]]:
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)

    def on_loop(ask: Callable[[int], Awaitable[object]]) -> Side:
        return lambda callers, requests: loop.run_until_complete(tasks(ask, callers, requests))

    async def connect() -> tuple[TritonClient, grpc.aio.Channel, millis.AsyncClient]:
        # Asynchronous clients belong to the loop that they were made on.
        triton = TritonClient(gateway.triton, infer_timeout=60, load_timeout=60)
        return triton, grpc.aio.insecure_channel(gateway.target), millis.AsyncClient(gateway.target)

    triton, channel, asynchronous = loop.run_until_complete(connect())
    client = millis.Client(gateway.target)
    checks = grpc.insecure_channel(gateway.target)
    engine = _ask_engine(subject)
    try:
        yield {
            ENGINE: lambda callers, requests: threads(engine, min(callers, WORKERS), requests),
            EMPTY_CALL: lambda callers, requests: threads(
                _ask_engine_and_nothing(engine, checks), min(callers, WORKERS), requests
            ),
            "triton": on_loop(_ask_triton(subject, triton)),
            "gateway": on_loop(_ask_gateway(subject, channel)),
            "sdk": lambda callers, requests: threads(_ask_sdk(subject, client), callers, requests),
            "sdk (async)": on_loop(_ask_sdk_async(subject, asynchronous)),
        }
    finally:
        checks.close()
        client.close()
        loop.run_until_complete(asynchronous.close())
        loop.run_until_complete(channel.close())
        triton.close()
        loop.close()


def _ask_engine(subject: Subject) -> Callable[[int], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(subject.folder / WEIGHTS_FILE, options)
    feeds = []
    for row in subject.rows:
        ids = np.array([row.ids], np.int64)
        values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        feeds.append({name: values[name] for name in subject.manifest.inputs})

    def ask(number: int) -> object:
        return session.run(None, feeds[number % len(feeds)])

    return ask


def _ask_engine_and_nothing(engine: Callable[[int], object], channel: grpc.Channel) -> Callable[[int], object]:
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest()

    def ask(number: int) -> object:
        engine(number)
        return stub.Check(request)

    return ask


def _ask_triton(subject: Subject, client: TritonClient) -> Callable[[int], Awaitable[object]]:
    path = infer_path(subject.manifest.triton_model, subject.version)

    async def ask(number: int) -> object:
        row = subject.rows[number % len(subject.rows)]
        answer = await client.infer(path, *pack(subject.manifest.inputs, subject.manifest.pad_id, [row]))
        return unpack(answer, [row], subject.manifest.per_token)

    return ask


def _ask_gateway(subject: Subject, channel: grpc.aio.Channel) -> Callable[[int], Awaitable[object]]:
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    options = types_pb2.RequestOptions(slo=types_pb2.Slo(pin_variant=subject.manifest.variant))
    call, request = {
        "text-classification": (stub.ClassifyText, inference_pb2.ClassifyTextRequest),
        "token-classification": (stub.ClassifyTokens, inference_pb2.ClassifyTokensRequest),
        "embedding": (stub.EmbedText, inference_pb2.EmbedTextRequest),
    }[subject.manifest.task]

    async def ask(number: int) -> object:
        text = subject.texts[number % len(subject.texts)]
        return await call(request(model=subject.manifest.model, texts=[text], options=options))

    return ask


def _ask_sdk(subject: Subject, client: millis.Client) -> Callable[[int], object]:
    call = _method(subject, client)
    return lambda number: call(
        subject.texts[number % len(subject.texts)], model=subject.manifest.model, variant=subject.manifest.variant
    )


def _ask_sdk_async(subject: Subject, client: millis.AsyncClient) -> Callable[[int], Awaitable[object]]:
    call = _method(subject, client)

    async def ask(number: int) -> object:
        text = subject.texts[number % len(subject.texts)]
        return await call(text, model=subject.manifest.model, variant=subject.manifest.variant)

    return ask


def _method(subject: Subject, client: millis.Client | millis.AsyncClient) -> Callable[..., object]:
    return {
        "text-classification": client.classify,
        "token-classification": client.tag,
        "embedding": client.embed,
    }[subject.manifest.task]


def _subject(repository: Path, model: str, variant: str, texts: Path) -> Subject:
    folder = repository / f"{model}-{variant}"
    newest = max((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    manifest = read_manifest(newest)
    with texts.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = [row["text"] for row in rows][:256]
    tokenized, _ = Tokenizer(newest / TOKENIZER_FILE, manifest.max_tokens).rows(found, "end")
    return Subject(manifest, newest.name, newest, found, tokenized)


def _versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in LIBRARIES)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="intent")
    parser.add_argument("--variants", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--texts", type=Path, default=Path("pipeline/recipes/intent/test.csv"), help="CSV, column text")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--requests", type=int, default=400, help="of each side, in each round, under each load")
    parser.add_argument("--rounds", type=int, default=5)
    return parser


if __name__ == "__main__":
    main()
