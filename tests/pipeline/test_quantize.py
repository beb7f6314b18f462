"""int8 graphs of a tiny classifier: that they answer like fp32, and which blocks they spare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from millis_pipeline.agreement import Outputs
from millis_pipeline.blocks import blocks
from millis_pipeline.checkpoint import CheckpointError, load
from millis_pipeline.export import export_onnx
from millis_pipeline.quantize import Floor, quantize_int8, sensitivity
from millis_pipeline.run import Feeds, graph_runner
from millis_pipeline.variants import Quantize
from millis_server.processor import saturates
from tests import tiny

BLOCKS = ["layer 1 attention", "layer 1 feed-forward", "layer 2 attention", "layer 2 feed-forward", "head"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    export_onnx(load("tiny", tiny.text_classifier(folder / "checkpoint")), folder / "fp32.onnx")
    return folder / "fp32.onnx"


@pytest.fixture(scope="module")
def texts() -> list[Feeds]:
    generator = np.random.default_rng(0)
    rows = [generator.integers(5, 100, (1, 4 + number % 12)) for number in range(32)]
    return [{"input_ids": row, "attention_mask": np.ones_like(row)} for row in rows]


def worst(graph: Path, other: Path, texts: list[Feeds]) -> float:
    """Largest difference of logits, in standard deviations of the exact ones."""
    exact, ours = ([run(feeds) for feeds in texts] for run in (graph_runner(graph), graph_runner(other)))
    return float(np.abs(np.stack(exact) - np.stack(ours)).max() / np.std(np.stack(exact)))


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_an_int8_graph_is_smaller_and_answers_like_fp32(tmp_path, graph, texts, method) -> None:
    path = tmp_path / "int8.onnx"
    spec = Quantize(method=method)
    assert quantize_int8([graph], [path], reduce_range=saturates(), spec=spec, texts=texts) == ()
    assert path.stat().st_size < graph.stat().st_size
    assert 0 < worst(graph, path, texts) < 0.5
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert ("QuantizeLinear" in kinds, "DynamicQuantizeLinear" in kinds) == (method == "static", method == "dynamic")


def test_blocks_are_the_parts_of_each_layer_and_the_head(graph) -> None:
    found = blocks([graph])
    assert {name: len(nodes) for name, nodes in found.items()} == dict(zip(BLOCKS, (4, 2, 4, 2, 2), strict=True))


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_the_most_sensitive_blocks_stay_in_fp32(tmp_path, graph, texts, method) -> None:
    spec = Quantize(method=method, keep_fp32=2)
    harm = sensitivity([graph], spec, texts, reduce_range=True)
    assert sorted(harm) == sorted(BLOCKS)
    path = tmp_path / "int8.onnx"
    kept = quantize_int8([graph], [path], reduce_range=True, spec=spec, texts=texts)
    assert list(kept) == sorted(harm, key=lambda name: -harm[name])[:2]
    products = {node.name for node in onnx.load(path).graph.node}
    spared = {node.name for name in kept for node in blocks([graph])[name]}
    assert spared <= products


def test_blocks_that_are_named_stay_in_fp32(tmp_path, graph) -> None:
    spec = Quantize(method="dynamic", keep_fp32=("layer 2 attention", "head"))
    path = tmp_path / "int8.onnx"
    assert quantize_int8([graph], [path], reduce_range=True, spec=spec) == ("layer 2 attention", "head")
    # What is left of the matrix products with weights is what was kept; the quantizer makes a MatMul of a Gemm.
    left = {node.name.removesuffix("_MatMul") for nodes in blocks([path]).values() for node in nodes}
    found = blocks([graph])
    assert left == {node.name for node in (*found["layer 2 attention"], *found["head"])}


def test_more_blocks_than_the_graph_has_cannot_stay_in_fp32(tmp_path, graph, texts) -> None:
    with pytest.raises(CheckpointError) as caught:
        quantize_int8(
            [graph],
            [tmp_path / "int8.onnx"],
            reduce_range=True,
            spec=Quantize(method="dynamic", keep_fp32=6),
            texts=texts,
        )
    assert str(caught.value) == (
        f"quantize.keep_fp32: 6 blocks cannot stay in fp32, the model has 5: {', '.join(BLOCKS)}"
    )


def test_a_block_that_there_is_not_is_named_in_the_error(tmp_path, graph) -> None:
    spec = Quantize(method="dynamic", keep_fp32=("layer 3 attention",))
    with pytest.raises(CheckpointError) as caught:
        quantize_int8([graph], [tmp_path / "int8.onnx"], reduce_range=True, spec=spec)
    assert str(caught.value) == (
        f"quantize.keep_fp32: the model has no block 'layer 3 attention'; it has {', '.join(BLOCKS)}"
    )


def nearness(ours: Outputs, theirs: Outputs) -> float:
    """1 for the same outputs, less the farther they are apart."""
    return 1 - max(float(np.abs(one - other).max()) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("least", "expected"), [(-9.0, 0), (2.0, len(BLOCKS))])
def test_as_many_blocks_as_needed_stay_in_fp32(tmp_path, graph, texts, least, expected) -> None:
    kept = quantize_int8(
        [graph],
        [tmp_path / "int8.onnx"],
        reduce_range=True,
        spec=Quantize(method="dynamic", keep_fp32="auto"),
        texts=texts,
        floor=Floor(nearness, least),
    )
    assert len(kept) == expected


def test_no_more_blocks_than_needed_stay_in_fp32(tmp_path, graph, texts) -> None:
    exact = graph_runner(graph)
    expected = [exact(feeds)[0] for feeds in texts]

    def reached(kept: int) -> float:
        spec = Quantize(method="dynamic", keep_fp32=kept)
        quantize_int8([graph], [tmp_path / "some.onnx"], reduce_range=True, spec=spec, texts=texts)
        ours = graph_runner(tmp_path / "some.onnx")
        return nearness([ours(feeds)[0] for feeds in texts], expected)

    floor = Floor(nearness, reached(2))
    fewest = next(kept for kept in range(3) if reached(kept) >= floor.least)
    spec = Quantize(method="dynamic", keep_fp32="auto")
    kept = quantize_int8([graph], [tmp_path / "int8.onnx"], reduce_range=True, spec=spec, texts=texts, floor=floor)
    harm = sensitivity([graph], spec, texts, reduce_range=True)
    assert list(kept) == sorted(harm, key=lambda name: -harm[name])[:fewest]
