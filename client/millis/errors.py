"""The errors that the SDK raises.

    MillisError
    ├── ClientClosedError              the client was closed before the call
    └── StatusError                    any other status: ABORTED, ALREADY_EXISTS, …
        ├── InvalidArgumentError       INVALID_ARGUMENT, OUT_OF_RANGE; also a ValueError
        ├── NotFoundError              NOT_FOUND: no such model, version or variant
        ├── FailedPreconditionError    FAILED_PRECONDITION: for example a model of another task
        ├── UnauthenticatedError       UNAUTHENTICATED: no credential, or a bad one
        ├── PermissionDeniedError      PERMISSION_DENIED
        ├── ResourceExhaustedError     RESOURCE_EXHAUSTED: queue or quota full, message too large
        ├── DeadlineExceededError      DEADLINE_EXCEEDED; also a TimeoutError
        ├── UnavailableError           UNAVAILABLE: no connection, loading or draining
        ├── RequestCancelledError      CANCELLED
        ├── UnimplementedError         UNIMPLEMENTED: the gateway is older than this SDK
        └── InternalError              INTERNAL, UNKNOWN, DATA_LOSS: a fault of the gateway

A wrong Python type is a plain TypeError. Cancelling an asyncio task raises asyncio's own CancelledError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

STATUS_DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata that holds the google.rpc.Status of a failed call."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field of a request, from `google.rpc.BadRequest`."""

    field: str
    """Path of the field in the request, for example `texts[3]`."""
    description: str
    """What is wrong with it."""


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What a failed call says beside its status: the `google.rpc` details, flattened."""

    reason: str = ""
    """`ErrorInfo.reason`, for example `INPUT_TOO_LONG`; empty when none was stated."""
    domain: str = ""
    """`ErrorInfo.domain`: `millis.dev` for errors of the gateway itself."""
    metadata: dict[str, str] = field(default_factory=dict)
    """`ErrorInfo.metadata`."""
    field_violations: tuple[FieldViolation, ...] = ()
    """`BadRequest.field_violations`."""
    retry_after: float | None = None
    """`RetryInfo.retry_delay` in seconds; None when none was stated."""
    resource_type: str = ""
    """`ResourceInfo.resource_type`, for example `model`."""
    resource_name: str = ""
    """`ResourceInfo.resource_name`."""


class MillisError(Exception):
    """Base of every error that the SDK raises by itself."""


class ClientClosedError(MillisError):
    """The client was closed before the call."""


class StatusError(MillisError):
    """A call that ended with a gRPC status other than OK.

    Attributes:
        code: the gRPC status.
        message: the status message.
        details: all `google.rpc` details; the ones used most are attributes here too.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(
        self, message: str, *, code: grpc.StatusCode | None = None, details: ErrorDetails | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = details or ErrorDetails()
        if code is not None:
            self.code = code

    @property
    def reason(self) -> str:
        """Machine-readable cause, for example `TASK_MISMATCH`; empty when none was stated."""
        return self.details.reason

    @property
    def metadata(self) -> dict[str, str]:
        """Facts about the cause, for example the limit that was passed."""
        return self.details.metadata

    @property
    def field_violations(self) -> tuple[FieldViolation, ...]:
        """The wrong fields of the request."""
        return self.details.field_violations

    @property
    def retry_after(self) -> float | None:
        """Seconds after which a retry can help; None when not stated."""
        return self.details.retry_after


class InvalidArgumentError(StatusError, ValueError):
    """The request is wrong and will be wrong again; `field_violations` says where."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    @classmethod
    def for_field(cls, name: str, description: str) -> InvalidArgumentError:
        """The error of a value that cannot be sent, found before the call."""
        violation = FieldViolation(name, description)
        return cls(f"{name}: {description}", details=ErrorDetails(field_violations=(violation,)))


class NotFoundError(StatusError):
    """The model, version or variant does not exist; see `details.resource_name`."""

    code = grpc.StatusCode.NOT_FOUND


class FailedPreconditionError(StatusError):
    """The request does not fit the model, for example reason `TASK_MISMATCH`."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class UnauthenticatedError(StatusError):
    """The call carries no valid credential."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(StatusError):
    """The credential does not allow this call."""

    code = grpc.StatusCode.PERMISSION_DENIED


class ResourceExhaustedError(StatusError):
    """The gateway is full, a quota is used up, or a message is too large."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceededError(StatusError, TimeoutError):
    """No answer came within the timeout of the call."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class UnavailableError(StatusError):
    """The gateway cannot be reached, or the model is loading or draining; the retries are used up."""

    code = grpc.StatusCode.UNAVAILABLE


class RequestCancelledError(StatusError):
    """The call was cancelled by the gateway, by closing the client, or by `cancel` of a stream."""

    code = grpc.StatusCode.CANCELLED


class UnimplementedError(StatusError):
    """The gateway does not know this call: it is older than this SDK."""

    code = grpc.StatusCode.UNIMPLEMENTED


class InternalError(StatusError):
    """The gateway failed, or answered what its API does not allow."""

    code = grpc.StatusCode.INTERNAL


STATUS_TO_ERROR: dict[grpc.StatusCode, type[StatusError]] = {
    grpc.StatusCode.CANCELLED: RequestCancelledError,
    grpc.StatusCode.UNKNOWN: InternalError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: StatusError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.ABORTED: StatusError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DATA_LOSS: InternalError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
}
"""Every status but OK."""


def from_rpc_error(error: grpc.RpcError, target: str, timeout_s: float | None) -> StatusError:
    """The exception for a failed call of either twin.

    Args:
        error: what grpc or grpc.aio raised.
        target: address of the gateway, for the message.
        timeout_s: timeout of the call in seconds, for the message; None for no limit.
    """
    call = cast(grpc.Call, error)
    code = call.code()
    message = call.details() or code.name
    status = _status(call.trailing_metadata() or ())
    if status is None:
        message = _explain(code, message, target, timeout_s)
    details = _details(status.details) if status else None
    return STATUS_TO_ERROR.get(code, StatusError)(message, code=code, details=details)


def _explain(code: grpc.StatusCode, message: str, target: str, timeout_s: float | None) -> str:
    """Says what happened when gRPC itself, not the gateway, ended the call."""
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"the gateway at {target} cannot be reached: {message}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and timeout_s is not None:
        return f"the gateway at {target} gave no full answer within the timeout of {timeout_s:g} s"
    return message


def _status(trailing_metadata: Iterable[tuple[str, str | bytes]]) -> status_pb2.Status | None:
    for key, value in trailing_metadata:
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None  # the status itself stands, whatever a proxy did to its details
    return None


def _error_info(detail: Any) -> dict[str, object]:
    info = error_details_pb2.ErrorInfo.FromString(detail.value)
    return {"reason": info.reason, "domain": info.domain, "metadata": dict(info.metadata)}


def _bad_request(detail: Any) -> dict[str, object]:
    violations = error_details_pb2.BadRequest.FromString(detail.value).field_violations
    return {"field_violations": tuple(FieldViolation(each.field, each.description) for each in violations)}


def _retry_info(detail: Any) -> dict[str, object]:
    delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
    return {"retry_after": delay.ToNanoseconds() / 1e9}


def _resource_info(detail: Any) -> dict[str, object]:
    resource = error_details_pb2.ResourceInfo.FromString(detail.value)
    return {"resource_type": resource.resource_type, "resource_name": resource.resource_name}


_DETAIL_READERS: dict[str, Callable[[Any], dict[str, object]]] = {
    "google.rpc.ErrorInfo": _error_info,
    "google.rpc.BadRequest": _bad_request,
    "google.rpc.RetryInfo": _retry_info,
    "google.rpc.ResourceInfo": _resource_info,
}


def _details(details: Iterable[Any]) -> ErrorDetails:
    found: dict[str, object] = {}
    for detail in details:
        read = _DETAIL_READERS.get(detail.type_url.rpartition("/")[2])
        if read is None:
            continue  # a kind of detail that this SDK does not show
        try:
            found |= read(detail)
        except DecodeError:
            continue
    return ErrorDetails(**found)  # type: ignore[arg-type]  # each reader returns fields of ErrorDetails
