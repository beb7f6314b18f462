"""The model API of the fake gateway, over the models that it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from millis._fake_errors import FakeError
from millis.v1 import models_pb2, models_pb2_grpc, types_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from millis.testing import FakeGateway


class FakeModels(models_pb2_grpc.ModelServiceServicer):
    """Answers from a gateway's script, else from its models."""

    def __init__(self, gateway: FakeGateway) -> None:
        self._gateway = gateway

    def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._gateway._answer("ListModels", request, context, self._list)

    def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._gateway._answer("GetModel", request, context, self._get)

    def LoadModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._gateway._answer("LoadModel", request, context, self._load)

    def UnloadModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._gateway._answer("UnloadModel", request, context, self._unload)

    def WatchModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._gateway._record("WatchModels", request, context)
        return self._gateway._watch(request.name, context)

    def _list(self, request: models_pb2.ListModelsRequest) -> Message | FakeError:
        """Pages whose token is the name of the first model on them."""
        names = sorted(
            name
            for name, model in self._gateway.models.items()
            if name >= request.page_token and request.task in (types_pb2.TASK_UNSPECIFIED, model.task)
        )
        size = request.page_size or 100
        models = [self._gateway.models[name] for name in names[:size]]
        return models_pb2.ListModelsResponse(models=models, next_page_token=names[size] if len(names) > size else "")

    def _get(self, request: models_pb2.GetModelRequest) -> Message | FakeError:
        model = self._gateway.models.get(request.name)
        return models_pb2.GetModelResponse(model=model) if model else _unknown(request.name)

    def _load(self, request: models_pb2.LoadModelRequest) -> Message | FakeError:
        model = self._turn(request.name, models_pb2.VARIANT_STATE_READY)
        return models_pb2.LoadModelResponse(model=model) if model else _unknown(request.name)

    def _unload(self, request: models_pb2.UnloadModelRequest) -> Message | FakeError:
        model = self._turn(request.name, models_pb2.VARIANT_STATE_UNLOADED)
        return models_pb2.UnloadModelResponse(model=model) if model else _unknown(request.name)

    def _turn(self, name: str, state: models_pb2.VariantState.ValueType) -> models_pb2.Model | None:
        model = self._gateway.models.get(name)
        if model is None:
            return None
        turned = models_pb2.Model()
        turned.CopyFrom(model)
        for variant in turned.variants:
            variant.state = state
        self._gateway.publish(turned)
        return turned


def _unknown(name: str) -> FakeError:
    return FakeError(
        grpc.StatusCode.NOT_FOUND,
        f"model {name!r} is unknown",
        reason="MODEL_NOT_FOUND",
        resource_type="model",
        resource_name=name,
    )
