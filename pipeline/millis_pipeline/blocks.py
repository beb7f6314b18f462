"""Blocks of a model, which quantization may spare: attention and feed-forward part of each layer, and the head."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import onnx

from millis_pipeline.checkpoint import CheckpointError

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where PyTorch's exporter writes down which module a node is from."""

BLOCK = re.compile(r"head|layer ([1-9]\d*) (?:attention|feed-forward)")
"""A block that a model can have, see `blocks`."""

LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)(\.att)?")


class Node(NamedTuple):
    """A node of a model that is one graph or several."""

    graph: int
    """Counted from 0, in the order in which an input goes through them."""
    name: str
    """In its graph; another one may have the same."""


def check_blocks(kept: int | Sequence[str], depth: int, variant: str) -> None:
    """Checks which blocks stay in fp32 before there is a graph to look for them in.

    Args:
        kept: their number, or their names, as a recipe gives them.
        depth: layers of the model.
        variant: its name.

    Raises:
        CheckpointError: there are more than a model of that depth can have, or a name is none of its names.
    """
    layers = f"head, and attention and feed-forward of layers 1 to {depth}"
    if isinstance(kept, int):
        if kept > 2 * depth + 1:
            raise CheckpointError(
                f"{variant}: quantize.keep_fp32: {kept} blocks cannot stay in fp32, the model has at most "
                f"{2 * depth + 1}: {layers}"
            )
        return
    for name in kept:
        found = BLOCK.fullmatch(name)
        if found is None or (found[1] is not None and not 1 <= int(found[1]) <= depth):
            raise CheckpointError(
                f"{variant}: quantize.keep_fp32: the model has no block {name!r}; it has {layers}, for example "
                "'layer 1 attention'"
            )


def blocks(graphs: Sequence[Path]) -> dict[str, list[Node]]:
    """The matrix products with weights, by the part of the model that they belong to.

    Parts are `layer 1 attention`, `layer 1 feed-forward` and so on, and `head` for the rest: with early exits the heads
    of all of them.

    Args:
        graphs: of the model, in the order in which an input goes through them; each counts its layers from 0.
    """
    found: dict[str, list[Node]] = {}
    before = 0
    for number, path in enumerate(graphs):
        graph = onnx.load(path, load_external_data=False).graph
        weights = {tensor.name for tensor in graph.initializer}
        layers = 0
        for node in graph.node:
            if node.op_type in ("MatMul", "Gemm") and weights & set(node.input):
                layer, part = _place(node)
                layers = max(layers, layer)
                found.setdefault(f"layer {before + layer} {part}" if layer else part, []).append(
                    Node(number, node.name)
                )
        before += layers
    return found


def _place(node: onnx.NodeProto) -> tuple[int, str]:
    """Layer of a node, counted from 1 within its graph, and the part of it; 0 and `head` outside of the layers."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            for scope in reversed(ast.literal_eval(entry.value)):
                if match := LAYER.search(scope):
                    return int(match[1]) + 1, "attention" if match[2] else "feed-forward"
    return 0, "head"
