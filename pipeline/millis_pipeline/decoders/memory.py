"""Says how much memory a variant takes: `python -m millis_pipeline.decoders.memory FOLDER CACHE_TOKENS SETUP`.

It runs in a process of its own, because memory that an engine gave back is not given back to the system.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from millis_pipeline.decoders.engine import Engine, EngineSetup
from millis_pipeline.memory import printed, resident
from millis_pipeline.progress import step

PROMPT = [1] * 16
TOKENS = 16


def generating_bytes(folder: Path, setup: EngineSetup, cache_tokens: int) -> int:
    """Resident memory that a loaded variant adds to a process, after a short text.

    Args:
        folder: with the graph.
        setup: how it is served.
        cache_tokens: tokens for which the engine has memory; what is not used is not resident.
    """
    arguments = [str(folder), str(cache_tokens), json.dumps(setup)]
    with step("memory"):
        found: int = printed("millis_pipeline.decoders.memory", arguments)
    return found


def _main(folder: str, cache_tokens: str, setup: str) -> None:
    before = resident()
    engine = Engine(Path(folder), EngineSetup(*json.loads(setup)), int(cache_tokens))
    engine.greedy([PROMPT], TOKENS)
    print(resident() - before)
    engine.close()


if __name__ == "__main__":
    _main(*sys.argv[1:])
