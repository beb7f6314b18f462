"""Weights in 8 and 4 bits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch

from millis_pipeline.decoders.compress import compress, fitting_group
from millis_pipeline.decoders.convert import ConvertError, convert
from millis_pipeline.decoders.measure import graph_logits
from millis_pipeline.decoders.recipe import DecoderVariant
from tests.pipeline.decoders.tiny_decoders import decoder

IDS = np.array([[1, 9, 31, 44, 5, 80]], np.int64)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fp32")
    convert(decoder(), folder)
    return folder


def bits(folder: Path) -> Counter[str]:
    """How many weight matrices are stored in which way."""
    graph = openvino.Core().read_model(folder / "openvino_model.xml")
    constants = [node for node in graph.get_ops() if node.get_type_name() == "Constant"]
    large = [node for node in constants if np.prod(list(node.get_output_shape(0))) >= 2000]
    return Counter(node.get_element_type().get_type_name() for node in large)


@pytest.mark.parametrize(
    ("variant", "kinds", "said", "error"),
    [
        (
            DecoderVariant(name="int8", weights="int8"),
            {"i8": 16},
            "weights in int8 with a scale for each row",
            0.05,
        ),
        (
            DecoderVariant(name="int8", weights="int8", symmetric=False),
            {"u8": 16},
            "weights in int8 with a scale and a zero point for each row",
            0.05,
        ),
        (
            DecoderVariant(name="int4", weights="int4", group_size=32),
            {"i4": 14, "i8": 2},
            "weights in int4, a scale for each 32; embeddings and last layer in int8",
            0.5,
        ),
        (
            DecoderVariant(name="int4", weights="int4", symmetric=False, ratio=0.5),
            {"u4": 6, "u8": 10},
            (
                "weights in int4, 50 % of the inner ones, a scale and a zero point for each 32 (lowered from 128, "
                "which does not divide); embeddings and last layer in int8"
            ),
            0.5,
        ),
    ],
    ids=["int8", "int8 asymmetric", "int4", "int4 lowered"],
)
def test_weights_are_stored_as_asked(
    variant: DecoderVariant, kinds: dict[str, int], said: str, error: float, converted: Path, tmp_path: Path
) -> None:
    assert compress(converted, tmp_path, variant) == said
    assert bits(tmp_path) == kinds
    with torch.inference_mode():
        expected = decoder()(input_ids=torch.from_numpy(IDS)).logits[0].numpy()
    ours = graph_logits(tmp_path)(IDS)
    assert np.abs(ours - expected).max() < error * np.abs(expected).max()


def test_a_group_size_that_fits_nothing_is_refused() -> None:
    assert fitting_group(128, {896, 4864}, "int4") == 128
    assert fitting_group(128, {576, 1536}, "int4") == 64
    with pytest.raises(ConvertError) as caught:
        fitting_group(64, {40, 96}, "small")
    assert str(caught.value) == (
        "small: group_size 64: neither it nor a half, quarter, … of it from 16 on divides the model's rows of 40, 96 "
        "weights"
    )
