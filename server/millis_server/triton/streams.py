"""The way to one version of a model that generates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from functools import cached_property
from typing import Any, Protocol

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as triton
from tritonclient.grpc import service_pb2_grpc

from millis_server.errors import BackendFault, ModelUnavailable
from millis_server.manifest import Manifest
from millis_server.places import Places
from millis_server.tasks.generation import Prompt, TextGeneration
from millis_server.triton.failures import failed_call, named
from millis_server.triton.protocols import PROTOCOLS, Chunk
from millis_server.triton.session import Sessions


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


class Chunks(Protocol):
    """What comes of one generation."""

    def __aiter__(self) -> AsyncIterator[Chunk]: ...
    def aclose(self) -> Awaitable[None]:
        """Ends it, wherever it is."""


class Streams:
    """The way to one model version. Who chose it to answer holds it with `with` until the answer is there.

    Args:
        triton: channel to Triton.
        manifest: of the version.
        version: as in the repository.
        max_waiting: most callers who wait for a place.
        patience: longest silence, in seconds, of a process that lives.

    Attributes:
        manifest: of the version.
        places: at the engine.
        tokens: made so far for callers, who count them here.
    """

    def __init__(
        self, triton: TritonStreams, manifest: Manifest, version: str, max_waiting: int, patience: float
    ) -> None:
        generation = manifest.generation
        assert generation is not None, "only models that generate have streams. This is a bug."
        self.manifest = manifest
        self._protocol = generation.protocol
        self._triton = triton
        self._version = version
        self._patience = patience
        self._sessions = Sessions(lambda: self._triton.stub, self._request, patience)
        self.places = Places(generation.max_streams, generation.cache_tokens, max_waiting)
        self.tokens = 0
        self._holders = 0
        self._released = asyncio.Event()

    def __enter__(self) -> None:
        self._holders += 1
        self._released.clear()

    def __exit__(self, *_: object) -> None:
        self._holders -= 1
        if not self._holders:
            self._released.set()

    async def drain(self) -> None:
        """Waits until nobody holds it, those included who wait for a place."""
        while self._holders:
            await self._released.wait()
        await self._sessions.close()

    def generate(self, task: TextGeneration, prompt: Prompt) -> Chunks:
        """Begins one generation, for which the caller holds places. Closing what it returns frees the engine at once;
        what goes wrong is raised where it is read.

        Raises:
            InvalidField: the engine refuses what the task asks for.
            StubDied: the model's process is gone.
            ModelUnavailable: Triton is not there, or has not loaded the model.
            BackendFault: the engine failed.
        """
        return self._sessions.begin(task, prompt) if self._protocol == "millis" else self._call(task, prompt)

    async def _call(self, task: TextGeneration, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """A generation in a stream of its own, because a cancel in Triton ends all that its stream carries."""
        protocol = PROTOCOLS[self._protocol]()
        request = self._request()
        protocol.pack(task, prompt, request)
        call = self._triton.stub.ModelStreamInfer()
        ended = 0
        try:
            await call.write(request)
            await call.done_writing()
            while (response := await self._next(call)) is not grpc.aio.EOF:
                if response.error_message:
                    raise named(response.error_message, task)
                for chunk in protocol.unpack(response.infer_response):
                    ended += bool(chunk.finish)
                    yield chunk
                if ended == task.n:
                    return
            raise BackendFault("Triton ended the stream before the text")
        except grpc.aio.AioRpcError as error:
            raise failed_call(error, task) from error
        finally:
            call.cancel()

    async def _next(self, call: Any) -> Any:
        try:
            async with asyncio.timeout(self._patience):
                return await call.read()
        except TimeoutError:
            raise ModelUnavailable(f"Triton sent nothing for {self._patience:g} s") from None

    def _request(self) -> triton.ModelInferRequest:
        return triton.ModelInferRequest(model_name=self.manifest.triton_model, model_version=self._version)
