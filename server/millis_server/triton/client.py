"""The wire to Triton: the few calls that the gateway makes, with Triton's failures given names.

It speaks the KServe v2 protocol over HTTP, with Triton's extensions for binary tensors and for the model
repository. Nothing here knows of tasks or manifests.
"""

from __future__ import annotations

import json
from typing import Any

from millis_server.errors import BackendFault, ModelUnavailable, Overloaded
from millis_server.triton.connection import ConnectionFailed, ConnectionPool, HttpResponse

CONTROL_TIMEOUT = 30.0
"""Longest wait, in seconds, for calls that do no work: a machine that starts many models at once is slow to answer."""


class StubDied(ModelUnavailable):
    """The process behind a model is gone; the model must be loaded anew."""


class TritonClient:
    """A connection to one Triton.

    Args:
        url: host:port of its HTTP service.
        infer_timeout: longest wait for an inference, in seconds.
        load_timeout: longest wait for a model to load, in seconds.
    """

    def __init__(self, url: str, infer_timeout: float, load_timeout: float) -> None:
        self.url = url
        self._infer_timeout = infer_timeout
        self._load_timeout = load_timeout
        self._pool = ConnectionPool(url)

    def close(self) -> None:
        """Closes the connections that are not in use."""
        self._pool.close()

    async def infer(self, path: bytes, body: bytes, header_length: int) -> HttpResponse:
        """Runs one request.

        Args:
            path: of one model version, from `infer_path`.
            body: JSON header and binary tensors, from tensors.py.
            header_length: length of the JSON header.

        Raises:
            StubDied: the model's process is gone, or does not answer in time.
            ModelUnavailable: Triton is not there, or has not loaded the model.
            Overloaded: Triton's queue is full.
            BackendFault: the engine failed.
        """
        headers = b"Inference-Header-Content-Length: %d\r\n" % header_length
        try:
            response = await self._pool.request(b"POST", path, body, headers, timeout=self._infer_timeout)
        except TimeoutError as error:
            raise StubDied("the model's process stopped answering and is being started again") from error
        except ConnectionFailed as error:
            raise ModelUnavailable(f"Triton does not answer: {error}") from error
        if response.status != 200:
            raise _named(response)
        return response

    async def is_ready(self) -> bool:
        """Whether Triton answers and is ready to load models."""
        try:
            response = await self._pool.request(b"GET", b"/v2/health/ready", timeout=CONTROL_TIMEOUT)
        except (ConnectionFailed, TimeoutError):
            return False
        return response.status == 200

    async def load(self, model: str, config: str | None = None) -> None:
        """Loads the versions of a model that its config asks for; those already loaded stay as they are.

        Args:
            model: Triton's name of it.
            config: ModelConfig in JSON in place of the model's config.pbtxt, which is the default.

        Raises:
            BackendFault: a version could not be loaded, and so none was; versions that were serving go on.
            ModelUnavailable: Triton is not there.
        """
        body = {} if config is None else {"parameters": {"config": config}}
        await self._control(f"/v2/repository/models/{model}/load", body, self._load_timeout)

    async def unload(self, model: str) -> None:
        """Unloads all versions of a model. Triton answers requests under way first.

        Raises:
            BackendFault, ModelUnavailable: as `load`.
        """
        await self._control(f"/v2/repository/models/{model}/unload", {}, self._load_timeout)

    async def versions(self, model: str) -> dict[str, str]:
        """Returns the versions of a model that Triton knows, with what it says of each: `READY` or why not.

        Raises:
            BackendFault, ModelUnavailable: as `load`.
        """
        index = await self._control("/v2/repository/index", {}, CONTROL_TIMEOUT)
        return {
            entry["version"]: "READY" if entry["state"] == "READY" else _one_line(entry.get("reason") or entry["state"])
            for entry in index
            if entry["name"] == model and "version" in entry
        }

    async def config(self, model: str, version: str) -> dict[str, Any]:
        """Returns the config that a loaded version runs with, as Triton's ModelConfig in JSON.

        Raises:
            BackendFault, ModelUnavailable: as `load`.
        """
        found: dict[str, Any] = await self._control(
            f"/v2/models/{model}/versions/{version}/config", None, CONTROL_TIMEOUT
        )
        return found

    async def _control(self, path: str, body: dict[str, Any] | None, timeout: float) -> Any:
        """One call outside the path of requests: POST, or GET without a body."""
        method, content = (b"GET", b"") if body is None else (b"POST", json.dumps(body).encode())
        try:
            response = await self._pool.request(method, path.encode(), content, timeout=timeout)
        except (ConnectionFailed, TimeoutError) as error:
            reason = str(error) or f"no answer within {timeout:g} s"
            raise ModelUnavailable(f"Triton does not answer: {reason}") from error
        if response.status != 200:
            raise BackendFault(_message(response))
        return json.loads(response.body or b"null")


def infer_path(model: str, version: str) -> bytes:
    """Path of one model version for `TritonClient.infer`."""
    return f"/v2/models/{model}/versions/{version}/infer".encode()


def _named(response: HttpResponse) -> Exception:
    """Gives an inference failure of Triton its name; Triton's codes alone do not tell them apart."""
    message = _message(response)
    if "Stub process" in message:
        return StubDied("the model's process stopped answering and is being started again")
    if "Exceeds maximum queue size" in message:
        return Overloaded("Triton's queue for this model is full")
    if response.status in (404, 503) or "is not at ready state" in message or "unknown model" in message:
        return ModelUnavailable(f"Triton cannot answer for this model now: {message}")
    return BackendFault(f"Triton: {message}")


def _message(response: HttpResponse) -> str:
    try:
        return _one_line(json.loads(response.body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {response.status}"


def _one_line(message: str) -> str:
    """The first part of Triton's message: the Python traceback after it is in Triton's log."""
    return " ".join(message.split("\n\nAt:")[0].split())[:500]
