"""Says how much memory graphs take when they are loaded and have run: `python -m millis_pipeline.memory GRAPH …`.

It runs in a process of its own, because memory that an engine gave back is not given back to the system. Nothing
heavy is imported, so that what is counted is the engine's.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

TOKENS = 64
TIMEOUT = 300


def resident_bytes(paths: Sequence[Path]) -> int:
    """Resident memory that the loaded graphs of a variant add to a process, after one text of 64 tokens."""
    return printed_bytes("millis_pipeline.memory", [str(path) for path in paths])


def printed_bytes(module: str, arguments: Sequence[str]) -> int:
    """What a module that measures memory prints when it is run in a process of its own."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT)
    return int(done.stdout)


def resident() -> int:
    """Resident memory of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmRSS")


def _main(paths: Sequence[str]) -> None:
    before = resident()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    sessions = [onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for path in paths]
    for session in sessions:
        session.run(None, {tensor.name: _input(tensor) for tensor in session.get_inputs()})
    print(resident() - before)


def _input(tensor: Any) -> NDArray[Any]:
    """Ones, [1, 64] or, for hidden states, [1, 64, hidden size]."""
    kind = np.float32 if tensor.type == "tensor(float)" else np.int64
    return np.ones((1, TOKENS, *tensor.shape[2:]), kind)


if __name__ == "__main__":
    _main(sys.argv[1:])
