"""What a measurement of `millis tune` depends on beside its configuration; only trials in equal ones are compared."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from google.protobuf import text_format

from millis_pipeline.configuration import Configuration, configured
from millis_pipeline.libraries import version_of
from millis_pipeline.machine import machine
from millis_pipeline.stand import Subject

PLAIN = Configuration("", "", 1, 1, 1, 0, 0, 1)
"""What a search varies is the same in all configs, so that one that it wrote itself is the one that it read."""

SERVING = ("millis", "nvidia-pytriton")
"""Libraries around the engine."""


@dataclass(frozen=True)
class Circumstances:
    """In which a variant was measured on an engine. The target is not among them: it judges what was measured.

    Attributes:
        machine: processor and cores.
        versions: of the engine, and of what is around it.
        files: digest of the version's files.
        config: digest of what its config.pbtxt says beside what a search varies.
        texts: digest of what was asked.
        callers: at saturation.
        phase_seconds: time of one measurement.
    """

    machine: str
    versions: dict[str, str]
    files: str
    config: str
    texts: str
    callers: int
    phase_seconds: float


def circumstances_of(subject: Subject, engine: str, callers: int, phase_seconds: float) -> Circumstances:
    """The circumstances here and now.

    Args:
        subject: variant that is measured.
        engine: that runs it.
        callers: at saturation.
        phase_seconds: time of one measurement.
    """
    return Circumstances(
        machine=machine(),
        versions={name: version_of(name) for name in (engine, *SERVING)},
        files=_digest(subject.manifest.files),
        config=_digest(text_format.MessageToString(configured(subject.config, PLAIN))),
        texts=_digest([row.ids for row in subject.rows]),
        callers=callers,
        phase_seconds=phase_seconds,
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
