"""Quantizes an exported graph to int8, with ONNX Runtime's quantizers.

Weights are quantized per output channel; activations at run time (dynamic), or once by calibration (static, as
pairs of QuantizeLinear and DequantizeLinear). Processors with AVX2 or AVX-512 but without VNNI add two products in
16 bits, which saturates with 8-bit weights; there weights get 7 bits (`reduce_range`, as ONNX Runtime's
documentation of quantization advises).
"""

from __future__ import annotations

import ast
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from tqdm import tqdm

from millis_pipeline.agreement import Outputs
from millis_pipeline.checkpoint import CheckpointError
from millis_pipeline.progress import step
from millis_pipeline.run import Feeds, Runner, graph_runner
from millis_pipeline.variants import Quantize

GEMM_PRODUCT = "_MatMul"
"""What ONNX Runtime's quantizer adds to the name of a Gemm for the product that it makes of it."""

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where PyTorch's exporter writes down which module a node is from."""

BLOCK = re.compile(r"head|layer ([1-9]\d*) (?:attention|feed-forward)")
"""A block that a model can have, see `blocks`."""

LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)(\.att)?")


@dataclass(frozen=True)
class Floor:
    """How alike the answers of a quantized graph must be, for `keep_fp32: auto`.

    Attributes:
        agreement: of the outputs for some texts with those of the fp32 graph, 0 to 1.
        least: that is good enough.
    """

    agreement: Callable[[Outputs, Outputs], float]
    least: float


def quantize_int8(
    source: Path,
    target: Path,
    *,
    reduce_range: bool,
    spec: Quantize,
    texts: Sequence[Feeds] = (),
    floor: Floor | None = None,
) -> tuple[str, ...]:
    """Writes the int8 version of a graph.

    Args:
        source: fp32 graph.
        target: file to write.
        reduce_range: whether weights get 7 bits.
        spec: dynamic or static, and how many blocks stay in fp32.
        texts: inputs for calibration, and to find the blocks that quantization harms most; one feed each.
        floor: for `keep_fp32: auto`.

    Returns:
        Names of the blocks that stayed in fp32, the most sensitive one first.

    Raises:
        CheckpointError: a block that is named is none of the graph's, or there are fewer than are to stay in fp32.
    """
    if spec.keep_fp32 == "auto":
        assert floor is not None, "auto needs a floor. This is a bug."
        kept: Sequence[str] = _fewest(source, spec, texts, reduce_range, floor)
    else:
        kept = _kept(source, spec, texts, reduce_range)
    found = blocks(source) if kept else {}
    excluded = [node for name in kept for node in found[name]]
    with step("quantizing"):
        _quantize(source, target, spec, texts, reduce_range, excluded=excluded)
    return tuple(kept)


def _fewest(source: Path, spec: Quantize, texts: Sequence[Feeds], reduce_range: bool, floor: Floor) -> Sequence[str]:
    """As few blocks as it takes, the most harmed first; all of them where no fewer do."""
    known = blocks(source)
    expected = [answer[0] for answer in _answers(graph_runner(source), texts)]
    ranked: list[str] = []
    with tempfile.TemporaryDirectory(prefix="millis-") as scratch:
        target = Path(scratch) / "mixed.onnx"
        for kept in tqdm(range(len(known)), desc="blocks in fp32", unit="block", leave=False, disable=None):
            if kept == 1:
                harm = sensitivity(source, spec, texts, reduce_range=reduce_range)
                ranked = sorted(harm, key=lambda name: -harm[name])
            excluded = [node for name in ranked[:kept] for node in known[name]]
            _quantize(source, target, spec, texts, reduce_range, excluded=excluded)
            ours = graph_runner(target)
            if floor.agreement([ours(feeds)[0] for feeds in texts], expected) >= floor.least:
                return ranked[:kept]
    return ranked


def _kept(source: Path, spec: Quantize, texts: Sequence[Feeds], reduce_range: bool) -> Sequence[str]:
    if isinstance(spec.keep_fp32, int):
        if spec.keep_fp32 == 0:
            return ()
        known = blocks(source)
        if spec.keep_fp32 > len(known):
            raise CheckpointError(
                f"quantize.keep_fp32: {spec.keep_fp32} blocks cannot stay in fp32, the model has {len(known)}: "
                f"{', '.join(known)}"
            )
        harm = sensitivity(source, spec, texts, reduce_range=reduce_range)
        return sorted(harm, key=lambda name: -harm[name])[: spec.keep_fp32]
    known = blocks(source)
    for name in spec.keep_fp32:
        if name not in known:
            raise CheckpointError(f"quantize.keep_fp32: the model has no block {name!r}; it has {', '.join(known)}")
    return spec.keep_fp32


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


def blocks(source: Path) -> dict[str, list[str]]:
    """Names of the matrix products with weights, by the part of the model that they belong to.

    Parts are `layer 1 attention`, `layer 1 feed-forward` and so on, and `head` for the rest.
    """
    graph = onnx.load(source, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    found: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm") and weights & set(node.input):
            found.setdefault(_block(node), []).append(node.name)
    return found


def _block(node: onnx.NodeProto) -> str:
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            for scope in reversed(ast.literal_eval(entry.value)):
                if match := LAYER.search(scope):
                    return f"layer {int(match[1]) + 1} {'attention' if match[2] else 'feed-forward'}"
    return "head"


def sensitivity(source: Path, spec: Quantize, texts: Sequence[Feeds], *, reduce_range: bool) -> dict[str, float]:
    """How far outputs move when one block alone is quantized: the mean absolute difference, for each block."""
    expected = _answers(graph_runner(source), texts)
    harm = {}
    with tempfile.TemporaryDirectory(prefix="millis-") as scratch:
        target = Path(scratch) / "block.onnx"
        for name, nodes in tqdm(blocks(source).items(), desc="sensitivity", unit="block", leave=False, disable=None):
            _quantize(source, target, spec, texts, reduce_range, only=nodes)
            ours = graph_runner(target)
            moved = [float(np.abs(ours(feeds) - want).mean()) for feeds, want in zip(texts, expected, strict=True)]
            harm[name] = float(np.mean(moved))
    return harm


def _answers(run: Runner, texts: Sequence[Feeds]) -> list[NDArray[np.float32]]:
    return [run(feeds) for feeds in tqdm(texts, desc="fp32 answers", unit="text", leave=False, disable=None)]


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime has no types
    """Feeds of the calibration texts, one by one."""

    def __init__(self, texts: Sequence[Feeds]) -> None:
        self._left = iter(texts)

    def get_next(self) -> Feeds | None:
        return next(self._left, None)


def _quantize(
    source: Path,
    target: Path,
    spec: Quantize,
    texts: Sequence[Feeds],
    reduce_range: bool,
    *,
    only: list[str] | None = None,
    excluded: list[str] | None = None,
) -> None:
    only, excluded = _as_products(only), _as_products(excluded)
    with _quiet():
        if spec.method == "dynamic":
            quantize_dynamic(
                source,
                target,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=reduce_range,
                nodes_to_quantize=only,
                nodes_to_exclude=excluded,
            )
            return
        quantize_static(
            source,
            target,
            _Calibration(texts),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=reduce_range,
            nodes_to_quantize=only,
            nodes_to_exclude=excluded,
            # Products of two activations (attention scores) stay in fp32, as in the dynamic graph, and so do outputs:
            # the runtime then fuses each product to one MatMulIntegerToFloat.
            extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
        )


def _as_products(nodes: list[str] | None) -> list[str] | None:
    """The nodes under all their names: the quantizer splits a Gemm into MatMul and Add before it looks at names."""
    return nodes and [*nodes, *(f"{name}{GEMM_PRODUCT}" for name in nodes)]


@contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)  # the quantizers advise a pre-processing that changes nothing here
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
