"""Measures variants side by side: exactness, agreement with PyTorch, perplexity, speed of the bare engine, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedModel

from millis_pipeline.decoders.convert import GRAPH_FILE
from millis_pipeline.decoders.engine import Engine
from millis_pipeline.decoders.reference import Evaluation, Greedy, Logits, perplexity_of, torch_greedy, torch_logits
from millis_pipeline.evaluate import mean_interval
from millis_pipeline.generation_config import THREADS
from millis_pipeline.machine import machine
from millis_pipeline.verify import FP32_TOLERANCE, VerificationError
from millis_server.manifest import GreedyCheck, LatencyPoint, LatencyProfile, Quality

TIMED_PROMPT = 64
TIMED_TOKENS = 32
ROUNDS = 5

CHECKS = 2
CHECK_TOKENS = 8


@dataclass(frozen=True)
class Agreement:
    """How far a variant's texts are those of PyTorch.

    Attributes:
        shares: of each prompt, the tokens that are equal up to the first difference.
        texts: token ids of the variant, up to the end of the text.
    """

    shares: list[float]
    texts: list[list[int]]

    @property
    def value(self) -> float:
        """Mean share."""
        return float(np.mean(self.shares))

    def quality(self, dataset: str) -> Quality:
        """For the manifest, with a bootstrapped interval."""
        low, high = mean_interval(np.array(self.shares))
        return Quality(
            metric="greedy_agreement",
            value=self.value,
            low=min(max(low, 0.0), self.value),
            high=max(min(high, 1.0), self.value),
            examples=len(self.shares),
            dataset=dataset,
        )


def agreement(engine: Engine, greedy: Sequence[Greedy], eos_ids: Sequence[int]) -> Agreement:
    """Compares an engine's most likely tokens with PyTorch's."""
    longest = max(len(one.tokens) for one in greedy)
    texts = [ended(text, eos_ids) for text in engine.greedy([one.prompt for one in greedy], longest)]
    texts = [text[: len(one.tokens)] for text, one in zip(texts, greedy, strict=True)]
    shares = [equal_tokens(one.tokens, text) / len(one.tokens) for one, text in zip(greedy, texts, strict=True)]
    return Agreement(shares, texts)


def check_exact(found: Agreement, model: PreTrainedModel, greedy: Sequence[Greedy], what: str) -> None:
    """Checks that an fp32 variant answers as its own module does, token by token.

    Where two tokens are equally likely within the rounding of single precision, either one passes.

    Args:
        found: what the engine answered.
        model: the variant's module.
        greedy: prompts with the module's answers.
        what: variant, for the message.

    Raises:
        VerificationError: it answers with other tokens.
    """
    for number, (one, text) in enumerate(zip(greedy, found.texts, strict=True), 1):
        place = equal_tokens(one.tokens, text)
        if place == len(one.tokens):
            continue
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([one.prompt + one.tokens[:place]]), use_cache=False).logits[0, -1]
        gap = float(logits[one.tokens[place]] - logits[text[place]])
        if gap > FP32_TOLERANCE:
            raise VerificationError(
                f"{what}: the engine answers prompt {number} of {len(greedy)} with token {text[place]} at place "
                f"{place + 1}, PyTorch with {one.tokens[place]}; their logits differ by {gap:.3g}, the limit is "
                f"{FP32_TOLERANCE:g}"
            )


def variant_perplexity(folder: Path, model: PreTrainedModel, evaluation: Evaluation, what: str) -> float | None:
    """Perplexity of a variant on the evaluation data; None where there is none.

    Args:
        folder: with its graph; one that has none is computed by the module.
        model: its module.
        evaluation: with the data.
        what: variant, for the progress bar.
    """
    if not evaluation.windows:
        return None
    run = graph_logits(folder) if (folder / GRAPH_FILE).is_file() else torch_logits(model)
    return perplexity_of(run, evaluation.windows, what)


def graph_logits(folder: Path) -> Logits:
    """Runs a converted graph on whole windows, with plain OpenVINO."""
    options = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "INFERENCE_NUM_THREADS": THREADS}
    request = openvino.Core().compile_model(folder / GRAPH_FILE, "CPU", options).create_infer_request()

    def run(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        request.reset_state()
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(ids.shape[1], dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        logits: NDArray[np.float32] = request.infer(feeds)["logits"][0]
        return logits

    return run


def speeds(engines: Mapping[str, Engine], prompts: Sequence[Sequence[int]], context: int) -> dict[str, LatencyProfile]:
    """Times variants side by side, one text at a time.

    Every round runs every variant: whatever else the machine does meets all of them alike.

    Args:
        engines: of each variant, by its name.
        prompts: whose tokens the timed prompt is made of.
        context: most tokens of prompt and text.

    Returns:
        Of each variant a profile with two points: 1 token is the time between tokens, more are the time from a prompt
        of so many tokens to the first token.
    """
    length = min(TIMED_PROMPT, context // 2)
    pool = [token for prompt in prompts for token in prompt]
    prompt = (pool * (1 + length // len(pool)))[:length]
    tokens = min(TIMED_TOKENS, context - length)
    first: dict[str, list[float]] = {name: [] for name in engines}
    later: dict[str, list[float]] = {name: [] for name in engines}
    turns = [(turn, name) for turn in range(ROUNDS + 1) for name in engines]
    for turn, name in tqdm(turns, desc="latency", unit="turn", leave=False, disable=None):
        times = engines[name].timed(prompt, tokens)
        if turn:  # the first one finds cold caches
            first[name].append(times[0])
            later[name] += times[1:]
    return {
        name: LatencyProfile(
            machine=machine(),
            engine=engine.setup.library,
            threads=THREADS,
            points=(_point(1, later[name]), _point(length, first[name])),
        )
        for name, engine in engines.items()
    }


def token_ms(profile: LatencyProfile) -> float:
    """Median time between tokens."""
    return profile.points[0].p50_ms


def greedy_checks(engine: Engine, greedy: Sequence[Greedy], eos_ids: Sequence[int]) -> tuple[GreedyCheck, ...]:
    """Prompts with a variant's own answers, for the gateway to ask before a version takes traffic.

    Those are taken whose tokens PyTorch is surest of: another machine rounds in another way.
    """
    surest = sorted(greedy, key=lambda one: -min(one.margins[:CHECK_TOKENS]))
    whole = [one for one in surest if not set(one.tokens[:CHECK_TOKENS]) & set(eos_ids)]
    checks = []
    for one in [*whole, *surest][:CHECKS]:
        # Alone, because an engine with an 8-bit memory answers a little differently in company.
        (answer,) = engine.greedy([one.prompt], CHECK_TOKENS)
        expected = ended(answer, eos_ids)
        expected = expected if expected[-1] not in eos_ids else expected[:-1]
        if expected:
            checks.append(GreedyCheck(prompt=tuple(one.prompt), expected=tuple(expected)))
    return tuple(checks)


def equal_tokens(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Tokens up to the first difference."""
    for place, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        if mine != other:
            return place
    return min(len(ours), len(theirs))


def ended(tokens: Sequence[int], eos_ids: Sequence[int]) -> list[int]:
    """Tokens up to the first one that ends a text, with it."""
    for place, token in enumerate(tokens):
        if token in eos_ids:
            return list(tokens[: place + 1])
    return list(tokens)


def own_greedy(model: PreTrainedModel, greedy: Sequence[Greedy], eos_ids: Sequence[int]) -> list[Greedy]:
    """What another model finds most likely after the same prompts."""
    prompts = tqdm(greedy, desc="PyTorch", unit="prompt", leave=False, disable=None)
    return [torch_greedy(model, one.prompt, len(one.tokens), eos_ids) for one in prompts]


def _point(tokens: int, times: Sequence[float]) -> LatencyPoint:
    p50, p99 = np.percentile(times, (50, 99))
    return LatencyPoint(batch=1, tokens=tokens, p50_ms=float(p50), p99_ms=float(p99))
