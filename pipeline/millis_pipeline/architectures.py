"""Where the parts of an encoder lie that compression removes: its layers, attention heads and feed-forward neurons.

transformers 5 has no `prune_heads`, but the attention of the architectures below takes the number of heads from the
width of its projections, so that narrower projections are all it takes. Others are refused.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.pytorch_utils import prune_linear_layer

from millis_pipeline.checkpoint import CheckpointError, one_line


@dataclass(frozen=True)
class Shape:
    """What a smaller model keeps of a larger one.

    Attributes:
        layers: kept layers, counted from 0.
        heads: kept attention heads of each kept layer; None keeps all.
        neurons: kept feed-forward neurons of each kept layer; None keeps all.
    """

    layers: list[int]
    heads: list[list[int]] | None = None
    neurons: list[list[int]] | None = None


@dataclass(frozen=True)
class Size:
    """How large a model is.

    Attributes:
        layers: that it has.
        heads: attention heads of each.
        neurons: feed-forward neurons of each.
    """

    layers: int
    heads: int
    neurons: int


@dataclass(frozen=True)
class Architecture:
    """Paths of an encoder's parts.

    Attributes:
        layers: the list of layers, from the base model.
        depth: key of config.json that counts them.
        heads: key of config.json that counts the attention heads of each layer.
        neurons: key of config.json that counts the feed-forward neurons of each layer.
        query, key, value, attended: projections of a layer's attention, from the layer; `attended` is the last one.
        widening, narrowing: the two linear maps of a layer's feed-forward part, from the layer.
    """

    layers: str
    depth: str
    heads: str
    neurons: str
    query: str
    key: str
    value: str
    attended: str
    widening: str
    narrowing: str


BERT = Architecture(
    layers="encoder.layer",
    depth="num_hidden_layers",
    heads="num_attention_heads",
    neurons="intermediate_size",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attended="attention.output.dense",
    widening="intermediate.dense",
    narrowing="output.dense",
)
DISTILBERT = Architecture(
    layers="transformer.layer",
    depth="n_layers",
    heads="n_heads",
    neurons="hidden_dim",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attended="attention.out_lin",
    widening="ffn.lin1",
    narrowing="ffn.lin2",
)
ARCHITECTURES = {"bert": BERT, "roberta": BERT, "xlm-roberta": BERT, "distilbert": DISTILBERT}


class Encoder:
    """The encoder inside a checkpoint's module, with the parts that can be removed.

    Args:
        module: of a checkpoint, of any task.

    Raises:
        CheckpointError: it is of an architecture that cannot be compressed.
    """

    def __init__(self, module: nn.Module) -> None:
        found = next((part for part in module.modules() if isinstance(part, PreTrainedModel)), None)
        self.base: Any = found.base_model if found is not None else None
        kind = self.base.config.model_type if self.base is not None else type(module).__name__
        self.architecture = _architecture(kind)

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, the first one first."""
        layers: nn.ModuleList = self.base.get_submodule(self.architecture.layers)
        return layers

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        config = self.base.config
        return int(config.hidden_size // config.num_attention_heads)

    def attended(self, layer: nn.Module) -> nn.Linear:
        """The projection after attention: its inputs are the heads, one beside the other."""
        return layer.get_submodule(self.architecture.attended)

    def narrowing(self, layer: nn.Module) -> nn.Linear:
        """The second map of the feed-forward part: its inputs are the neurons."""
        return layer.get_submodule(self.architecture.narrowing)

    def keep_layers(self, indices: list[int]) -> None:
        """Removes all other layers."""
        layers = self.layers
        parent, _, name = self.architecture.layers.rpartition(".")
        setattr(self.base.get_submodule(parent), name, nn.ModuleList(layers[index] for index in indices))
        setattr(self.base.config, self.architecture.depth, len(indices))

    def keep_heads(self, layer: nn.Module, heads: list[int]) -> None:
        """Removes all other attention heads of a layer."""
        size = self.head_size
        channels = torch.cat([torch.arange(head * size, (head + 1) * size) for head in heads])
        for path in (self.architecture.query, self.architecture.key, self.architecture.value):
            _narrow(layer, path, channels, dim=0)
        _narrow(layer, self.architecture.attended, channels, dim=1)

    def keep_neurons(self, layer: nn.Module, neurons: list[int]) -> None:
        """Removes all other feed-forward neurons of a layer."""
        channels = torch.tensor(neurons)
        _narrow(layer, self.architecture.widening, channels, dim=0)
        _narrow(layer, self.architecture.narrowing, channels, dim=1)


def size_of(folder: Path) -> Size:
    """Size of a checkpoint, from its config.json.

    Raises:
        CheckpointError: the file cannot be read, or is of an architecture that cannot be compressed.
    """
    config = _config(folder)
    keys = _architecture(config.model_type)
    return Size(*(int(getattr(config, key)) for key in (keys.depth, keys.heads, keys.neurons)))


def stated_depth(folder: Path) -> int | None:
    """Number of layers of a checkpoint of any architecture, from its config.json; None where it does not say.

    Raises:
        CheckpointError: the file cannot be read.
    """
    depth: int | None = getattr(_config(folder), "num_hidden_layers", None)
    return depth


def _config(folder: Path) -> Any:
    inner = [folder, *folder.glob("0_*")]  # older sentence-transformers keep the encoder in a folder of its own
    home = next((path for path in inner if (path / "config.json").is_file()), folder)
    try:
        return AutoConfig.from_pretrained(home)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{home / 'config.json'}: {one_line(error)}") from error


def _architecture(kind: str) -> Architecture:
    if kind not in ARCHITECTURES:
        raise CheckpointError(
            f"distill, prune, exits and trim: architecture {kind!r} is not supported; "
            f"supported are {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[kind]


def shaped(module: nn.Module, shape: Shape) -> nn.Module:
    """A copy of a module that keeps what the shape says."""
    result = copy.deepcopy(module)
    encoder = Encoder(result)
    if len(shape.layers) < len(encoder.layers):
        encoder.keep_layers(shape.layers)
    for layer, heads in zip(encoder.layers, shape.heads or (), strict=shape.heads is not None):
        encoder.keep_heads(layer, heads)
    for layer, neurons in zip(encoder.layers, shape.neurons or (), strict=shape.neurons is not None):
        encoder.keep_neurons(layer, neurons)
    return result


def _narrow(layer: nn.Module, path: str, channels: torch.Tensor, dim: int) -> None:
    """Puts a narrower linear map in the place of one: fewer outputs (dim 0) or inputs (dim 1)."""
    layer.set_submodule(path, prune_linear_layer(layer.get_submodule(path), channels, dim))
