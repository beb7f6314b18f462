"""Millis: language questions answered in milliseconds over gRPC. This package is the client.

import millis

with millis.Client("127.0.0.1:50051") as client:
    print(client.classify("I want my money back").label)
"""

from importlib.metadata import PackageNotFoundError, version

from millis._channel import KeepAliveConfig, RetryConfig, TlsConfig
from millis.aio import AsyncClient
from millis.catalog import Exit, LatencyPoint, Model, ModelChange, ModelVariant, Quality, RefusedVersion
from millis.client import Client
from millis.errors import (
    ClientClosedError,
    DeadlineExceededError,
    ErrorDetails,
    FailedPreconditionError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    MillisError,
    NotFoundError,
    PermissionDeniedError,
    RequestCancelledError,
    ResourceExhaustedError,
    StatusError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from millis.generation import Completion, Generated, GenerationTiming, Message, Sampling, TextDelta
from millis.generation_stream import AsyncGenerationStream, GenerationStream
from millis.options import (
    CallOptions,
    ClassifyOptions,
    EmbedOptions,
    GenerateOptions,
    RankOptions,
    TagOptions,
    TokenizeOptions,
)
from millis.types import (
    Classification,
    ClassifiedToken,
    Embedding,
    Entity,
    Info,
    Label,
    Ranked,
    Ranking,
    Results,
    ServedBy,
    Span,
    Timing,
    Token,
    TokenClassification,
    Tokenization,
    Usage,
)

try:
    __version__ = version("millis")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+source"

__all__ = [
    "AsyncClient",
    "AsyncGenerationStream",
    "CallOptions",
    "Classification",
    "ClassifiedToken",
    "ClassifyOptions",
    "Client",
    "ClientClosedError",
    "Completion",
    "DeadlineExceededError",
    "EmbedOptions",
    "Embedding",
    "Entity",
    "ErrorDetails",
    "Exit",
    "FailedPreconditionError",
    "FieldViolation",
    "GenerateOptions",
    "Generated",
    "GenerationStream",
    "GenerationTiming",
    "Info",
    "InternalError",
    "InvalidArgumentError",
    "KeepAliveConfig",
    "Label",
    "LatencyPoint",
    "Message",
    "MillisError",
    "Model",
    "ModelChange",
    "ModelVariant",
    "NotFoundError",
    "PermissionDeniedError",
    "Quality",
    "RankOptions",
    "Ranked",
    "Ranking",
    "RefusedVersion",
    "RequestCancelledError",
    "ResourceExhaustedError",
    "Results",
    "RetryConfig",
    "Sampling",
    "ServedBy",
    "Span",
    "StatusError",
    "TagOptions",
    "TextDelta",
    "Timing",
    "TlsConfig",
    "Token",
    "TokenClassification",
    "Tokenization",
    "TokenizeOptions",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Usage",
    "__version__",
]
