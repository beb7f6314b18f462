"""The tensors of models that generate, as three Triton backends name them: ours, vLLM's and TensorRT-LLM's.

Ours speaks vLLM's, and tells token ids beside. TensorRT-LLM's (its LLM API) has an input for each sampling parameter
and answers with all of the text so far in every response, where the others send what is new.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from tritonclient.grpc import service_pb2 as triton

from millis_server.errors import InvalidField
from millis_server.manifest import Protocol as ProtocolName
from millis_server.tasks.generation import Prompt, TextGeneration

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


class MillisProtocol:
    """Our backend `millis_generation`."""

    def pack(self, task: TextGeneration, prompt: Prompt, request: Request) -> None:
        """See `WireProtocol`."""
        parameters = _parameters(task, prompt)
        parameters["n"] = task.n
        if task.beams:
            parameters["beams"] = task.beams
        _add_text(request, "text_input", "")
        _add(request, "prompt_token_ids", "INT32", len(prompt.ids), np.array(prompt.ids, np.int32).tobytes())
        _add_text(request, "sampling_parameters", json.dumps(parameters))
        for name in ("stream", "return_finish_reason", "return_num_output_tokens"):
            _add_flag(request, name)

    def unpack(self, response: Response) -> list[Chunk]:
        """See `WireProtocol`."""
        outputs = _outputs(response)
        if "text_output" not in outputs:
            return []
        tokens = np.frombuffer(outputs["token_ids"], np.int32).tolist()
        made = outputs.get("num_output_tokens")
        return [
            Chunk(
                int.from_bytes(outputs.get("sequence", b""), "little"),
                outputs["text_output"][4:].decode(),
                tokens,
                np.frombuffer(outputs.get("token_logprobs", b""), np.float32).tolist(),
                int.from_bytes(made, "little") if made else len(tokens),
                _finish(outputs.get("finish_reason", b"")[4:].decode()),
            )
        ]


class VllmProtocol:
    """vLLM's backend in the full Triton container."""

    def pack(self, task: TextGeneration, prompt: Prompt, request: Request) -> None:
        """See `WireProtocol`."""
        _refuse_ids(task, "vLLM")
        if task.beams:
            raise InvalidField("beams", "is set, and vLLM's backend has no beam search")
        parameters = _parameters(task, prompt)
        parameters["n"] = task.n
        if task.logprobs:
            parameters["logprobs"] = 0
        _add_text(request, "text_input", prompt.text)
        _add_text(request, "sampling_parameters", json.dumps(parameters))
        # The input is left out of the output: left unsaid, some versions put it in front of the first text.
        for name in ("stream", "exclude_input_in_output", "return_finish_reason", "return_num_output_tokens"):
            _add_flag(request, name)
        if task.logprobs:
            _add_flag(request, "return_logprobs")

    def unpack(self, response: Response) -> list[Chunk]:
        """See `WireProtocol`."""
        outputs = _outputs(response)
        if "text_output" not in outputs:
            return []
        texts = _strings(outputs["text_output"])
        finishes = _strings(outputs["finish_reason"]) if "finish_reason" in outputs else [""] * len(texts)
        made = np.frombuffer(outputs.get("num_output_tokens", b""), np.uint32).tolist() or [0] * len(texts)
        described = _strings(outputs["logprobs"]) if "logprobs" in outputs else [""] * len(texts)
        chunks = []
        for sequence, (text, finish, tokens, chosen) in enumerate(zip(texts, finishes, made, described, strict=True)):
            ids, logprobs = _chosen(chosen)
            chunks.append(Chunk(sequence, text, ids, logprobs, tokens, _finish(finish)))
        return chunks


class TensorRtProtocol:
    """TensorRT-LLM's LLM API model in the full Triton container."""

    def __init__(self) -> None:
        self._seen: list[int] = []

    def pack(self, task: TextGeneration, prompt: Prompt, request: Request) -> None:
        """See `WireProtocol`."""
        _refuse_ids(task, "TensorRT-LLM")
        _refuse_what_tensorrt_has_not(task)
        sampling = task.sampling
        _add_text(request, "text_input", prompt.text)
        _add_flag(request, "streaming")
        _add_flag(request, "sampling_param_exclude_input_from_output")
        _add_flag(request, "return_finish_reason")
        _add_number(request, "sampling_param_max_tokens", "INT32", "<i", prompt.max_tokens)
        if sampling.temperature:
            _add_number(request, "sampling_param_temperature", "FP32", "<f", sampling.temperature)
            _add_number(request, "sampling_param_top_p", "FP32", "<f", sampling.top_p)
        # Without a temperature one candidate is left, which is greedy.
        top_k = sampling.top_k if sampling.temperature else 1
        if top_k:
            _add_number(request, "sampling_param_top_k", "INT32", "<i", top_k)
        if sampling.seed is not None:
            _add_number(request, "sampling_param_seed", "UINT64", "<Q", sampling.seed)
        if sampling.frequency_penalty:
            _add_number(request, "sampling_param_frequency_penalty", "FP32", "<f", sampling.frequency_penalty)
        if sampling.presence_penalty:
            _add_number(request, "sampling_param_presence_penalty", "FP32", "<f", sampling.presence_penalty)
        if task.stop:
            content = b"".join(_string(stop) for stop in task.stop)
            _add(request, "sampling_param_stop", "BYTES", len(task.stop), content)

    def unpack(self, response: Response) -> list[Chunk]:
        """See `WireProtocol`."""
        outputs = _outputs(response)
        if "text_output" not in outputs:
            return []
        texts = _strings(outputs["text_output"])
        finishes = _strings(outputs["finish_reason"]) if "finish_reason" in outputs else [""] * len(texts)
        self._seen = self._seen or [0] * len(texts)
        chunks = []
        for sequence, (text, finish) in enumerate(zip(texts, finishes, strict=True)):
            ended = _finish(finish)
            # Half a character shows as a replacement character until the rest of it comes.
            certain = text if ended else text.rstrip("\N{REPLACEMENT CHARACTER}")
            new = certain[self._seen[sequence] :]
            self._seen[sequence] = max(self._seen[sequence], len(certain))
            # It does not tell the number of tokens; each response is one step.
            chunks.append(Chunk(sequence, new, (), (), 1, ended))
        return chunks


PROTOCOLS: dict[ProtocolName, type[MillisProtocol] | type[VllmProtocol] | type[TensorRtProtocol]] = {
    "millis": MillisProtocol,
    "vllm": VllmProtocol,
    "tensorrt-llm": TensorRtProtocol,
}


def _parameters(task: TextGeneration, prompt: Prompt) -> dict[str, Any]:
    """vLLM's SamplingParams; what has vLLM's own default is left out."""
    sampling = task.sampling
    parameters: dict[str, Any] = {"max_tokens": prompt.max_tokens, "temperature": sampling.temperature}
    if sampling.temperature:
        drawing = {"top_p": (sampling.top_p, 1.0), "top_k": (sampling.top_k, 0), "min_p": (sampling.min_p, 0.0)}
        parameters |= {name: value for name, (value, default) in drawing.items() if value != default}
        if sampling.seed is not None:
            parameters["seed"] = sampling.seed
    if sampling.repetition_penalty != 1:
        parameters["repetition_penalty"] = sampling.repetition_penalty
    if sampling.presence_penalty:
        parameters["presence_penalty"] = sampling.presence_penalty
    if sampling.frequency_penalty:
        parameters["frequency_penalty"] = sampling.frequency_penalty
    if task.stop:
        parameters["stop"] = list(task.stop)
    if task.logprobs:
        parameters["logprobs"] = 1
    if task.ignore_eos:
        parameters["ignore_eos"] = True
    if task.guide is not None:
        parameters["guided_decoding"] = {task.guide[0]: task.guide[1]}
    return parameters


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
    """Empty for the several ways of saying that a text goes on."""
    return "" if reason in ("", "None", "null") else ("length" if reason == "length" else "stop")


def _chosen(described: str) -> tuple[list[int], list[float]]:
    """Tokens and log-probabilities from vLLM's JSON: the first of the alternatives is the one that was drawn."""
    if described in ("", "null"):
        return [], []
    firsts = [next(iter(alternatives.items())) for alternatives in json.loads(described)]
    return [int(token) for token, _ in firsts], [float(entry["logprob"]) for _, entry in firsts]


def _outputs(response: Response) -> dict[str, bytes]:
    return dict(zip([output.name for output in response.outputs], response.raw_output_contents, strict=True))


def _strings(content: bytes) -> list[str]:
    texts = []
    place = 0
    while place < len(content):
        end = place + 4 + int.from_bytes(content[place : place + 4], "little")
        texts.append(content[place + 4 : end].decode())
        place = end
    return texts


def _string(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(4, "little") + data


def _add_text(request: Request, name: str, text: str) -> None:
    _add(request, name, "BYTES", 1, _string(text))


def _add_flag(request: Request, name: str) -> None:
    _add(request, name, "BOOL", 1, b"\x01")


def _add_number(request: Request, name: str, kind: str, form: str, value: float) -> None:
    _add(request, name, kind, 1, struct.pack(form, value))


def _add(request: Request, name: str, kind: str, count: int, content: bytes) -> None:
    request.inputs.add(name=name, datatype=kind, shape=[count])
    request.raw_input_contents.append(content)
