"""What variants are measured on, and what the PyTorch model answers there: the most likely tokens, and perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedModel

from millis_pipeline.data import DataError
from millis_pipeline.decoders.checkpoint import Decoder
from millis_pipeline.decoders.dialogues import Document, read_documents
from millis_pipeline.decoders.samples import Sample, make_samples, prompt_of
from millis_pipeline.verify import BUILT_IN_TEXTS

PROMPTS = 32
GREEDY_TOKENS = 32
TEXT_PROMPT_TOKENS = 24
"""Of a text that is no dialogue."""

PROMPT_STRIDE = 64
"""Tokens from one such prompt to the next."""

WINDOW_TOKENS = 256
"""Most tokens of a text that are read in one go: a large vocabulary has many logits for each."""

MEASURED_TOKENS = 16_384
"""Most tokens whose perplexity is measured: they take minutes where a model has billions of weights."""

Logits = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Takes INT64 [1, tokens] and returns FLOAT [tokens, vocabulary]."""


@dataclass(frozen=True)
class Greedy:
    """The most likely tokens after a prompt.

    Attributes:
        prompt: token ids.
        tokens: that PyTorch finds most likely, one after the other, up to the end of the text.
        margins: by how much the logit of each is above the next best one's.
    """

    prompt: list[int]
    tokens: list[int]
    margins: list[float]


@dataclass(frozen=True)
class Evaluation:
    """What variants are measured on.

    Attributes:
        name: of the data set; empty for the built-in texts.
        windows: what perplexity is measured on; the same for every variant, none for the built-in texts.
        greedy: prompts with PyTorch's answers.
        perplexity: of PyTorch; None without windows.
    """

    name: str
    windows: list[Sample]
    greedy: list[Greedy]
    perplexity: float | None


def evaluation_of(decoder: Decoder, path: Path | None, name: str) -> Evaluation:
    """Reads the evaluation data, and what PyTorch answers there.

    Args:
        decoder: the whole model.
        path: of dialogues (.jsonl) or running text (.txt); None takes the built-in texts.
        name: of the data set.

    Raises:
        DataError: the file cannot be used, or no prompt leaves room for an answer.
    """
    tokens = min(GREEDY_TOKENS, decoder.context // 2)
    documents = read_documents(path) if path is not None else _built_in(decoder)
    length = min(decoder.context, WINDOW_TOKENS) if path is not None and path.suffix == ".txt" else decoder.context
    windows = _first_tokens(make_samples(documents, decoder.tokenizer, length)) if path is not None else []
    if path is not None and path.suffix == ".txt":
        prompts = _text_prompts(windows, min(TEXT_PROMPT_TOKENS, decoder.context - tokens))
    else:
        prompts = [prompt_of(document, decoder.tokenizer) for document in documents]
        prompts = [prompt for prompt in prompts if len(prompt) <= decoder.context - tokens]
    if not prompts:
        raise DataError(
            f"{path or 'built-in texts'}: no prompt leaves room for {tokens} tokens in a context of {decoder.context}"
        )
    spread = (
        [prompts[place * len(prompts) // PROMPTS] for place in range(PROMPTS)] if len(prompts) > PROMPTS else prompts
    )
    greedy = [
        torch_greedy(decoder.model, prompt, tokens, decoder.eos_ids)
        for prompt in tqdm(spread, desc="PyTorch", unit="prompt", leave=False, disable=None)
    ]
    perplexity = perplexity_of(torch_logits(decoder.model), windows, "PyTorch") if windows else None
    return Evaluation(name if path is not None else "", windows, greedy, perplexity)


def torch_greedy(model: PreTrainedModel, prompt: Sequence[int], count: int, eos_ids: Sequence[int]) -> Greedy:
    """Takes the most likely token again and again.

    transformers' `generate` would also follow penalties that some checkpoints state.
    """
    ids, cache = torch.tensor([list(prompt)]), None
    tokens: list[int] = []
    margins: list[float] = []
    with torch.inference_mode():
        while len(tokens) < count and not (tokens and tokens[-1] in eos_ids):
            output = model(input_ids=ids, cache=cache, use_cache=True)
            cache = output.cache
            best = output.logits[0, -1].topk(2)
            tokens.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
            ids = torch.tensor([[tokens[-1]]])
    return Greedy(list(prompt), tokens, margins)


def torch_logits(model: PreTrainedModel) -> Logits:
    """Runs the PyTorch model on whole windows."""

    def run(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = model(input_ids=torch.from_numpy(ids), use_cache=False).logits[0].numpy()
        return logits

    return run


def perplexity_of(run: Logits, windows: Sequence[Sample], what: str) -> float:
    """Exponential of the mean cross-entropy of the tokens that were to be written.

    Args:
        run: the model.
        windows: to read, each on its own.
        what: variant, for the progress bar.
    """
    total, count = 0.0, 0
    for window in tqdm(windows, desc=f"{what} perplexity", unit="window", leave=False, disable=None):
        logits = run(np.asarray([window.ids], np.int64))
        places = np.flatnonzero(window.written[1:])
        rows = torch.from_numpy(logits[places])
        targets = torch.tensor(window.ids[1:])[torch.from_numpy(places)]
        total += float(torch.nn.functional.cross_entropy(rows, targets, reduction="sum"))
        count += len(places)
    return math.exp(total / max(count, 1))


def _text_prompts(windows: Sequence[Sample], tokens: int) -> list[list[int]]:
    """Pieces of running text, some way apart."""
    places = [(window.ids, start) for window in windows for start in range(0, len(window.ids), PROMPT_STRIDE)]
    prompts = [ids[start : start + tokens] for ids, start in places]
    return [prompt for prompt in prompts if len(prompt) == tokens]


def _first_tokens(windows: Sequence[Sample]) -> list[Sample]:
    """As many windows as are measured."""
    chosen: list[Sample] = []
    tokens = 0
    for window in windows:
        tokens += len(window.ids)
        if chosen and tokens > MEASURED_TOKENS:
            break
        chosen.append(window)
    return chosen


def _built_in(decoder: Decoder) -> list[Document]:
    if not decoder.chat_template:
        return [Document(text=text) for text in BUILT_IN_TEXTS]
    answer = {"role": "assistant", "content": "…"}  # is never read: a prompt ends before it
    return [Document(messages=({"role": "user", "content": text}, answer)) for text in BUILT_IN_TEXTS]
