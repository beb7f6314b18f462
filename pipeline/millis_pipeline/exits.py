"""Early exits: heads after some layers of a model, trained together with it, and the graphs of the cascade.

All heads learn what the fine-tuned teacher answers, and the labels where there are any (BranchyNet, Teerapittayanon
et al. 2016, trains all exits jointly; distilling into every exit is after FastBERT, Liu et al. 2020). The layers learn
with them: heads on layers that were trained for the last one alone know little.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from millis_pipeline.architectures import Encoder
from millis_pipeline.checkpoint import Checkpoint, CheckpointError
from millis_pipeline.classifier import masked_mean
from millis_pipeline.distill import answer_loss
from millis_pipeline.examples import pad
from millis_pipeline.teacher import Lesson, Teaching, captured


class ExitModel(nn.Module):  # type: ignore[misc]  # torch is not followed: its types cost mypy minutes
    """A checkpoint's module with heads after some of its layers; called, it answers as the module does.

    Args:
        module: of a checkpoint for text or token classification.
        after: layers with a head, counted from 1, in rising order, none of them the last.
        checkpoint: whose labels the heads answer.
    """

    def __init__(self, module: nn.Module, after: Sequence[int], checkpoint: Checkpoint) -> None:
        super().__init__()
        self.module = module
        self.after = tuple(after)
        self.per_token = checkpoint.task == "token-classification"
        self.multi_label = checkpoint.multi_label
        final = _final_head(module, len(checkpoint.labels))
        # What the last layer means is nearly what the layers before mean: all of them write into one sum.
        self.heads = nn.ModuleList(copy.deepcopy(final) for _ in after)

    @property
    def ends(self) -> tuple[int, ...]:
        """Layers gone through at the end of each stage."""
        return (*self.after, len(Encoder(self.module).layers))

    def with_exits(self, kept: Sequence[int]) -> ExitModel:
        """The same model with some of its exits, counted from 0."""
        model = copy.copy(self)
        model._modules = {**self._modules, "heads": nn.ModuleList(self.heads[exit] for exit in kept)}
        model.after = tuple(self.after[exit] for exit in kept)
        return model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The module's own answer."""
        logits: torch.Tensor = self.module(input_ids, attention_mask)
        return logits

    def exit_logits(self, exit: int, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits [texts, labels], or [texts, tokens, labels], of one exit from its layer's output."""
        logits: torch.Tensor = self.heads[exit](hidden if self.per_token else masked_mean(hidden, attention_mask))
        return logits

    def confidence(self, logits: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """How sure logits are, FLOAT [texts]: of a text the probability of its label, or of the least certain of all
        its yes and no; of tokens that of the least certain one, the first and the last (special ones) left out."""
        if self.multi_label:
            yes = torch.sigmoid(logits)
            return torch.maximum(yes, 1 - yes).amin(-1)
        best = logits.softmax(-1).amax(-1)
        if not self.per_token:
            return best
        place = attention_mask.cumsum(1)
        inner = (attention_mask == 1) & (place > 1) & (place < attention_mask.sum(1, keepdim=True))
        return torch.where(inner, best, 1.0).amin(1)

    def stages(self) -> list[nn.Module]:
        """The modules of the cascade: all but the last return logits, confidence and hidden states."""
        bounds = [0, *self.ends]
        last = len(self.after)
        return [
            _LastStage(self, range(begin, end)) if index == last else _Stage(self, index, range(begin, end))
            for index, (begin, end) in enumerate(pairwise(bounds))
        ]


class _HiddenStates(nn.Module):  # type: ignore[misc]  # torch is not followed: its types cost mypy minutes
    """In the place of embeddings: what comes in has been embedded already."""

    def forward(
        self, input_ids: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None, *_: object, **__: object
    ) -> torch.Tensor | None:
        return inputs_embeds


class _Stage(nn.Module):  # type: ignore[misc]  # torch is not followed: its types cost mypy minutes
    """Some layers of the encoder and the exit after them."""

    def __init__(self, model: ExitModel, exit: int, layers: range) -> None:
        super().__init__()
        self.base = Encoder(_only(layers, model.module)).base
        self.takes = "inputs_embeds" if layers.start else "input_ids"
        self.exit = exit
        self.model = model

    def forward(
        self, tokens: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = self.base(**{self.takes: tokens}, attention_mask=attention_mask).last_hidden_state
        logits = self.model.exit_logits(self.exit, hidden, attention_mask)
        return logits, self.model.confidence(logits, attention_mask), hidden


class _LastStage(nn.Module):  # type: ignore[misc]  # torch is not followed: its types cost mypy minutes
    """The layers after the last exit, and the module's own head."""

    def __init__(self, model: ExitModel, layers: range) -> None:
        super().__init__()
        self.module = _only(layers, model.module)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.module(None, attention_mask, inputs_embeds=hidden_states)
        return logits


def check_exits(after: Sequence[int], depth: int, what: str) -> None:
    """Checks that a model is deeper than its last exit, before anything is trained.

    Args:
        after: layers with a head, counted from 1.
        depth: layers of the model.
        what: variant, for the message.

    Raises:
        CheckpointError: it is not.
    """
    if after[-1] >= depth:
        raise CheckpointError(
            f"{what}: exits.after: it names layer {after[-1]}, and the model has {depth}; "
            "after the last one the model answers anyway"
        )


def exit_loss(
    model: ExitModel, teaching: Teaching, batch: Sequence[Lesson], checkpoint: Checkpoint, temperature: float
) -> torch.Tensor:
    """Mean over all exits and the model's own head: distance from the teacher, and from the labels where there are any.

    Args:
        model: that is trained.
        teaching: what the teacher says of every text.
        batch: some of its lessons.
        checkpoint: the teacher, for its task.
        temperature: softens both sides' distributions.
    """
    ids, mask = pad(batch, teaching.pad_id)
    with captured(Encoder(model), [layer - 1 for layer in model.after]) as states:
        final = model(ids, mask)
    answers = [model.exit_logits(exit, states[layer - 1], mask) for exit, layer in enumerate(model.after)]
    real = mask.bool()
    losses = [answer_loss(logits, real, teaching, batch, checkpoint, temperature) for logits in (*answers, final)]
    return torch.stack(losses).mean()


def _only(layers: range, module: nn.Module) -> nn.Module:
    """A copy of a module with some of its layers; without the first one it takes hidden states for embeddings."""
    kept = copy.deepcopy(module)
    encoder = Encoder(kept)
    encoder.keep_layers(list(layers))
    if layers.start:
        encoder.base.embeddings = _HiddenStates()
    return kept


def _final_head(module: nn.Module, labels: int) -> nn.Linear:
    """The linear map that answers: the last one with an output for each label."""
    return [part for part in module.modules() if isinstance(part, nn.Linear) and part.out_features == labels][-1]
