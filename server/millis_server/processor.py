"""What this machine's processor does with 8-bit products."""

from __future__ import annotations

import platform
from pathlib import Path

VNNI_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8"}


def saturates(cpu_info: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether sums of products with 8-bit weights overflow here: x86-64 without VNNI adds two of them in 16 bits."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    for line in cpu_info.read_text().splitlines():
        if line.startswith("flags"):
            return not VNNI_FLAGS & set(line.split())
    return True
