"""What a model version is run as: one graph, or a cascade of graphs that a confident text leaves early.

Every graph of a cascade but the last gives a text's answer, how confident it is in it, and the hidden states that the
next graph goes on from: its input `hidden_states`, FLOAT [texts, tokens, hidden size]. So do BranchyNet
(Teerapittayanon et al. 2016) and DeeBERT (Xin et al. 2020). The confidence is computed in the graph, so that this
folder knows of no task: for labels of a text the probability of the best one, for those of tokens that of the least
certain token (SENTEE, Li et al. 2021). Files and thresholds stand in the version's manifest, where the pipeline wrote
what it calibrated.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # at run time this folder is no package: Triton's stub puts it on the path
    from millis_server.triton.backend.engine import Engine


class Stage(NamedTuple):
    """One graph of a version. Its outputs are the answer and, unless it is the last, confidence and hidden states."""

    engine: Engine
    layers: int = 0
    """Layers of the model that a text has gone through after it; 0 for a model that is one graph."""
    threshold: float | None = None
    """Lowest confidence at which a text is answered here; None answers all that come so far."""


def load_stages(folder: Path, load: Callable[[Path], Engine]) -> list[Stage]:
    """Loads the graphs of a version, in the order in which texts go through them.

    Args:
        folder: of the version.
        load: loads one graph.

    Raises:
        ValueError: as `load`.
        OSError: the manifest cannot be read.
    """
    exits = json.loads((folder / "manifest.json").read_bytes()).get("exits", [])
    if not exits:
        return [Stage(load(folder / "model.onnx"))]
    return [Stage(load(folder / exit["file"]), exit["layers"], exit["threshold"]) for exit in exits]
