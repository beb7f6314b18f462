import pickle

import grpc
import pytest

import millis
from millis.errors import STATUS_TO_ERROR, ErrorDetails, FieldViolation
from millis.testing import FakeError, FakeGateway
from tests.client.twins import AnyClient, maybe_await

CODES = [
    ("CANCELLED", millis.RequestCancelledError),
    ("UNKNOWN", millis.InternalError),
    ("INVALID_ARGUMENT", millis.InvalidArgumentError),
    ("DEADLINE_EXCEEDED", millis.DeadlineExceededError),
    ("NOT_FOUND", millis.NotFoundError),
    ("ALREADY_EXISTS", millis.StatusError),
    ("PERMISSION_DENIED", millis.PermissionDeniedError),
    ("RESOURCE_EXHAUSTED", millis.ResourceExhaustedError),
    ("FAILED_PRECONDITION", millis.FailedPreconditionError),
    ("ABORTED", millis.StatusError),
    ("OUT_OF_RANGE", millis.InvalidArgumentError),
    ("UNIMPLEMENTED", millis.UnimplementedError),
    ("INTERNAL", millis.InternalError),
    ("UNAVAILABLE", millis.UnavailableError),
    ("DATA_LOSS", millis.InternalError),
    ("UNAUTHENTICATED", millis.UnauthenticatedError),
]


def test_every_status_but_ok_has_an_error() -> None:
    assert {code.name for code in STATUS_TO_ERROR} == {code.name for code in grpc.StatusCode} - {"OK"}
    assert {name for name, _ in CODES} == {code.name for code in STATUS_TO_ERROR}


@pytest.mark.parametrize(("name", "error_type"), CODES)
async def test_a_status_becomes_its_error(
    client: AnyClient, gateway: FakeGateway, name: str, error_type: type[millis.StatusError]
) -> None:
    code = grpc.StatusCode[name]
    gateway.script("ClassifyText", *[FakeError(code, "as scripted", reason="BECAUSE")] * 4)  # retries included
    with pytest.raises(millis.StatusError) as caught:
        await maybe_await(client.classify("a text"))
    error = caught.value
    assert (type(error), error.code, str(error), error.reason) == (error_type, code, "as scripted", "BECAUSE")


async def test_all_details_reach_the_error(client: AnyClient, gateway: FakeGateway) -> None:
    gateway.script(
        "EmbedText",
        FakeError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "queue full",
            reason="QUEUE_FULL",
            metadata={"limit": "64"},
            field_violations={"texts[1]": "too long", "texts[2]": "blank"},
            retry_after=0.25,
            resource_type="model",
            resource_name="embed",
        ),
    )
    with pytest.raises(millis.ResourceExhaustedError) as caught:
        await maybe_await(client.embed(["a", "b", "c"]))
    error = caught.value
    assert error.details == ErrorDetails(
        reason="QUEUE_FULL",
        domain="millis.dev",
        metadata={"limit": "64"},
        field_violations=(FieldViolation("texts[1]", "too long"), FieldViolation("texts[2]", "blank")),
        retry_after=0.25,
        resource_type="model",
        resource_name="embed",
    )
    assert (error.reason, error.metadata, error.field_violations, error.retry_after) == (
        error.details.reason,
        error.details.metadata,
        error.details.field_violations,
        error.details.retry_after,
    )


@pytest.mark.parametrize("error_type", sorted(set(STATUS_TO_ERROR.values()), key=lambda each: each.__name__))
def test_an_error_survives_pickling(error_type: type[millis.StatusError]) -> None:
    error = error_type("message", code=grpc.StatusCode.ABORTED, details=ErrorDetails(reason="R", retry_after=1.5))
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own bytes
    assert (type(copy), str(copy), copy.code, copy.details) == (error_type, "message", error.code, error.details)


def test_errors_fit_pythons_own_kinds() -> None:
    assert issubclass(millis.InvalidArgumentError, ValueError)
    assert issubclass(millis.DeadlineExceededError, TimeoutError)


async def test_a_gateway_that_is_not_there_is_named(kind: type[AnyClient], gateway: FakeGateway) -> None:
    gateway.stop()
    client = kind(gateway.target, retry=millis.RetryConfig(attempts=1))
    with pytest.raises(millis.UnavailableError) as caught:
        await maybe_await(client.classify("a text"))
    assert str(caught.value).startswith(f"the gateway at {gateway.target} cannot be reached: ")
    await maybe_await(client.close())


async def test_details_that_are_no_status_leave_the_status_standing() -> None:
    class Broken(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.NOT_FOUND

        def details(self) -> str:
            return "no such model"

        def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
            return (("grpc-status-details-bin", b"\xff\xff\xff"),)

    error = millis.errors.from_rpc_error(Broken(), "host:1", None)
    assert (type(error), str(error), error.details) == (millis.NotFoundError, "no such model", ErrorDetails())
