"""Fewer layers, and what they learn from the whole model."""

from __future__ import annotations

import pytest
import torch

from millis_pipeline.checkpoint import CheckpointError
from millis_pipeline.decoders.recipe import DecoderVariant, DistillDecoder
from millis_pipeline.decoders.samples import Sample
from millis_pipeline.decoders.shrink import imitation_loss, kept_layers, with_layers
from tests.pipeline.decoders.tiny_decoders import decoder

IDS = torch.tensor([[1, 9, 31, 44, 5]])
BATCH = [Sample([1, 9, 31, 44], [False, False, True, True]), Sample([1, 7, 8], [False, True, True])]


def test_layers_are_spread_evenly_or_listed() -> None:
    def kept(layers: int | tuple[int, ...]) -> list[int]:
        return kept_layers(DecoderVariant(name="x", keep_layers=layers), 6)

    assert [kept(3), kept(1), kept((2, 6))] == [[0, 2, 5], [0], [1, 5]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_model_with_fewer_layers_computes_with_those_that_are_left(family: str) -> None:
    size = {"n_layer": 3} if family == "gpt2" else {"num_hidden_layers": 3}
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    whole = decoder(family, **size, **({"layer_types": kinds} if family == "gemma3" else {}))
    smaller = with_layers(whole, [0, 2])
    assert smaller.config.num_hidden_layers == 2
    stack = whole.transformer.h if family == "gpt2" else whole.model.layers
    before = whole.state_dict()
    del stack[1]
    whole.config.num_hidden_layers = 2
    if family == "gemma3":
        whole.config.layer_types = ["full_attention", "full_attention"]
    with torch.inference_mode():
        expected = whole(input_ids=IDS, use_cache=False).logits
        torch.testing.assert_close(smaller(input_ids=IDS, use_cache=False).logits, expected)
        # Its cache counts the layers anew.
        torch.testing.assert_close(smaller(input_ids=IDS, use_cache=True).logits, expected)
    assert len(smaller.state_dict()) < len(before)


def test_a_model_whose_layers_are_not_one_list_is_refused() -> None:
    whole = decoder()
    whole.config.num_hidden_layers = 7
    with pytest.raises(CheckpointError, match=r"^llama: keep_layers: its layers are not one list of 7$"):
        with_layers(whole, [0])


def test_the_teacher_itself_has_nothing_to_learn_and_others_have() -> None:
    teacher = decoder()
    spec = DistillDecoder(hidden=1.0, temperature=2.0)
    with torch.inference_mode():
        assert float(imitation_loss(teacher, teacher, BATCH, 0, 0.1, spec)) == pytest.approx(0, abs=1e-5)
        student = with_layers(teacher, [0])
        both = float(imitation_loss(teacher, student, BATCH, 0, 0.1, spec))
        logits = float(imitation_loss(teacher, student, BATCH, 0, 0.1, DistillDecoder(temperature=2.0)))
    assert both > logits > 0.01
