"""What an engine of the `millis` backend is, and which ones there are.

An engine runs dense tensors; it knows nothing of Triton, requests or batches. Another one is a file
`engine_<name>.py` with a function `load`, the tuples `DEVICES` and `PRECISIONS` that it can do, and a function
`available_devices`, and its name in `ENGINES`. Its library is imported only when a config asks for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

ENGINES = ("onnxruntime", "openvino", "torch")
"""Values of the config's parameter `engine`."""

DEFAULT_ENGINES = {"f32": "onnxruntime", "bf16": "openvino"}
"""Engine of a version by its manifest's precision, in which what is not quantized is computed, when the config names
none."""

DEVICES = ("cpu", "cuda")
"""Values of the config's parameter `device`; the first is the default. Not every engine has every device."""


Feeds = Mapping[str, NDArray[np.int64] | NDArray[np.float32]]
"""Input tensors by name: INT64 [texts, tokens] each, or hidden states FLOAT [texts, tokens, hidden size]."""


class Engine(Protocol):
    """Runs one graph; several threads may call it at once."""

    inputs: tuple[str, ...]
    """Names of the graph's inputs."""

    outputs: tuple[str, ...]
    """Names of the graph's outputs; the first one is what the model answers."""

    def run(self, feeds: Feeds) -> list[NDArray[np.float32]]:
        """Runs the graph and returns its FLOAT outputs, the caller's own, in order."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine may use the machine.

    Attributes:
        threads: that work on one call.
        calls: side by side, each from a thread of its own.
        device: one of `DEVICES`.
        precision: a key of `DEFAULT_ENGINES`; not every engine has both, and not every processor.
    """

    threads: int = 1
    calls: int = 1
    device: str = DEVICES[0]
    precision: str = "f32"


def load_engine(name: str, model: Path, options: EngineOptions) -> Engine:
    """Loads a graph into the engine of that name.

    Raises:
        ValueError: no engine has the name, its library is not installed, or it has no such device or precision; the
            message is one line and says what would do.
    """
    if name not in ENGINES:
        raise ValueError(f"parameter engine must be one of {', '.join(ENGINES)}, not {name!r}")
    if options.device not in DEVICES:
        raise ValueError(f"parameter device must be one of {', '.join(DEVICES)}, not {options.device!r}")
    module = _module(name)
    if options.device not in module.DEVICES:
        has = ", ".join(module.DEVICES)
        raise ValueError(f"parameter device is {options.device!r}; engine {name!r} has {has} only")
    if options.precision not in module.PRECISIONS:
        has = ", ".join(module.PRECISIONS)
        raise ValueError(
            f"parameter engine is {name!r}, which computes in {has} only; "
            f"the version was measured in {options.precision}"
        )
    engine: Engine = module.load(model, options)
    return engine


def available_devices(name: str) -> tuple[str, ...]:
    """Devices that an engine's library can use as it is installed; whether the machine has them shows at a load.

    Raises:
        ValueError: the library is not installed.
    """
    devices: tuple[str, ...] = _module(name).available_devices()
    return devices


def precisions(name: str) -> tuple[str, ...]:
    """Precisions that an engine computes in.

    Raises:
        ValueError: its library is not installed.
    """
    found: tuple[str, ...] = _module(name).PRECISIONS
    return found


def _module(name: str) -> ModuleType:
    # This file is `engine` in Triton's process, where the folder is on the path, and part of a package elsewhere.
    package = __name__.removesuffix("engine")
    try:
        return importlib.import_module(f"{package}engine_{name}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f'parameter engine is {name!r}, which is not installed: pip install "millis[{name}]" '
            f"in the environment that runs Triton ({error})"
        ) from None
