"""Converts a causal language model of transformers into the OpenVINO graph that the generating engine runs.

The graph takes token ids, mask, positions and `beam_idx` and keeps keys and values as its state, under the names that
optimum-intel gives them. OpenVINO GenAI recognises this form and turns it into paged attention (Kwon et al. 2023,
"Efficient Memory Management for Large Language Model Serving with PagedAttention"); plain OpenVINO runs it as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from openvino import opset13 as ops
from openvino._offline_transformations import apply_make_stateful_transformation
from torch import nn
from transformers import PreTrainedModel

from millis_pipeline.export import ExportError

GRAPH_FILE = "openvino_model.xml"
WEIGHTS_FILE = "openvino_model.bin"
TEXT_INPUTS = ("input_ids", "attention_mask", "position_ids")
KINDS = ("key", "value")


class ConvertError(ExportError):
    """A model that cannot be converted; the message is one line and names what stands in the way."""


class _Cache:
    """Keys and values as plain tensors, in the place of transformers' cache, so that tracing sees them as arguments."""

    is_compileable = False

    def __init__(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.pairs = list(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        past_keys, past_values = self.pairs[layer]
        self.pairs[layer] = (torch.cat([past_keys, keys], dim=-2), torch.cat([past_values, values], dim=-2))
        return self.pairs[layer]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self.pairs[layer_idx][0].shape[-2])

    def get_mask_sizes(self, queries: Any, layer_idx: int) -> tuple[int, int]:
        new = queries if isinstance(queries, int) else queries.shape[0]
        return self.get_seq_length(layer_idx) + new, 0

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * len(self.pairs)


class _Step(nn.Module):  # type: ignore[misc]  # torch is not followed: its types cost mypy minutes
    """One call of the model with its cache as arguments and results."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        cache = _Cache(list(zip(past[::2], past[1::2], strict=True)))
        queries, total = input_ids.shape[1], attention_mask.shape[1]
        columns = torch.arange(total)
        rows = torch.arange(queries) + (total - queries)
        seen = (columns[None, :] <= rows[:, None])[None, None] & attention_mask[:, None, None, :].bool()
        # A whole mask is passed on as it is: the model's own masks depend on lengths that tracing would freeze.
        mask = torch.where(seen, torch.zeros(()), torch.full((), torch.finfo(torch.float32).min))
        output = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            cache=cache,
            use_cache=True,
        )
        return (output.logits, *(tensor for pair in cache.pairs for tensor in pair))


def check_attention(model: PreTrainedModel, graph: bool) -> None:
    """Checks that the engines can compute a model's attention, before time is spent on it.

    Args:
        model: to serve.
        graph: whether it is to become a graph.

    Raises:
        ConvertError: they cannot, and why.
    """
    config = model.config
    family = config.model_type
    if getattr(config, "attn_logit_softcapping", None) is not None:
        # Nor has transformers' own attention over pages: its functions take the argument and do nothing with it.
        raise ConvertError(
            f"{family}: attn_logit_softcapping is {config.attn_logit_softcapping:g}; the engines' attention has no "
            "soft-capping, so its tokens would be others than PyTorch's"
        )
    if graph and not getattr(model, "_supports_sdpa", False):
        raise ConvertError(f"{family}: transformers has no SDPA attention for it, which the engine replaces by its own")


def convert(model: PreTrainedModel, folder: Path) -> None:
    """Writes `openvino_model.xml` and `openvino_model.bin` with fp32 weights.

    Args:
        model: a causal language model.
        folder: to write into.

    Raises:
        ConvertError: the engine cannot compute its attention, or tracing fails.
    """
    check_attention(model, graph=True)
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    model = model.eval().float()
    try:
        sizes = _cache_sizes(model)
        graph = _traced(model, sizes)
    except ConvertError:
        raise
    except Exception as error:  # the tracer and the converter raise errors of many kinds
        raise ConvertError(f"{model.config.model_type}: it cannot be converted: {_line(error)}") from error
    finally:
        model.set_attn_implementation(before)
    _name(graph, sizes)
    _keep_cache_as_state(graph, len(sizes))
    folder.mkdir(parents=True, exist_ok=True)
    openvino.save_model(graph, folder / GRAPH_FILE, compress_to_fp16=False)


def _cache_sizes(model: PreTrainedModel) -> list[list[tuple[int, int]]]:
    """(heads, head size) of the keys and of the values of each layer, from what a call leaves in its cache."""
    with torch.inference_mode():
        cache = model(input_ids=torch.ones(1, 2, dtype=torch.int64), use_cache=True).cache
    sizes = []
    for layer in getattr(cache, "layers", ()):
        tensors = [getattr(layer, name, None) for name in ("keys", "values")]
        if not all(isinstance(tensor, torch.Tensor) and tensor.ndim == 4 for tensor in tensors):
            raise ConvertError(f"{model.config.model_type}: {type(layer).__name__} is no cache of keys and values")
        sizes.append([(int(tensor.shape[1]), int(tensor.shape[3])) for tensor in tensors if tensor is not None])
    if len(sizes) != model.config.num_hidden_layers:
        raise ConvertError(
            f"{model.config.model_type}: {len(sizes)} of {model.config.num_hidden_layers} layers have a cache of keys "
            "and values; the engine needs it in every layer"
        )
    return sizes


def _traced(model: PreTrainedModel, sizes: Sequence[Sequence[tuple[int, int]]]) -> openvino.Model:
    # Sizes differ from each other, from 0 and from 1, which tracing would take for constants.
    past = [torch.randn(2, heads, 2, size) for layer in sizes for heads, size in layer]
    example = (
        torch.ones(2, 3, dtype=torch.int64),
        torch.ones(2, 5, dtype=torch.int64),
        torch.arange(2, 5)[None].repeat(2, 1),
        *past,
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about shapes that are constants indeed
        return openvino.convert_model(_Step(model), example_input=example)


def _name(graph: openvino.Model, sizes: Sequence[Sequence[tuple[int, int]]]) -> None:
    """Gives inputs and outputs the names and shapes that the engine looks for."""
    past = [f"past_key_values.{layer}.{kind}" for layer in range(len(sizes)) for kind in KINDS]
    present = [f"present.{layer}.{kind}" for layer in range(len(sizes)) for kind in KINDS]
    names = [*TEXT_INPUTS, *past]
    if len(graph.inputs) != len(names) or len(graph.outputs) != 1 + len(present):
        raise ConvertError(
            f"its graph has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, "
            f"not {len(names)} and {1 + len(present)}: an input plays no part in its answer"
        )
    flat = [size for layer in sizes for size in layer]
    shapes: list[list[int]] = [[-1, -1]] * len(TEXT_INPUTS) + [[-1, heads, -1, size] for heads, size in flat]
    for tensor, name, shape in zip(graph.inputs, names, shapes, strict=True):
        tensor.get_tensor().set_names({name})
        parameter = tensor.get_node()
        parameter.set_partial_shape(openvino.PartialShape(shape))
        if name in TEXT_INPUTS:
            parameter.set_element_type(openvino.Type.i64)
    for tensor, name in zip(graph.outputs, ["logits", *present], strict=True):
        tensor.get_tensor().set_names({name})
    graph.validate_nodes_and_infer_types()


def _keep_cache_as_state(graph: openvino.Model, layers: int) -> None:
    """Turns the cache from inputs and outputs into variables of the graph, which begin empty."""
    beam = ops.parameter([-1], dtype=np.int32, name="beam_idx")
    beam.output(0).get_tensor().set_names({"beam_idx"})
    graph.add_parameters([beam])
    pairs = {}
    for name in [f"{layer}.{kind}" for layer in range(layers) for kind in KINDS]:
        parameter = graph.input(f"past_key_values.{name}").get_node()
        readers = list(parameter.output(0).get_target_inputs())
        chosen = ops.gather(parameter, beam, ops.constant(0))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
        pairs[f"past_key_values.{name}"] = f"present.{name}"
    graph.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(graph, pairs)
    graph.validate_nodes_and_infer_types()
    shape = ops.shape_of(graph.input("input_ids").get_node(), output_type="i64")
    batch = ops.gather(shape, ops.constant([0]), ops.constant(0))
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "ReadValue":
            dims = [0 if size.is_dynamic else size.get_length() for size in list(node.get_output_partial_shape(0))[1:]]
            empty = ops.concat([batch, *(ops.constant(np.array([size], np.int64)) for size in dims)], 0)
            node.set_arguments([ops.broadcast(ops.constant(0.0, dtype=np.float32), empty)])
    graph.validate_nodes_and_infer_types()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
