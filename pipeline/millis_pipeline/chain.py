"""Runs a model that is one graph or several on texts, one at a time, through all graphs whatever their confidence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from millis_server.triton.backend.engine import DEFAULT_ENGINES, EngineOptions, Feeds, load_engine
from millis_server.triton.backend.microbatch import HIDDEN, MASK


def answers(graphs: Sequence[Path], texts: Sequence[Feeds]) -> list[list[NDArray[np.float32]]]:
    """What each graph answers to each text.

    Args:
        graphs: in the order in which an input goes through them.
        texts: inputs of the first one.
    """
    found = []
    given = texts
    for graph in graphs:
        said, given = passed(graph, given)
        found.append(said)
    return found


def passed(graph: Path, texts: Sequence[Feeds]) -> tuple[list[NDArray[np.float32]], list[Feeds]]:
    """What one graph answers to each text, and the inputs that it hands on to the next graph, if there is one."""
    engine = load_engine(DEFAULT_ENGINES["f32"], graph, EngineOptions(threads=0))
    said, onward = [], list[Feeds]()
    for feeds in texts:
        answer, *more = engine.run(feeds)
        said.append(answer)
        if more:
            _, hidden = more
            onward.append({HIDDEN: hidden, MASK: feeds[MASK]})
    return said, onward
