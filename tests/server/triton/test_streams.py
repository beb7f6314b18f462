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
async def serving(servicer: Any, protocol: Protocol) -> AsyncIterator[Streams]:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
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
        yield Streams(channel, manifest, "3", 8, 5.0)
    finally:
        await channel.close()
        await server.stop(None)


@asynccontextmanager
async def streams(protocol: Protocol, answer: Answer) -> AsyncIterator[tuple[Streams, StandIn]]:
    stand_in = StandIn(answer)
    async with serving(stand_in, protocol) as way:
        yield way, stand_in


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
        "guided_decoding": '{"json": {"type": "string"}}',
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
        ("vllm", TextGeneration(prompt="x", n=2), "n"),
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


Said = list[triton.ModelStreamInferResponse]


class SessionStandIn(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Speaks as our backend does: a session opens, texts are asked for in it, and it answers for all of them."""

    def __init__(self, say: Callable[[list[int]], Said], alive: bool = True) -> None:
        self._say = say
        self._alive = alive
        self._open: set[str] = set()
        self.requests: list[dict[str, Any]] = []
        self.ended = asyncio.Event()

    async def ModelStreamInfer(self, request_iterator, context):  # noqa: N802
        numbers: list[int] = []
        async for request in request_iterator:
            asked = plain(request)
            if "cancel" in asked and asked["session"] not in self._open:  # the question whether it lives
                yield failed("InvalidRequest: session: none" if self._alive else "Stub process is not healthy.")
                return
            self._open.add(asked["session"])
            self.requests.append(asked)
            if asked.get("cancel", 0) == -1:
                self.ended.set()
                return
            if "number" in asked:
                numbers.append(asked["number"])
                for message in self._say(numbers):
                    yield message


def pieces(*said: tuple[int, str, list[int], str]) -> triton.ModelStreamInferResponse:
    """A response of a session: number, text, tokens and how it ended."""
    finishes = {"": 0, "stop": 1, "length": 2, "failed": 3}
    described = [
        (number, 0, len(tokens), 0, len(text.encode()), len(tokens), finishes[finish])
        for number, text, tokens, finish in said
    ]
    tokens = [token for _, _, tokens, _ in said for token in tokens]
    numbers = [len(said), *(value for piece in described for value in piece), *tokens]
    content = struct.pack(f"<{len(numbers)}i", *numbers) + "".join(text for _, text, _, _ in said).encode()
    message = triton.ModelStreamInferResponse()
    message.infer_response.outputs.add(name="pieces", datatype="UINT8", shape=[len(content)])
    message.infer_response.raw_output_contents.append(content)
    return message


@asynccontextmanager
async def session(say: Callable[[list[int]], Said], alive: bool = True):
    stand_in = SessionStandIn(say, alive)
    async with serving(stand_in, "millis") as way:
        yield way, stand_in


def task(**asked: Any) -> TextGeneration:
    return TextGeneration(ids=(5, 6, 7), **asked)


async def all_of(way: Streams, asked: TextGeneration) -> list[Chunk]:
    return [chunk async for chunk in way.generate(asked, PROMPT)]


async def test_a_response_that_cannot_be_read_fails_the_texts_under_way() -> None:
    async with session(lambda numbers: [response(pieces=[1, 2])]) as (way, _):
        with pytest.raises(BackendFault, match=r"^Triton's response cannot be read: ValueError: "):
            _ = [chunk async for chunk in way.generate(task(), PROMPT)]


async def test_texts_of_one_session_come_together_and_go_to_their_callers():
    def say(numbers: list[int]) -> Said:
        if len(numbers) < 2:
            return []
        first, second = numbers
        return [
            pieces((first, "Hi", [11], ""), (second, "Ho", [12, 13], "")),
            pieces((second, "!", [14], "stop"), (999, "?", [1], ""), (first, " you", [15], "length")),
        ]

    async with session(say) as (way, stand_in):
        made = await asyncio.gather(all_of(way, task()), all_of(way, task(stop=("x",), n=1)))
    assert made == [
        [Chunk(0, "Hi", [11], [], 1, ""), Chunk(0, " you", [15], [], 1, "length")],
        [Chunk(0, "Ho", [12, 13], [], 2, ""), Chunk(0, "!", [14], [], 1, "stop")],
    ]
    opened, first, second = stand_in.requests[:3]
    name = opened.pop("session")
    assert opened == {"model": "chat-bf16", "version": "3"}
    assert (first["session"], second["session"]) == (name, name)
    assert first["prompt_token_ids"] == [5, 6, 7]
    assert json.loads(second["sampling_parameters"]) == {"max_tokens": 4, "temperature": 0, "stop": ["x"], "n": 1}


async def test_leaving_drops_the_text_at_the_engine_and_no_other_one():
    async with session(lambda numbers: [pieces((numbers[-1], "Hi", [11], ""))]) as (way, stand_in):
        left, stays = way.generate(task(), PROMPT), way.generate(task(), PROMPT)
        await anext(left)
        await anext(stays)
        await left.aclose()
        async with asyncio.timeout(5):
            while not any("cancel" in request for request in stand_in.requests):
                await asyncio.sleep(0.01)
        numbers = [request["number"] for request in stand_in.requests if "number" in request]
        cancelled = [request["cancel"] for request in stand_in.requests if "cancel" in request]
        assert cancelled == numbers[:1]
        await stays.aclose()


async def test_draining_waits_for_the_texts_and_ends_the_session():
    async with session(lambda numbers: [pieces((numbers[-1], "Hi", [11], "stop"))]) as (way, stand_in):
        assert len(await all_of(way, task())) == 1
        await asyncio.wait_for(way.drain(), 5)
        assert stand_in.ended.is_set()
        # The next text opens another one.
        assert len(await all_of(way, task())) == 1
    assert len({request["session"] for request in stand_in.requests}) == 2


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("InvalidRequest: guided_decoding: Unclosed '['", InvalidField("regex", "Unclosed '['")),
        ("EngineFailed: out of memory", StubDied),
        ("something else", BackendFault),
    ],
)
async def test_a_text_that_fails_says_why_and_the_others_go_on(message, error):
    def say(numbers: list[int]) -> Said:
        first, *others = numbers
        return [pieces((first, message, [], "failed"), (others[0], "Hi", [11], "stop"))] if others else []

    async with session(say) as (way, _):
        bad, good = await asyncio.gather(
            all_of(way, task(guide=("regex", "["))), all_of(way, task()), return_exceptions=True
        )
    assert good == [Chunk(0, "Hi", [11], [], 1, "stop")]
    assert isinstance(bad, error) if isinstance(error, type) else bad == error


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("Failed to process the request(s), message: Stub process 'x' is not healthy.", StubDied),
        ("Request for unknown model: 'chat-bf16' is not found", ModelUnavailable),
        ("InvalidRequest: session: there is none of the name 'x'", ModelUnavailable),
    ],
)
async def test_what_triton_says_of_the_session_ends_it_and_holds_for_all_its_texts(message, error):
    def say(numbers: list[int]) -> Said:
        return [failed(message)] if len(numbers) == 2 else []

    async with session(say) as (way, stand_in):
        failures = await asyncio.gather(all_of(way, task()), all_of(way, task()), return_exceptions=True)
        going = asyncio.create_task(all_of(way, task()))
        async with asyncio.timeout(5):
            while sum("number" in request for request in stand_in.requests) < 3:
                await asyncio.sleep(0.01)
        going.cancel()
        await asyncio.wait_for(way.drain(), 5)
    assert [type(failure) for failure in failures] == [error, error]
    first, second, third = (request["session"] for request in stand_in.requests if "number" in request)
    assert first == second != third


async def test_a_text_that_cannot_be_asked_for_leaves_nothing_behind():
    async with session(lambda numbers: [pieces((numbers[-1], "Hi", [11], "stop"))]) as (way, stand_in):
        with way, pytest.raises(TypeError):
            way.generate(task(stop=(b"not a text",)), PROMPT)
        assert len(await all_of(way, task())) == 1
        await asyncio.wait_for(way.drain(), 5)
    assert sum("number" in request for request in stand_in.requests) == 1


async def test_draining_waits_for_those_who_have_not_begun():
    async with session(lambda _: []) as (way, _):
        with way:
            draining = asyncio.create_task(way.drain())
            with way:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.05)
            assert not draining.done()
        await asyncio.wait_for(draining, 5)


async def test_who_still_reads_when_the_session_is_closed_is_told():
    async with session(lambda _: []) as (way, _):
        reading = asyncio.create_task(all_of(way, task()))
        await asyncio.sleep(0.1)
        await asyncio.wait_for(way.drain(), 10)
        with pytest.raises(ModelUnavailable):
            await reading


async def test_a_process_that_answers_nothing_any_more_ends_its_texts():
    async with session(lambda _: [], alive=False) as (way, _):
        with pytest.raises(StubDied):
            await all_of(way, task())
        await asyncio.wait_for(way.drain(), 5)


async def test_a_slow_process_that_lives_keeps_its_texts():
    async with session(lambda _: []) as (way, _):
        going = asyncio.create_task(all_of(way, task()))
        await asyncio.sleep(2.5)
        assert not going.done()
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)


async def test_a_stream_of_vllm_that_ends_before_the_text_is_a_fault():
    async def answer(_: dict[str, Any]) -> AsyncIterator[triton.ModelStreamInferResponse]:
        yield response(text_output=["Hi"])

    async with streams("vllm", answer) as (way, _):
        with pytest.raises(BackendFault, match="Triton ended the stream before the text"):
            await all_of(way, TextGeneration(prompt="x"))


async def test_leaving_a_stream_of_vllm_cancels_it_at_triton():
    async def answer(_: dict[str, Any]) -> AsyncIterator[triton.ModelStreamInferResponse]:
        yield response(text_output=["Hi"])
        await asyncio.sleep(60)

    async with streams("vllm", answer) as (way, stand_in):
        chunks = way.generate(TextGeneration(prompt="x"), PROMPT)
        await anext(chunks)
        await chunks.aclose()
        await asyncio.wait_for(stand_in.cancelled.wait(), 5)
        await asyncio.wait_for(way.drain(), 5)
