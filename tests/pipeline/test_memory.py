"""How much memory graphs take: what is counted, and what is said of those that do not run."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest

from millis_pipeline import memory
from millis_pipeline.build import ERRORS
from millis_pipeline.memory import MeasurementError, printed


def test_a_graph_that_fails_in_its_process_is_one_clear_line() -> None:
    with pytest.raises(ERRORS) as caught:
        printed("millis_pipeline.memory", ["no_such_engine", "f32", "[]", "[]"])
    assert str(caught.value) == (
        "measuring memory: millis_pipeline.memory no_such_engine ended with code 1: "
        "ModuleNotFoundError: No module named 'no_such_engine'"
    )


def test_a_graph_that_does_not_end_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "TIMEOUT", 0.001)
    with pytest.raises(MeasurementError) as caught:
        printed("millis_pipeline.memory", ["onnxruntime", "f32", "[]", "[]"])
    assert str(caught.value) == "measuring memory: millis_pipeline.memory onnxruntime took more than 0.001 s"


def test_the_plugin_of_openvino_is_loaded_before_anything_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[tuple[str, ...]] = []
    core = SimpleNamespace(get_property=lambda *asked: done.append(asked))
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(Core=lambda: core))
    monkeypatch.setattr(memory, "resident", lambda: done.append(("resident",)) or len(done))
    memory._main("openvino", "bf16", "[]", "[[8, 16], [1, 8]]")
    assert done == [("CPU", "FULL_DEVICE_NAME"), ("resident",), ("resident",), ("resident",)]
    # What fewer tokens take is measured first.
    assert capsys.readouterr().out == "[2, 1]\n"
