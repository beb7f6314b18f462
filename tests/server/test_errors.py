import grpc
import pytest
from google.rpc import error_details_pb2

from millis_server import errors
from millis_server.triton.client import StubDied

CODES = grpc.StatusCode


@pytest.mark.parametrize(
    ("error", "code", "reason", "detail"),
    [
        (errors.InvalidField("texts[1]", "is empty"), CODES.INVALID_ARGUMENT, "INVALID_FIELD", "BadRequest"),
        (errors.InputTooLong("query", "has 9"), CODES.INVALID_ARGUMENT, "INPUT_TOO_LONG", "BadRequest"),
        (errors.ModelNotFound("model", "x", "no x"), CODES.NOT_FOUND, "MODEL_NOT_FOUND", "ResourceInfo"),
        (errors.TaskMismatch("no"), CODES.FAILED_PRECONDITION, "TASK_MISMATCH", None),
        (errors.QualityUnavailable("no"), CODES.FAILED_PRECONDITION, "QUALITY_UNAVAILABLE", None),
        (errors.LoadFailed("no"), CODES.FAILED_PRECONDITION, "LOAD_FAILED", None),
        (errors.ModelUnavailable("no"), CODES.UNAVAILABLE, "MODEL_UNAVAILABLE", "RetryInfo"),
        (StubDied("dead"), CODES.UNAVAILABLE, "MODEL_UNAVAILABLE", "RetryInfo"),
        (errors.Draining("no"), CODES.UNAVAILABLE, "DRAINING", "RetryInfo"),
        (errors.Overloaded("full"), CODES.RESOURCE_EXHAUSTED, "OVERLOADED", "RetryInfo"),
        (errors.DeadlineUnreachable("no"), CODES.RESOURCE_EXHAUSTED, "DEADLINE_UNREACHABLE", "RetryInfo"),
        (errors.DeadlinePassed("late"), CODES.DEADLINE_EXCEEDED, "DEADLINE_PASSED", None),
        (errors.BackendFault("no"), CODES.INTERNAL, "BACKEND_FAULT", None),
    ],
)
def test_every_error_has_its_status_reason_and_details(error, code, reason, detail):
    found, status = errors.to_status(error)
    assert (found, status.code, status.message) == (code, code.value[0], str(error))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info == error_details_pb2.ErrorInfo(reason=reason, domain="millis.dev")
    names = [packed.type_url.rpartition(".")[2] for packed in status.details[1:]]
    assert names == ([detail] if detail else [])
