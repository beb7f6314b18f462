"""Messages of the model API to the values of `catalog.py`."""

from __future__ import annotations

from datetime import UTC

from millis import _enums
from millis._results import milliseconds
from millis.catalog import Exit, LatencyPoint, Model, ModelChange, ModelVariant, Quality, RefusedVersion
from millis.v1 import models_pb2 as pb


def model(message: pb.Model) -> Model:
    """A model with its variants."""
    return Model(
        name=message.name,
        task=_enums.TASKS.name(message.task),
        variants=tuple(_variant(each) for each in message.variants),
        labels=tuple(message.labels),
        multi_label=message.multi_label,
        max_tokens=message.max_tokens,
        dimensions=message.dimensions,
        is_default=message.is_default,
        provenance=message.provenance,
        license=message.license,
    )


def change(message: pb.WatchModelsResponse) -> ModelChange:
    """One message of the watch stream."""
    return ModelChange(message.name, model(message.model) if message.HasField("model") else None)


def _variant(message: pb.ModelVariant) -> ModelVariant:
    return ModelVariant(
        name=message.name,
        triton_model=message.triton_model,
        state=_enums.VARIANT_STATES.name(message.state),
        reason=message.reason,
        version=message.version,
        refused_versions=tuple(
            RefusedVersion(each.version, each.reason, each.refused_at.ToDatetime(tzinfo=UTC))
            for each in message.refused_versions
        ),
        is_default=message.is_default,
        quality=_quality(message.quality) if message.HasField("quality") else None,
        latency=tuple(
            LatencyPoint(each.batch, each.tokens, milliseconds(each.p50), milliseconds(each.p99))
            for each in message.latency
        ),
        size_bytes=message.size_bytes,
        exits=tuple(
            Exit(each.layers, each.threshold if each.HasField("threshold") else None, each.share)
            for each in message.exits
        ),
    )


def _quality(message: pb.Quality) -> Quality:
    return Quality(message.metric, message.value, message.low, message.high, message.examples, message.dataset)
