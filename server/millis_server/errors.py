"""What can go wrong, and the one table that says how it crosses the wire.

Domain errors know nothing of gRPC; `to_status` turns them into a status with google.rpc details.

    MillisError
    ├── InvalidField           a field of the request is wrong
    ├── InputTooLong           an input has more tokens than the model reads, and the caller asked to be told
    ├── ModelNotFound          no such model, version or variant
    ├── TaskMismatch           the model answers another question
    ├── QualityUnavailable     no variant is as good as the caller asked
    ├── ModelUnavailable       the model is loading, recovering or unloaded
    ├── LoadFailed             no version of the model could be brought into service
    ├── Draining               the gateway is stopping
    ├── Unauthenticated        the call brings no key that the gateway knows
    ├── Forbidden              the caller may not do that
    ├── Overloaded             more work than the gateway admits
    │   ├── DeadlineUnreachable  no variant is predicted to answer in time
    │   └── QuotaExceeded        the caller has used up what it may use
    ├── DeadlinePassed         the caller's deadline passed before the work began
    └── BackendFault           Triton failed in a way that a retry does not mend
"""

from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "millis.dev"


class MillisError(Exception):
    """Any error that the gateway tells its caller about. The message is for people."""


@dataclass
class InvalidField(MillisError):
    """A field of the request is wrong.

    Attributes:
        field: path of the field as in the proto, for example `texts[3]`.
        problem: what is wrong with it, with the limit and the value given.
    """

    field: str
    problem: str

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


@dataclass
class InputTooLong(InvalidField):
    """An input has more tokens than the model reads, and truncation is ERROR."""


@dataclass
class ModelNotFound(MillisError):
    """No such model, version or variant."""

    kind: str
    """`model`, `version` or `variant`."""
    name: str
    problem: str

    def __str__(self) -> str:
        return self.problem


class TaskMismatch(MillisError):
    """The model answers another question than the one asked."""


class QualityUnavailable(MillisError):
    """No variant was measured to be as good as the caller asked."""


@dataclass
class ModelUnavailable(MillisError):
    """The model is loading, recovering or unloaded."""

    problem: str
    retry_after: float = 1.0
    """Seconds after which another try makes sense."""

    def __str__(self) -> str:
        return self.problem


class LoadFailed(MillisError):
    """No version of the model could be brought into service."""


@dataclass
class Draining(ModelUnavailable):
    """The gateway is stopping."""


class Unauthenticated(MillisError):
    """The call brings no key that the gateway knows."""


class Forbidden(MillisError):
    """The caller may not do that."""


@dataclass
class Overloaded(MillisError):
    """More work than the gateway admits."""

    problem: str
    retry_after: float = 0.1
    """Seconds after which another try makes sense."""

    def __str__(self) -> str:
        return self.problem


@dataclass
class DeadlineUnreachable(Overloaded):
    """No variant that would do is predicted to answer before the caller's deadline."""


@dataclass
class QuotaExceeded(Overloaded):
    """The caller has used up what it may use."""

    caller: str = ""


class DeadlinePassed(MillisError):
    """The caller's deadline passed before the work began."""


class BackendFault(MillisError):
    """Triton failed in a way that a retry does not mend."""


STATUS: dict[type[MillisError], tuple[grpc.StatusCode, str]] = {
    InvalidField: (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
    InputTooLong: (grpc.StatusCode.INVALID_ARGUMENT, "INPUT_TOO_LONG"),
    ModelNotFound: (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
    TaskMismatch: (grpc.StatusCode.FAILED_PRECONDITION, "TASK_MISMATCH"),
    QualityUnavailable: (grpc.StatusCode.FAILED_PRECONDITION, "QUALITY_UNAVAILABLE"),
    LoadFailed: (grpc.StatusCode.FAILED_PRECONDITION, "LOAD_FAILED"),
    ModelUnavailable: (grpc.StatusCode.UNAVAILABLE, "MODEL_UNAVAILABLE"),
    Draining: (grpc.StatusCode.UNAVAILABLE, "DRAINING"),
    Unauthenticated: (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    Forbidden: (grpc.StatusCode.PERMISSION_DENIED, "FORBIDDEN"),
    Overloaded: (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
    QuotaExceeded: (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"),
    DeadlineUnreachable: (grpc.StatusCode.RESOURCE_EXHAUSTED, "DEADLINE_UNREACHABLE"),
    DeadlinePassed: (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_PASSED"),
    BackendFault: (grpc.StatusCode.INTERNAL, "BACKEND_FAULT"),
}
"""Status code and `ErrorInfo.reason` of each error. docs/errors.md explains them to callers."""


def to_status(error: MillisError) -> tuple[grpc.StatusCode, status_pb2.Status]:
    """Turns a domain error into a gRPC status code and a google.rpc.Status with its details."""
    code, reason = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    status = status_pb2.Status(code=code.value[0], message=str(error))
    status.details.append(_packed(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)))
    match error:
        case InvalidField(field=field, problem=problem):
            violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=problem)
            status.details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
        case ModelNotFound(kind=kind, name=name):
            resource = error_details_pb2.ResourceInfo(
                resource_type=f"{DOMAIN}/{kind}", resource_name=name, description=str(error)
            )
            status.details.append(_packed(resource))
        case ModelUnavailable(retry_after=seconds) | Overloaded(retry_after=seconds):
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(int(seconds * 1e9))
            status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    if isinstance(error, QuotaExceeded):
        quota = error_details_pb2.QuotaFailure.Violation(subject=f"caller:{error.caller}", description=str(error))
        status.details.append(_packed(error_details_pb2.QuotaFailure(violations=[quota])))
    return code, status


def _packed(detail: object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)  # type: ignore[arg-type]  # every google.rpc detail is a message
    return packed
