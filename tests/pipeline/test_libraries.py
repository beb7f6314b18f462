"""The versions of libraries, also where another distribution brings them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import onnxruntime
import pytest

from millis_pipeline import libraries
from millis_pipeline.entry import LIBRARIES
from millis_pipeline.libraries import versions_of


def test_a_module_of_another_distribution_says_its_version_and_what_is_missing_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def only_for_gpus(name: str) -> str:
        if name == "onnxruntime":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(libraries, "version", only_for_gpus)
    assert versions_of(["onnxruntime", "tokenizers", "no-such-library"]) == {
        "onnxruntime": onnxruntime.__version__,
        "tokenizers": version("tokenizers"),
    }


def test_a_build_says_which_openvino_it_had() -> None:
    assert versions_of(LIBRARIES)["openvino"] == version("openvino")
