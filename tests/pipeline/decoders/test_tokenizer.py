"""Tokenizers of new models, and those that the engine needs for guided output."""

from __future__ import annotations

from pathlib import Path

import openvino
import openvino_tokenizers  # noqa: F401  # registers the operations of tokenizers
import pytest

from millis_pipeline.decoders import tokenizer as subject
from tests.pipeline.decoders.tiny_decoders import VOCABULARY, tokenizer


@pytest.mark.parametrize("text", ["Where is my order?", "Zürich 你好 🙂\n\n x", ""])
def test_any_text_is_read_and_written_back(text: str) -> None:
    ids = tokenizer()(text)["input_ids"]
    assert len(tokenizer()) <= VOCABULARY
    assert ids[0] == tokenizer().bos_token_id == 1
    assert tokenizer().decode(ids, skip_special_tokens=True) == text


def test_the_chat_template_marks_every_role() -> None:
    messages = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user")]
    text = tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|><|system|>s<|user|>u<|assistant|>a<|eos|><|user|>u<|assistant|>"
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert [number for number in ids if number < 6] == [1, 3, 4, 5, 2, 4, 5]


def test_the_engine_reads_as_the_gateway_does(tmp_path: Path) -> None:
    assert subject.write_engine_tokenizer(tokenizer(), tmp_path) == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(subject.ENGINE_FILES)
    core = openvino.Core()
    encode, decode = (core.compile_model(tmp_path / name, "CPU") for name in subject.ENGINE_FILES[::2])
    text = "Where is my order?<|eos|>"
    ids = encode([text])["input_ids"]
    assert ids[0].tolist() == tokenizer()(text)["input_ids"]
    assert list(decode([ids])["string_output"]) == ["Where is my order?"]


def test_a_tokenizer_that_cannot_be_converted_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no such\n  normalizer")

    monkeypatch.setattr(subject, "convert_tokenizer", refuse)
    assert subject.write_engine_tokenizer(tokenizer(), tmp_path) == "no such normalizer"
    assert list(tmp_path.iterdir()) == []
