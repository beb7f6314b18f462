"""How the generating backend reads its config, without Triton: its module stands in here."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest

import millis_server.triton.generation_backend
from millis_server.triton.generation_backend.decoding.generator import GeneratorOptions

FOLDER = Path(*millis_server.triton.generation_backend.__path__)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that Triton loads, from the folder that is on the path in its process."""
    stand_in = ModuleType("triton_python_backend_utils")
    stand_in.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stand_in)
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    import model

    yield model
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("model", "decoding"):
            del sys.modules[name]


@pytest.mark.parametrize(("given", "graphs"), [("true", True), ("false", False), ("", None)])
def test_parameters_of_the_config_become_options(backend, given, graphs):
    parameters = {
        "threads": "3",
        "device": "cuda",
        "max_streams": "5",
        "cache_tokens": "1000",
        "max_batched_tokens": "64",
        "kv_cache_precision": "f32",
        "prefix_caching": "false",
        "prompt_lookup": "4",
        "draft": "draft",
        "cuda_graphs": given,
    }
    options = backend._options({name: {"string_value": value} for name, value in parameters.items()}, (2,))
    assert asdict(options) == asdict(
        GeneratorOptions(3, "cuda", 5, 1000, 64, "f32", False, 4, "draft", cuda_graphs=graphs, eos=(2,))
    )


def test_what_the_config_leaves_out_has_its_default(backend):
    assert asdict(backend._options({}, (2,))) == asdict(GeneratorOptions(eos=(2,)))


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("cuda_graphs", "yes", "parameter cuda_graphs must be true, false or left out, not 'yes'"),
        ("max_streams", "0", "parameter max_streams must be a whole number of at least 1, not '0'"),
    ],
)
def test_a_parameter_that_is_none_is_told_in_one_line(backend, name, value, problem):
    with pytest.raises(ValueError, match=f"^{problem}$"):
        backend._options({name: {"string_value": value}}, (2,))
