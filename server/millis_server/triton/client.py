"""The wire to Triton: the few calls that the gateway makes, with Triton's failures given names.

It uses the stubs that tritonclient generates. Nothing here knows of tasks or manifests.
"""

from __future__ import annotations

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from millis_server.errors import BackendFault, ModelUnavailable, Overloaded

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
"""Triton's answers for tokens grow with labels times tokens; the limit only keeps a fault from taking all memory."""


class StubDied(ModelUnavailable):
    """The process behind a model is gone; the model must be loaded anew."""


class TritonClient:
    """A connection to one Triton.

    Args:
        url: host:port of its gRPC service.
        infer_timeout: longest wait for an inference, in seconds.
        load_timeout: longest wait for a model to load, in seconds.
    """

    def __init__(self, url: str, infer_timeout: float, load_timeout: float) -> None:
        self.url = url
        self._infer_timeout = infer_timeout
        self._load_timeout = load_timeout
        self._channel = grpc.aio.insecure_channel(
            url,
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                # Without this every channel of the process to the same address shares one connection.
                ("grpc.use_local_subchannel_pool", 1),
                # Triton restarts on the same port: look for it at once, not after grown pauses.
                ("grpc.max_reconnect_backoff_ms", 500),
            ],
        )
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        """Closes the connection; calls under way are cancelled."""
        await self._channel.close()

    async def infer(self, request: service_pb2.ModelInferRequest) -> service_pb2.ModelInferResponse:
        """Runs one request.

        Raises:
            StubDied: the model's process is gone, or does not answer in time.
            ModelUnavailable: Triton is not there, or has not loaded the model.
            Overloaded: Triton's queue is full.
            BackendFault: the engine failed.
        """
        try:
            return await self._stub.ModelInfer(request, timeout=self._infer_timeout)
        except grpc.aio.AioRpcError as error:
            raise _named(error) from error

    async def is_ready(self) -> bool:
        """Whether Triton answers."""
        try:
            response = await self._stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=5)
        except grpc.aio.AioRpcError:
            return False
        return bool(response.ready)

    async def load(self, model: str) -> None:
        """Loads the versions of a model that its config asks for; versions already loaded stay as they are.

        Raises:
            BackendFault: a version could not be loaded; versions that were serving go on.
            ModelUnavailable: Triton is not there.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        try:
            await self._stub.RepositoryModelLoad(request, timeout=self._load_timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise ModelUnavailable(f"Triton did not load {model}: {_one_line(error)}") from error
            raise BackendFault(_one_line(error)) from error

    async def unload(self, model: str) -> None:
        """Unloads all versions of a model. Triton answers requests under way first."""
        request = service_pb2.RepositoryModelUnloadRequest(model_name=model)
        try:
            await self._stub.RepositoryModelUnload(request, timeout=self._load_timeout)
        except grpc.aio.AioRpcError as error:
            raise ModelUnavailable(f"Triton did not unload {model}: {_one_line(error)}") from error

    async def versions(self, model: str) -> dict[str, str]:
        """Returns the versions of a model that Triton knows, with what it says of each: `READY` or why not."""
        try:
            index = await self._stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            raise ModelUnavailable(f"Triton does not answer: {_one_line(error)}") from error
        return {
            entry.version: entry.state if entry.state == "READY" else (entry.reason or entry.state)
            for entry in index.models
            if entry.name == model and entry.version
        }


def _named(error: grpc.aio.AioRpcError) -> Exception:
    """Gives an inference failure of Triton its name; Triton's codes alone do not tell them apart."""
    code = error.code()
    details = _one_line(error)
    if "Stub process" in details or code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return StubDied("the model's process stopped answering and is being started again")
    if code == grpc.StatusCode.UNAVAILABLE and "Exceeds maximum queue size" in details:
        return Overloaded("Triton's queue for this model is full")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND):
        return ModelUnavailable(f"Triton cannot answer for this model now: {details}")
    return BackendFault(f"Triton: {details}")


def _one_line(error: grpc.aio.AioRpcError) -> str:
    """The first lines of Triton's message: the Python traceback after them is in its log."""
    message = (error.details() or error.code().name).split("\n\nAt:")[0]
    return " ".join(message.split())[:500]
