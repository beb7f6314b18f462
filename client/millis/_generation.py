"""`generate` before and after the wire: Python arguments to its request, its messages to values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Unpack

from google.protobuf.duration_pb2 import Duration

from millis import _enums
from millis._calls import call_options, seconds, set_field, set_texts
from millis._channel import GENERATE_TIMEOUT_S
from millis._results import call_info, gateway_bug
from millis.errors import InternalError, InvalidArgumentError
from millis.generation import Completion, Generated, GenerationTiming, Message, Sampling, TextDelta
from millis.options import CallOptions, Seconds
from millis.types import Info
from millis.v1 import inference_pb2 as pb

_MESSAGE_KEYS = {"role", "content"}


def request(
    prompt: object,
    *,
    sampling: Sampling | None = None,
    max_tokens: int | None = None,
    stop: object = None,
    logprobs: bool | None = None,
    n: int | None = None,
    beams: int | None = None,
    json_schema: object = None,
    regex: str | None = None,
    choices: object = None,
    ignore_eos: bool | None = None,
    **options: Unpack[CallOptions],
) -> pb.GenerateTextRequest:
    """The request of `generate`."""
    message = pb.GenerateTextRequest()
    _set_prompt(message, prompt)
    if sampling is not None:
        _set_sampling(message.sampling, sampling)
    if stop is not None:
        set_texts(message.stop, "stop", (stop,) if isinstance(stop, str) else stop)
    _set_guide(message, json_schema, regex, choices)
    plain = {"max_tokens": max_tokens, "logprobs": logprobs, "n": n, "beams": beams, "ignore_eos": ignore_eos}
    for name, value in plain.items():
        if value is not None:
            set_field(message, name, value)
    if options:
        call_options(message, **options)
    return message


def timeout_s(timeout: Seconds | None, client_timeout_s: float | None) -> float | None:
    """The limit of a call in seconds. One that states none has the client's where that is longer than our own."""
    if timeout is not None:
        return seconds("timeout", timeout)
    return None if client_timeout_s is None else max(client_timeout_s, GENERATE_TIMEOUT_S)


def started(message: pb.GenerationStarted) -> Info:
    """The first message of a stream."""
    return call_info(message.info)


def delta(message: pb.GenerationDelta) -> TextDelta:
    """A piece of text."""
    return TextDelta(message.index, message.text, tuple(message.token_ids), tuple(message.logprobs))


def generated(message: pb.GenerationFinished) -> Generated:
    """The last message of a stream."""
    timing = message.timing
    return Generated(
        tuple(
            Completion(each.index, _enums.FINISH_REASONS.name(each.finish_reason), each.tokens)
            for each in message.completions
        ),
        call_info(message.info),
        GenerationTiming(
            _seconds(timing.queue),
            _seconds(timing.time_to_first_token),
            _seconds(timing.time_per_token) if timing.HasField("time_per_token") else None,
            _seconds(timing.total),
        ),
    )


def cut_short() -> InternalError:
    """The error of a stream that ended well without its last message."""
    return gateway_bug("a stream without its last message")


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9


def _set_prompt(message: pb.GenerateTextRequest, prompt: object) -> None:
    if isinstance(prompt, str):
        set_field(message, "prompt", prompt)
        return
    if isinstance(prompt, (bytes, bytearray, Mapping)) or not isinstance(prompt, Iterable):
        kind = type(prompt).__name__
        raise TypeError(f"prompt must be a str, a list of messages or a list of token ids, not {kind}")
    parts = tuple(prompt)
    if not parts:
        raise InvalidArgumentError.for_field("prompt", "an empty list is neither a conversation nor tokens")
    if isinstance(parts[0], (Message, Mapping)):
        for index, part in enumerate(parts):
            _set_message(message.chat.messages.add(), f"prompt[{index}]", part)
    else:
        _set_token_ids(message.token_ids, parts)


def _set_message(message: pb.ChatMessage, name: str, part: object) -> None:
    if isinstance(part, Mapping):
        if set(part) != _MESSAGE_KEYS:
            keys = ", ".join(map(repr, part)) or "nothing"
            raise TypeError(f"{name} must have 'role' and 'content', and nothing else; it has {keys}")
        role, content = part["role"], part["content"]
    elif isinstance(part, Message):
        role, content = part.role, part.content
    else:
        raise TypeError(f"{name} must be a Message or a dict, as prompt[0] is, not {type(part).__name__}")
    message.role = _enums.CHAT_ROLES.number(f"{name}.role", role)
    set_field(message, "content", content, f"{name}.content")


def _set_token_ids(message: pb.TokenIds, ids: tuple[Any, ...]) -> None:
    try:
        message.ids.extend(ids)
    except TypeError:
        index, wrong = next((index, each) for index, each in enumerate(ids) if not hasattr(each, "__index__"))
        raise TypeError(f"prompt[{index}] must be a token id or a Message, not {type(wrong).__name__}") from None
    except ValueError:
        index, wrong = next((index, each) for index, each in enumerate(ids) if not 0 <= each < 2**32)
        raise InvalidArgumentError.for_field(f"prompt[{index}]", f"{wrong} is out of the field's range") from None


def _set_sampling(message: pb.Sampling, sampling: Sampling) -> None:
    if not isinstance(sampling, Sampling):
        raise TypeError(f"sampling must be a Sampling, not {type(sampling).__name__}")
    message.SetInParent()
    for each in fields(sampling):
        value = getattr(sampling, each.name)
        if value is not None:
            set_field(message, each.name, value, f"sampling.{each.name}")


def _set_guide(message: pb.GenerateTextRequest, json_schema: object, regex: str | None, choices: object) -> None:
    if sum(each is not None for each in (json_schema, regex, choices)) > 1:
        raise TypeError("give one of json_schema, regex and choices")
    if json_schema is not None:
        set_field(message, "json_schema", json.dumps(json_schema) if isinstance(json_schema, dict) else json_schema)
    elif regex is not None:
        set_field(message, "regex", regex)
    elif choices is not None:
        message.choices.SetInParent()  # an empty list is for the gateway to refuse, not for us to lose
        set_texts(message.choices.texts, "choices", choices)
