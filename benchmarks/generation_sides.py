"""The sides of `benchmarks.generate`: the bare engine, Triton, the service, and transformers, each timed alike."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import millis
from millis_server.tasks.generation import Prompt, TextGeneration
from millis_server.triton.streams import Streams

PROMPT_TOKENS = 64
PATIENCE_SECONDS = 900.0
"""Of a caller in a crowd."""


@dataclass
class Timed:
    """What callers of one side saw.

    Attributes:
        first: seconds to each first token.
        between: seconds from each token to the next.
        tokens: in all.
        wall: seconds from the first request to the last token.
        texts: tokens of each caller, of the bare engine only.
    """

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    tokens: int = 0
    wall: float = 0.0
    texts: list[list[int]] = field(default_factory=list)

    def add(self, began: float, times: Sequence[float]) -> None:
        """Takes in the times at which one caller's tokens came."""
        self.first.append(times[0] - began)
        self.between += np.diff(times).tolist()
        self.tokens += len(times)

    def merge(self, other: Timed) -> None:
        """Adds another round."""
        self.first += other.first
        self.between += other.between
        self.tokens += other.tokens
        self.wall += other.wall
        self.texts += other.texts

    def row(self, callers: int, side: str, engine: Timed) -> str:
        """A row of the table."""
        first, between = (1e3 * np.percentile(part, (50, 90, 99)) for part in (self.first, self.between))
        bare_first, bare = 1e3 * np.median(engine.first), 1e3 * np.median(engine.between)
        rate, bare_rate = self.tokens / self.wall, engine.tokens / engine.wall
        return (
            f"| {callers} | {side} | {first[0]:.1f} / {first[1]:.1f} / {first[2]:.1f} | {first[0] - bare_first:+.1f} | "
            f"{1e3 * np.mean(self.first):.1f} | "
            f"{between[0]:.2f} / {between[1]:.2f} / {between[2]:.2f} | {between[0] - bare:+.2f} | {rate:.1f} | "
            f"{100 * rate / bare_rate:.0f} % |"
        )


def prompts(count: int, vocabulary: int, seed: int, tokens: int = PROMPT_TOKENS) -> list[list[int]]:
    """Random prompts."""
    return np.random.default_rng(seed).integers(3, vocabulary, size=(count, tokens)).tolist()


class BareEngine:
    """The backend's engine in a process of its own, which reads prompts from a pipe and answers with times."""

    def __init__(self, folder: Path, engine: str = "openvino_genai", **options: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_step_for, args=(theirs, folder, engine, options), daemon=True)
        self._process.start()
        self._ours.recv()

    def ask(self, given: Sequence[Sequence[int]], tokens: int) -> Timed:
        """Generates for all prompts at once."""
        self._ours.send((given, tokens))
        timed: Timed = self._ours.recv()
        return timed

    def close(self) -> None:
        """Ends the process."""
        self._ours.send(None)
        self._process.join()


def _step_for(pipe: Any, folder: Path, engine: str, options: dict[str, Any]) -> None:
    from millis_server.triton.generation_backend.decoding.generator import GeneratorOptions, Request, load_generator

    generator = load_generator(engine, folder, GeneratorOptions(threads=2, **({"eos": (2,)} | options)))
    pipe.send("ready")
    while (asked := pipe.recv()) is not None:
        given, tokens = asked
        timed = Timed()
        began = time.perf_counter()
        came: dict[int, list[float]] = {number: [] for number in range(len(given))}
        timed.texts = [[] for _ in given]
        for number, prompt in enumerate(given):
            generator.add(number, Request(prompt, tokens, 0.0, ignore_eos=True))
        while generator.busy:
            pieces = generator.step()
            now = time.perf_counter()
            for piece in pieces:
                came[piece.number] += [now] * piece.made
                timed.texts[piece.number] += piece.tokens
        timed.wall = time.perf_counter() - began
        for times in came.values():
            timed.add(began, times)
        pipe.send(timed)


async def ask_triton(streams: Streams, given: Sequence[Sequence[int]], tokens: int) -> Timed:
    """The same through Triton alone."""

    async def one(prompt: Sequence[int]) -> None:
        task = TextGeneration(ids=prompt, max_tokens=tokens, ignore_eos=True)
        asked = time.perf_counter()
        chunks = streams.generate(task, Prompt("", prompt, tokens, 1, len(prompt) + tokens))
        timed.add(asked, [time.perf_counter() async for chunk in chunks for _ in range(chunk.made)])

    timed = Timed()
    began = time.perf_counter()
    await asyncio.gather(*map(one, given))
    timed.wall = time.perf_counter() - began
    return timed


async def ask_sdk(
    client: millis.AsyncClient, given: Sequence[Sequence[int]], tokens: int, model: str, delays: Sequence[float] = ()
) -> tuple[Timed, list[list[float]]]:
    """The same through the service, by callers who come at once or after `delays` seconds; also each one's times."""

    async def one(place: int, prompt: Sequence[int]) -> None:
        if delays:
            await asyncio.sleep(delays[place])
        asked = time.perf_counter()
        stream = client.generate(prompt, model=model, max_tokens=tokens, ignore_eos=True, timeout=PATIENCE_SECONDS)
        times = [time.perf_counter() async for delta in stream for _ in delta.token_ids]
        timed.add(asked, times)
        seen[place] = [asked, *times]

    timed = Timed()
    seen: list[list[float]] = [[] for _ in given]
    began = time.perf_counter()
    await asyncio.gather(*(one(place, prompt) for place, prompt in enumerate(given)))
    timed.wall = time.perf_counter() - began
    return timed, seen


def ask_transformers(checkpoint: Path, prompt: Sequence[int], tokens: int, device: str) -> float:
    """Seconds from one token to the next in transformers' `generate`, on all cores or on CUDA."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto").to(device).eval()

    def seconds(count: int) -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                torch.tensor([list(prompt)], device=device),
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    seconds(2)
    return (seconds(tokens) - seconds(1)) / (tokens - 1)


def cuda_read_bandwidth() -> float:
    """Bytes a second that a CUDA device reads from its memory: the best of several sums over 4 GB."""
    import torch

    block = torch.ones(1 << 30, dtype=torch.float32, device="cuda")
    best = 0.0
    for _ in range(10):
        torch.cuda.synchronize()
        began = time.perf_counter()
        block.sum()
        torch.cuda.synchronize()
        best = max(best, block.nbytes / (time.perf_counter() - began))
    return best


def read_bandwidth() -> float:
    """Bytes a second that two threads read from memory: the best of several sums over 1 GB."""
    from concurrent.futures import ThreadPoolExecutor

    halves = np.split(np.ones(1 << 27, np.float64), 2)
    best = 0.0
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            began = time.perf_counter()
            list(pool.map(np.sum, halves))
            best = max(best, sum(half.nbytes for half in halves) / (time.perf_counter() - began))
    return best
