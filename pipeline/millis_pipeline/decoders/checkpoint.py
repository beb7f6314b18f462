"""Loads a causal language model with all that the gateway and the engine must know of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from millis_pipeline.checkpoint import CheckpointError, checkpoint_license, load_tokenizer, one_line

ORIGINAL_LENGTH_ONLY = ("dynamic", "longrope")
"""Ways to stretch positions that change the model itself with the length, which a converted graph cannot."""


@dataclass(frozen=True)
class Decoder:
    """A loaded causal language model.

    Attributes:
        source: what the user named.
        model: in fp32.
        tokenizer: its fast tokenizer.
        chat_template: Jinja; empty when there is none.
        special_tokens: texts that the template may name, for example `bos_token`.
        eos_ids: tokens that end a text.
        context: most tokens of prompt and text together.
        notes: what the report must say about it.
        license: as its model card says, or empty.
    """

    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    chat_template: str
    special_tokens: dict[str, str]
    eos_ids: tuple[int, ...]
    context: int
    notes: tuple[str, ...] = ()
    license: str = ""

    @property
    def pad_id(self) -> int:
        """Token that fills shorter rows."""
        return int(self.tokenizer.pad_token_id or 0)

    @property
    def vocabulary(self) -> int:
        """Number of logits for each place; token ids are below it."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return int(self.model.config.get_text_config().num_hidden_layers)


def load_decoder(source: str, folder: Path, graph: bool = True) -> Decoder:
    """Loads a causal language model from a folder.

    Args:
        source: what the user named, for messages and the manifest.
        folder: from `millis_pipeline.sources.resolve`.
        graph: whether it becomes a graph, which holds the context to what `context_of` says.

    Raises:
        CheckpointError: files are missing, it is no causal language model, or it does not say what ends a text.
    """
    tokenizer = load_tokenizer(source, folder)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"checkpoint {source}: {one_line(error)}") from error
    text = config.get_text_config()
    if len(tokenizer) > text.vocab_size:
        raise CheckpointError(
            f"checkpoint {source}: its tokenizer has {len(tokenizer)} tokens, the model knows {text.vocab_size}"
        )
    context, notes = context_of(text) if graph else (int(text.max_position_embeddings), ())
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    return Decoder(
        source=source,
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        chat_template=_template(source, tokenizer),
        special_tokens=special,
        eos_ids=_eos_ids(source, model, tokenizer),
        context=context,
        notes=notes,
        license=checkpoint_license(folder),
    )


def context_of(config: Any) -> tuple[int, tuple[str, ...]]:
    """Most tokens that the engine computes as PyTorch does, and why it is not more.

    Args:
        config: of the text model.
    """
    limit = int(config.max_position_embeddings)
    notes = []
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False or "sliding_attention" not in (
        getattr(config, "layer_types", None) or ["sliding_attention"]
    ):
        window = None
    if window is not None and window < limit:
        notes.append(
            f"The checkpoint reads {limit} tokens, and some of its layers see only the last {window}. The engine's "
            f"layers see all, so the context is held to {window} tokens, where both are the same."
        )
        limit = int(window)
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    if kind in ORIGINAL_LENGTH_ONLY and original is not None and original < limit:
        notes.append(
            f"The checkpoint stretches its positions to {limit} tokens (rope_type {kind}) by becoming another model "
            f"beyond {original}. The converted graph is the one up to {original} tokens, which is its context."
        )
        limit = int(original)
    return limit, tuple(notes)


def _template(source: str, tokenizer: PreTrainedTokenizerFast) -> str:
    """The chat template; of several the one named `default`."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            raise CheckpointError(f"checkpoint {source}: none of its chat templates is named 'default'")
        template = template["default"]
    return str(template or "")


def _eos_ids(source: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Tokens that end a text, as generation_config.json says, else config.json, else the tokenizer."""
    stated = [getattr(model.generation_config, "eos_token_id", None), getattr(model.config, "eos_token_id", None)]
    for found in (*stated, tokenizer.eos_token_id):
        if found is not None:
            return tuple(dict.fromkeys(int(token) for token in (found if isinstance(found, list) else [found])))
    raise CheckpointError(
        f"checkpoint {source}: no eos_token_id in generation_config.json, config.json or the tokenizer, so nothing "
        "would end a text"
    )
