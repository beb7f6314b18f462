"""A candidate that was measured, as its manifest tells of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from millis_pipeline.assess import Assessed
from millis_pipeline.calibrate import steady
from millis_pipeline.checkpoint import Checkpoint
from millis_pipeline.gate import Decision
from millis_pipeline.job import Job
from millis_pipeline.libraries import versions_of
from millis_pipeline.sources import PACKAGE_PREFIX
from millis_pipeline.verify import FP32_TOLERANCE, Judgement, self_checks
from millis_server.manifest import Manifest, Provenance
from millis_server.manifest_files import sha256
from millis_server.processor import saturates

LIBRARIES = ("torch", "transformers", "sentence-transformers", "onnx", "onnxruntime", "openvino", "tokenizers")
SELF_CHECKS = 3
"""Inputs that a version must answer as it did here before it takes traffic."""

ROUNDED_TOLERANCE = 0.25
"""Largest difference that passes the self-check of what is not fp32: another processor may round another way."""


@dataclass(frozen=True)
class Entry:
    """A variant as it was made and measured.

    Attributes:
        manifest: as it is, or would have been, published.
        judgement: what it was measured to be.
        refused: why it is not published; empty when it is.
        version: that it was published as.
    """

    manifest: Manifest
    judgement: Judgement
    refused: str = ""
    version: str = ""

    def published_as(self, version: str) -> Entry:
        """The same, with its version."""
        return replace(self, version=version)


def make_entry(job: Job, one: Assessed, decision: Decision) -> Entry:
    """The entry of a candidate, with the manifest that it is, or would have been, published with."""
    candidate, checkpoint = one.candidate, one.candidate.checkpoint
    manifest = Manifest(
        model=job.name,
        variant=candidate.name,
        task=checkpoint.task,
        labels=checkpoint.labels,
        multi_label=checkpoint.multi_label,
        max_tokens=checkpoint.max_tokens,
        pad_id=checkpoint.tokenizer.pad_token_id or 0,
        inputs=checkpoint.inputs,
        dimensions=checkpoint.dimensions,
        normalized=checkpoint.normalized,
        activation=checkpoint.activation,
        default_variant=candidate.name == decision.default,
        default_for_task=job.recipe is not None and job.recipe.default,
        files={path.name: sha256(path) for path in candidate.files},
        size_bytes=sum(path.stat().st_size for path in candidate.graphs),
        memory_bytes=one.memory_bytes,
        quality=one.judgement.quality,
        latency=one.latency,
        provenance=_provenance(job, checkpoint, candidate.steps),
        weight_bits=0 if candidate.recipe.quantize is None else 7 if saturates() else 8,
        precision=candidate.precision,
        exits=one.exits,
        self_check=self_checks(checkpoint, one.evaluation, candidate.runner(), _checked(one)),
        tolerance=FP32_TOLERANCE if candidate.exact else ROUNDED_TOLERANCE,
    )
    return Entry(manifest, one.judgement, refused=decision.refused.get(candidate.name, ""))


def _checked(one: Assessed) -> list[int]:
    """Inputs for the self-check. Of a variant with exits those that leave clearly where they leave: on another machine
    rounding must not send one on."""
    candidate = one.candidate
    if not candidate.exits:
        return list(range(min(SELF_CHECKS, len(one.evaluation.inputs))))
    return steady(candidate.stages(), one.evaluation.rows, candidate.checkpoint.inputs, SELF_CHECKS)


def _provenance(job: Job, checkpoint: Checkpoint, steps: tuple[str, ...]) -> Provenance:
    return Provenance(
        checkpoint=job.source.removeprefix(PACKAGE_PREFIX) if job.source.startswith(PACKAGE_PREFIX) else job.source,
        dataset=job.dataset if job.recipe is not None and job.recipe.train is not None else "",
        recipe=job.recipe.digest if job.recipe is not None else "",
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        steps=steps,
        versions=versions_of(LIBRARIES),
        license=(job.recipe.license if job.recipe is not None else "") or checkpoint.license,
    )
