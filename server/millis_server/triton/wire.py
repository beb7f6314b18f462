"""Messages of Triton's gRPC service, and the sampling parameters in them."""

from __future__ import annotations

import json
import struct
from typing import Any

from tritonclient.grpc import service_pb2 as triton

from millis_server.tasks.generation import Prompt, TextGeneration


def sampling_parameters(task: TextGeneration, prompt: Prompt) -> dict[str, Any]:
    """The values of vLLM's SamplingParams; what has vLLM's own default is left out."""
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
        # As a text: no version of vLLM's backend takes it otherwise, and only new ones know it by another name.
        parameters["guided_decoding"] = json.dumps({task.guide[0]: task.guide[1]})
    return parameters


def outputs(response: triton.ModelInferResponse) -> dict[str, bytes]:
    """Contents of the outputs by name."""
    return dict(zip([output.name for output in response.outputs], response.raw_output_contents, strict=True))


def texts(content: bytes) -> list[str]:
    """Texts of a BYTES tensor."""
    found = []
    place = 0
    while place < len(content):
        end = place + 4 + int.from_bytes(content[place : place + 4], "little")
        found.append(content[place + 4 : end].decode())
        place = end
    return found


def text_bytes(text: str) -> bytes:
    """A text as a BYTES tensor holds it."""
    data = text.encode()
    return len(data).to_bytes(4, "little") + data


def add_text(request: triton.ModelInferRequest, name: str, text: str) -> None:
    """Adds an input of one text."""
    add(request, name, "BYTES", 1, text_bytes(text))


def add_flag(request: triton.ModelInferRequest, name: str) -> None:
    """Adds an input that is true."""
    add(request, name, "BOOL", 1, b"\x01")


def add_number(request: triton.ModelInferRequest, name: str, kind: str, form: str, value: float) -> None:
    """Adds an input of one number, in a form of `struct`."""
    add(request, name, kind, 1, struct.pack(form, value))


def add(request: triton.ModelInferRequest, name: str, kind: str, count: int, content: bytes) -> None:
    """Adds an input."""
    request.inputs.add(name=name, datatype=kind, shape=[count])
    request.raw_input_contents.append(content)
