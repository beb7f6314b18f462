"""The engine that serves: OpenVINO GenAI, set up as the Triton backend does, to compare and to time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np
import openvino
import openvino_genai

from millis_pipeline.generation_config import BATCHED_TOKENS

PAGE_TOKENS = 32
"""Tokens in one page of the engine's memory on a CPU."""

THREADS = 2
"""That work on one step, as config.pbtxt says."""

STREAMS = 4
"""Texts side by side while comparing."""


class Engine:
    """A variant, loaded.

    Args:
        folder: with the graph.
        kv_precision: of the memory of tokens read: `f32` is exact, `u8` is how compressed variants are served.
        cache_tokens: tokens for which it has memory at once.
    """

    def __init__(self, folder: Path, kv_precision: str, cache_tokens: int) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = BATCHED_TOKENS
        scheduler.max_num_seqs = STREAMS
        scheduler.num_kv_blocks = ceil(cache_tokens / PAGE_TOKENS) + STREAMS
        scheduler.dynamic_split_fuse = True
        # What a prompt left behind would make the time to the first token of the next one look better than it is.
        scheduler.enable_prefix_caching = False
        properties = {
            "INFERENCE_NUM_THREADS": THREADS,
            "KV_CACHE_PRECISION": kv_precision,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)

    def greedy(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """The most likely tokens after each prompt, also past the end of a text."""
        handles = [self._add(number, prompt, tokens) for number, prompt in enumerate(prompts)]
        made: list[list[int]] = [[] for _ in prompts]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for texts, handle in zip(made, handles, strict=True):
                while handle.can_read():
                    for output in handle.read().values():
                        texts += output.generated_ids
        return made

    def timed(self, prompt: Sequence[int], tokens: int) -> list[float]:
        """Milliseconds until each token of one text: the first entry is the time to the first token."""
        handle = self._add(0, prompt, tokens)
        times: list[float] = []
        began = time.perf_counter()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            if handle.can_read():
                handle.read()
                now = time.perf_counter()
                times.append(1e3 * (now - began))
                began = now
        return times

    def _add(self, number: int, prompt: Sequence[int], tokens: int) -> openvino_genai.GenerationHandle:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.set_eos_token_id(0)  # without a tokenizer the engine knows none, and refuses to begin
        config.ignore_eos = True
        return self._pipeline.add_request(number, openvino.Tensor(np.asarray([prompt], np.int64)), config)
