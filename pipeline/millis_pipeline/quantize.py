"""Quantizes an exported model, one graph or several, to int8, with ONNX Runtime's quantizers.

Weights are quantized per output channel; activations at run time (dynamic), or once by calibration (static, as
pairs of QuantizeLinear and DequantizeLinear). Processors with AVX2 or AVX-512 but without VNNI add two products in
16 bits, which saturates with 8-bit weights; there weights get 7 bits (`reduce_range`, as ONNX Runtime's
documentation of quantization advises).
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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
from millis_pipeline.blocks import Node, blocks
from millis_pipeline.chain import answers, passed
from millis_pipeline.checkpoint import CheckpointError
from millis_pipeline.progress import step
from millis_pipeline.variants import Quantize
from millis_server.triton.backend.engine import Feeds

GEMM_PRODUCT = "_MatMul"
"""What ONNX Runtime's quantizer adds to the name of a Gemm for the product that it makes of it."""


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
    sources: Sequence[Path],
    targets: Sequence[Path],
    *,
    reduce_range: bool,
    spec: Quantize,
    texts: Sequence[Feeds] = (),
    floor: Floor | None = None,
) -> tuple[str, ...]:
    """Writes the int8 version of a model.

    Args:
        sources: its fp32 graphs, in the order in which an input goes through them.
        targets: files to write, one for each.
        reduce_range: whether weights get 7 bits.
        spec: dynamic or static, and how many blocks stay in fp32.
        texts: inputs for calibration, and to find the blocks that quantization harms most; one feed each.
        floor: for `keep_fp32: auto`.

    Returns:
        Names of the blocks that stayed in fp32, the most sensitive one first.

    Raises:
        CheckpointError: a block that is named is none of the model's, or there are fewer than are to stay in fp32.
    """
    if spec.keep_fp32 == "auto":
        assert floor is not None, "auto needs a floor. This is a bug."
        kept: Sequence[str] = _fewest(sources, spec, texts, reduce_range, floor)
    else:
        kept = _kept(sources, spec, texts, reduce_range)
    found = blocks(sources) if kept else {}
    excluded = [node for name in kept for node in found[name]]
    with step("quantizing"):
        _quantize(sources, targets, spec, texts, reduce_range, excluded=excluded)
    return tuple(kept)


def _fewest(
    sources: Sequence[Path], spec: Quantize, texts: Sequence[Feeds], reduce_range: bool, floor: Floor
) -> Sequence[str]:
    """As few blocks as it takes, the most harmed first; all of them where no fewer do. Of a model with early exits the
    answers at each of them must be good enough."""
    known = blocks(sources)
    with step("fp32 answers"):
        expected = answers(sources, texts)
    ranked: list[str] = []
    with _scratch(sources) as targets:
        for kept in tqdm(range(len(known)), desc="blocks in fp32", unit="block", leave=False, disable=None):
            if kept == 1:
                ranked = _by_harm(sources, spec, texts, reduce_range)
            excluded = [node for name in ranked[:kept] for node in known[name]]
            _quantize(sources, targets, spec, texts, reduce_range, excluded=excluded)
            ours = answers(targets, texts)
            if min(map(floor.agreement, _rows(ours), _rows(expected))) >= floor.least:
                return ranked[:kept]
    return ranked


def _rows(said: Sequence[Sequence[NDArray[np.float32]]]) -> list[Outputs]:
    """Of each graph the answers without the axis of texts: there is one in each."""
    return [[answer[0] for answer in of_graph] for of_graph in said]


def _kept(sources: Sequence[Path], spec: Quantize, texts: Sequence[Feeds], reduce_range: bool) -> Sequence[str]:
    assert spec.keep_fp32 != "auto", "auto takes a search. This is a bug."
    if spec.keep_fp32 in (0, ()):
        return ()
    known = blocks(sources)
    if isinstance(spec.keep_fp32, int):
        if spec.keep_fp32 > len(known):
            raise CheckpointError(
                f"quantize.keep_fp32: {spec.keep_fp32} blocks cannot stay in fp32, the model has {len(known)}: "
                f"{', '.join(known)}"
            )
        return _by_harm(sources, spec, texts, reduce_range)[: spec.keep_fp32]
    for name in spec.keep_fp32:
        if name not in known:
            raise CheckpointError(f"quantize.keep_fp32: the model has no block {name!r}; it has {', '.join(known)}")
    return spec.keep_fp32


def _by_harm(sources: Sequence[Path], spec: Quantize, texts: Sequence[Feeds], reduce_range: bool) -> list[str]:
    """All blocks, the one that quantization harms most first."""
    harm = sensitivity(sources, spec, texts, reduce_range=reduce_range)
    return sorted(harm, key=lambda name: -harm[name])


def sensitivity(
    sources: Sequence[Path], spec: Quantize, texts: Sequence[Feeds], *, reduce_range: bool
) -> dict[str, float]:
    """How far answers move when one block alone is quantized: the mean absolute difference, for each block.

    Of a model with early exits it is the mean over all of them: nobody knows yet where texts will leave.
    """
    with step("fp32 answers"):
        expected = answers(sources, texts)
    harm = {}
    with _scratch(sources) as targets:
        for name, nodes in tqdm(blocks(sources).items(), desc="sensitivity", unit="block", leave=False, disable=None):
            _quantize(sources, targets, spec, texts, reduce_range, only=nodes)
            harm[name] = _mean_difference(answers(targets, texts), expected)
    return harm


def _mean_difference(
    ours: Sequence[Sequence[NDArray[np.float32]]], theirs: Sequence[Sequence[NDArray[np.float32]]]
) -> float:
    pairs = (pair for graphs in zip(ours, theirs, strict=True) for pair in zip(*graphs, strict=True))
    return float(np.mean([float(np.abs(mine - other).mean()) for mine, other in pairs]))


@contextmanager
def _scratch(sources: Sequence[Path]) -> Iterator[list[Path]]:
    """Files for quantized versions that are only looked at."""
    with tempfile.TemporaryDirectory(prefix="millis-") as folder:
        yield [Path(folder) / source.name for source in sources]


def _quantize(
    sources: Sequence[Path],
    targets: Sequence[Path],
    spec: Quantize,
    texts: Sequence[Feeds],
    reduce_range: bool,
    *,
    only: Sequence[Node] | None = None,
    excluded: Sequence[Node] = (),
) -> None:
    """Quantizes graph after graph. What a later one is calibrated with is what the ones before it, quantized already,
    make of all the texts: thresholds, by which some will leave, are found later, of the quantized graphs."""
    given = texts
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        _quantize_graph(
            source,
            target,
            spec,
            given,
            reduce_range,
            only=None if only is None else [node.name for node in only if node.graph == number],
            excluded=[node.name for node in excluded if node.graph == number],
        )
        if spec.method == "static" and number + 1 < len(sources):
            _, given = passed(target, given)


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime has no types
    """Feeds of the calibration texts, one by one."""

    def __init__(self, texts: Sequence[Feeds]) -> None:
        self._left = iter(texts)

    def get_next(self) -> Feeds | None:
        return next(self._left, None)


def _quantize_graph(
    source: Path,
    target: Path,
    spec: Quantize,
    texts: Sequence[Feeds],
    reduce_range: bool,
    *,
    only: list[str] | None,
    excluded: list[str],
) -> None:
    if only == []:  # which would mean all nodes to the quantizers
        shutil.copyfile(source, target)
        return
    only, excluded = only and _as_products(only), _as_products(excluded)
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


def _as_products(nodes: list[str]) -> list[str]:
    """The nodes under all their names: the quantizer splits a Gemm into MatMul and Add before it looks at names."""
    return [*nodes, *(f"{name}{GEMM_PRODUCT}" for name in nodes)]


@contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)  # the quantizers advise a pre-processing that changes nothing here
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
