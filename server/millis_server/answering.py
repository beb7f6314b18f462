"""What every RPC has around it: callers are let in, errors become statuses, and what ends is counted and traced.

A decorator and not an interceptor: each interceptor costs every call time (measured: 0.07 ms for three that do
nothing), a decorator costs none.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import grpc
import grpc.aio

from millis.v1 import types_pb2
from millis_server.access.guard import Guard
from millis_server.errors import MillisError, to_status
from millis_server.observability.metrics import Metrics

if TYPE_CHECKING:  # OpenTelemetry is an extra
    from millis_server.observability.tracing import Tracing

LOG = logging.getLogger("millis.service")
PACKAGE = types_pb2.DESCRIPTOR.package
DETAILS_KEY = "grpc-status-details-bin"
HEAD_START = 0.1
"""Seconds by which a caller's deadline may pass before ours does: it begins to count when the call is sent."""

BUG = "This is a bug; the gateway's log says more."


@dataclass(frozen=True, slots=True)
class Around:
    """What the RPCs of a gateway have around them.

    Attributes:
        metrics: count what is answered.
        tracing: of calls; None where nobody collects traces.
        guard: lets callers in; None where everybody may call.
    """

    metrics: Metrics
    tracing: Tracing | None = None
    guard: Guard | None = None


class Servicer(Protocol):
    """A servicer that says what is around its RPCs."""

    around: Around


Response = TypeVar("Response")
Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[Any, Any, Context], Awaitable[Response]]
StreamingMethod = Callable[[Any, Any, Context], AsyncGenerator[Response, None]]


def answering(method: Method[Response]) -> Method[Response]:
    """Wraps a unary RPC method of a servicer."""
    rpc = method.__name__

    @functools.wraps(method)
    async def wrapped(self: Servicer, request: Any, context: Context) -> Response:
        began = perf_counter()
        try:
            _admit(self, rpc, context)
            response = await method(self, request, context)
        except BaseException as error:
            _answered(self, method, _asked(request), "", _code(error, context), began, context)
            await _end(rpc, request, context, error)
            raise
        model, variant = _served(response) or ("", "")
        _answered(self, method, model, variant, "OK", began, context)
        return response

    return wrapped


def answering_stream(method: StreamingMethod[Response]) -> StreamingMethod[Response]:
    """Wraps an RPC method of a servicer that answers with a stream."""
    rpc = method.__name__

    @functools.wraps(method)
    async def wrapped(self: Servicer, request: Any, context: Context) -> AsyncGenerator[Response, None]:
        began = perf_counter()
        model, variant = _asked(request), ""
        try:
            _admit(self, rpc, context)
            async with aclosing(method(self, request, context)) as responses:
                async for response in responses:
                    if not variant:
                        model, variant = _served(response) or (model, "")
                    yield response
        except BaseException as error:
            _answered(self, method, model, variant, _code(error, context), began, context)
            await _end(rpc, request, context, error)
            raise
        _answered(self, method, model, variant, "OK", began, context)

    return wrapped


def _admit(servicer: Servicer, rpc: str, context: Context) -> None:
    """Lets a call in, where the gateway knows its callers."""
    if (guard := servicer.around.guard) is not None:
        guard.admit(rpc, context.invocation_metadata() or ())


def _answered(
    servicer: Servicer,
    method: Callable[..., Any],
    model: str,
    variant: str,
    code: str,
    began: float,
    context: Context,
) -> None:
    """Counts a call that ended, and traces it."""
    around = servicer.around
    around.metrics.answered(method.__name__, model, variant, code, perf_counter() - began)
    if around.tracing is not None:
        # A servicer's class and its methods are named as the proto names them.
        rpc = f"{PACKAGE}.{method.__qualname__.replace('.', '/')}"
        metadata: dict[str, Any] = dict(iter(context.invocation_metadata() or ()))
        around.tracing.answered(rpc, model, variant, code, began, metadata)


async def _end(rpc: str, request: Any, context: Context, error: BaseException) -> None:
    """Ends an RPC with the status of an error, unless it is not one of ours to tell."""
    if isinstance(error, MillisError):
        code, status = to_status(error)
        await context.abort(code, status.message, ((DETAILS_KEY, status.SerializeToString()),))
    elif isinstance(error, Exception):
        LOG.error("%s failed; request id %r", rpc, _request_id(request), exc_info=error)
        await context.abort(grpc.StatusCode.INTERNAL, BUG)


def _code(error: BaseException, context: Context) -> str:
    """Name of the status that an error ends the call with."""
    if isinstance(error, MillisError):
        return to_status(error)[0].name
    if isinstance(error, Exception):
        return grpc.StatusCode.INTERNAL.name
    # gRPC cancels the method when the caller left and when its deadline passed.
    left = context.time_remaining() if isinstance(error, asyncio.CancelledError) else None
    late = left is not None and left <= HEAD_START
    return (grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED).name


def _served(response: Any) -> tuple[str, str] | None:
    """Model and variant of a response, or of a stream's first; None for those of the model service."""
    try:
        served_by = getattr(response, "started", response).info.served_by
    except AttributeError:
        return None
    return served_by.model, served_by.variant


def _asked(request: Any) -> str:
    return getattr(request, "model", "")


def _request_id(request: Any) -> str:
    options = getattr(request, "options", None)
    return options.client_request_id if options is not None else ""
