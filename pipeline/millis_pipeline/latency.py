"""Measures the bare engine: all variants of a model in turn, one thread, by batch and length."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np
import onnx
from tqdm import tqdm

from millis_pipeline.libraries import version_of
from millis_pipeline.machine import machine
from millis_server.manifest import LatencyPoint, LatencyProfile, Precision
from millis_server.triton.backend.engine import DEFAULT_ENGINES, Engine, EngineOptions, load_engine
from millis_server.triton.backend.microbatch import HIDDEN, MASK

POINTS = ((1, 8), (1, 16), (1, 32), (1, 64), (1, 128), (8, 16), (8, 64))
"""(batch, tokens); those longer than the model reads are left out."""

ROUNDS = 5
SECONDS = 0.05
"""Time spent on each point of each graph in one round."""

MIN_RUNS = 2
MAX_RUNS = 40

SOME_IDS = 32
"""So many tokens has any vocabulary, a trimmed one too."""

TYPICAL_TOKENS = 16
"""Length at which the graphs of a cascade are compared."""


@dataclass(frozen=True)
class Graph:
    """One graph of a variant.

    Attributes:
        path: of the file.
        reached: share of the inputs that it is run for.
        precision: in which it computes.
    """

    path: Path
    reached: float = 1.0
    precision: Precision = "f32"


def sizes(max_tokens: int) -> list[tuple[int, int]]:
    """(batch, tokens) of the calls that are measured of a model that reads so many tokens."""
    return [(batch, tokens) for batch, tokens in POINTS if tokens <= max_tokens]


def measure(graphs: Mapping[str, Sequence[Graph]], max_tokens: int) -> dict[str, LatencyProfile]:
    """Measures variants side by side.

    Every point is measured in rounds, and every round runs every graph: whatever else the machine does meets all of
    them alike. The median of a cascade is that of its graphs, each as often as inputs reach it; its 99th percentile
    is that of an input that goes all the way.

    Args:
        graphs: of each variant, by its name.
        max_tokens: most tokens that they read.

    Returns:
        A profile of each variant.
    """
    to_load = tqdm(graphs.items(), desc="loading", unit="variant", leave=False, disable=None)
    engines = {variant: [_load(graph) for graph in found] for variant, found in to_load}
    inputs = {v: [graph_inputs(graph.path) for graph in g] for v, g in graphs.items()}
    points: dict[str, list[LatencyPoint]] = {variant: [] for variant in graphs}
    for batch, tokens in tqdm(sizes(max_tokens), desc="latency", unit="point", leave=False, disable=None):
        feeds = {v: [_feeds(names, batch, tokens) for names in each] for v, each in inputs.items()}
        times: dict[str, list[list[float]]] = {variant: [[] for _ in found] for variant, found in graphs.items()}
        for _ in range(ROUNDS):
            for variant, loaded in engines.items():
                for place, engine in enumerate(loaded):
                    times[variant][place] += _run(engine, feeds[variant][place])
        for variant, measured in times.items():
            p50 = sum(g.reached * np.percentile(m, 50) for g, m in zip(graphs[variant], measured, strict=True))
            p99 = sum(np.percentile(m, 99) for m in measured)
            points[variant].append(LatencyPoint(batch=batch, tokens=tokens, p50_ms=float(p50), p99_ms=float(p99)))
    return {
        variant: LatencyProfile(
            machine=machine(), engine=_engine(graphs[variant][0].precision), threads=1, points=tuple(measured)
        )
        for variant, measured in points.items()
    }


def _load(graph: Graph) -> Engine:
    return load_engine(DEFAULT_ENGINES[graph.precision], graph.path, EngineOptions(precision=graph.precision))


def _engine(precision: Precision) -> str:
    name = DEFAULT_ENGINES[precision]
    return f"{name} {version_of(name)}"


def stage_ms(graph: Graph, tokens: int = TYPICAL_TOKENS) -> float:
    """Median time of one graph for one text."""
    engine = _load(graph)
    feeds = _feeds(graph_inputs(graph.path), 1, tokens)
    return float(np.median([time for _ in range(ROUNDS) for time in _run(engine, feeds)]))


def graph_inputs(path: Path) -> dict[str, int]:
    """Names of a graph's inputs [texts, tokens], each with the width of hidden states; 0 for what holds integers."""
    inputs = onnx.load(path, load_external_data=False).graph.input
    return {tensor.name: tensor.type.tensor_type.shape.dim[-1].dim_value * (tensor.name == HIDDEN) for tensor in inputs}


def _feeds(inputs: Mapping[str, int], batch: int, tokens: int) -> dict[str, Any]:
    """Input of a graph: ids of real tokens, or hidden states as the first layers give them."""
    generator = np.random.default_rng(0)
    made: dict[str, Any] = {}
    for name, width in inputs.items():
        if name == HIDDEN:
            made[name] = generator.standard_normal((batch, tokens, width), np.float32)
        elif name == "input_ids":
            made[name] = generator.integers(5, SOME_IDS, (batch, tokens))
        else:
            made[name] = np.full((batch, tokens), int(name == MASK), np.int64)
    return made


def _run(engine: Engine, feeds: dict[str, Any]) -> list[float]:
    """Milliseconds of the calls of one round; the first one, which finds cold caches, is left out."""
    engine.run(feeds)
    times: list[float] = []
    ends = time.perf_counter() + SECONDS
    while len(times) < MIN_RUNS or (time.perf_counter() < ends and len(times) < MAX_RUNS):
        began = time.perf_counter()
        engine.run(feeds)
        times.append(1e3 * (time.perf_counter() - began))
    return times


def single_text_ms(profile: LatencyProfile) -> float:
    """Geometric mean of the medians of one text over the lengths: one number to compare variants of a model by."""
    return geometric_mean(point.p50_ms for point in profile.points if point.batch == 1)
