"""Structured pruning: attention heads, feed-forward neurons and layers are taken out, so that the graph shrinks.

What a head or a neuron is worth is measured on data to first order, as |activation x gradient|: Molchanov et al. 2019
("Importance Estimation for Neural Network Pruning"), and Michel et al. 2019 ("Are Sixteen Heads Really Better than
One?") for heads, whose normalisation within each layer is used as well. What a layer is worth is how much it turns
its input (Men et al. 2024, "ShortGPT": block influence). Recovery training is `distill.imitate`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from millis_pipeline.architectures import Encoder, Shape, Size
from millis_pipeline.checkpoint import Checkpoint, CheckpointError
from millis_pipeline.examples import Example, pad
from millis_pipeline.variants import Prune

MAX_TEXTS = 512
"""Texts that importance is measured on: more change the order little."""

BATCH = 16
LEAST_HEADS = 1
"""A layer keeps at least so many attention heads."""

NEURON_STEP = 32
"""A layer keeps a multiple of this many neurons: narrower steps leave vector units idle, and save nothing."""


@dataclass(frozen=True)
class Importance:
    """What every part is worth.

    Attributes:
        heads: [layers, heads].
        neurons: [layers, neurons].
        layers: [layers].
    """

    heads: NDArray[np.float64]
    neurons: NDArray[np.float64]
    layers: NDArray[np.float64]


def check_prunable(spec: Prune, size: Size, what: str) -> None:
    """Checks that enough remains, before anything is trained.

    Args:
        spec: what is to be removed.
        size: of the model.
        what: variant, for the message.

    Raises:
        CheckpointError: no layer would, or a larger share is to be removed than layers can be without.
    """
    if spec.layers >= size.layers:
        raise CheckpointError(
            f"{what}: prune.layers: the teacher has {size.layers} layers, {spec.layers} cannot be removed"
        )
    for key, share, least, parts, name in (
        ("heads", spec.heads, LEAST_HEADS, size.heads, "attention heads"),
        ("ffn", spec.ffn, NEURON_STEP, size.neurons, "feed-forward neurons"),
    ):
        largest = max(0.0, 1 - least / parts)
        if share > largest:
            raise CheckpointError(
                f"{what}: prune.{key}: a share of {share:g} cannot be removed, every layer keeps {least} of its "
                f"{parts} {name}: at most {math.floor(1000 * largest) / 1000:g}"
            )


def chosen_shape(importance: Importance, spec: Prune) -> Shape:
    """What remains when the least important parts go."""
    kept = sorted(np.argsort(importance.layers, kind="stable")[spec.layers :].tolist())
    heads = kept_parts(importance.heads[kept], spec.heads, at_least=LEAST_HEADS, step=1)
    neurons = kept_parts(importance.neurons[kept], spec.ffn, at_least=NEURON_STEP, step=NEURON_STEP)
    return Shape(kept, heads if spec.heads else None, neurons if spec.ffn else None)


def kept_parts(worth: NDArray[np.float64], share: float, *, at_least: int, step: int) -> list[list[int]]:
    """Chooses what each layer keeps when `share` of all parts go, the least worth ones first, wherever they are.

    Args:
        worth: [layers, parts].
        share: of all parts, to remove.
        at_least: parts that every layer keeps.
        step: a layer keeps a multiple of this many parts.
    """
    scale = np.linalg.norm(worth, axis=1, keepdims=True)
    ranked = worth / np.where(scale > 0, scale, 1)
    limit = np.sort(ranked, axis=None)[min(round(share * ranked.size), ranked.size - 1)]
    result = []
    for row in ranked:
        count = int((row >= limit).sum())
        count = min(max(round(count / step) * step, at_least), len(row))
        result.append(sorted(np.argsort(-row, kind="stable")[:count].tolist()))
    return result


def measure_importance(
    module: nn.Module, checkpoint: Checkpoint, examples: Sequence[Example], seed: int, what: str
) -> Importance:
    """Runs texts forward and back, and sums up what every part contributed.

    The loss is that of the answers which the model gives itself, sharpened, so that texts need no labels; of vectors
    it is their product with random signs, which stands for any use that is made of them.

    Args:
        module: to measure.
        checkpoint: its task.
        examples: tokenized texts.
        seed: which of them are taken.
        what: for the progress bar.
    """
    encoder = Encoder(module)
    generator = random.Random(seed)
    chosen = sorted(generator.sample(list(examples), min(MAX_TEXTS, len(examples))), key=lambda x: len(x.ids))
    torch.manual_seed(seed)
    probes = [_Probe(encoder, layer) for layer in encoder.layers]
    module.requires_grad_(True)
    try:
        with tqdm(total=len(chosen), desc=what, unit="text", leave=False, disable=None) as progress:
            for start in range(0, len(chosen), BATCH):
                batch = chosen[start : start + BATCH]
                ids, mask = pad(batch, checkpoint.tokenizer.pad_token_id or 0)
                _own_loss(module(ids, mask), mask, checkpoint).backward()
                for probe in probes:
                    probe.add(mask)
                module.zero_grad(set_to_none=True)
                progress.update(len(batch))
    finally:
        module.requires_grad_(False)
        for probe in probes:
            probe.remove()
    return Importance(
        heads=np.stack([probe.heads for probe in probes]),
        neurons=np.stack([probe.neurons for probe in probes]),
        layers=np.array([probe.turned for probe in probes]),
    )


class _Probe:
    """Sums what the heads, the neurons and the whole of one layer contribute."""

    def __init__(self, encoder: Encoder, layer: nn.Module) -> None:
        self.heads = np.zeros(encoder.attended(layer).in_features // encoder.head_size)
        self.neurons = np.zeros(encoder.narrowing(layer).in_features)
        self.turned = 0.0
        self._size = encoder.head_size
        self._seen: dict[str, torch.Tensor] = {}
        self._handles = [
            encoder.attended(layer).register_forward_pre_hook(partial(self._keep, "heads")),
            encoder.narrowing(layer).register_forward_pre_hook(partial(self._keep, "neurons")),
            layer.register_forward_hook(self._keep_ends),
        ]

    def _keep(self, name: str, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        inputs[0].retain_grad()
        self._seen[name] = inputs[0]

    def _keep_ends(self, _module: nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        last = output[0] if isinstance(output, tuple) else output
        assert isinstance(last, torch.Tensor)
        self._seen["before"], self._seen["after"] = inputs[0].detach(), last.detach()

    def add(self, mask: torch.Tensor) -> None:
        """Adds one batch, after its backward pass: sums over the tokens of a text, then over texts by size."""
        weight = mask.unsqueeze(-1)
        worth = {}
        for name in ("heads", "neurons"):
            seen = self._seen[name]
            assert seen.grad is not None
            worth[name] = (seen * seen.grad * weight).detach().sum(1)
        self.neurons += worth["neurons"].abs().sum(0).double().numpy()
        heads = worth["heads"].unflatten(-1, (-1, self._size)).sum(-1)
        self.heads += heads.abs().sum(0).double().numpy()
        alike = nn.functional.cosine_similarity(self._seen["before"], self._seen["after"], dim=-1)
        self.turned += float(((1 - alike) * mask).sum())
        self._seen.clear()

    def remove(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()


def _own_loss(output: torch.Tensor, mask: torch.Tensor, checkpoint: Checkpoint) -> torch.Tensor:
    """A scalar whose gradient says which activations the output hangs on."""
    if checkpoint.task == "embedding":
        return (output * (2 * torch.randint(0, 2, output.shape[1:]) - 1)).sum()
    rows = output[mask.bool()] if checkpoint.task == "token-classification" else output
    if checkpoint.multi_label:
        return nn.functional.binary_cross_entropy_with_logits(rows, (rows > 0).float(), reduction="sum")
    return nn.functional.cross_entropy(rows, rows.argmax(-1), reduction="sum")
