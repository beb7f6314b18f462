"""The model service, health and reflection."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import millis
from millis.v1 import models_pb2, models_pb2_grpc, types_pb2

NAMES = ["embed", "intent", "ner", "rerank", "topics"]


@pytest.fixture
def channel(gateway):
    with grpc.insecure_channel(gateway.target) as channel:
        yield channel


def test_models_are_listed_in_pages_in_the_order_of_their_names(channel):
    stub = models_pb2_grpc.ModelServiceStub(channel)
    pages, token = [], ""
    while True:
        page = stub.ListModels(models_pb2.ListModelsRequest(page_size=2, page_token=token))
        pages.append([model.name for model in page.models])
        token = page.next_page_token
        if not token:
            break
    assert pages == [NAMES[:2], NAMES[2:4], NAMES[4:]]


def test_models_are_listed_by_task(channel):
    request = models_pb2.ListModelsRequest(task=types_pb2.TASK_TEXT_CLASSIFICATION)
    models = models_pb2_grpc.ModelServiceStub(channel).ListModels(request).models
    assert [(model.name, model.is_default, model.multi_label) for model in models] == [
        ("intent", False, False),
        ("topics", False, True),
    ]


def test_a_model_tells_what_it_is(channel):
    model = models_pb2_grpc.ModelServiceStub(channel).GetModel(models_pb2.GetModelRequest(name="intent")).model
    assert (model.task, list(model.labels), model.max_tokens) == (
        types_pb2.TASK_TEXT_CLASSIFICATION,
        ["cancel", "order", "refund"],
        64,
    )
    ready = models_pb2.VARIANT_STATE_READY
    assert [(variant.name, variant.state, variant.version) for variant in model.variants] == [
        ("fp32", ready, "1"),
        ("int8", ready, "1"),
    ]
    assert [variant.is_default for variant in model.variants].count(True) == 1


def test_an_unloaded_model_is_unavailable_until_it_is_loaded(client, channel):
    stub = models_pb2_grpc.ModelServiceStub(channel)
    unloaded = stub.UnloadModel(models_pb2.UnloadModelRequest(name="rerank")).model
    assert {variant.state for variant in unloaded.variants} == {models_pb2.VARIANT_STATE_UNLOADED}
    with pytest.raises(millis.UnavailableError):
        client.rank("fox", ["dog"], model="rerank", timeout=10)
    loaded = stub.LoadModel(models_pb2.LoadModelRequest(name="rerank")).model
    assert {variant.state for variant in loaded.variants} == {models_pb2.VARIANT_STATE_READY}
    assert client.rank("fox", ["dog"], model="rerank").score_type == "probability"


def test_watching_sends_every_model_and_then_each_change(channel):
    stub = models_pb2_grpc.ModelServiceStub(channel)
    watch = stub.WatchModels(models_pb2.WatchModelsRequest(), timeout=30)
    assert [next(watch).name for _ in NAMES] == NAMES
    stub.UnloadModel(models_pb2.UnloadModelRequest(name="topics"))
    states = {variant.state for variant in next(watch).model.variants}
    assert models_pb2.VARIANT_STATE_UNLOADED in states
    stub.LoadModel(models_pb2.LoadModelRequest(name="topics"))
    for change in watch:
        if {variant.state for variant in change.model.variants} == {models_pb2.VARIANT_STATE_READY}:
            break
    assert change.name == "topics"
    watch.cancel()


@pytest.mark.parametrize("service", ["", "millis.v1.InferenceService", "millis.v1.ModelService"])
def test_every_service_is_healthy(channel, service):
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_the_services(channel):
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(iter([request]))
    assert sorted(service.name for service in answer.list_services_response.service) == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "millis.v1.InferenceService",
        "millis.v1.ModelService",
    ]
