"""The versions of the libraries that a model is made and measured with."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec


def version_of(name: str) -> str:
    """Version of a library; empty when it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        # Another distribution may bring the module: `onnxruntime-gpu` is imported as `onnxruntime`.
        module = name.replace("-", "_")
        if find_spec(module) is None:
            return ""
        return str(getattr(importlib.import_module(module), "__version__", ""))


def versions_of(names: Iterable[str]) -> dict[str, str]:
    """The versions of those libraries that are installed."""
    found = {name: version_of(name) for name in names}
    return {name: said for name, said in found.items() if said}
