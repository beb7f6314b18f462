"""Says how much memory graphs take when they are loaded and have run.

    python -m millis_pipeline.memory ENGINE PRECISION GRAPHS SIZES        (JSON, see `resident_bytes`)

It runs in a process of its own, because memory that an engine gave back is not given back to the system. Nothing
heavy is imported, so that what is counted is the engine's.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millis_server.triton.backend.engine import Engine, EngineOptions, load_engine

TIMEOUT = 300


class MeasurementError(RuntimeError):
    """A graph that does not load or run in a process of its own; the message is one line."""


def resident_bytes(
    graphs: Mapping[Path, Mapping[str, int]], engine: str, precision: str, sizes: Sequence[tuple[int, int]]
) -> list[int]:
    """Resident memory that the loaded graphs of a variant add to a process, after calls of each size.

    Args:
        graphs: each with its inputs, see `latency.graph_inputs`.
        engine: that runs them.
        precision: in which it computes.
        sizes: (batch, tokens) of calls.

    Returns:
        The memory after a call of each size and of all those with fewer tokens in all.

    Raises:
        MeasurementError: as `printed`.
    """
    described = [(str(path), dict(inputs)) for path, inputs in graphs.items()]
    arguments = [engine, precision, json.dumps(described), json.dumps(sizes)]
    found: list[int] = printed("millis_pipeline.memory", arguments)
    return found


def printed(module: str, arguments: Sequence[str]) -> Any:
    """What a module that measures memory prints, as JSON, when it is run in a process of its own.

    Raises:
        MeasurementError: it failed, or took longer than `TIMEOUT` seconds.
    """
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(f"measuring memory: {module} {arguments[0]} took more than {TIMEOUT} s") from error
    if done.returncode != 0:
        # Of a traceback the last line says what happened; who was killed says nothing.
        last = (done.stderr.strip().splitlines() or ["no message"])[-1].strip()
        raise MeasurementError(
            f"measuring memory: {module} {arguments[0]} ended with code {done.returncode}: {last[:300]}"
        )
    return json.loads(done.stdout)


def resident() -> int:
    """Resident memory of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmRSS")


def _main(name: str, precision: str, described: str, sizes: str) -> None:
    # The library is every model's, and not counted with the graphs.
    library = importlib.import_module(name)
    if name == "openvino":
        library.Core().get_property("CPU", "FULL_DEVICE_NAME")  # loads the CPU plugin, which is the library's too
    before = resident()
    graphs: list[tuple[Engine, dict[str, int]]] = [
        (load_engine(name, Path(path), EngineOptions(precision=precision)), inputs)
        for path, inputs in json.loads(described)
    ]
    found: dict[tuple[int, int], int] = {}
    asked = [(batch, tokens) for batch, tokens in json.loads(sizes)]
    for batch, tokens in sorted(asked, key=lambda size: size[0] * size[1]):
        for engine, inputs in graphs:
            engine.run({given: _ones(batch, tokens, width) for given, width in inputs.items()})
        found[batch, tokens] = resident() - before
    print(json.dumps([found[size] for size in asked]))


def _ones(batch: int, tokens: int, width: int) -> NDArray[Any]:
    """[batch, tokens] or, for hidden states, [batch, tokens, width]."""
    return np.ones((batch, tokens, width), np.float32) if width else np.ones((batch, tokens), np.int64)


if __name__ == "__main__":
    _main(*sys.argv[1:])
