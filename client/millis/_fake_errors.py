"""Errors of the fake gateway, in the form of the real one's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Never

import grpc
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from millis.errors import STATUS_DETAILS_KEY

DOMAIN = "millis.dev"
"""`ErrorInfo.domain` of the gateway's errors."""


@dataclass(frozen=True, slots=True)
class FakeError:
    """A status to answer with, and its `google.rpc` details; those left empty are not sent."""

    code: grpc.StatusCode
    message: str = "scripted by the test"
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    field_violations: dict[str, str] = field(default_factory=dict)
    """Description by field."""
    retry_after: float | None = None
    """Seconds."""
    resource_type: str = ""
    resource_name: str = ""


def abort(context: grpc.ServicerContext, error: FakeError) -> Never:
    """Ends a call with the error."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if error.field_violations:
        bad_request = error_details_pb2.BadRequest()
        for name, description in error.field_violations.items():
            bad_request.field_violations.add(field=name, description=description)
        details.append(bad_request)
    if error.retry_after is not None:
        retry_info = error_details_pb2.RetryInfo()
        retry_info.retry_delay.FromNanoseconds(round(error.retry_after * 1e9))
        details.append(retry_info)
    if error.resource_type or error.resource_name:
        details.append(
            error_details_pb2.ResourceInfo(resource_type=error.resource_type, resource_name=error.resource_name)
        )
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code.name), message=error.message)
    for detail in details:
        status.details.add().Pack(detail)
    context.set_trailing_metadata(((STATUS_DETAILS_KEY, status.SerializeToString()),))
    context.abort(error.code, error.message)
