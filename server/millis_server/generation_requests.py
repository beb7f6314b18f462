"""Checks what a GenerateTextRequest carries and turns it from protobuf into a task."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import numpy as np

from millis.v1 import inference_pb2 as inference
from millis_server.errors import InvalidField
from millis_server.tasks.generation import GuideKind, Sampling, TextGeneration

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_TEXTS = 16
MAX_CHOICES = 1024
MAX_GUIDE_BYTES = 65536
MAX_NESTING = 64
MIN_TEMPERATURE = float(np.float32(0.01))
"""Of what is drawn, as the wire holds it. Below it vLLM warns of infinite logits; OpenVINO GenAI draws at random from
1e-40."""

MAX_TEMPERATURE = 10.0
MAX_TOP_K = 2**31 - 1
MIN_REPETITION_PENALTY = float(np.float32(0.01))
"""As of the temperature, which divides logits too."""

MAX_REPETITION_PENALTY = 10.0

ROLES = {
    inference.CHAT_ROLE_SYSTEM: "system",
    inference.CHAT_ROLE_USER: "user",
    inference.CHAT_ROLE_ASSISTANT: "assistant",
}

CheckText = Callable[[str, str], None]
"""Checks one text of a field; raises InvalidField."""


def read_generation(request: inference.GenerateTextRequest, check: CheckText, max_messages: int) -> TextGeneration:
    """Reads a GenerateTextRequest.

    Args:
        request: any.
        check: of a text.
        max_messages: most messages of a conversation.

    Raises:
        InvalidField: a field is wrong.
    """
    prompt, chat = "", []
    ids: Sequence[int] = ()
    match request.WhichOneof("input"):
        case "prompt":
            check("prompt", request.prompt)
            prompt = request.prompt
        case "chat":
            chat = _messages(request.chat, check, max_messages)
        case "token_ids":
            # Not copied: a message has room for millions of them, and no model is known yet whose limit they pass.
            ids = request.token_ids.ids
            if not ids:
                raise InvalidField("token_ids.ids", "is empty; give at least 1")
        case _:
            raise InvalidField("input", "is missing; fill one of prompt, chat and token_ids")
    if request.HasField("max_tokens") and request.max_tokens < 1:
        raise InvalidField("max_tokens", "is 0, it must be at least 1")
    sampling = _sampling(request.sampling)
    n, beams = _texts(request, sampling)
    return TextGeneration(
        prompt=prompt,
        chat=chat,
        ids=ids,
        sampling=sampling,
        max_tokens=request.max_tokens if request.HasField("max_tokens") else None,
        stop=_stops(request),
        logprobs=request.logprobs,
        n=n,
        beams=beams,
        guide=_guide(request),
        ignore_eos=request.ignore_eos,
    )


def _messages(chat: inference.Chat, check: CheckText, most: int) -> list[dict[str, str]]:
    if not 1 <= len(chat.messages) <= most:
        raise InvalidField("chat.messages", f"has {len(chat.messages)} entries; give 1 to {most}")
    for index, message in enumerate(chat.messages):
        if message.role not in ROLES:
            raise InvalidField(
                f"chat.messages[{index}].role", f"is {message.role}; it must be system, user or assistant"
            )
        check(f"chat.messages[{index}].content", message.content)
    return [{"role": ROLES[message.role], "content": message.content} for message in chat.messages]


def _sampling(given: inference.Sampling) -> Sampling:
    sampling = Sampling(
        temperature=_temperature(given.temperature),
        top_p=_within("top_p", given.top_p, 0, 1) if given.HasField("top_p") else 1.0,
        top_k=given.top_k,
        min_p=_within("min_p", given.min_p, 0, 1),
        seed=given.seed if given.HasField("seed") else None,
        repetition_penalty=(
            _within("repetition_penalty", given.repetition_penalty, MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY)
            if given.HasField("repetition_penalty")
            else 1.0
        ),
        presence_penalty=_within("presence_penalty", given.presence_penalty, -2, 2),
        frequency_penalty=_within("frequency_penalty", given.frequency_penalty, -2, 2),
    )
    if given.top_k > MAX_TOP_K:
        raise InvalidField("sampling.top_k", f"is {given.top_k}, the limit is {MAX_TOP_K}")
    if sampling.top_p == 0:
        raise InvalidField("sampling.top_p", "is 0, it must be more")
    if sampling.min_p == 1:
        raise InvalidField("sampling.min_p", "is 1, it must be less")
    return sampling


def _temperature(value: float) -> float:
    if value != 0 and not MIN_TEMPERATURE <= value <= MAX_TEMPERATURE:
        raise InvalidField(
            "sampling.temperature",
            f"is {value:g}, it must be 0, which is greedy, or {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}",
        )
    return value


def _within(name: str, value: float, low: float, high: float) -> float:
    if not (isfinite(value) and low <= value <= high):
        raise InvalidField(f"sampling.{name}", f"is {value:g}, it must be {low:g} to {high:g}")
    return value


def _texts(request: inference.GenerateTextRequest, sampling: Sampling) -> tuple[int, int]:
    n = request.n or 1
    if n > MAX_TEXTS:
        raise InvalidField("n", f"is {n}, the limit is {MAX_TEXTS}")
    if request.beams > MAX_TEXTS:
        raise InvalidField("beams", f"is {request.beams}, the limit is {MAX_TEXTS}")
    if request.beams:
        if sampling.temperature:
            raise InvalidField("beams", "is set, and so is sampling.temperature; a beam search draws nothing")
        if request.beams < n:
            raise InvalidField("n", f"is {n}, and a search of {request.beams} beams finds no more than these")
        if request.WhichOneof("guide"):
            raise InvalidField("beams", f"is set, and so is {request.WhichOneof('guide')}; use one of them")
    elif n > 1 and not sampling.temperature:
        raise InvalidField("n", f"is {n}, and without sampling.temperature all texts would be the same")
    return n, request.beams


def _stops(request: inference.GenerateTextRequest) -> tuple[str, ...]:
    if len(request.stop) > MAX_STOPS:
        raise InvalidField("stop", f"has {len(request.stop)} entries, the limit is {MAX_STOPS}")
    for index, stop in enumerate(request.stop):
        if not stop:
            raise InvalidField(f"stop[{index}]", "is empty; it would stop everything")
        if len(stop) > MAX_STOP_CHARACTERS:
            raise InvalidField(f"stop[{index}]", f"has {len(stop)} characters, the limit is {MAX_STOP_CHARACTERS}")
    return tuple(request.stop)


def _guide(request: inference.GenerateTextRequest) -> tuple[GuideKind, Any] | None:
    if request.ignore_eos and request.WhichOneof("guide"):
        raise InvalidField(
            "ignore_eos",
            f"is set, and so is {request.WhichOneof('guide')}, which says where the text ends; use one of them",
        )
    match request.WhichOneof("guide"):
        case "json_schema":
            return "json", _schema(request.json_schema)
        case "regex":
            _size("regex", request.regex)
            try:
                re.compile(request.regex)
            except re.error as error:
                raise InvalidField("regex", f"is no regular expression: {error}") from error
            return "regex", request.regex
        case "choices":
            return "choice", _choices(request.choices)
        case _:
            return None


def _schema(text: str) -> Any:
    _size("json_schema", text)
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise InvalidField("json_schema", f"is not JSON: {error}") from error
    except RecursionError:
        raise _too_deep() from None
    _check_nesting(schema)
    if not isinstance(schema, dict):
        raise InvalidField("json_schema", f"must be a JSON object, not {type(schema).__name__}")
    return schema


def _check_nesting(value: Any, level: int = 0) -> None:
    """What is nested deeper cannot be written down again everywhere on its way."""
    if level > MAX_NESTING:
        raise _too_deep()
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_nesting(inner, level + 1)


def _too_deep() -> InvalidField:
    return InvalidField("json_schema", f"is nested too deeply, the limit is {MAX_NESTING} levels")


def _choices(choices: inference.Choices) -> list[str]:
    if not 1 <= len(choices.texts) <= MAX_CHOICES:
        raise InvalidField("choices.texts", f"has {len(choices.texts)} entries; give 1 to {MAX_CHOICES}")
    for index, text in enumerate(choices.texts):
        if not text:
            raise InvalidField(f"choices.texts[{index}]", "is empty")
    _size("choices.texts", "".join(choices.texts))
    return list(choices.texts)


def _size(name: str, text: str) -> None:
    if not text:
        raise InvalidField(name, "is empty")
    if len(text.encode()) > MAX_GUIDE_BYTES:
        raise InvalidField(name, f"has {len(text.encode())} bytes, the limit is {MAX_GUIDE_BYTES}")
