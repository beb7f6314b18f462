"""Starts a gateway of its own for a benchmark or a test."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import millis

START_SECONDS = 60


@dataclass(frozen=True)
class Running:
    """A gateway with its own Triton.

    Attributes:
        target: host:port of the gateway.
        triton: host:port of its Triton's HTTP service; empty when it is attached to another one.
        triton_grpc: host:port of its gRPC service.
        process: the gateway's.
    """

    target: str
    triton: str
    triton_grpc: str
    process: subprocess.Popen[str]


@contextmanager
def running_gateway(repository: Path, *options: str, tls: millis.TlsConfig | bool = False) -> Iterator[Running]:
    """Runs `millis serve` on a free port for the length of a `with` block.

    Without cache, since what is measured or tested is the way to the model, and without metrics, whose port only one
    gateway can have; `options` come after and win. `tls` is how its port is reached.
    """
    with tempfile.TemporaryDirectory(prefix="millis-bench-") as state:
        command = [sys.executable, "-m", "millis.cli", "serve", "--model-repository", str(repository)]
        command += ["--port", "0", "--state-dir", state, "--cache-bytes", "0", "--metrics-port", "0", *options]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            lines = []
            for line in process.stderr or ():
                lines.append(line)
                if found := re.search(r"serving on (\S+);", line):
                    break
            else:
                raise RuntimeError("the gateway did not start:\n" + "".join(lines))
            with millis.Client(found[1], tls=tls) as client:
                client.wait_ready(timeout=START_SECONDS)
            yield Running(found[1], triton_of(process.pid, "http"), triton_of(process.pid, "grpc"), process)
        finally:
            process.terminate()
            process.communicate(timeout=START_SECONDS)


def triton_of(gateway: int, service: str) -> str:
    """host:port of a service of a gateway's Triton, from its command line; empty when it has none of its own."""
    for child in children(gateway):
        command = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        for argument in command:
            if argument.startswith(f"--{service}-port="):
                return "127.0.0.1:" + argument.partition("=")[2]
    return ""


def children(process: int) -> list[int]:
    """Process ids of the children of a process."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            found += [int(child) for child in (task / "children").read_text().split()]
    return found
