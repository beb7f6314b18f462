"""Shows that a step goes on which is one call of a library: its name and how long it has taken.

What can be counted has a progress bar, tqdm's. How far an export, a compiler or a quantizer is nobody knows, so a
share of it would be made up.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from millis_pipeline.interruption import interruptible

TICK_SECONDS = 1.0


@contextmanager
def step(name: str) -> Iterator[None]:
    """Shows a line while the body runs, on a terminal, as the progress bars do; Ctrl-C ends it, whatever is called.

    Args:
        name: of the step.

    Raises:
        KeyboardInterrupt: an interruption came, also where the body made something else of it.
    """
    with interruptible(), tqdm(desc=name, bar_format="{desc}: {elapsed}", leave=False, disable=None) as line:
        if line.disable:
            yield
            return
        done = threading.Event()
        ticking = threading.Thread(target=_tick, args=(line, done), name="progress", daemon=True)
        ticking.start()
        try:
            yield
        finally:
            done.set()
            ticking.join()


def _tick(line: tqdm[Any], done: threading.Event) -> None:
    while not done.wait(TICK_SECONDS):
        line.refresh()
