"""Tiny causal language models of real architectures with random weights, and a tokenizer with a chat template."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from millis_pipeline.decoders.tokenizer import train_tokenizer

VOCABULARY = 320
CONTEXT = 128
SENTENCES = (
    "Where is my order? It should have arrived last week.",
    "You can return an item within 30 days.",
    "Please open My orders and choose Return.",
)
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,  # with the usual ones every token would be as likely as the next
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": CONTEXT,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=None),
    "gemma": lambda: transformers.GemmaConfig(**SIZES, head_dim=16),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SIZES,
        head_dim=16,
        sliding_window=96,
        tie_word_embeddings=False,  # tied, it repeats its last token
    ),
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "phi": lambda: transformers.PhiConfig(**SIZES),
    "phi3": lambda: transformers.Phi3Config(**SIZES, original_max_position_embeddings=CONTEXT),
}


def decoder(family: str = "llama", **changed: Any) -> PreTrainedModel:
    """A model with random weights, always the same."""
    config = FAMILIES[family]()
    for name, value in changed.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with the chat template of new models."""
    return train_tokenizer(SENTENCES, VOCABULARY, CONTEXT)


def checkpoint(folder: Path, model: PreTrainedModel | None = None) -> Path:
    """A checkpoint folder."""
    (model or decoder()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
