"""Generation over the wire, with stand-ins that speak as Triton's vLLM and TensorRT-LLM backends do.

The form of their tensors was read from the backends' own source; neither runs without a GPU.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from tritonclient.grpc import service_pb2 as triton
from tritonclient.grpc import service_pb2_grpc

from millis_server.errors import BackendFault, InvalidField, ModelUnavailable
from millis_server.manifest import Generation, Manifest, Protocol, Provenance
from millis_server.tasks.generation import Prompt, Sampling, TextGeneration
from millis_server.triton.client import StubDied
from millis_server.triton.protocols import Chunk
from millis_server.triton.streams import Streams, TritonStreams

Answer = Callable[[dict[str, Any]], AsyncIterator[triton.ModelStreamInferResponse]]
PROMPT = Prompt("Say hi", (5, 6, 7), 4, 1, 7)


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Reads requests into plain values, as the backend would, and answers as it is told."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.requests: list[dict[str, Any]] = []
        self.cancelled = asyncio.Event()

    async def ModelStreamInfer(self, request_iterator, context):  # noqa: N802
        async for request in request_iterator:
            self.requests.append(plain(request))
            try:
                async for response in self._answer(self.requests[-1]):
                    yield response
            except asyncio.CancelledError:
                self.cancelled.set()
                raise


def plain(request: triton.ModelInferRequest) -> dict[str, Any]:
    forms = {"INT32": "i", "UINT64": "Q", "FP32": "f", "BOOL": "?"}
    found: dict[str, Any] = {"model": request.model_name, "version": request.model_version}
    for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.datatype == "BYTES":
            texts = []
            while content:
                end = 4 + int.from_bytes(content[:4], "little")
                texts.append(content[4:end].decode())
                content = content[end:]
            assert len(texts) == tensor.shape[0]
            found[tensor.name] = texts if tensor.name == "sampling_param_stop" else texts[0]
        else:
            values = struct.unpack(f"<{tensor.shape[0]}{forms[tensor.datatype]}", content)
            found[tensor.name] = list(values) if tensor.name == "prompt_token_ids" else values[0]
    return found


def response(**outputs: Any) -> triton.ModelStreamInferResponse:
    message = triton.ModelStreamInferResponse()
    for name, values in outputs.items():
        message.infer_response.outputs.add(name=name, shape=[len(values)])
        content = b"".join(
            struct.pack("<I", value)
            if isinstance(value, int)
            else struct.pack("<I", len(value.encode())) + value.encode()
            for value in values
        )
        message.infer_response.raw_output_contents.append(content)
    return message


def failed(message: str) -> triton.ModelStreamInferResponse:
    return triton.ModelStreamInferResponse(error_message=message)


@asynccontextmanager
async def streams(protocol: Protocol, answer: Answer) -> AsyncIterator[tuple[Streams, StandIn]]:
    server = grpc.aio.server()
    stand_in = StandIn(answer)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(stand_in, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = TritonStreams(f"127.0.0.1:{port}")
    manifest = Manifest(
        model="chat",
        variant="bf16",
        task="text-generation",
        max_tokens=4096,
        files={"model.json": "0" * 64, "tokenizer.json": "0" * 64},
        size_bytes=1,
        provenance=Provenance(checkpoint="x", created_at="2026-01-01T00:00:00Z"),
        generation=Generation(
            protocol=protocol, weights=("model.json",), vocabulary=100, eos_ids=(2,), cache_tokens=4096
        ),
    )
    try:
        yield Streams(channel, manifest, "3", 8, 5.0), stand_in
    finally:
        await channel.close()
        await server.stop(None)


async def generated(protocol: Protocol, answer: Answer, task: TextGeneration) -> tuple[list[Chunk], dict[str, Any]]:
    async with streams(protocol, answer) as (way, stand_in):
        chunks = [chunk async for chunk in way.generate(task, PROMPT)]
    return chunks, stand_in.requests[0]


async def vllm(request: dict[str, Any]) -> AsyncIterator[triton.ModelStreamInferResponse]:
    described = json.dumps([{"11": {"logprob": -0.5, "rank": 1, "decoded_token": "Hi"}}])
    yield response(text_output=["Hi"], finish_reason=["None"], num_output_tokens=[1], logprobs=[described])
    yield response(text_output=[" you"], finish_reason=["stop"], num_output_tokens=[2], logprobs=["null"])


async def test_vllm_is_driven_by_its_own_tensors():
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=40, min_p=0.1, seed=7, repetition_penalty=1.5)
    task = TextGeneration(
        prompt="Say hi", sampling=sampling, stop=("\n",), logprobs=True, guide=("json", {"type": "string"})
    )
    chunks, asked = await generated("vllm", vllm, task)
    assert chunks == [Chunk(0, "Hi", [11], [-0.5], 1, ""), Chunk(0, " you", [], [], 2, "stop")]
    parameters = json.loads(asked.pop("sampling_parameters"))
    assert asked == {
        "model": "chat-bf16",
        "version": "3",
        "text_input": "Say hi",
        "stream": True,
        "exclude_input_in_output": True,
        "return_finish_reason": True,
        "return_num_output_tokens": True,
        "return_logprobs": True,
    }
    assert parameters == {
        "max_tokens": 4,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "seed": 7,
        "repetition_penalty": 1.5,
        "stop": ["\n"],
        "logprobs": 0,
        "n": 1,
        "guided_decoding": {"json": {"type": "string"}},
    }


async def tensorrt(request: dict[str, Any]) -> AsyncIterator[triton.ModelStreamInferResponse]:
    # All of the text so far each time; half a character shows as a replacement character.
    yield response(text_output=["Hi"], finish_reason=["None"])
    yield response(text_output=["Hi \N{REPLACEMENT CHARACTER}"], finish_reason=["None"])
    yield response(text_output=["Hi 你"], finish_reason=["length"])


async def test_tensorrt_llm_is_driven_by_its_own_tensors():
    task = TextGeneration(prompt="Say hi", sampling=Sampling(temperature=1.0, top_k=5, seed=7), stop=("a", "b"))
    chunks, asked = await generated("tensorrt-llm", tensorrt, task)
    assert chunks == [Chunk(0, "Hi", (), (), 1, ""), Chunk(0, " ", (), (), 1, ""), Chunk(0, "你", (), (), 1, "length")]
    assert asked == {
        "model": "chat-bf16",
        "version": "3",
        "text_input": "Say hi",
        "streaming": True,
        "sampling_param_exclude_input_from_output": True,
        "return_finish_reason": True,
        "sampling_param_max_tokens": 4,
        "sampling_param_temperature": 1.0,
        "sampling_param_top_p": 1.0,
        "sampling_param_top_k": 5,
        "sampling_param_seed": 7,
        "sampling_param_stop": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("protocol", "task", "field"),
    [
        ("vllm", TextGeneration(ids=(5,)), "token_ids"),
        ("vllm", TextGeneration(prompt="x", beams=2), "beams"),
        ("tensorrt-llm", TextGeneration(ids=(5,)), "token_ids"),
        ("tensorrt-llm", TextGeneration(prompt="x", logprobs=True), "logprobs"),
        ("tensorrt-llm", TextGeneration(prompt="x", guide=("regex", "a")), "guide"),
    ],
)
async def test_what_a_backend_has_not_is_refused_before_it_is_asked(protocol, task, field):
    async with streams(protocol, vllm) as (way, stand_in):
        with pytest.raises(InvalidField) as caught:
            [chunk async for chunk in way.generate(task, PROMPT)]
    assert (caught.value.field, stand_in.requests) == (field, [])


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("InvalidRequest: guided_decoding: Unclosed '['", InvalidField("regex", "Unclosed '['")),
        ("Failed to process the request(s), message: Stub process 'x' is not healthy.", StubDied),
        ("EngineFailed: out of memory", StubDied),
        ("Request for unknown model: 'chat-bf16' is not found", ModelUnavailable),
        ("something else", BackendFault),
    ],
)
async def test_failures_of_triton_get_their_names(message, error):
    async def answer(_: dict[str, Any]) -> AsyncIterator[triton.ModelStreamInferResponse]:
        yield failed(message)

    async with streams("millis", answer) as (way, _):
        with pytest.raises(error if isinstance(error, type) else type(error)) as caught:
            [chunk async for chunk in way.generate(TextGeneration(ids=(5,), guide=("regex", "[")), PROMPT)]
        await asyncio.wait_for(way.drain(), 1)
    if not isinstance(error, type):
        assert caught.value == error


async def test_a_stream_that_ends_before_the_text_is_a_fault():
    async def answer(_: dict[str, Any]) -> AsyncIterator[triton.ModelStreamInferResponse]:
        yield response(text_output=["Hi"], token_ids=[])

    async with streams("millis", answer) as (way, _):
        with pytest.raises(BackendFault, match="Triton ended the stream before the text"):
            [chunk async for chunk in way.generate(TextGeneration(ids=(5,)), PROMPT)]


async def test_leaving_cancels_the_stream_at_triton():
    async def answer(_: dict[str, Any]) -> AsyncIterator[triton.ModelStreamInferResponse]:
        yield response(text_output=["Hi"], token_ids=[])
        await asyncio.sleep(60)

    async with streams("millis", answer) as (way, stand_in):
        chunks = way.generate(TextGeneration(ids=(5,)), PROMPT)
        await anext(chunks)
        await chunks.aclose()
        await asyncio.wait_for(stand_in.cancelled.wait(), 5)
        await asyncio.wait_for(way.drain(), 1)


async def test_a_process_that_answers_nothing_any_more_ends_its_streams():
    async def answer(request: dict[str, Any]) -> AsyncIterator[triton.ModelStreamInferResponse]:
        if "sampling_parameters" not in request:  # the question whether it lives
            yield failed("Stub process 'chat-bf16' is not healthy.")
            return
        yield response(text_output=["Hi"], token_ids=[])
        await asyncio.sleep(60)

    async with streams("millis", answer) as (way, _):
        with pytest.raises(StubDied):
            [chunk async for chunk in way.generate(TextGeneration(ids=(5,)), PROMPT)]
        await asyncio.wait_for(way.drain(), 1)


async def test_a_slow_process_that_lives_keeps_its_streams():
    async def answer(request: dict[str, Any]) -> AsyncIterator[triton.ModelStreamInferResponse]:
        if "sampling_parameters" not in request:
            yield failed("InvalidRequest: text_input: is empty")
            return
        await asyncio.sleep(2.5)
        yield response(text_output=["Hi"], token_ids=[], finish_reason=["stop"])

    async with streams("millis", answer) as (way, _):
        chunks = [chunk async for chunk in way.generate(TextGeneration(ids=(5,)), PROMPT)]
    assert chunks == [Chunk(0, "Hi", [], [], 0, "stop")]
