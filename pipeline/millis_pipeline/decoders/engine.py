"""The engine that serves, in this process, to compare and to time: the Triton backend's own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

from tqdm import tqdm

from millis_pipeline.generation_config import BATCHED_TOKENS, THREADS
from millis_server.manifest import EngineName
from millis_server.triton.generation_backend.decoding.generator import GeneratorOptions, Request, load_generator

STREAMS = 4
"""Texts side by side while comparing."""


class EngineSetup(NamedTuple):
    """How a variant is served.

    Attributes:
        engine: that generates.
        device: it computes on.
        kv_precision: of its memory; with `f32` the tokens of fp32 weights are exactly PyTorch's.
        draft: folder, inside the variant's, of the model that guesses; empty is none.
    """

    engine: EngineName = "openvino_genai"
    device: Literal["cpu", "cuda"] = "cpu"
    kv_precision: Literal["f32", "u8"] = "u8"
    draft: str = ""

    @property
    def library(self) -> str:
        """Distribution that it comes from, with its version."""
        name = self.engine.replace("_", "-")
        return f"{name} {version(name)}"


EXACT = EngineSetup(kv_precision="f32")
"""Fp32 graphs are served like this: token by token as PyTorch computes."""


class Engine:
    """A variant, loaded.

    Args:
        folder: with its files.
        setup: how it is served.
        cache_tokens: tokens for which it has memory at once.

    Attributes:
        setup: how it is served.
    """

    def __init__(self, folder: Path, setup: EngineSetup, cache_tokens: int) -> None:
        self.setup = setup
        options = GeneratorOptions(
            threads=THREADS,
            device=setup.device,
            max_streams=STREAMS,
            cache_tokens=cache_tokens,
            max_batched_tokens=BATCHED_TOKENS,
            kv_cache_precision=setup.kv_precision,
            # What a prompt left behind would make the time to the first token of the next one look better than it is.
            prefix_caching=False,
            draft=setup.draft,
            # OpenVINO GenAI refuses to begin when it knows no end of a text, even where none is heeded.
            eos=(0,),
        )
        self._generator = load_generator(setup.engine, folder, options)

    def close(self) -> None:
        """Ends what runs beside it."""
        self._generator.close()

    def greedy(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """The most likely tokens after each prompt, also past the end of a text."""
        made: list[list[int]] = [[] for _ in prompts]
        for number, prompt in enumerate(prompts):
            self._generator.add(number, _greedily(prompt, tokens))
        with tqdm(total=len(prompts) * tokens, desc="answers", unit="token", leave=False, disable=None) as progress:
            while self._generator.busy:
                for piece in self._generator.step():
                    made[piece.number] += piece.tokens
                    progress.update(len(piece.tokens))
        return made

    def timed(self, prompt: Sequence[int], tokens: int) -> list[float]:
        """Milliseconds for each token of one text: the first entry is the time to the first token.

        Tokens of one step share its time evenly.
        """
        times: list[float] = []
        began = time.perf_counter()
        self._generator.add(0, _greedily(prompt, tokens))
        while self._generator.busy:
            if made := sum(piece.made for piece in self._generator.step()):
                now = time.perf_counter()
                times += [1e3 * (now - began) / made] * made
                began = now
        return times


def _greedily(prompt: Sequence[int], tokens: int) -> Request:
    return Request(prompt, tokens, temperature=0.0, ignore_eos=True)
