"""A converted graph, in the engine that serves it, gives token for token what PyTorch gives."""

from __future__ import annotations

from pathlib import Path

import openvino
import pytest
import torch
import transformers

from millis_pipeline.decoders.convert import ConvertError, check_attention, convert
from millis_pipeline.decoders.engine import EXACT, Engine
from millis_pipeline.decoders.measure import graph_logits
from millis_pipeline.decoders.reference import torch_greedy
from tests.pipeline.decoders.tiny_decoders import FAMILIES, SIZES, decoder

PROMPTS = [[1, 9, 31], [1, *range(20, 60)], [7]]
TOKENS = 24


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_gives_the_tokens_of_pytorch(family: str, tmp_path: Path) -> None:
    model = decoder(family)
    convert(model, tmp_path)
    expected = [torch_greedy(model, prompt, TOKENS, ()).tokens for prompt in PROMPTS]
    assert len({token for text in expected for token in text}) > 10
    assert Engine(tmp_path, EXACT, 512).greedy(PROMPTS, TOKENS) == expected


def test_plain_openvino_gives_the_logits_of_pytorch_and_forgets_between_windows(tmp_path: Path) -> None:
    model = decoder()
    convert(model, tmp_path)
    run = graph_logits(tmp_path)
    for window in ([[1, 9, 31, 44]], [[1, 5]], [[1, 9, 31, 44]]):
        ids = torch.tensor(window)
        with torch.inference_mode():
            expected = model(input_ids=ids).logits[0]
        torch.testing.assert_close(torch.from_numpy(run(ids.numpy())), expected, atol=1e-4, rtol=1e-4)


def test_the_graph_has_the_form_that_optimum_intel_gives_it(tmp_path: Path) -> None:
    convert(decoder(), tmp_path)
    graph = openvino.Core().read_model(tmp_path / "openvino_model.xml")
    names = sorted(tensor.any_name for tensor in graph.inputs)
    assert names == ["attention_mask", "beam_idx", "input_ids", "position_ids"]
    assert [tensor.any_name for tensor in graph.outputs] == ["logits"]
    assert len(graph.get_sinks()) == 4  # keys and values of 2 layers


def test_a_model_in_half_precision_is_converted_in_single(tmp_path: Path) -> None:
    convert(decoder().to(torch.bfloat16), tmp_path)
    graph = openvino.Core().read_model(tmp_path / "openvino_model.xml")
    kinds = {node.get_element_type() for node in graph.get_ops() if node.get_type_name() == "Constant"}
    assert not kinds & {openvino.Type.bf16, openvino.Type.f16}


def test_soft_capped_attention_is_refused_before_any_work() -> None:
    model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SIZES, head_dim=16))
    with pytest.raises(ConvertError, match=r"^gemma2: attn_logit_softcapping is 50; the engines' attention has no"):
        check_attention(model, graph=False)


def test_a_model_without_keys_and_values_is_refused(tmp_path: Path) -> None:
    config = transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    with pytest.raises(ConvertError, match=r"^mamba: "):
        convert(transformers.MambaForCausalLM(config).eval(), tmp_path)
