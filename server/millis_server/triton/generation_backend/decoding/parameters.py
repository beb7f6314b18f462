"""Reads a request of Triton's into what the engine takes."""

import json
from dataclasses import dataclass
from typing import Any

import tokenizers
import triton_python_backend_utils as pb_utils

from .generator import Guide, GuideKind, InvalidRequest, Request

GUIDES: tuple[GuideKind, ...] = ("json", "regex", "choice")

KNOWN = frozenset(
    (
        *("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "presence_penalty"),
        *("frequency_penalty", "n", "beams", "ignore_eos", "stop", "logprobs", "guided_decoding"),
    )
)


@dataclass(frozen=True)
class Asked:
    """A request as it came.

    Attributes:
        request: for the engine.
        stops: texts at which to end.
        stream: whether text goes out as it comes, and not all at the end.
        flags: the `return_*` inputs that are true, without `return_`.
    """

    request: Request
    stops: tuple[str, ...]
    stream: bool
    flags: frozenset[str]


def read_request(request: Any, tokenizer: tokenizers.Tokenizer) -> Asked:
    """Reads the tensors of a request.

    Raises:
        InvalidRequest: the message names the input or parameter.
    """
    given = json.loads(text_input(request, "sampling_parameters") or "{}")
    if unknown := sorted(given.keys() - KNOWN):
        raise InvalidRequest(f"sampling_parameters: {', '.join(unknown)} unknown; known are {', '.join(sorted(KNOWN))}")
    stops = given.pop("stop", None) or []
    guide = given.pop("guided_decoding", None)
    # vLLM counts alternatives here; one is the token itself.
    logprobs = given.pop("logprobs", None) is not None
    ids = pb_utils.get_input_tensor_by_name(request, "prompt_token_ids")
    if ids is not None:
        prompt = ids.as_numpy().tolist()
    else:
        prompt = tokenizer.encode(text_input(request, "text_input")).ids
    if not prompt:
        raise InvalidRequest("text_input: is empty")
    names = ("finish_reason", "logprobs", "num_input_tokens", "num_output_tokens")
    return Asked(
        request=Request(prompt=prompt, logprobs=logprobs, guide=_guide(guide) if guide else None, **given),
        stops=(stops,) if isinstance(stops, str) else tuple(stops),
        stream=_flag(request, "stream"),
        flags=frozenset(name for name in names if _flag(request, f"return_{name}")),
    )


def _guide(given: str | dict[str, Any]) -> Guide:
    if isinstance(given, str):
        given = dict(json.loads(given))
    kinds = [kind for kind in GUIDES if given.get(kind) is not None]
    if len(kinds) != 1:
        raise InvalidRequest(f"guided_decoding: must have one of {', '.join(GUIDES)}")
    rule = given[kinds[0]]
    if kinds[0] == "choice":
        return Guide("choice", tuple(rule))
    return Guide(kinds[0], rule if isinstance(rule, str) else json.dumps(rule))


def number_input(request: Any, name: str) -> int | None:
    """A number among the inputs; None when it is left out."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else int(tensor.as_numpy().reshape(-1)[0])


def text_input(request: Any, name: str) -> str:
    """A text among the inputs; empty when it is left out."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return ""
    value = tensor.as_numpy().reshape(-1)[0]
    return value.decode() if isinstance(value, bytes) else str(value)


def _flag(request: Any, name: str) -> bool:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return tensor is not None and bool(tensor.as_numpy().reshape(-1)[0])
