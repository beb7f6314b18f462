"""Stores the weights of a converted graph in 8 or 4 bits; the engine still computes in fp32."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import nncf
import openvino

from millis_pipeline.decoders.convert import GRAPH_FILE, ConvertError
from millis_pipeline.decoders.recipe import DecoderVariant

SMALLEST_GROUP = 16
"""Weights that share a scale: with fewer of them the scales are as large as what they save."""


def compress(source: Path, target: Path, variant: DecoderVariant) -> str:
    """Writes a graph with compressed weights, see `nncf.compress_weights`.

    Args:
        source: folder of the fp32 graph.
        target: folder to write into.
        variant: with weights int8 or int4.

    Returns:
        What was done, in words.

    Raises:
        ConvertError: no group size fits the model, or nncf cannot compress it.
    """
    graph = openvino.Core().read_model(source / GRAPH_FILE)
    modes, kind = nncf.CompressWeightsMode, "a scale" if variant.symmetric else "a scale and a zero point"
    if variant.weights == "int8":
        options = {"mode": modes.INT8_SYM if variant.symmetric else modes.INT8_ASYM}
        said = f"weights in int8 with {kind} for each row"
    else:
        size = fitting_group(variant.group_size, _widths(graph), variant.name)
        mode = modes.INT4_SYM if variant.symmetric else modes.INT4_ASYM
        rest = nncf.BackupMode.INT8_SYM if variant.symmetric else nncf.BackupMode.INT8_ASYM
        options = {"mode": mode, "group_size": size, "ratio": variant.ratio, "backup_mode": rest}
        lowered = "" if size == variant.group_size else f" (lowered from {variant.group_size}, which does not divide)"
        share = "" if variant.ratio == 1 else f", {100 * variant.ratio:g} % of the inner ones"
        said = f"weights in int4{share}, {kind} for each {size}{lowered}; embeddings and last layer in int8"
    try:
        with _quiet():
            compressed = nncf.compress_weights(graph, **options)
    except Exception as error:  # nncf raises errors of many kinds
        raise ConvertError(f"{variant.name}: nncf cannot compress it: {' '.join(str(error).split())[:300]}") from error
    target.mkdir(parents=True, exist_ok=True)
    openvino.save_model(compressed, target / GRAPH_FILE, compress_to_fp16=False)
    return said


def fitting_group(wanted: int, widths: set[int], what: str) -> int:
    """The largest size, halved from the one that is wanted, that divides all rows of weights.

    Args:
        wanted: group size.
        widths: lengths of rows.
        what: variant, for the message.

    Raises:
        ConvertError: none from 16 on does.
    """
    size = wanted
    while size >= SMALLEST_GROUP:
        if all(width % size == 0 for width in widths):
            return size
        size //= 2
    raise ConvertError(
        f"{what}: group_size {wanted}: neither it nor a half, quarter, … of it from {SMALLEST_GROUP} on divides the "
        f"model's rows of {', '.join(map(str, sorted(widths)))} weights"
    )


def _widths(graph: openvino.Model) -> set[int]:
    """Lengths of the rows of all weight matrices that are multiplied with."""
    widths = set()
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        weight = node.input_value(1).get_node()
        shape = weight.get_output_partial_shape(0)
        if weight.get_type_name() in ("Constant", "Convert") and shape.is_static and len(shape) == 2:
            transposed = node.get_attributes()["transpose_b"]
            widths.add(shape[1 if transposed else 0].get_length())
    return widths


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without nncf's tables and bars."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
