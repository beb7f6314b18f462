"""The engine interface of the `millis` backend and its ONNX Runtime implementation.

An engine runs dense tensors; it knows nothing of Triton, requests or batches. Another engine is another class
with the same three members.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray


class Engine(Protocol):
    """Runs one graph."""

    inputs: tuple[str, ...]
    """Names of the graph's inputs, each INT64 [texts, tokens]."""

    output: str
    """Name of the graph's output."""

    def run(self, feeds: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Runs the graph on `feeds` (INT64 [texts, tokens] each) and returns its FLOAT output."""


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU, with as many threads as it is told and no more."""

    def __init__(self, model: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        # ONNX Runtime's own default is one thread for each core of the host, whatever the container's share.
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A thread that spins while it waits takes the core from the other instances and from the gateway.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.inputs = tuple(tensor.name for tensor in self._session.get_inputs())
        self.output = self._session.get_outputs()[0].name
        self._outputs = [self.output]

    def run(self, feeds: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """See `Engine.run`."""
        output: NDArray[np.float32] = self._session.run(self._outputs, feeds)[0]
        return output
