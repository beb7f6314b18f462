"""What `generate` takes and yields: frozen values that know nothing of protobuf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from millis.types import Info

Role: TypeAlias = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    """Who says it: `system` (whoever runs the service), `user` (who asks) or `assistant` (the model)."""
    content: str
    """What is said."""


Prompt: TypeAlias = str | Sequence[Message | Mapping[str, str]] | Sequence[int]
"""What a model goes on from.

A str is plain text. A list of `Message`, or of dicts with `role` and `content`, is a conversation. A list of int is
token ids, to which nothing is added.
"""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Default: greedy, always the most likely one."""

    temperature: float = 0.0
    """Divides the logits before they become probabilities, 0.01 to 10: below 1 bolder guesses are rarer, above 1 more
    common. 0 is greedy, and `top_p`, `top_k`, `min_p` and `seed` then do nothing. Variants with a draft model are
    greedy only."""
    top_p: float | None = None
    """Draw from the smallest set of most likely tokens whose probabilities reach this sum, up to 1. Default: 1."""
    top_k: int = 0
    """Draw from so many most likely tokens; 0 for all."""
    min_p: float = 0.0
    """Draw only from tokens at least this share as likely as the most likely one, less than 1. Not every engine can."""
    seed: int | None = None
    """Start of the random numbers: the same request then draws the same tokens, on the same version, variant and
    machine; with int8 and int4 weights it may not while other texts are made beside it. Default: another one for every
    request."""
    repetition_penalty: float | None = None
    """Divides the logits of tokens that stand in the prompt or the text already, 0.01 to 10; above 1 repeats less.
    Default: 1."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that the text has already, once, -2 to 2."""
    frequency_penalty: float = 0.0
    """Subtracted from the logits of tokens that the text has already, for each time, -2 to 2."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of text that a stream yields."""

    index: int
    """Which of the `n` answers it belongs to, counted from 0."""
    text: str
    """What came since the last delta: whole characters. May be empty while the tokens do not make a character yet."""
    token_ids: tuple[int, ...] = ()
    """The tokens made since the last delta; their text may come with a later one. Empty when the engine does not
    tell them."""
    logprobs: tuple[float, ...] = ()
    """Natural logarithm of the probability of each token. Filled only with `logprobs=True`."""


@dataclass(frozen=True, slots=True)
class Completion:
    """How one of the answers ended."""

    index: int
    """Which of the `n` answers, counted from 0."""
    finish_reason: str
    """`stop`: the model ended it, or it came to a stop text. `length`: it reached `max_tokens`, or the end of the
    model's context."""
    tokens: int
    """Tokens generated for it, an end-of-text token and those of a stop text included."""


@dataclass(frozen=True, slots=True)
class GenerationTiming:
    """How fast a text came, in seconds on the gateway's clock; the network is not in it."""

    queue_s: float
    """Waiting for a place at the model, once the prompt is tokenized."""
    time_to_first_token_s: float
    """From the arrival of the request to its first token."""
    time_per_token_s: float | None
    """Mean time from one token to the next; None for fewer than 2 tokens, and where texts come whole: for `n` above 1
    and for beams."""
    total_s: float
    """From the arrival of the request to the end."""


@dataclass(frozen=True, slots=True)
class Generated:
    """How a generation ended."""

    completions: tuple[Completion, ...]
    """One for each of the `n` answers, in order."""
    info: Info = field(compare=False, repr=False)
    """How it was made; `info.usage.generated_tokens` counts the tokens of all answers."""
    timing: GenerationTiming = field(compare=False, repr=False)
