"""Names the machine, for everything that is measured on it."""

import os
import platform
from pathlib import Path


def machine() -> str:
    """Processor and number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return f"{name}, {len(os.sched_getaffinity(0))} cores"
