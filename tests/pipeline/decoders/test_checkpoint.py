"""What is read from a checkpoint beside its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from millis_pipeline.checkpoint import CheckpointError
from millis_pipeline.decoders.checkpoint import context_of, load_decoder
from millis_pipeline.decoders.tokenizer import CHAT_TEMPLATE
from tests.pipeline.decoders.tiny_decoders import CONTEXT, SIZES, checkpoint, decoder


def changed(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_checkpoint_says_what_gateway_and_engine_must_know(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    read = load_decoder("model", folder)
    assert (read.vocabulary, read.depth, read.context, read.notes, read.pad_id) == (320, 2, CONTEXT, (), 0)
    assert (read.eos_ids, read.license, read.chat_template) == ((2,), "mit", CHAT_TEMPLATE)
    assert read.special_tokens == {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    changed(folder, "generation_config.json", eos_token_id=[5, 2, 5])
    assert load_decoder("model", folder).eos_ids == (5, 2)


@pytest.mark.parametrize(
    ("config", "context", "notes"),
    [
        (transformers.MistralConfig(**SIZES, sliding_window=None), CONTEXT, 0),
        (transformers.MistralConfig(**SIZES, sliding_window=32), 32, 1),
        (transformers.MistralConfig(**SIZES, sliding_window=4096), CONTEXT, 0),
        (transformers.Qwen2Config(**SIZES, use_sliding_window=False, sliding_window=32), CONTEXT, 0),
        (transformers.Gemma3TextConfig(**SIZES, sliding_window=48), 48, 1),
        (
            transformers.LlamaConfig(
                **SIZES,
                rope_parameters={
                    "rope_type": "dynamic",
                    "rope_theta": 1e4,
                    "factor": 2.0,
                    "original_max_position_embeddings": 64,
                },
            ),
            64,
            1,
        ),
        (transformers.GPT2Config(n_positions=77), 77, 0),
    ],
)
def test_the_context_is_no_longer_than_the_engine_is_exact(config: Any, context: int, notes: int) -> None:
    found, said = context_of(config)
    assert (found, len(said)) == (context, notes)
    assert all(str(context) in note for note in said)


def test_a_checkpoint_that_cannot_serve_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", decoder(vocab_size=100))
    with pytest.raises(CheckpointError, match=r"^checkpoint x: its tokenizer has \d+ tokens, the model knows 100$"):
        load_decoder("x", folder)
    folder = checkpoint(tmp_path / "endless")
    for name in ("config.json", "generation_config.json"):
        changed(folder, name, eos_token_id=None)
    changed(folder, "tokenizer_config.json", eos_token=None)
    with pytest.raises(CheckpointError, match=r"^checkpoint x: no eos_token_id in generation_config\.json"):
        load_decoder("x", folder)
