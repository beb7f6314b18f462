"""Makes a causal language model with fewer layers, and teaches it what the whole one predicts.

Layers can be left out of a trained model (LayerDrop, Fan et al. 2020; "ShortGPT", Men et al. 2024), at a price that
distillation lowers (Hinton et al. 2015; DistilBERT, Sanh et al. 2019).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from millis_pipeline.checkpoint import CheckpointError
from millis_pipeline.decoders.checkpoint import Decoder
from millis_pipeline.decoders.recipe import DecoderRecipe, DecoderVariant, DistillDecoder
from millis_pipeline.decoders.samples import Sample, pad_samples
from millis_pipeline.decoders.train import Course, dev_loss, fit
from millis_pipeline.distill import spread_layers


def kept_layers(variant: DecoderVariant, depth: int) -> list[int]:
    """Layers of the model that a variant keeps, counted from 0."""
    kept = variant.keep_layers
    assert kept is not None, "only variants that drop layers ask. This is a bug."
    return spread_layers(kept, depth) if isinstance(kept, int) else [layer - 1 for layer in kept]


def with_layers(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A copy with some of the layers.

    Args:
        model: to copy.
        layers: to keep, counted from 0, in rising order.

    Raises:
        CheckpointError: its layers are not one list, so that none can be left out.
    """
    depth = model.config.num_hidden_layers
    stacks = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    if len(stacks) != 1:
        raise CheckpointError(f"{model.config.model_type}: keep_layers: its layers are not one list of {depth}")
    config = copy.deepcopy(model.config)
    kinds = getattr(config, "layer_types", None)
    config.num_hidden_layers = len(layers)
    if kinds is not None:
        config.layer_types = [kinds[layer] for layer in layers]
    smaller = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    places = {layer: place for place, layer in enumerate(layers)}
    prefix = f"{stacks[0]}."
    weights = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(prefix):
            number, _, rest = name.removeprefix(prefix).partition(".")
            if int(number) not in places:
                continue
            name = f"{prefix}{places[int(number)]}.{rest}"
        weights[name] = tensor
    smaller.load_state_dict(weights)
    smaller.generation_config = copy.deepcopy(model.generation_config)
    return smaller.eval().requires_grad_(False)


def distill(
    teacher: Decoder,
    student: PreTrainedModel,
    spec: DistillDecoder,
    recipe: DecoderRecipe,
    samples: Sequence[Sample],
    held: Sequence[Sample],
    what: str,
) -> float:
    """Teaches a student in place.

    Args:
        teacher: the whole model.
        student: with the same vocabulary and hidden size.
        spec: how.
        recipe: whose training settings hold.
        samples: to learn from.
        held: set aside, to stop by.
        what: variant, for progress bar and lines.

    Returns:
        The smallest dev loss, in nats for each token.
    """

    def loss_of(batch: Sequence[Sample]) -> torch.Tensor:
        return imitation_loss(teacher.model, student, batch, teacher.pad_id, recipe.unwritten_weight, spec)

    student.requires_grad_(True)
    torch.manual_seed(recipe.seed)
    course = Course(
        spec.epochs, spec.learning_rate, recipe.weight_decay, recipe.batch_tokens, recipe.patience, recipe.seed
    )
    value = fit(
        student, [samples], loss_of, course, lambda: dev_loss(student, held, teacher.pad_id, recipe.batch_tokens), what
    )
    student.eval().requires_grad_(False)
    return value


def imitation_loss(
    teacher: nn.Module,
    student: nn.Module,
    batch: Sequence[Sample],
    pad_id: int,
    other_weight: float,
    spec: DistillDecoder,
) -> torch.Tensor:
    """Distance of the student's predictions from the teacher's, and of its last hidden states where asked.

    Args:
        teacher: is run as it is.
        student: is trained.
        batch: to read.
        pad_id: token that fills shorter rows.
        other_weight: of tokens that the assistant did not write.
        spec: temperature, and weight of the hidden states.
    """
    ids, weights = pad_samples(batch, pad_id, other_weight)
    hidden = spec.hidden > 0
    with torch.no_grad():
        theirs = teacher(input_ids=ids, use_cache=False, output_hidden_states=hidden)
    ours = student(input_ids=ids, use_cache=False, output_hidden_states=hidden)
    # A token counts for the prediction that was made one place before it.
    counted = weights[:, 1:] > 0
    chosen = weights[:, 1:][counted]
    divergence = nn.functional.kl_div(
        torch.log_softmax(ours.logits[:, :-1][counted] / spec.temperature, -1),
        torch.log_softmax(theirs.logits[:, :-1][counted] / spec.temperature, -1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    loss = spec.temperature**2 * (divergence * chosen).sum() / chosen.sum()
    if hidden:
        mine, other = (output.hidden_states[-1][:, :-1][counted] for output in (ours, theirs))
        loss = loss + spec.hidden * nn.functional.mse_loss(mine, other) / other.var().clamp(min=1e-6)
    return loss
