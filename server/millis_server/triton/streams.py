"""The way to one version of a model that generates: a gRPC stream to Triton for each generation.

One stream each, because a cancel in Triton ends all that its stream carries. The channel below is shared.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from functools import cached_property
from time import perf_counter
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as triton
from tritonclient.grpc import service_pb2_grpc

from millis_server.errors import BackendFault, InvalidField, MillisError, ModelUnavailable
from millis_server.manifest import Manifest
from millis_server.places import Places
from millis_server.tasks.generation import GUIDE_FIELDS, Prompt, TextGeneration
from millis_server.triton.client import StubDied
from millis_server.triton.protocols import PROTOCOLS, Chunk

SILENCE_SECONDS = 1.0
"""When nothing came for so long while texts are being made, the model's process is asked whether it lives: Triton
leaves the requests of a dead one open for ever."""

DIED = "the model's process stopped answering and is being started again"

_numbers = itertools.count()


class TritonStreams:
    """A gRPC channel to one Triton, opened when it is first needed: gRPC minds processes that start others.

    Args:
        url: host:port of its gRPC service.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._channel: grpc.aio.Channel | None = None

    @cached_property
    def stub(self) -> service_pb2_grpc.GRPCInferenceServiceStub:
        """The calls of Triton."""
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_reconnect_backoff_ms", 1000)]
        self._channel = grpc.aio.insecure_channel(self._url, options=options)
        return service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        """Closes the channel; streams under way are cancelled."""
        if self._channel is not None:
            await self._channel.close()


class Streams:
    """The way to one model version.

    Args:
        triton: channel to Triton.
        manifest: of the version.
        version: as in the repository.
        max_waiting: most callers who wait for a place.
        patience: longest silence, in seconds, of a process that lives.

    Attributes:
        manifest: of the version.
        places: at the engine.
        prompt_tokens: read so far.
        tokens: generated so far.
    """

    def __init__(
        self, triton: TritonStreams, manifest: Manifest, version: str, max_waiting: int, patience: float
    ) -> None:
        generation = manifest.generation
        assert generation is not None, "only models that generate have streams. This is a bug."
        self.manifest = manifest
        self._generation = generation
        self._triton = triton
        self._version = version
        self._patience = patience
        self.places = Places(generation.max_streams, generation.cache_tokens, max_waiting)
        self.prompt_tokens = 0
        self.tokens = 0
        self._calls: set[Any] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._heard = 0.0
        self._watching: asyncio.Task[None] | None = None
        self._dead = False

    async def drain(self) -> None:
        """Waits until nothing is under way."""
        await self._idle.wait()

    async def generate(self, task: TextGeneration, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """Runs one generation, for which the caller holds places. Closing the iterator frees the engine at once.

        Raises:
            InvalidField: the engine refuses what the task asks for.
            StubDied: the model's process is gone.
            ModelUnavailable: Triton is not there, or has not loaded the model.
            BackendFault: the engine failed.
        """
        protocol = PROTOCOLS[self._generation.protocol]()
        request = self._request()
        protocol.pack(task, prompt, request)
        call = self._triton.stub.ModelStreamInfer()
        self._enter(call)
        ended = 0
        try:
            await call.write(request)
            await call.done_writing()
            while (response := await call.read()) is not grpc.aio.EOF:
                self._heard = perf_counter()
                if response.error_message:
                    raise self._named(response.error_message, task)
                for chunk in protocol.unpack(response.infer_response):
                    self.tokens += chunk.made
                    ended += bool(chunk.finish)
                    yield chunk
                if ended == task.n:
                    self.prompt_tokens += len(prompt.ids)
                    return
            raise BackendFault("Triton ended the stream before the text")
        except grpc.aio.AioRpcError as error:
            raise self._failed(error, task) from error
        except asyncio.CancelledError:
            if self._dead and (current := asyncio.current_task()) and not current.cancelling():
                raise StubDied(DIED) from None
            raise
        finally:
            call.cancel()
            self._leave(call)

    def _request(self) -> triton.ModelInferRequest:
        return triton.ModelInferRequest(
            model_name=self.manifest.triton_model, model_version=self._version, id=str(next(_numbers))
        )

    def _enter(self, call: Any) -> None:
        self._calls.add(call)
        self._idle.clear()
        self._heard = perf_counter()
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())

    def _leave(self, call: Any) -> None:
        self._calls.discard(call)
        if not self._calls:
            self._idle.set()
            if self._watching is not None:
                self._watching.cancel()
                self._watching = None

    async def _watch(self) -> None:
        """Ends the streams of a process that died, as long as there are any."""
        while True:
            silent = perf_counter() - self._heard
            if silent < SILENCE_SECONDS:
                await asyncio.sleep(SILENCE_SECONDS - silent)
                continue
            if await self._lives():
                self._heard = perf_counter()
                continue
            self._dead = True
            self._watching = None
            for call in list(self._calls):
                call.cancel()
            return

    async def _lives(self) -> bool:
        """Whether the model's process answers. A step may take long, and nothing is answered meanwhile."""
        if self._generation.protocol != "millis":
            # Their requests cannot be told from a question, so silence is all there is to go by.
            return perf_counter() - self._heard < self._patience
        call = self._triton.stub.ModelStreamInfer(timeout=self._patience)
        request = self._request()
        # Nothing that could be generated from: the backend refuses it at once.
        request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
        request.raw_input_contents.append(bytes(4))
        try:
            await call.write(request)
            await call.done_writing()
            response = await call.read()
        except grpc.aio.AioRpcError:
            return False
        finally:
            call.cancel()
        return response is not grpc.aio.EOF and "Stub process" not in response.error_message

    def _failed(self, error: grpc.aio.AioRpcError, task: TextGeneration) -> MillisError:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return ModelUnavailable(f"Triton does not answer: {error.details()}")
        return self._named(error.details() or error.code().name, task)

    def _named(self, message: str, task: TextGeneration) -> MillisError:
        """Gives a failure its name; Triton sends a text and no code."""
        text = " ".join(message.split("\n\nAt:")[0].split())[:500]
        if "InvalidRequest: " in text:
            name, _, problem = text.partition("InvalidRequest: ")[2].partition(": ")
            if name == "guided_decoding" and task.guide is not None:
                name = GUIDE_FIELDS[task.guide[0]]
            return InvalidField(name, problem)
        if "Stub process" in text or "EngineFailed: " in text:
            return StubDied(DIED)
        if "is not at ready state" in text or "unknown model" in text:
            return ModelUnavailable(f"Triton cannot answer for this model now: {text}")
        return BackendFault(f"Triton: {text}")
