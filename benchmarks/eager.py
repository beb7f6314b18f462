"""What compression gains: published variants through the whole service against PyTorch behind a plain server.

    python -m benchmarks.eager --checkpoint CHECKPOINT --model snips --texts validate.csv

Texts in a .conll file are asked for their entities, others for their label.

`eager` is the fine-tuned checkpoint in fp32, as PyTorch runs it, behind a plain grpc.aio server that tokenizes and
answers the same RPC. It has no Triton, no batching and no limits. All sides answer the same texts one by one over
gRPC, in turn, in rounds, in one run. A process of a side that is not asked waits.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import uvloop
from tqdm import tqdm

from benchmarks.gateway import running_gateway
from benchmarks.load import Measurement, merged, tasks
from millis.v1 import inference_pb2, inference_pb2_grpc, types_pb2
from millis_pipeline.data import read_token_examples
from millis_server.manifest_files import read_manifest
from millis_server.repository import scan

EAGER = "eager"


def main() -> None:
    """Measures and prints a Markdown table; with --serve runs the plain server."""
    arguments = _parser().parse_args()
    if arguments.serve:
        asyncio.run(_serve(arguments.checkpoint, arguments.workers))
        return
    texts = _texts(arguments.texts, arguments.text_column)
    variants = arguments.variants or _variants(arguments.repository, arguments.model)
    with (
        _plain_server(arguments.checkpoint, arguments.workers) as eager,
        running_gateway(arguments.repository) as gateway,
    ):
        loop = uvloop.new_event_loop()
        targets = {EAGER: (eager, ""), **{name: (gateway.target, name) for name in variants}}
        table = loop.run_until_complete(_measure(targets, arguments, texts))
        loop.close()
    _print(table, arguments.callers, len(texts))


async def _measure(
    targets: dict[str, tuple[str, str]], arguments: argparse.Namespace, texts: list[str]
) -> dict[tuple[str, int], list[Measurement]]:
    """Each round runs every side under every load, so that a change of the machine's speed meets them all."""
    parts: dict[tuple[str, int], list[Measurement]] = {(n, c): [] for c in arguments.callers for n in targets}
    channels = {target: grpc.aio.insecure_channel(target) for target, _ in targets.values()}
    tokens = arguments.texts.suffix == ".conll"
    asks = {n: _ask(channels[target], arguments.model, pin, texts, tokens) for n, (target, pin) in targets.items()}
    with tqdm(total=arguments.rounds * len(parts), unit="part", leave=False) as progress:
        for callers in arguments.callers:
            for ask in asks.values():
                await tasks(ask, callers, max(2 * callers, 20))  # warm
            for _ in range(arguments.rounds):
                for name, ask in asks.items():
                    parts[name, callers].append(await tasks(ask, callers, arguments.requests))
                    progress.update()
    for channel in channels.values():
        await channel.close()
    return parts


def _ask(channel: grpc.aio.Channel, model: str, pin: str, texts: list[str], tokens: bool) -> Callable[[int], Any]:
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    options = types_pb2.RequestOptions(slo=types_pb2.Slo(pin_variant=pin))
    call, request = {
        False: (stub.ClassifyText, inference_pb2.ClassifyTextRequest),
        True: (stub.ClassifyTokens, inference_pb2.ClassifyTokensRequest),
    }[tokens]

    async def ask(number: int) -> object:
        return await call(request(model=model, texts=[texts[number % len(texts)]], options=options))

    return ask


def _print(parts: dict[tuple[str, int], list[Measurement]], loads: list[int], texts: int) -> None:
    print(f"{texts} texts; each side in turn\n")
    print("| callers | side | p50 ms | p99 ms | of eager, p50 | requests/s | of eager |")
    print("|---|---|---|---|---|---|---|")
    for (name, callers), measured in parts.items():
        whole, eager = merged(measured), merged(parts[EAGER, callers])
        print(
            f"| {callers} | {name} | {whole.percentile(50):.2f} | {whole.percentile(99):.2f} "
            f"| {eager.percentile(50) / whole.percentile(50):.2f} times faster | {whole.throughput:.0f} "
            f"| {whole.throughput / eager.throughput:.2f} times |"
        )
    names = dict.fromkeys(name for name, _ in parts)
    best = {name: max(merged(parts[name, callers]).throughput for callers in loads) for name in names}
    print("\nAt saturation (best of the loads): ", end="")
    print("; ".join(f"{n} {value:.0f}/s ({value / best[EAGER]:.2f} times eager)" for n, value in best.items()))


class _Eager(inference_pb2_grpc.InferenceServiceServicer):
    """Tokenizes, runs the module, answers the best label, or that of each token: nothing else."""

    def __init__(self, checkpoint: str, workers: int) -> None:
        import torch

        from millis_pipeline.checkpoint import load
        from millis_pipeline.sources import resolve

        # As many threads in all as there are cores: PyTorch's default, shared by the workers.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
        self._torch = torch
        self._checkpoint = load(checkpoint, resolve(checkpoint))
        self._workers = ThreadPoolExecutor(workers)

    async def ClassifyText(  # noqa: N802  # the name of the RPC
        self, request: inference_pb2.ClassifyTextRequest, _context: object
    ) -> inference_pb2.ClassifyTextResponse:
        return await asyncio.get_running_loop().run_in_executor(self._workers, self._label, list(request.texts))

    async def ClassifyTokens(  # noqa: N802  # the name of the RPC
        self, request: inference_pb2.ClassifyTokensRequest, _context: object
    ) -> inference_pb2.ClassifyTokensResponse:
        return await asyncio.get_running_loop().run_in_executor(self._workers, self._tag, list(request.texts))

    def _label(self, texts: list[str]) -> inference_pb2.ClassifyTextResponse:
        scores, _ = self._run(texts)
        response = inference_pb2.ClassifyTextResponse()
        for score, index in zip(*scores.max(-1), strict=True):
            response.results.add().labels.add(label=self._checkpoint.labels[int(index)], score=float(score))
        return response

    def _tag(self, texts: list[str]) -> inference_pb2.ClassifyTokensResponse:
        scores, offsets = self._run(texts)
        response = inference_pb2.ClassifyTokensResponse()
        for text, row, places in zip(texts, scores.argmax(-1).tolist(), offsets.tolist(), strict=True):
            result = response.results.add()
            for index, (start, end) in zip(row, places, strict=True):
                label = self._checkpoint.labels[index]
                if end > start and label != "O":
                    result.entities.add(text=text[start:end], label=label, span=types_pb2.Span(start=start, end=end))
        return response

    def _run(self, texts: list[str]) -> tuple[Any, Any]:
        """Scores, and the place of each token."""
        checkpoint = self._checkpoint
        encoded = checkpoint.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=checkpoint.max_tokens,
            return_tensors="pt",
            return_offsets_mapping=True,
        )
        with self._torch.inference_mode():
            scores = checkpoint.module(encoded["input_ids"], encoded["attention_mask"]).softmax(-1)
        return scores, encoded["offset_mapping"]


async def _serve(checkpoint: str, workers: int) -> None:
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(_Eager(checkpoint, workers), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"serving on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


@contextmanager
def _plain_server(checkpoint: str, workers: int) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.eager", "--serve", "--checkpoint", checkpoint]
    process = subprocess.Popen([*command, "--workers", str(workers)], stdout=subprocess.PIPE, text=True)
    try:
        found = next(filter(None, (re.search(r"serving on (\S+)", line) for line in process.stdout or ())), None)
        if found is None:
            raise RuntimeError("the plain server did not start")
        yield found[1]
    finally:
        process.terminate()
        process.wait()


def _variants(repository: Path, model: str) -> list[str]:
    """All published variants of a model."""
    newest = [read_manifest(repository / folder / versions[0]) for folder, versions in sorted(scan(repository).items())]
    names = [manifest.variant for manifest in newest if manifest.model == model]
    if not names:
        raise SystemExit(f"{repository}: it has no variant of {model!r}")
    return names


def _texts(path: Path, column: str) -> list[str]:
    if path.suffix == ".conll":
        return [" ".join(words) for words in read_token_examples(path).words][:256]
    with path.open(encoding="utf-8", newline="") as file:
        return [row[column] for row in csv.DictReader(file)][:256]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="the fine-tuned classifier, as `millis build` kept it")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="intent")
    parser.add_argument("--variants", nargs="+", help="of the model; the default is all")
    parser.add_argument("--texts", type=Path, default=Path("pipeline/recipes/intent/test.csv"), help="CSV or CoNLL")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--requests", type=int, default=300, help="of each side, in each round, under each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="calls of PyTorch side by side, on the cores in shares")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
