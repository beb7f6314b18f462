"""Trains a causal language model from random weights, or fine-tunes a checkpoint: setup, fit, validate."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import nn
from tqdm import tqdm
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)
from transformers.utils.logging import disable_progress_bar

from millis_pipeline.data import DataError
from millis_pipeline.decoders.dialogues import Document, read_documents
from millis_pipeline.decoders.noise import noisy_documents
from millis_pipeline.decoders.recipe import Architecture, DecoderRecipe
from millis_pipeline.decoders.samples import Sample, make_samples, pad_samples, token_batches
from millis_pipeline.decoders.tokenizer import train_tokenizer
from millis_pipeline.progress import step

WARMUP = 0.05
BETAS = (0.9, 0.95)
"""Of AdamW, as language models are trained (Brown et al. 2020)."""

CLIP = 1.0
"""Longest gradient of a step."""


@dataclass(frozen=True)
class Course:
    """One training.

    Attributes:
        epochs: most passes over the samples.
        peak_rate: of the learning rate, at the end of warm-up.
        weight_decay: of matrices.
        batch_tokens: most tokens of a step, padding included.
        patience: epochs without a smaller dev loss after which it stops.
        seed: of the order of samples.
    """

    epochs: int
    peak_rate: float
    weight_decay: float
    batch_tokens: int
    patience: int
    seed: int


BatchLoss = Callable[[Sequence[Sample]], torch.Tensor]


def new_model(recipe: DecoderRecipe, documents: Sequence[Document]) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model with random weights, and a tokenizer trained on the documents."""
    shape = recipe.architecture
    assert shape is not None, "only recipes with an architecture begin from nothing. This is a bug."
    contents = (m["content"] for d in documents for m in d.messages)
    with step("training the tokenizer"):
        texts = [*contents, *(document.text for document in documents if document.text)]
        tokenizer = train_tokenizer(texts, shape.vocabulary, shape.context)
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(_config(shape, tokenizer, recipe.dropout)), tokenizer


def train(
    recipe: DecoderRecipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, context: int, output: Path
) -> str:
    """Trains a model on a recipe's data and writes the best epoch as a checkpoint folder.

    Args:
        recipe: with training data.
        model: to train, in place.
        tokenizer: of the model.
        context: most tokens of a sample.
        output: folder to write.

    Returns:
        What was done, in words.

    Raises:
        DataError: the data cannot be used.
    """
    began = time.monotonic()
    disable_progress_bar()
    documents, aside = split_documents(recipe)
    held = make_samples(aside, tokenizer, context)
    epochs = [make_samples(documents, tokenizer, context)]
    if recipe.noise:
        generator = random.Random(recipe.seed)
        copies = (noisy_documents(documents, recipe.noise, generator) for _ in range(recipe.epochs))
        epochs = [make_samples(copy, tokenizer, context) for copy in copies]
    pad_id = tokenizer.pad_token_id or 0

    def loss_of(batch: Sequence[Sample]) -> torch.Tensor:
        return language_loss(model, *pad_samples(batch, pad_id, recipe.unwritten_weight))

    torch.manual_seed(recipe.seed)
    course = Course(
        recipe.epochs, recipe.peak_rate, recipe.weight_decay, recipe.batch_tokens, recipe.patience, recipe.seed
    )
    best = fit(model, epochs, loss_of, course, lambda: dev_loss(model, held, pad_id, recipe.batch_tokens), recipe.name)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    tokens = sum(len(sample.ids) for sample in epochs[0])
    how = "trained from random weights" if recipe.architecture is not None else "fine-tuned"
    seconds = time.monotonic() - began
    return f"{how} on {len(epochs[0])} samples ({tokens} tokens), dev loss {best:.4f}, in {seconds:.0f} s"


def split_documents(recipe: DecoderRecipe) -> tuple[list[Document], list[Document]]:
    """Training and dev data of a recipe; the dev data is a part of the training data where there is no other.

    Raises:
        DataError: a file cannot be used.
    """
    assert recipe.train is not None, "only for recipes with training data. This is a bug."
    documents = read_documents(recipe.train)
    if recipe.dev is not None:
        return documents, read_documents(recipe.dev)
    if len(documents) < 2:
        raise DataError(f"{recipe.train}: it has 1 document; at least 2 are needed, or a dev set")
    kept, aside = train_test_split(documents, test_size=recipe.dev_fraction, random_state=recipe.seed)
    return kept, aside


def fit(
    model: nn.Module,
    samples: Sequence[Sequence[Sample]],
    loss_of: BatchLoss,
    course: Course,
    validate: Callable[[], float],
    what: str,
) -> float:
    """Trains in place, and leaves the weights of the epoch with the smallest dev loss.

    AdamW (Loshchilov and Hutter 2019) with a learning rate that rises in a line and falls along a cosine.

    Args:
        model: to train.
        samples: to learn from, of each epoch; those of one serve all.
        loss_of: what the model does wrong on a batch of them.
        course: how.
        validate: measures the dev loss.
        what: is trained, for progress bar and lines.

    Returns:
        The smallest dev loss.
    """
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": course.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=course.peak_rate, betas=BETAS, fused=True)
    shuffle = random.Random(course.seed)
    epochs = [
        list(token_batches(samples[n % len(samples)], course.batch_tokens, shuffle)) for n in range(course.epochs)
    ]
    total = sum(map(len, epochs))
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(WARMUP * total), total)
    best, lowest, waited = copy.deepcopy(model.state_dict()), math.inf, 0
    for number, batches in enumerate(epochs, 1):
        name = f"{what}: epoch {number}/{course.epochs}"
        model.train()
        losses = []
        with tqdm(batches, desc=name, unit="step", leave=False, disable=None) as progress:
            for batch in progress:
                loss = loss_of(batch)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(loss.item())
                progress.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}", refresh=False)
        model.eval()
        value = validate()
        better = value < lowest
        print(f"{name}: loss {np.mean(losses):.4f}, dev loss {value:.4f}{' (best)' if better else ''}", flush=True)
        if better:
            best, lowest, waited = copy.deepcopy(model.state_dict()), value, 0
        else:
            waited += 1
            if waited >= course.patience:
                break
    model.load_state_dict(best)
    return lowest


def language_loss(model: nn.Module, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean of each token's cross-entropy, in nats, given those before it.

    Args:
        model: a causal language model.
        ids: INT64 [samples, tokens].
        weights: FLOAT [samples, tokens], of each token in the mean.
    """
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    # Most logits of a large vocabulary belong to tokens that do not count.
    counted = weights[:, 1:] > 0
    losses = nn.functional.cross_entropy(logits[counted].float(), ids[:, 1:][counted], reduction="none")
    chosen = weights[:, 1:][counted]
    return (losses * chosen).sum() / chosen.sum()


def dev_loss(model: nn.Module, samples: Sequence[Sample], pad_id: int, tokens: int) -> float:
    """Mean cross-entropy, in nats, of the tokens that are to be written."""
    total, count = 0.0, 0
    batches = list(token_batches(samples, tokens, random.Random(0)))
    for batch in tqdm(batches, desc="dev", unit="batch", leave=False, disable=None):
        ids, weights = pad_samples(batch, pad_id, 0.0)
        written = int((weights[:, 1:] > 0).sum())
        if written:
            with torch.inference_mode():
                total += written * float(language_loss(model, ids, weights))
            count += written
    return total / max(count, 1)


def _config(shape: Architecture, tokenizer: PreTrainedTokenizerFast, dropout: float) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads or shape.heads,
        max_position_embeddings=shape.context,
        attention_dropout=dropout,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
