"""Starts a gateway for a benchmark, and reads what it published."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import millis

START_SECONDS = 60


@dataclass(frozen=True)
class Running:
    """A gateway with its own Triton.

    Attributes:
        target: host:port of the gateway.
        triton: host:port of its Triton.
    """

    target: str
    triton: str


@contextmanager
def running_gateway(repository: Path, *options: str) -> Iterator[Running]:
    """Runs `millis serve` on a free port for the length of a `with` block."""
    with tempfile.TemporaryDirectory(prefix="millis-bench-") as state:
        command = [sys.executable, "-m", "millis.cli", "serve", "--model-repository", str(repository)]
        command += ["--port", "0", "--state-dir", state, *options]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            lines = []
            for line in process.stderr or ():
                lines.append(line)
                if found := re.search(r"serving on (\S+);", line):
                    break
            else:
                raise RuntimeError("the gateway did not start:\n" + "".join(lines))
            with millis.Client(found[1]) as client:
                client.wait_ready(timeout=START_SECONDS)
            yield Running(found[1], _triton(process.pid))
        finally:
            process.terminate()
            process.communicate(timeout=START_SECONDS)


def _triton(gateway: int) -> str:
    """Finds the port of the gateway's Triton in its command line."""
    children = Path(f"/proc/{gateway}/task/{gateway}/children").read_text().split()
    for child in children:
        command = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        for argument in command:
            if argument.startswith("--http-port="):
                return "127.0.0.1:" + argument.partition("=")[2]
    raise RuntimeError("the gateway has no Triton of its own")
