"""PyTorch on the CPU, compiled ahead of time by AOTInductor: `millis build` writes `model.pt2` where a recipe asks.

The file holds machine code for the kind of processor that compiled it, and needs no compiler where it is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch._inductor.package import load_package

if TYPE_CHECKING:  # at run time this folder is no package: Triton's stub puts it on the path
    from millis_server.triton.backend.engine import EngineOptions, Feeds

DEVICES = ("cpu",)
PRECISIONS = ("f32",)

INPUTS, OUTPUTS = "millis.inputs", "millis.outputs"
"""Keys of the file's metadata: names, with commas between them."""


class TorchEngine:
    """A compiled program, loaded as often as calls run side by side."""

    def __init__(self, package: Path, options: EngineOptions) -> None:
        torch.set_num_threads(options.threads)
        self._program = load_package(str(package), num_runners=options.calls)
        described = self._program.get_metadata()
        self.inputs = tuple(described[INPUTS].split(","))
        self.outputs = tuple(described[OUTPUTS].split(","))

    def run(self, feeds: Feeds) -> list[NDArray[np.float32]]:
        """See `Engine.run`."""
        with torch.inference_mode():
            outputs = self._program(*(_tensor(feeds[name]) for name in self.inputs))
        return [output.numpy() for output in (outputs if isinstance(outputs, (list, tuple)) else (outputs,))]


def available_devices() -> tuple[str, ...]:
    """See `engine.available_devices`."""
    return DEVICES


def load(model: Path, options: EngineOptions) -> TorchEngine:
    """See `engine.load_engine`; the compiled program lies beside the graph."""
    package = model.with_suffix(".pt2")
    if not package.is_file():
        raise ValueError(
            f"parameter engine is 'torch', and the version has no {package.name}: build it with compile: torch"
        )
    return TorchEngine(package, options)


def _tensor(values: NDArray[Any]) -> torch.Tensor:
    """Triton's arrays may be read-only, which tensors cannot be; they are small."""
    return torch.from_numpy(values if values.flags.writeable else values.copy())
