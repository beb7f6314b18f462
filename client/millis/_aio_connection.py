"""What an `AsyncClient` holds once it has made its first call."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from grpc import aio

from millis import _channel
from millis.v1.inference_pb2_grpc import InferenceServiceStub
from millis.v1.models_pb2_grpc import ModelServiceStub

if TYPE_CHECKING:  # these two exist for type checkers only
    from millis.v1.inference_pb2_grpc import InferenceServiceAsyncStub
    from millis.v1.models_pb2_grpc import ModelServiceAsyncStub


class Connection(NamedTuple):
    """A channel, its stubs, and the event loop that grpc.aio has bound them to."""

    loop: asyncio.AbstractEventLoop
    channel: aio.Channel
    inference: InferenceServiceAsyncStub
    models: ModelServiceAsyncStub
    health: aio.UnaryUnaryMultiCallable[bytes, bytes]


def connect(config: _channel.ChannelConfig, loop: asyncio.AbstractEventLoop) -> Connection:
    """A connection for the loop that runs now."""
    credentials = config.credentials()
    if credentials is None:
        channel = aio.insecure_channel(config.target, config.options)
    else:
        channel = aio.secure_channel(config.target, credentials, config.options)
    return Connection(
        loop,
        channel,
        InferenceServiceStub(channel),
        ModelServiceStub(channel),
        channel.unary_unary(_channel.HEALTH_METHOD),
    )
