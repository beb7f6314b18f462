"""OpenVINO: an engine for the CPU that reads the same graph. `millis tune` says where it is the faster one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import openvino
from numpy.typing import NDArray

if TYPE_CHECKING:  # at run time this folder is no package: Triton's stub puts it on the path
    from millis_server.triton.backend.engine import EngineOptions, Feeds


DEVICES = ("cpu",)
PRECISIONS = ("f32", "bf16")


class OpenVinoEngine:
    """A compiled graph with an infer request for each thread that calls it: a request serves one call at a time."""

    def __init__(self, model: Path, options: EngineOptions) -> None:
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            # A stream works on one call; the threads are those of all streams together.
            "NUM_STREAMS": options.calls,
            "INFERENCE_NUM_THREADS": options.calls * options.threads,
            # Pinned threads of several models would share one core while another is idle.
            "ENABLE_CPU_PINNING": False,
            # Left to itself OpenVINO would choose by the processor, and answers would differ from export.
            "INFERENCE_PRECISION_HINT": options.precision,
        }
        core = openvino.Core()
        _check_precision(core, options.precision)
        self._compiled = core.compile_model(model, "CPU", config)
        self.inputs = tuple(port.any_name for port in self._compiled.inputs)
        self.outputs = tuple(port.any_name for port in self._compiled.outputs)
        self._of_thread = threading.local()
        # OpenVINO's Python layer sets itself up in the first call. Two threads that make it together wait for each
        # other for ever, one for the interpreter's lock and one for the other's set-up (seen with 2026.4).
        self.run({port.any_name: _smallest(port) for port in self._compiled.inputs})

    def run(self, feeds: Feeds) -> list[NDArray[np.float32]]:
        """See `Engine.run`."""
        request = getattr(self._of_thread, "request", None)
        if request is None:
            request = self._of_thread.request = self._compiled.create_infer_request()
        # Inputs are read in place. Outputs are copies: the request writes over its own at the thread's next call.
        return list(request.infer(feeds, share_inputs=True).to_tuple())


def available_devices() -> tuple[str, ...]:
    """See `engine.available_devices`."""
    return DEVICES


def load(model: Path, options: EngineOptions) -> OpenVinoEngine:
    """See `engine.load_engine`."""
    return OpenVinoEngine(model, options)


def _smallest(port: openvino.ConstOutput) -> NDArray[np.int64] | NDArray[np.float32]:
    """Zeros for an input, one along each axis whose length is open."""
    lengths = [axis.get_length() if axis.is_static else 1 for axis in port.partial_shape]
    zeros: NDArray[np.int64] | NDArray[np.float32] = np.zeros(lengths, port.element_type.to_dtype())
    return zeros


def _check_precision(core: openvino.Core, precision: str) -> None:
    """To OpenVINO it is a hint; a variant that was measured in bfloat16 must be computed so, or not at all."""
    if precision != "f32" and precision.upper() not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError(f"the version was measured in {precision}, in which this processor does not compute")
