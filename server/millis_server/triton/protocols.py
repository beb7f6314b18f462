"""The tensors of models that generate, as other Triton backends than ours name them: vLLM's and TensorRT-LLM's.

TensorRT-LLM's (its LLM API) has an input for each sampling parameter and answers with all of the text so far in every
response, where vLLM's sends what is new. Ours is session.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from tritonclient.grpc import service_pb2 as triton

from millis_server.errors import BackendFault, InvalidField
from millis_server.manifest import Protocol as ProtocolName
from millis_server.tasks.generation import Prompt, TextGeneration
from millis_server.triton.wire import (
    add,
    add_flag,
    add_number,
    add_text,
    outputs,
    sampling_parameters,
    text_bytes,
    texts,
)

Request: TypeAlias = triton.ModelInferRequest
Response: TypeAlias = triton.ModelInferResponse


class Chunk(NamedTuple):
    """What one response of Triton brings for one text."""

    sequence: int
    text: str
    tokens: Sequence[int]
    """Empty where the backend does not tell them."""
    logprobs: Sequence[float]
    made: int
    """Tokens that were generated for it."""
    finish: str
    """`stop`, `length`, or empty while the text goes on."""


class WireProtocol(Protocol):
    """One generation on the wire; made anew for each, because it may remember what came."""

    def pack(self, task: TextGeneration, prompt: Prompt, request: Request) -> None:
        """Fills a request in.

        Raises:
            InvalidField: the backend cannot do what the task asks for.
        """

    def unpack(self, response: Response) -> list[Chunk]:
        """Reads a response; empty for one without content."""


class VllmProtocol:
    """vLLM's backend in the full Triton container."""

    def pack(self, task: TextGeneration, prompt: Prompt, request: Request) -> None:
        """See `WireProtocol`."""
        _refuse_ids(task, "vLLM")
        if task.beams:
            raise InvalidField("beams", "is set, and vLLM's backend has no beam search")
        if task.n > 1:
            raise InvalidField("n", f"is {task.n}, and vLLM's backend mixes several texts up when it streams")
        parameters = sampling_parameters(task, prompt)
        parameters["n"] = task.n
        if task.logprobs:
            parameters["logprobs"] = 0
        add_text(request, "text_input", prompt.text)
        add_text(request, "sampling_parameters", json.dumps(parameters))
        # The input is left out of the output: left unsaid, some versions put it in front of the first text.
        for name in ("stream", "exclude_input_in_output", "return_finish_reason", "return_num_output_tokens"):
            add_flag(request, name)
        if task.logprobs:
            add_flag(request, "return_logprobs")

    def unpack(self, response: Response) -> list[Chunk]:
        """See `WireProtocol`."""
        found = outputs(response)
        if "text_output" not in found:
            return []
        written = texts(found["text_output"])
        finishes = texts(found["finish_reason"]) if "finish_reason" in found else [""] * len(written)
        made = np.frombuffer(found.get("num_output_tokens", b""), np.uint32).tolist() or [0] * len(written)
        described = texts(found["logprobs"]) if "logprobs" in found else [""] * len(written)
        chunks = []
        for sequence, (text, finish, tokens, chosen) in enumerate(zip(written, finishes, made, described, strict=True)):
            ids, logprobs = _chosen(chosen)
            chunks.append(Chunk(sequence, text, ids, logprobs, tokens, _finish(finish)))
        return chunks


class TensorRtProtocol:
    """TensorRT-LLM's LLM API model in the full Triton container."""

    def __init__(self) -> None:
        self._seen: list[int] = []
        self._stops: Sequence[str] = ()

    def pack(self, task: TextGeneration, prompt: Prompt, request: Request) -> None:
        """See `WireProtocol`."""
        _refuse_ids(task, "TensorRT-LLM")
        self._stops = task.stop
        _refuse_what_tensorrt_has_not(task)
        sampling = task.sampling
        add_text(request, "text_input", prompt.text)
        add_flag(request, "streaming")
        add_flag(request, "sampling_param_exclude_input_from_output")
        add_flag(request, "return_finish_reason")
        add_number(request, "sampling_param_max_tokens", "INT32", "<i", prompt.max_tokens)
        if sampling.temperature:
            add_number(request, "sampling_param_temperature", "FP32", "<f", sampling.temperature)
            add_number(request, "sampling_param_top_p", "FP32", "<f", sampling.top_p)
        # Without a temperature one candidate is left, which is greedy.
        top_k = sampling.top_k if sampling.temperature else 1
        if top_k:
            add_number(request, "sampling_param_top_k", "INT32", "<i", top_k)
        if sampling.seed is not None:
            add_number(request, "sampling_param_seed", "UINT64", "<Q", sampling.seed)
        if sampling.frequency_penalty:
            add_number(request, "sampling_param_frequency_penalty", "FP32", "<f", sampling.frequency_penalty)
        if sampling.presence_penalty:
            add_number(request, "sampling_param_presence_penalty", "FP32", "<f", sampling.presence_penalty)
        if task.stop:
            content = b"".join(text_bytes(stop) for stop in task.stop)
            add(request, "sampling_param_stop", "BYTES", len(task.stop), content)

    def unpack(self, response: Response) -> list[Chunk]:
        """See `WireProtocol`."""
        found = outputs(response)
        if "text_output" not in found:
            return []
        written = texts(found["text_output"])
        finishes = texts(found["finish_reason"]) if "finish_reason" in found else [""] * len(written)
        self._seen = self._seen or [0] * len(written)
        chunks = []
        for sequence, (text, finish) in enumerate(zip(written, finishes, strict=True)):
            ended = _finish(finish)
            certain = text if ended else self._certain(text)
            new = certain[self._seen[sequence] :]
            self._seen[sequence] = max(self._seen[sequence], len(certain))
            # It does not tell the number of tokens; each response is one step.
            chunks.append(Chunk(sequence, new, (), (), 1, ended))
        return chunks

    def _certain(self, text: str) -> str:
        """What is not taken back by what comes: half a character shows as a replacement character until the rest of it
        is there, and what may be the beginning of a stop text is held back."""
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")
        begun = (
            length
            for stop in self._stops
            for length in range(min(len(stop) - 1, len(text)), 0, -1)
            if text.endswith(stop[:length])
        )
        return text[: len(text) - max(begun, default=0)]


PROTOCOLS: dict[ProtocolName, Callable[[], WireProtocol]] = {
    "vllm": VllmProtocol,
    "tensorrt-llm": TensorRtProtocol,
}


def _refuse_ids(task: TextGeneration, engine: str) -> None:
    if task.ids:
        raise InvalidField("token_ids", f"is filled, and this model runs on {engine}, which takes text; use prompt")


def _refuse_what_tensorrt_has_not(task: TextGeneration) -> None:
    sampling = task.sampling
    asked = {
        "sampling.min_p": sampling.min_p != 0,
        "sampling.repetition_penalty": sampling.repetition_penalty != 1,
        "logprobs": task.logprobs,
        "n": task.n > 1,
        "beams": task.beams > 0,
        "ignore_eos": task.ignore_eos,
        "guide": task.guide is not None,
    }
    for name, set_ in asked.items():
        if set_:
            raise InvalidField(
                name, "is set, and this model runs on TensorRT-LLM, whose Triton model has no input for it"
            )


def _finish(reason: str) -> str:
    """Empty for the several ways of saying that a text goes on.

    Raises:
        BackendFault: the text ended before its end, for example because the engine gave it up.
    """
    if reason in ("", "None", "null"):
        return ""
    if reason not in ("stop", "length"):
        raise BackendFault(f"the engine ended the text with the reason {reason!r}")
    return reason


def _chosen(described: str) -> tuple[list[int], list[float]]:
    """Tokens and log-probabilities from vLLM's JSON: the first of the alternatives is the one that was drawn."""
    if described in ("", "null"):
        return [], []
    firsts = [next(iter(alternatives.items())) for alternatives in json.loads(described)]
    return [int(token) for token, _ in firsts], [float(entry["logprob"]) for _, entry in firsts]
