"""Fine-tunes an encoder on labelled data, with early stopping: setup, fit, validate, top to bottom."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTokenClassification,
    get_linear_schedule_with_warmup,
)
from transformers.utils.logging import disable_progress_bar

from millis_pipeline.architectures import Encoder
from millis_pipeline.checkpoint import CheckpointError, Logits, load_tokenizer, one_line, token_limit
from millis_pipeline.classifier import MeanPoolClassifier
from millis_pipeline.evaluate import classification_scores, entity_scores
from millis_pipeline.examples import IGNORED, Example, Task, batches, pad, prepare
from millis_pipeline.export import ExportError, check_exportable
from millis_pipeline.progress import step
from millis_pipeline.recipe import Recipe
from millis_pipeline.recipe_data import labelled_data

WARMUP = 0.1
WEIGHT_DECAY = 0.01
EVALUATION_BATCH = 64

IMPRINT_SCALE = 3.0
"""Length of the head's first weight vectors."""


def finetune(recipe: Recipe, checkpoint: Path, output: Path) -> None:
    """Trains a recipe and writes the best epoch as a checkpoint folder.

    Args:
        recipe: with training data.
        checkpoint: folder to start from.
        output: folder to write.

    Raises:
        CheckpointError: the checkpoint has no tokenizer, is no encoder that transformers can load, or cannot be
            exported when it is trained.
        DataError: the data cannot be used.
    """
    torch.manual_seed(recipe.seed)
    random.seed(recipe.seed)
    train, dev, labels = labelled_data(recipe)
    tokenizer = load_tokenizer(recipe.checkpoint, checkpoint)
    task = Task(
        labels=labels,
        tokens=recipe.task == "token-classification",
        multi_label=recipe.label_separator is not None,
        pad_id=tokenizer.pad_token_id or 0,
    )
    model = _model(recipe, checkpoint, task)
    max_tokens = min(recipe.max_tokens, token_limit(model.config, tokenizer))
    with step("tokenizing"):
        examples, held = (prepare(data, tokenizer, task, max_tokens) for data in (train, dev))
    _dry_run(recipe, task, model, examples)
    if isinstance(model, MeanPoolClassifier) and not task.multi_label:
        _imprint(model, examples, task)
    best = _fit(recipe, task, model, examples, held)
    model.load_state_dict(best)
    output.mkdir(parents=True, exist_ok=True)
    if isinstance(model, MeanPoolClassifier):
        model.save(output)
    else:
        model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def _model(recipe: Recipe, checkpoint: Path, task: Task) -> Any:
    """The encoder with a new head."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    try:
        model = _with_head(checkpoint, task)
    except Exception as error:  # transformers raises whatever the architecture makes it raise
        raise CheckpointError(f"checkpoint {recipe.checkpoint}: {one_line(error)}") from error
    if recipe.freeze_embeddings:
        backbone = model.backbone if isinstance(model, MeanPoolClassifier) else model
        backbone.get_input_embeddings().weight.requires_grad_(False)
    if recipe.freeze_layers:
        _freeze(model, recipe)
    return model


def _dry_run(recipe: Recipe, task: Task, model: nn.Module, examples: Sequence[Example]) -> None:
    """Asks the untrained model for what its training would only come to after minutes: answers, and an export.

    Raises:
        CheckpointError: it cannot give them.
    """
    shortest_and_longest = [choose(examples, key=lambda example: len(example.ids)) for choose in (min, max)]
    model.eval()
    try:
        with torch.no_grad():
            _logits(model, shortest_and_longest, task)
    except Exception as error:  # an architecture that is no encoder fails as it likes
        kind = model.config.model_type
        raise CheckpointError(
            f"checkpoint {recipe.checkpoint}: {kind} does not answer a text as an encoder does: {one_line(error)}"
        ) from error
    module = model if isinstance(model, MeanPoolClassifier) else Logits(model)
    try:
        with step("trying the export"):
            check_exportable(module, ("input_ids", "attention_mask"), "it")
    except ExportError as error:
        raise CheckpointError(f"checkpoint {recipe.checkpoint}: {error}") from error


def _freeze(model: nn.Module, recipe: Recipe) -> None:
    """Keeps the first layers, and the embeddings below them, out of training."""
    encoder = Encoder(model)
    if recipe.freeze_layers >= len(encoder.layers):
        raise CheckpointError(
            f"freeze_layers: {recipe.freeze_layers}, and checkpoint {recipe.checkpoint} has {len(encoder.layers)} "
            "layers; freeze fewer"
        )
    for part in (encoder.base.embeddings, *encoder.layers[: recipe.freeze_layers]):
        part.requires_grad_(False)


def _with_head(checkpoint: Path, task: Task) -> Any:
    config = AutoConfig.from_pretrained(checkpoint)
    config.id2label = dict(enumerate(task.labels))
    config.label2id = {label: index for index, label in enumerate(task.labels)}
    if task.tokens:
        config.problem_type = None
        return AutoModelForTokenClassification.from_pretrained(checkpoint, config=config)
    config.problem_type = "multi_label_classification" if task.multi_label else "single_label_classification"
    return MeanPoolClassifier(AutoModel.from_pretrained(checkpoint, config=config))


def _imprint(model: MeanPoolClassifier, examples: Sequence[Example], task: Task) -> None:
    """Starts the head from the mean vector of each class instead of from noise (Qi et al. 2018, "Imprinted Weights").

    A sentence embedding model already puts texts of one class near each other, so training begins with a classifier
    that works, which small data needs most.
    """
    model.eval()
    sums = torch.zeros(len(task.labels), model.head.in_features)
    for start in _starts(examples, "class means"):
        batch = examples[start : start + EVALUATION_BATCH]
        ids, mask = pad(batch, task.pad_id)
        with torch.inference_mode():
            vectors = nn.functional.normalize(model.pooled(ids, mask), dim=-1)
        sums.index_add_(0, torch.tensor([example.target for example in batch]), vectors)
    with torch.no_grad():
        model.head.weight.copy_(IMPRINT_SCALE * nn.functional.normalize(sums, dim=-1))
        model.head.bias.zero_()


def _fit(
    recipe: Recipe, task: Task, model: nn.Module, train: Sequence[Example], dev: Sequence[Example]
) -> dict[str, torch.Tensor]:
    """Trains and returns the weights of the best epoch."""
    steps = -(-len(train) // recipe.batch_size)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=recipe.learning_rate, fused=True)
    total = steps * recipe.epochs
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * total), total)
    best: dict[str, torch.Tensor] = copy.deepcopy(model.state_dict())
    best_value, waited = -1.0, 0
    shuffle = random.Random(recipe.seed)
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        losses = []
        with tqdm(
            total=steps, desc=f"{recipe.name}: epoch {epoch}/{recipe.epochs}", unit="step", leave=False, disable=None
        ) as progress:
            for batch in batches(train, recipe.batch_size, shuffle):
                loss = _loss(model, batch, task, recipe.label_smoothing)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(loss.item())
                progress.update()
                progress.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}", refresh=False)
        metric, value = _validate(model, dev, task)
        better = value > best_value
        print(
            f"{recipe.name}: epoch {epoch}/{recipe.epochs}: loss {np.mean(losses):.4f}, dev {metric} {value:.4f}"
            f"{' (best)' if better else ''}",
            flush=True,
        )
        if better:
            best, best_value, waited = copy.deepcopy(model.state_dict()), value, 0
        else:
            waited += 1
            if waited >= recipe.patience:
                break
    return best


def _validate(model: nn.Module, dev: Sequence[Example], task: Task) -> tuple[str, float]:
    """Metric of the dev data."""
    model.eval()
    gold, predicted = [], []
    for start in _starts(dev, "dev"):
        batch = dev[start : start + EVALUATION_BATCH]
        with torch.inference_mode():
            logits = _logits(model, batch, task)
        for example, output in zip(batch, logits, strict=True):
            gold.append(example.gold)
            predicted.append(_predicted(example, output, task))
    scores = (
        entity_scores(gold, predicted)
        if task.tokens
        else classification_scores(gold, predicted, task.labels, multi_label=task.multi_label)
    )
    return scores.metric, scores.value


def _starts(examples: Sequence[Example], what: str) -> Iterable[int]:
    """Where each batch of evaluation begins."""
    bar: Iterable[int] = tqdm(
        range(0, len(examples), EVALUATION_BATCH), desc=what, unit="batch", leave=False, disable=None
    )
    return bar


def _predicted(example: Example, output: torch.Tensor, task: Task) -> list[str]:
    if task.tokens:
        tags = ["O"] * len(example.gold)
        best = output.argmax(-1).tolist()
        # Backwards, so that the first token of a word has the last word.
        for token in range(len(example.words) - 1, -1, -1):
            word = example.words[token]
            if word is not None:
                tags[word] = task.labels[best[token]]
        return tags
    if task.multi_label:
        return [label for label, logit in zip(task.labels, output.tolist(), strict=True) if logit >= 0]
    return [task.labels[int(output.argmax())]]


def _loss(model: nn.Module, batch: Sequence[Example], task: Task, smoothing: float) -> torch.Tensor:
    return target_loss(_logits(model, batch, task), [example.target for example in batch], task.multi_label, smoothing)


def target_loss(
    logits: torch.Tensor, targets: Sequence[Any], multi_label: bool, smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy of logits [texts, labels], or [texts, tokens, labels] with a target for each token."""
    if logits.ndim == 3:
        width = logits.shape[1]
        rows = torch.tensor([[*target, *[IGNORED] * (width - len(target))] for target in targets])
        return nn.functional.cross_entropy(logits.flatten(0, 1), rows.flatten(), ignore_index=IGNORED)
    if multi_label:
        return nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(targets).float())
    return nn.functional.cross_entropy(logits, torch.tensor(targets), label_smoothing=smoothing)


def _logits(model: nn.Module, batch: Sequence[Example], task: Task) -> torch.Tensor:
    ids, mask = pad(batch, task.pad_id)
    output = model(input_ids=ids, attention_mask=mask)
    logits: torch.Tensor = output if isinstance(output, torch.Tensor) else output.logits
    return logits


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Biases and normalisation weights do not decay (Devlin et al. 2019)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
