"""The engines behind the backend, on a tiny exported graph."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from millis_pipeline.precision import has_bfloat16
from millis_server.triton.backend.engine import ENGINES, EngineOptions, load_engine
from tests.conftest import Published

LENGTHS = (3, 9, 17, 5)


@pytest.fixture(scope="module")
def graph(published: Published, compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph, and beside it the same compiled for PyTorch."""
    folder = tmp_path_factory.mktemp("graph")
    shutil.copy(published.repository / "intent-fp32" / "1" / "model.onnx", folder)
    shutil.copy(compiled, folder)
    return folder / "model.onnx"


def feeds(length: int, texts: int = 2) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(length).integers(5, 100, (texts, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_engine_answers_as_onnx_runtime_does(graph, name, threads):
    reference = load_engine("onnxruntime", graph, EngineOptions())
    engine = load_engine(name, graph, EngineOptions(threads=threads, calls=2))
    assert (engine.inputs, engine.outputs) == (reference.inputs, reference.outputs)
    for length in LENGTHS:
        inputs = {key: feeds(length)[key] for key in engine.inputs}
        np.testing.assert_allclose(engine.run(inputs)[0], reference.run(inputs)[0], atol=1e-4)


FIRST_CALLS = """
import sys, threading
from pathlib import Path
import numpy as np
from millis_server.triton.backend.engine import EngineOptions, load_engine

engine = load_engine(sys.argv[1], Path(sys.argv[2]), EngineOptions(calls=8))
feeds = {name: np.ones((1, 4), np.int64) for name in engine.inputs}
ready = threading.Barrier(8)
answers = []

def call():
    ready.wait()
    answers.append(engine.run(feeds)[0])

threads = [threading.Thread(target=call) for _ in range(8)]
sys.setswitchinterval(1e-6)
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(answers))
"""
"""In a process of its own: what a library sets up in its first call is set up once a process."""


@pytest.mark.parametrize("name", ENGINES)
def test_the_first_calls_of_every_engine_may_come_together(graph, name):
    program = [sys.executable, "-c", FIRST_CALLS, name, str(graph)]
    assert subprocess.run(program, timeout=60, check=True, capture_output=True, text=True).stdout == "8\n"


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_keeps_the_answers_of_threads_and_calls_apart(graph, name):
    engine = load_engine(name, graph, EngineOptions(calls=2))
    inputs = [{key: feeds(length)[key] for key in engine.inputs} for length in LENGTHS]
    alone = [engine.run(each)[0].copy() for each in inputs]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(engine.run, inputs * 20))
    for number, (answer,) in enumerate(together):
        np.testing.assert_allclose(answer, alone[number % len(inputs)], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("abacus", {}, "parameter engine must be one of onnxruntime, openvino, torch, not 'abacus'"),
        ("onnxruntime", {"device": "tpu"}, "parameter device must be one of cpu, cuda, not 'tpu'"),
        ("openvino", {"device": "cuda"}, "parameter device is 'cuda'; engine 'openvino' has cpu only"),
        ("torch", {"device": "cuda"}, "parameter device is 'cuda'; engine 'torch' has cpu only"),
        (
            "onnxruntime",
            {"precision": "bf16"},
            "parameter engine is 'onnxruntime', which computes in f32 only; the version was measured in bf16",
        ),
    ],
)
def test_what_no_engine_can_do_is_refused_in_one_line(graph, name, options, message):
    with pytest.raises(ValueError) as caught:
        load_engine(name, graph, EngineOptions(**options))
    assert str(caught.value) == message


@pytest.mark.skipif(not has_bfloat16(), reason="this processor does not compute in bfloat16")
def test_openvino_computes_in_bfloat16_where_it_is_asked_to(graph):
    exact = load_engine("openvino", graph, EngineOptions())
    rounded = load_engine("openvino", graph, EngineOptions(precision="bf16"))
    inputs = {key: feeds(9)[key] for key in exact.inputs}
    ours, theirs = rounded.run(inputs)[0], exact.run(inputs)[0]
    assert ours.dtype == np.float32
    assert 1e-6 < abs(ours - theirs).max() < 0.1 * abs(theirs).max()


def test_a_processor_without_bfloat16_is_not_asked_to_compute_in_it(graph, monkeypatch):
    engine = sys.modules[type(load_engine("openvino", graph, EngineOptions())).__module__]

    class OtherProcessor:
        def get_property(self, device: str, name: str) -> list[str]:
            return {("CPU", "OPTIMIZATION_CAPABILITIES"): ["FP32", "INT8"]}[device, name]

    monkeypatch.setattr(engine.openvino, "Core", OtherProcessor)
    with pytest.raises(ValueError) as caught:
        load_engine("openvino", graph, EngineOptions(precision="bf16"))
    assert str(caught.value) == "the version was measured in bf16, in which this processor does not compute"


def test_a_version_that_was_not_compiled_says_what_to_build(published):
    with pytest.raises(ValueError) as caught:
        load_engine("torch", published.repository / "intent-fp32" / "1" / "model.onnx", EngineOptions())
    assert str(caught.value) == (
        "parameter engine is 'torch', and the version has no model.pt2: build it with compile: torch"
    )


def test_a_compiled_program_reads_what_must_not_be_written(graph):
    given = {key: feeds(5)[key] for key in ("input_ids", "attention_mask")}
    engine = load_engine("torch", graph, EngineOptions())
    expected = engine.run(given)[0]
    for values in given.values():
        values.setflags(write=False)
    assert engine.run(given)[0].tolist() == expected.tolist()


def test_an_engine_that_is_not_installed_says_what_to_install(graph, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "millis_server.triton.backend.engine_openvino", raising=False)
    with pytest.raises(ValueError) as caught:
        load_engine("openvino", graph, EngineOptions())
    assert str(caught.value).startswith(
        "parameter engine is 'openvino', which is not installed: pip install \"millis[openvino]\""
    )
