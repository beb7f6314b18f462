"""The model API, on both clients."""

import asyncio
import threading
from datetime import UTC, datetime

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

import millis
from millis.testing import FakeError, FakeGateway
from millis.v1 import models_pb2, types_pb2
from tests.client.twins import AnyClient, close_stream, maybe_await, take

MESSAGE = models_pb2.Model(
    name="intent",
    task=types_pb2.TASK_TEXT_CLASSIFICATION,
    variants=[
        models_pb2.ModelVariant(
            name="int8",
            triton_model="intent-int8",
            state=models_pb2.VARIANT_STATE_READY,
            version="2",
            refused_versions=[
                models_pb2.RefusedVersion(
                    version="3", reason="digest differs", refused_at=Timestamp(seconds=1_700_000_000)
                )
            ],
            is_default=True,
            quality=models_pb2.Quality(
                metric="accuracy", value=0.93, low=0.92, high=0.94, examples=3080, dataset="banking77"
            ),
            latency=[
                models_pb2.LatencyPoint(
                    batch=1, tokens=16, p50=Duration(nanos=3_150_000), p99=Duration(nanos=4_000_000)
                )
            ],
            size_bytes=22_000_000,
        )
    ],
    labels=["refund", "other"],
    multi_label=True,
    max_tokens=256,
    is_default=True,
    provenance="all-MiniLM-L6-v2",
    license="Apache-2.0",
)
MODEL = millis.Model(
    name="intent",
    task="text-classification",
    variants=(
        millis.ModelVariant(
            name="int8",
            triton_model="intent-int8",
            state="ready",
            reason="",
            version="2",
            refused_versions=(
                millis.RefusedVersion("3", "digest differs", datetime.fromtimestamp(1_700_000_000, UTC)),
            ),
            is_default=True,
            quality=millis.Quality("accuracy", 0.93, 0.92, 0.94, 3080, "banking77"),
            latency=(millis.LatencyPoint(1, 16, 3.15, 4.0),),
            size_bytes=22_000_000,
        ),
    ),
    labels=("refund", "other"),
    multi_label=True,
    max_tokens=256,
    dimensions=0,
    is_default=True,
    provenance="all-MiniLM-L6-v2",
    license="Apache-2.0",
)


async def test_get_tells_all_about_a_model(client: AnyClient, gateway: FakeGateway) -> None:
    gateway.publish(MESSAGE)
    assert await maybe_await(client.models.get("intent")) == MODEL


async def test_list_follows_the_pages(client: AnyClient, gateway: FakeGateway) -> None:
    for number in range(250):
        gateway.publish(models_pb2.Model(name=f"m{number:03}", task=types_pb2.TASK_EMBEDDING))
    models = await maybe_await(client.models.list("embedding"))
    assert [model.name for model in models] == [f"m{number:03}" for number in range(250)]
    assert [request.message.page_token for request in gateway.requests] == ["", "m100", "m200"]


async def test_list_ends_when_a_gateway_repeats_a_page(client: AnyClient, gateway: FakeGateway) -> None:
    page = models_pb2.ListModelsResponse(models=[MESSAGE], next_page_token="again")  # of a page
    gateway.script("ListModels", *[page] * 5)
    await maybe_await(client.models.list())
    assert len(gateway.requests) == 2


async def test_an_unknown_task_is_refused(client: AnyClient) -> None:
    with pytest.raises(millis.InvalidArgumentError) as caught:
        await maybe_await(client.models.list("translation"))  # type: ignore[arg-type]
    assert str(caught.value) == (
        "task: 'translation' is not one of text-classification, token-classification, embedding, cross-encoder, "
        "text-generation"
    )


async def test_an_unknown_model_is_not_found(client: AnyClient) -> None:
    with pytest.raises(millis.NotFoundError) as caught:
        await maybe_await(client.models.get("nope"))
    details = caught.value.details
    assert (details.reason, details.resource_type, details.resource_name) == ("MODEL_NOT_FOUND", "model", "nope")


async def test_unload_and_load_turn_a_model_off_and_on(client: AnyClient) -> None:
    off = await maybe_await(client.models.unload("fake"))
    on = await maybe_await(client.models.load("fake"))
    assert [{variant.state for variant in model.variants} for model in (off, on)] == [{"unloaded"}, {"ready"}]


async def test_load_has_time_for_a_large_model(client: AnyClient, gateway: FakeGateway) -> None:
    await maybe_await(client.models.load("fake"))
    left = gateway.requests[0].time_left
    assert left is not None and 200 < left < 301


async def test_watch_shows_every_model_and_then_changes(client: AnyClient, gateway: FakeGateway) -> None:
    stream = client.models.watch()
    (first,) = await take(stream, 1)
    gateway.publish(MESSAGE)
    gateway.remove("fake")
    changes = await take(stream, 2)
    await close_stream(stream)
    assert (first.name, changes) == ("fake", [millis.ModelChange("intent", MODEL), millis.ModelChange("fake", None)])


async def test_watch_can_be_held_to_one_model(client: AnyClient, gateway: FakeGateway) -> None:
    gateway.publish(MESSAGE)
    stream = client.models.watch("intent")
    (first,) = await take(stream, 1)
    await close_stream(stream)
    assert first == millis.ModelChange("intent", MODEL)


async def test_watch_ends_with_its_timeout(client: AnyClient) -> None:
    stream = client.models.watch(timeout=0.2)
    with pytest.raises(millis.DeadlineExceededError):
        await take(stream, 2)


async def test_watch_tells_that_the_gateway_has_gone(client: AnyClient, gateway: FakeGateway) -> None:
    stream = client.models.watch()
    await take(stream, 1)
    gateway.stop()
    with pytest.raises(millis.StatusError):
        await take(stream, 1)


async def test_watch_of_a_closed_client_says_so(client: AnyClient) -> None:
    await maybe_await(client.close())
    with pytest.raises(millis.ClientClosedError):
        await take(client.models.watch(), 1)


def test_closing_a_client_ends_a_watch_that_waits(gateway: FakeGateway) -> None:
    client = millis.Client(gateway.target)
    stream = client.models.watch()
    next(stream)
    timer = threading.Timer(0.1, client.close)
    timer.start()
    with pytest.raises(millis.RequestCancelledError):
        next(stream)
    timer.join()


async def test_closing_an_async_client_ends_a_watch_that_waits(gateway: FakeGateway) -> None:
    client = millis.AsyncClient(gateway.target)
    stream = client.models.watch()
    await anext(stream)
    waiting = asyncio.create_task(anext(stream))
    await asyncio.sleep(0.05)
    await client.close()
    with pytest.raises(millis.RequestCancelledError):
        await waiting


async def test_a_failed_load_is_an_error(client: AnyClient, gateway: FakeGateway) -> None:
    error = FakeError(grpc.StatusCode.FAILED_PRECONDITION, "version 3 failed its self-check", reason="LOAD_FAILED")
    gateway.script("LoadModel", error)
    with pytest.raises(millis.FailedPreconditionError) as caught:
        await maybe_await(client.models.load("fake"))
    assert (str(caught.value), caught.value.reason) == ("version 3 failed its self-check", "LOAD_FAILED")
