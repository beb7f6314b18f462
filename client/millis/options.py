"""What a caller may ask of a call, beside the texts.

Each class lists the keyword arguments of one method of both clients. None is the same as leaving one out.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal, TypeAlias, TypedDict

from millis.generation import Sampling

Seconds: TypeAlias = float | timedelta
Aggregation: TypeAlias = Literal["first", "average", "max", "simple", "none"]
Encoding: TypeAlias = Literal["float32", "float16", "int8", "binary"]
OffsetUnit: TypeAlias = Literal["code_point", "utf8_byte", "utf16_code_unit"]
Truncation: TypeAlias = Literal["end", "start", "error"]
CachePolicy: TypeAlias = Literal["default", "bypass", "refresh"]
Task: TypeAlias = Literal[
    "text-classification", "token-classification", "embedding", "cross-encoder", "text-generation"
]
Words: TypeAlias = list[str] | tuple[str, ...]
"""One text, split into words."""
WordLists: TypeAlias = Sequence[Words]


class CallOptions(TypedDict, total=False):
    """Keyword arguments that every inference method takes."""

    model: str | None
    """Logical model name. Default: the default (or only) model of the task."""
    version: str | None
    """Version that must answer. Default: the one that takes traffic."""
    variant: str | None
    """Variant that must answer, for example `int8`; other wishes are then ignored."""
    latency_target: Seconds | None
    """Time in which you hope for the answer: the best variant that fits is used. A wish, not a limit."""
    min_quality: float | None
    """Lowest measured quality of the variant, 0 to 1. Default: no floor."""
    truncation: Truncation | None
    """What happens to a text that is too long. Default: `end`, drop its end."""
    cache: CachePolicy | None
    """Whether the answer may come from the gateway's cache: `default` reads and writes it, `bypass` does neither,
    `refresh` computes anew and writes. Default: `default`. `info.cache` says where an answer came from."""
    include_timing: bool | None
    """Whether `info.timing` is filled. Default: False."""
    offset_unit: OffsetUnit | None
    """What spans count. Default: `code_point`, Python's own index."""
    client_request_id: str | None
    """Your own id of the request, at most 128 characters; comes back in `info` and in the gateway's log."""
    timeout: Seconds | None
    """Limit of the whole call, retries included. Default: the client's."""


class ClassifyOptions(CallOptions, total=False):
    """Keyword arguments of `classify`."""

    top_k: int | None
    """Most labels for each text, best first; 0 for all. Default: 1 for a single-label model, else all."""
    min_score: float | None
    """Lowest score of a label, 0 to 1. Default: 0 for a single-label model, else the model's threshold."""


class TagOptions(CallOptions, total=False):
    """Keyword arguments of `tag`."""

    aggregation: Aggregation | None
    """How token labels become entities, in the words of Hugging Face transformers. Default: `first`."""
    min_score: float | None
    """Lowest score of an entity, 0 to 1. Default: 0."""
    include_tokens: bool | None
    """Whether every token is listed with its label too. Default: False."""
    window_overlap: int | None
    """Tokens shared by neighbouring windows of a long text. Default: a quarter of the window."""


class EmbedOptions(CallOptions, total=False):
    """Keyword arguments of `embed`."""

    normalize: bool | None
    """Whether vectors are scaled to length 1 (after `dimensions`). Default: what the checkpoint does."""
    dimensions: int | None
    """Number of leading dimensions to keep. Default: all."""
    encoding: Encoding | None
    """How vectors travel: `int8` is a quarter, `binary` a 32nd of `float32`, the default."""


class RankOptions(CallOptions, total=False):
    """Keyword arguments of `rank`. Truncation shortens the document, not the query."""

    top_k: int | None
    """Most results, best first. Default: all documents."""


class TokenizeOptions(CallOptions, total=False):
    """Keyword arguments of `tokenize`. Without `model`: the only model of the gateway."""

    add_special_tokens: bool | None
    """Whether special tokens such as `[CLS]` are added. Default: True."""


class GenerateOptions(CallOptions, total=False):
    """Keyword arguments of `generate`.

    Of those that every method takes, `truncation`, `cache` and `offset_unit` mean nothing here: a prompt that is too
    long is always refused, and nothing is cached but the work on common beginnings of prompts, which changes no
    answer. Default of `timeout`: 120 s, or the client's where that is longer.
    """

    sampling: Sampling | None
    """How tokens are chosen. Default: greedy, always the most likely one."""
    max_tokens: int | None
    """Most tokens to generate for each answer, at least 1. Default: the model's own, or what is left of its context."""
    stop: str | Sequence[str] | None
    """Text, or up to 16 texts, at which an answer ends; it is never part of the answer. Default: none."""
    logprobs: bool | None
    """Whether every token comes with the logarithm of its probability. Default: False."""
    n: int | None
    """Number of answers to draw, up to 16. Above 1 each comes whole, in one delta, when all are ready. Default: 1."""
    beams: int | None
    """Number of beams of a beam search, up to 16; not together with a temperature. Default: no beam search."""
    json_schema: str | dict[str, Any] | None
    """A JSON Schema, as JSON or as a dict, that the answer obeys. At most one of this, `regex` and `choices`."""
    regex: str | None
    """A regular expression that the whole answer matches."""
    choices: Sequence[str] | None
    """Texts of which the answer is one."""
    ignore_eos: bool | None
    """Whether exactly `max_tokens` are generated, past the model's own end (for measurements); not together with
    `json_schema`, `regex` or `choices`. Default: False."""
