"""ONNX Runtime: the default engine, on the CPU or on CUDA."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

# Since 1.29 its packages for Linux send what they run to their maker, from threads of their own, unless this was set
# when the library was imported. Who wants that says "0".
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

if TYPE_CHECKING:  # at run time this folder is no package: Triton's stub puts it on the path
    from millis_server.triton.backend.engine import EngineOptions, Feeds

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
DEVICES = tuple(PROVIDERS)
PRECISIONS = ("f32",)


class OnnxRuntimeEngine:
    """A session with as many threads for each call as it is told and no more. Sessions are re-entrant."""

    def __init__(self, model: Path, options: EngineOptions) -> None:
        session = onnxruntime.SessionOptions()
        # ONNX Runtime's own default is one thread for each core of the host, whatever the container's share.
        session.intra_op_num_threads = options.threads
        session.inter_op_num_threads = 1
        # A thread that spins while it waits takes the core from the other instances and from the gateway.
        session.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, session, providers=[_provider(options.device)])
        self.inputs = tuple(tensor.name for tensor in self._session.get_inputs())
        self.outputs = tuple(tensor.name for tensor in self._session.get_outputs())

    def run(self, feeds: Feeds) -> list[NDArray[np.float32]]:
        """See `Engine.run`."""
        outputs: list[NDArray[np.float32]] = self._session.run(self.outputs, feeds)
        return outputs


def available_devices() -> tuple[str, ...]:
    """See `engine.available_devices`."""
    providers = onnxruntime.get_available_providers()
    return tuple(device for device, provider in PROVIDERS.items() if provider in providers)


def load(model: Path, options: EngineOptions) -> OnnxRuntimeEngine:
    """See `engine.load_engine`."""
    return OnnxRuntimeEngine(model, options)


def _provider(device: str) -> str:
    """The device's provider; ONNX Runtime itself would warn and go on, on the CPU."""
    provider = PROVIDERS[device]
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise ValueError(
            f"parameter device is {device!r}, for which this onnxruntime {onnxruntime.__version__} has no {provider}, "
            f"only {', '.join(available)}; onnxruntime-gpu has it"
        )
    return provider
