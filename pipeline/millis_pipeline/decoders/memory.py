"""Says how much memory a variant takes: `python -m millis_pipeline.decoders.memory FOLDER KV_PRECISION CACHE_TOKENS`.

It runs in a process of its own, because memory that an engine gave back is not given back to the system.
"""

from __future__ import annotations

import sys
from pathlib import Path

from millis_pipeline.memory import printed_bytes, resident

PROMPT = [1] * 16
TOKENS = 16


def generating_bytes(folder: Path, kv_precision: str, cache_tokens: int) -> int:
    """Resident memory that a loaded variant adds to a process, after a short text.

    Args:
        folder: with the graph.
        kv_precision: of the memory of tokens read.
        cache_tokens: tokens for which the engine has memory; what is not used is not resident.
    """
    return printed_bytes("millis_pipeline.decoders.memory", [str(folder), kv_precision, str(cache_tokens)])


def _main(folder: str, kv_precision: str, cache_tokens: str) -> None:
    from millis_pipeline.decoders.engine import Engine  # only here: whoever only asks need not load the engine

    before = resident()
    engine = Engine(Path(folder), kv_precision, int(cache_tokens))
    engine.greedy([PROMPT], TOKENS)
    print(resident() - before)


if __name__ == "__main__":
    _main(*sys.argv[1:])
