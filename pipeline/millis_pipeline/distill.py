"""Teaches a smaller model what the fine-tuned teacher answers (Hinton et al. 2015).

Besides the teacher's outputs the student learns its hidden states, layer by layer (TinyBERT, Jiao et al. 2020; the
student's layers begin as the teacher's, DistilBERT, Sanh et al. 2019) and, where there are labels, the labels.
The teacher is run once, see `teacher.py`. The same training recovers a pruned model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from millis_pipeline.architectures import Encoder
from millis_pipeline.checkpoint import Checkpoint, CheckpointError
from millis_pipeline.examples import batches, pad
from millis_pipeline.finetune import WARMUP, parameter_groups, target_loss
from millis_pipeline.teacher import Lesson, Teaching, captured
from millis_pipeline.variants import Distill, Exits, Prune

LABELS_WEIGHT = 0.3
"""Of the loss on labels beside the teacher's outputs: the teacher has seen the labels, and says more."""

HIDDEN_WEIGHT = 1.0
MATCHED_LAYERS = 4


def taken_layers(spec: Distill, depth: int) -> list[int]:
    """Layers of the teacher that the student's begin as, counted from 0: as asked, or spread from first to last."""
    if spec.from_layers:
        return [layer - 1 for layer in spec.from_layers]
    return spread_layers(spec.layers, depth)


def spread_layers(count: int, depth: int) -> list[int]:
    """So many of a model's layers, from 0, spread evenly from first to last."""
    if count == 1:
        return [0]
    return [round(index * (depth - 1) / (count - 1)) for index in range(count)]


def taught_layers(count: int, depth: int) -> dict[int, int]:
    """Which layers of a student with `count` layers learn the output of which of the teacher's (all from 0).

    Evenly spread and at most `MATCHED_LAYERS`, because all of the teacher's outputs lie on the disk; the last one is
    always among them.
    """
    matched = min(count, MATCHED_LAYERS)
    chosen = [round((index + 1) * count / matched) - 1 for index in range(matched)]
    return {layer: round((layer + 1) * depth / count) - 1 for layer in chosen}


def recovered_layers(kept: Sequence[int], taught: Mapping[int, int], depth: int) -> dict[int, int]:
    """The same for a pruned model: what its remaining layers go on to learn.

    Args:
        kept: which layers (from 0) are left of the model before pruning.
        taught: what its layers learned, or would have.
        depth: layers of the teacher.
    """
    left = {layer: taught[old] for layer, old in enumerate(kept) if old in taught}
    # The last layer's output is what the head reads, whichever layer that now is.
    return left | {len(kept) - 1: depth - 1}


def check_depth(layers: Sequence[int], depth: int, what: str) -> None:
    """Checks that a student is no deeper than its teacher, before anything is trained.

    Args:
        layers: of the teacher that are wanted, counted from 0.
        depth: layers of the teacher.
        what: variant, for the message.

    Raises:
        CheckpointError: it is deeper, or takes a layer that there is not.
    """
    if len(layers) >= depth or max(layers) >= depth:
        raise CheckpointError(
            f"{what}: distill: the teacher has {depth} layers; a student needs fewer, taken from these"
        )


def imitate(
    student: nn.Module,
    lessons: Sequence[Lesson],
    loss_of: Callable[[Sequence[Lesson]], torch.Tensor],
    spec: Distill | Prune | Exits,
    *,
    batch_size: int,
    freeze_embeddings: bool,
    seed: int,
    what: str,
) -> None:
    """Trains a student in place on the teacher's outputs.

    The student stays in evaluation mode: dropout would only blur hidden states that it is to copy.

    Args:
        student: to train.
        lessons: texts to learn from.
        loss_of: what the student does wrong on a batch of them.
        spec: epochs and learning rate.
        batch_size: texts in a step.
        freeze_embeddings: whether word embeddings stay as they are.
        seed: of the order of texts.
        what: variant, for progress bar and lines.
    """
    torch.manual_seed(seed)
    student.eval().requires_grad_(True)
    Encoder(student).base.get_input_embeddings().weight.requires_grad_(not freeze_embeddings)
    steps = -(-len(lessons) // batch_size)
    optimizer = torch.optim.AdamW(parameter_groups(student), lr=spec.learning_rate, fused=True)
    total = steps * spec.epochs
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * total), total)
    shuffle = random.Random(seed)
    for epoch in range(1, spec.epochs + 1):
        losses = []
        name = f"{what} epoch {epoch}/{spec.epochs}"
        with tqdm(total=steps, desc=name, unit="step", leave=False, disable=None) as progress:
            for batch in batches(lessons, batch_size, shuffle):
                loss = loss_of(batch)
                loss.backward()
                nn.utils.clip_grad_norm_(student.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(loss.item())
                progress.update()
        print(f"{name}: loss {np.mean(losses):.4f}", flush=True)
    student.requires_grad_(False)


def student_loss(
    student: nn.Module,
    teaching: Teaching,
    mapping: Mapping[int, int],
    batch: Sequence[Lesson],
    checkpoint: Checkpoint,
    temperature: float,
) -> torch.Tensor:
    """Distance from the teacher's outputs, its hidden states, and the labels where there are any.

    Args:
        student: that is trained.
        teaching: what the teacher says of every text.
        mapping: for layers of the student the teacher's layer whose output it learns, both from 0.
        batch: some of its lessons.
        checkpoint: the teacher, for its task.
        temperature: softens both sides' distributions.
    """
    ids, mask = pad(batch, teaching.pad_id)
    with captured(Encoder(student), list(mapping)) as states:
        output = student(ids, mask)
    real = mask.bool()
    loss = answer_loss(output, real, teaching, batch, checkpoint, temperature)
    text = torch.arange(len(batch)).repeat_interleave(real.sum(1))
    hidden = [hidden_loss(states[layer][real], teaching.hidden_of(batch, of), text) for layer, of in mapping.items()]
    return loss + HIDDEN_WEIGHT * torch.stack(hidden).mean()


def answer_loss(
    output: torch.Tensor,
    real: torch.Tensor,
    teaching: Teaching,
    batch: Sequence[Lesson],
    checkpoint: Checkpoint,
    temperature: float,
) -> torch.Tensor:
    """Distance of one head's answer from the teacher's outputs, and from the labels where there are any.

    Args:
        output: of the head, [texts, …], or [texts, tokens, …] with padding.
        real: BOOL [texts, tokens], false where there is padding.
        teaching: what the teacher says of every text.
        batch: some of its lessons.
        checkpoint: the teacher, for its task.
        temperature: softens both sides' distributions.
    """
    flat = output[real] if teaching.per_token else output
    loss = output_loss(flat, teaching.outputs_of(batch), checkpoint, temperature)
    labelled = [row for row, lesson in enumerate(batch) if lesson.target is not None]
    if labelled:
        targets = [batch[row].target for row in labelled]
        share = len(labelled) / len(batch)
        loss = loss + LABELS_WEIGHT * share * target_loss(output[labelled], targets, checkpoint.multi_label)
    return loss


def output_loss(ours: torch.Tensor, theirs: torch.Tensor, checkpoint: Checkpoint, temperature: float) -> torch.Tensor:
    """Distance of outputs [rows, columns]: KL divergence, cross-entropy of several labels, or angle of vectors.

    Of vectors also the pairwise similarities count (Park et al. 2019, "Relational Knowledge Distillation"): a search
    ranks by them.
    """
    if checkpoint.task == "embedding":
        ours, theirs = nn.functional.normalize(ours, dim=-1), nn.functional.normalize(theirs, dim=-1)
        angle = (1 - (ours * theirs).sum(-1)).mean()
        return 10 * (angle + nn.functional.mse_loss(ours @ ours.T, theirs @ theirs.T))
    if checkpoint.multi_label:
        soft = torch.sigmoid(theirs / temperature)
        return temperature**2 * nn.functional.binary_cross_entropy_with_logits(ours / temperature, soft)
    return temperature**2 * nn.functional.kl_div(
        torch.log_softmax(ours / temperature, -1),
        torch.log_softmax(theirs / temperature, -1),
        reduction="batchmean",
        log_target=True,
    )


def hidden_loss(ours: torch.Tensor, theirs: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Distance of hidden states FLOAT [tokens, hidden size]: of tokens, relative to their spread, and of text means.

    Args:
        ours: of the student.
        theirs: of the teacher.
        text: INT64 [tokens], the text of each token.
    """
    tokens = nn.functional.mse_loss(ours, theirs) / theirs.var().clamp(min=1e-6)
    texts = int(text[-1]) + 1
    mine = ours.new_zeros(texts, ours.shape[1]).index_add(0, text, ours)
    other = theirs.new_zeros(texts, theirs.shape[1]).index_add(0, text, theirs)
    return tokens + (1 - nn.functional.cosine_similarity(mine, other)).mean()
