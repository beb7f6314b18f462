"""Trims a model's vocabulary to what its texts need: rows of the embedding matrix are dropped, the rest keep order.

A multilingual model's embeddings are most of its size, and one language, let alone one task, uses a small part of
them (Abdaoui et al. 2020, "Load What You Need"; Ushio et al. 2023, "Efficient Multilingual Language Model Compression
through Vocabulary Trimming"). Kept are the tokens that the texts hold often enough, special tokens, every single
character, and for BPE whatever the kept ones are merged from: a word whose token is gone is read in smaller pieces, not
as unknown. What that does to quality is measured like everything else.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast

from millis_pipeline.architectures import Encoder
from millis_pipeline.checkpoint import Checkpoint, CheckpointError
from millis_pipeline.examples import Example

KINDS = ("WordPiece", "BPE", "Unigram")
"""Tokenizers whose vocabulary can be made smaller."""

MARKS = ("##", "▁", "Ġ")
"""What marks the place of a piece in its word."""


def trimmed(checkpoint: Checkpoint, texts: Sequence[Example], min_count: int) -> tuple[Checkpoint, str]:
    """The checkpoint with a smaller vocabulary, and the step in words.

    Args:
        checkpoint: to trim; it is not changed.
        texts: tokenized with its tokenizer.
        min_count: how often a token must be in them.

    Raises:
        CheckpointError: its tokenizer is of a kind that cannot be trimmed.
    """
    whole = json.loads(checkpoint.tokenizer.backend_tokenizer.to_str())
    counts = Counter(token for text in texts for token in text.ids)
    kept = kept_tokens(whole, {token for token, count in counts.items() if count >= min_count})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(renumbered(whole, kept))),
        model_max_length=checkpoint.tokenizer.model_max_length,
        model_input_names=checkpoint.tokenizer.model_input_names,
        **checkpoint.tokenizer.special_tokens_map,
    )
    module = copy.deepcopy(checkpoint.module)
    base = Encoder(module).base
    before = base.get_input_embeddings()
    pad = kept.index(base.config.pad_token_id)
    weights = before.weight.detach()[kept]
    base.set_input_embeddings(nn.Embedding.from_pretrained(weights, freeze=True, padding_idx=pad))
    base.config.pad_token_id = pad
    if hasattr(base.embeddings, "padding_idx"):  # RoBERTa counts positions from there
        base.embeddings.padding_idx = pad
    said = f"vocabulary trimmed from {before.num_embeddings} to {len(kept)} tokens"
    return replace(checkpoint, module=module.eval(), tokenizer=tokenizer), said


def check_trimmable(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Checks that the vocabulary of a tokenizer can be made smaller.

    Args:
        tokenizer: of the checkpoint.
        name: of the variant.

    Raises:
        CheckpointError: its model is none of WordPiece, BPE and Unigram.
    """
    kind = type(tokenizer.backend_tokenizer.model).__name__
    if kind not in KINDS:
        raise CheckpointError(f"{name}: {_cannot(kind)}")


def _cannot(kind: str | None) -> str:
    return f"trim: a tokenizer of kind {kind!r} cannot be trimmed; {', '.join(KINDS[:-1])} and {KINDS[-1]} can"


def kept_tokens(whole: dict[str, Any], used: Iterable[int]) -> list[int]:
    """Ids to keep, in rising order.

    Args:
        whole: a tokenizer.json.
        used: ids that the texts hold.

    Raises:
        CheckpointError: the tokenizer's model is none of WordPiece, BPE and Unigram.
    """
    model = whole["model"]
    kind = model.get("type")
    if kind not in KINDS:
        raise CheckpointError(_cannot(kind))
    names = _names(model)
    kept = {*used, *(added["id"] for added in whole["added_tokens"])}
    kept |= {number for number, name in names.items() if len(_bare(name)) <= 1}
    if kind == "Unigram":
        kept.add(model["unk_id"])
    elif (unknown := model.get("unk_token")) is not None:
        kept.add(model["vocab"][unknown])
    if kind == "BPE":
        kept = _with_parts(model, kept, names)
    return sorted(kept & (names.keys() | {added["id"] for added in whole["added_tokens"]}))


def renumbered(whole: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """A tokenizer.json that knows only the kept ids, numbered from 0 in their order."""
    number = {old: new for new, old in enumerate(kept)}
    result = copy.deepcopy(whole)
    model = result["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [model["vocab"][old] for old in kept if old < len(model["vocab"])]
        model["unk_id"] = number[model["unk_id"]]
    else:
        model["vocab"] = {name: number[old] for name, old in model["vocab"].items() if old in number}
    if model["type"] == "BPE":
        model["merges"] = [pair for pair in model["merges"] if "".join(_pair(pair)) in model["vocab"]]
    for added in result["added_tokens"]:
        added["id"] = number[added["id"]]
    result["post_processor"] = _renumbered_processor(result["post_processor"], number)
    return result


def _names(model: dict[str, Any]) -> dict[int, str]:
    if model["type"] == "Unigram":
        return {number: piece for number, (piece, _) in enumerate(model["vocab"])}
    return {number: name for name, number in model["vocab"].items()}


def _bare(name: str) -> str:
    for mark in MARKS:
        name = name.removeprefix(mark)
    return name


def _pair(pair: str | Sequence[str]) -> Sequence[str]:
    """Older files write a merge as one text."""
    return pair.split(" ") if isinstance(pair, str) else pair


def _with_parts(model: dict[str, Any], kept: set[int], names: dict[int, str]) -> set[int]:
    """The kept tokens of a BPE model, and all that they are merged from."""
    parts: dict[str, Sequence[str]] = {}
    for pair in model["merges"]:
        left, right = _pair(pair)
        parts.setdefault(left + right, (left, right))
    found = set(kept)
    waiting = [names[number] for number in kept if number in names]
    while waiting:
        for part in parts.get(waiting.pop(), ()):
            number = model["vocab"][part]
            if number not in found:
                found.add(number)
                waiting.append(part)
    return found


def _renumbered_processor(processor: dict[str, Any] | None, number: dict[int, int]) -> dict[str, Any] | None:
    if processor is None:
        return None
    kind = processor["type"]
    if kind == "TemplateProcessing":
        for token in processor["special_tokens"].values():
            token["ids"] = [number[old] for old in token["ids"]]
    elif kind in ("BertProcessing", "RobertaProcessing"):
        for name in ("sep", "cls"):
            processor[name][1] = number[processor[name][1]]
    elif kind == "Sequence":
        processor["processors"] = [_renumbered_processor(part, number) for part in processor["processors"]]
    return processor
