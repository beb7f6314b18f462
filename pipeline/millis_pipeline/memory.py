"""Says how much memory a graph takes when it is loaded and has run: `python -m millis_pipeline.memory GRAPH`.

It runs in a process of its own, because memory that an engine gave back is not given back to the system. Nothing
heavy is imported, so that what is counted is the engine's.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime

TOKENS = 64
TIMEOUT = 300


def resident_bytes(path: Path) -> int:
    """Resident memory that one loaded graph adds to a process, after one text of up to 64 tokens."""
    command = [sys.executable, "-m", "millis_pipeline.memory", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT)
    return int(done.stdout)


def _resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmRSS")


def _main(path: str) -> None:
    before = _resident()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    ids = np.ones((1, TOKENS), np.int64)
    session.run(None, {tensor.name: ids for tensor in session.get_inputs()})
    print(_resident() - before)


if __name__ == "__main__":
    _main(sys.argv[1])
