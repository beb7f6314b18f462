"""Builds models for tests that are about something else than the gate."""

from __future__ import annotations

import pytest

from millis_pipeline import build


def publish_all(*arguments: str) -> int:
    """`millis build`, to which every variant is fast enough: speed on a shared machine must decide no test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("millis_pipeline.gate.FASTER", 1e9)
        return build.main(list(arguments))
