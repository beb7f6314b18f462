"""ModelService: which models are served, in which state, and how to change that without a restart."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from millis.v1 import models_pb2 as pb
from millis.v1 import models_pb2_grpc
from millis.v1 import types_pb2 as types
from millis_server.answering import Around, Context, answering, answering_stream
from millis_server.catalogue import Catalogue, State, Variant
from millis_server.errors import InvalidField
from millis_server.manifest import LatencyPoint, TaskName
from millis_server.reload import Reloader
from millis_server.requests import checked_name

DEFAULT_PAGE = 100
MAX_PAGE = 1000

TASKS: dict[TaskName, types.Task.ValueType] = {
    "text-classification": types.TASK_TEXT_CLASSIFICATION,
    "token-classification": types.TASK_TOKEN_CLASSIFICATION,
    "embedding": types.TASK_EMBEDDING,
    "cross-encoder": types.TASK_CROSS_ENCODER,
    "text-generation": types.TASK_TEXT_GENERATION,
}
STATES = {
    State.LOADING: pb.VARIANT_STATE_LOADING,
    State.READY: pb.VARIANT_STATE_READY,
    State.FAILED: pb.VARIANT_STATE_FAILED,
    State.RECOVERING: pb.VARIANT_STATE_RECOVERING,
    State.UNLOADED: pb.VARIANT_STATE_UNLOADED,
}


class ModelService(models_pb2_grpc.ModelServiceServicer):
    """Answers the model RPCs.

    Args:
        catalogue: the models.
        reloader: loads and unloads them.
        around: what the RPCs have around them.
    """

    def __init__(self, catalogue: Catalogue, reloader: Reloader, around: Around) -> None:
        self._catalogue = catalogue
        self._reloader = reloader
        self.around = around

    @answering
    async def ListModels(  # noqa: N802  # names of RPCs are given by the proto
        self, request: pb.ListModelsRequest, _context: Context
    ) -> pb.ListModelsResponse:
        """One page of models."""
        if request.page_size > MAX_PAGE:
            raise InvalidField("page_size", f"is {request.page_size}, the limit is {MAX_PAGE}")
        if request.task not in types.Task.values():
            raise InvalidField("task", f"is {request.task}, which is no value of its enum")
        after = _read_token(request.page_token)
        names = [name for name in self._catalogue.models() if name > after and self._is_of(name, request.task)]
        size = request.page_size or DEFAULT_PAGE
        page = names[:size]
        return pb.ListModelsResponse(
            models=[self._model(name) for name in page],
            next_page_token=_page_token(page[-1]) if len(names) > size else "",
        )

    @answering
    async def GetModel(  # noqa: N802
        self, request: pb.GetModelRequest, _context: Context
    ) -> pb.GetModelResponse:
        """All about one model."""
        return pb.GetModelResponse(model=self._model(_name(request.name)))

    @answering
    async def LoadModel(  # noqa: N802
        self, request: pb.LoadModelRequest, _context: Context
    ) -> pb.LoadModelResponse:
        """Brings a model's newest good versions into service."""
        await self._reloader.load_model(_name(request.name))
        return pb.LoadModelResponse(model=self._model(request.name))

    @answering
    async def UnloadModel(  # noqa: N802
        self, request: pb.UnloadModelRequest, _context: Context
    ) -> pb.UnloadModelResponse:
        """Takes a model out of service."""
        await self._reloader.unload_model(_name(request.name))
        return pb.UnloadModelResponse(model=self._model(request.name))

    @answering_stream
    async def WatchModels(  # noqa: N802
        self, request: pb.WatchModelsRequest, _context: Context
    ) -> AsyncGenerator[pb.WatchModelsResponse, None]:
        """Every model, then each that changes."""
        with self._catalogue.watch() as changes:
            if request.name:
                self._catalogue.variants_of(_name(request.name))  # raises when there is no such model
            for name in self._catalogue.models():
                if request.name in ("", name):
                    yield self._change(name)  # it may be gone since the one before was sent
            while True:
                name = await changes.get()
                if request.name in ("", name):
                    yield self._change(name)

    def _change(self, name: str) -> pb.WatchModelsResponse:
        if name in self._catalogue.models():
            return pb.WatchModelsResponse(name=name, model=self._model(name))
        return pb.WatchModelsResponse(name=name)

    def _is_of(self, name: str, task: types.Task.ValueType) -> bool:
        return task in (types.TASK_UNSPECIFIED, TASKS[self._catalogue.variants_of(name)[0].manifest.task])

    def _model(self, name: str) -> pb.Model:
        variants = self._catalogue.variants_of(name)
        manifest = next((v for v in variants if v.manifest.default_variant), variants[0]).manifest
        provenance = manifest.provenance
        return pb.Model(
            name=name,
            task=TASKS[manifest.task],
            variants=[_variant(variant) for variant in variants],
            labels=manifest.labels,
            multi_label=manifest.multi_label,
            max_tokens=manifest.max_tokens,
            dimensions=manifest.dimensions,
            is_default=self._catalogue.default_model(manifest.task) == name,
            provenance=provenance.checkpoint + (f", trained on {provenance.dataset}" if provenance.dataset else ""),
            license=provenance.license,
        )


def _variant(variant: Variant) -> pb.ModelVariant:
    manifest = variant.manifest
    message = pb.ModelVariant(
        name=manifest.variant,
        triton_model=manifest.triton_model,
        state=STATES[variant.state],
        reason=variant.reason,
        version=variant.current.version if variant.current else "",
        is_default=manifest.default_variant,
        latency=[_latency(point) for point in manifest.latency.points] if manifest.latency else [],
        size_bytes=manifest.size_bytes,
        exits=[pb.Exit(layers=exit.layers, threshold=exit.threshold, share=exit.share) for exit in manifest.exits],
    )
    for refusal in variant.refused.values():
        refused_at = Timestamp()
        refused_at.FromDatetime(refusal.at)
        message.refused_versions.add(version=refusal.version, reason=refusal.reason, refused_at=refused_at)
    if quality := manifest.quality:
        message.quality.CopyFrom(
            pb.Quality(
                metric=quality.metric,
                value=quality.value,
                low=quality.low,
                high=quality.high,
                examples=quality.examples,
                dataset=quality.dataset,
            )
        )
    return message


def _latency(point: LatencyPoint) -> pb.LatencyPoint:
    return pb.LatencyPoint(
        batch=point.batch,
        tokens=point.tokens,
        p50=_milliseconds(point.p50_ms),
        p99=_milliseconds(point.p99_ms),
    )


def _milliseconds(value: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(round(value * 1e3))
    return duration


def _name(name: str) -> str:
    if not name:
        raise InvalidField("name", "is empty")
    return checked_name("name", name)


def _page_token(last: str) -> str:
    """A page token says after which name the next page begins; encoded, so that nobody builds on its form."""
    return base64.urlsafe_b64encode(last.encode()).decode()


def _read_token(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError:  # not base64, not ASCII, not UTF-8
        raise InvalidField("page_token", "is not one that ListModels returned") from None
