"""Processes that tests start."""

from __future__ import annotations

import contextlib
import os
import time


def until_gone(group: int) -> None:
    """Waits until no process of a group is left; Python's own, which cleans up behind the others, ends last."""
    ends = time.monotonic() + 10
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(group, 0)
            assert time.monotonic() < ends, "a process was left behind"
            time.sleep(0.05)
