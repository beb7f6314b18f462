"""Models and tokenizers of llama2.c, written here in its own format and read back."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from millis_pipeline.checkpoint import CheckpointError
from millis_pipeline.decoders import llama2c
from tests.pipeline.decoders.tiny_decoders import decoder

WORDS = {" ": -9.0, "h": -9.5, "e": -9.6, "l": -9.7, "o": -9.8, "he": -2.0, "ll": -1.0, "llo": -3.0, " he": -4.0}
"""Tokens after those of single bytes, with their scores."""


def llama(shared: bool = True) -> LlamaForCausalLM:
    return decoder(tie_word_embeddings=shared, rms_norm_eps=1e-5, vocab_size=llama2c.FIRST_WORD + len(WORDS))


def write_model(path: Path, model: LlamaForCausalLM, vocabulary_sign: int = 1) -> None:
    """llama2.c's export of version 0, from transformers."""
    config = model.config
    weights = model.state_dict()
    size = config.hidden_size // config.num_attention_heads

    def neighbours(rows: torch.Tensor, heads: int) -> torch.Tensor:
        return rows.reshape(heads, 2, size // 2, -1).transpose(1, 2).reshape(rows.shape)

    layers = [f"model.layers.{layer}." for layer in range(config.num_hidden_layers)]
    parts = [weights["model.embed_tokens.weight"]]
    parts += [weights[layer + "input_layernorm.weight"] for layer in layers]
    parts += [neighbours(weights[layer + "self_attn.q_proj.weight"], 4) for layer in layers]
    parts += [neighbours(weights[layer + "self_attn.k_proj.weight"], 2) for layer in layers]
    for name in ("self_attn.v_proj", "self_attn.o_proj", "post_attention_layernorm"):
        parts += [weights[f"{layer}{name}.weight"] for layer in layers]
    for name in ("gate_proj", "down_proj", "up_proj"):
        parts += [weights[f"{layer}mlp.{name}.weight"] for layer in layers]
    parts += [weights["model.norm.weight"], torch.full((config.max_position_embeddings, size), 7.0)]
    if vocabulary_sign < 0:
        parts.append(weights["lm_head.weight"])
    header = struct.pack(
        "<7i",
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        vocabulary_sign * config.vocab_size,
        config.max_position_embeddings,
    )
    path.write_bytes(header + b"".join(part.numpy().astype("<f4").tobytes() for part in parts))


def write_tokenizer(path: Path) -> None:
    specials = [("<unk>", 0.0), ("\n<s>\n", 0.0), ("\n</s>\n", 0.0)]
    pieces = [*specials, *((f"<0x{byte:02X}>", 0.0) for byte in range(256)), *WORDS.items()]
    content = struct.pack("<i", 7)
    for text, score in pieces:
        content += struct.pack("<fi", score, len(text.encode())) + text.encode()
    path.write_bytes(content)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_model_is_read_as_it_was_written(sign: int, tmp_path: Path) -> None:
    model = llama(shared=sign > 0)
    write_model(tmp_path / "model.bin", model, sign)
    read = llama2c.read_model(tmp_path / "model.bin")
    ids = torch.tensor([[1, 200, 3, 77, 40]])
    with torch.inference_mode():
        torch.testing.assert_close(read(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_the_tokenizer_cuts_as_llama2c_does(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tok.bin")
    tokenizer = llama2c.read_tokenizer(tmp_path / "tok.bin", llama2c.FIRST_WORD + len(WORDS), 64)
    number = {word: llama2c.FIRST_WORD + place for place, word in enumerate(WORDS)}
    # " hello": "ll" has the best score, then "he", then "llo" from "ll" and "o", then " he".
    assert tokenizer("hello")["input_ids"] == [1, number[" he"], number["llo"]]
    # What is no token is its bytes in UTF-8, each 3 places after its value.
    assert tokenizer("é")["input_ids"] == [1, number[" "], 0xC3 + 3, 0xA9 + 3]
    assert tokenizer("")["input_ids"] == [1]
    for text in ("hello", "hello é 中", "o  l"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_a_folder_is_written_that_transformers_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "model.bin", llama())
    write_tokenizer(tmp_path / "tok.bin")
    arguments = [str(tmp_path / name) for name in ("model.bin", "tok.bin", "folder")]
    monkeypatch.setattr("sys.argv", ["llama2c", *arguments])
    assert llama2c._main() == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    assert model.generation_config.eos_token_id == [2, 1]
    assert AutoTokenizer.from_pretrained(tmp_path / "folder").bos_token_id == 1
    assert capsys.readouterr().out == f"wrote {tmp_path / 'folder'}\n"
    monkeypatch.setattr("sys.argv", ["llama2c", str(tmp_path / "none.bin"), *arguments[1:]])
    assert llama2c._main() == 1
    assert capsys.readouterr().err == f"llama2c: {tmp_path / 'none.bin'}: No such file or directory\n"


def test_files_that_are_no_models_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    write_model(path, llama())
    whole = path.read_bytes()
    wrong = {
        whole[:20]: "20 bytes are no model of llama2.c",
        np.zeros(7, np.int32).tobytes(): "its first 28 bytes are no header of llama2.c's first format (v0)",
        whole[:-4]: f"it ends after {len(whole) - 4} bytes, in the middle of the weights",
        whole + bytes(8): "8 bytes follow the weights that its header announces",
    }
    for content, message in wrong.items():
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            llama2c.read_model(path)
        assert str(caught.value) == f"{path}: {message}"
    write_tokenizer(path)
    with pytest.raises(CheckpointError, match=r": it ends after 268 tokens, the model has 512$"):
        llama2c.read_tokenizer(path, 512, 64)
