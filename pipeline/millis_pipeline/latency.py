"""Measures the bare engine: all variants of a model in turn, one thread, by batch and length."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import geometric_mean

import numpy as np
import onnxruntime
from tqdm import tqdm

from millis_pipeline.machine import machine
from millis_pipeline.run import Feeds, Runner, onnx_runner
from millis_server.manifest import LatencyPoint, LatencyProfile

POINTS = ((1, 8), (1, 16), (1, 32), (1, 64), (1, 128), (8, 16), (8, 64))
"""(batch, tokens); those longer than the model reads are left out."""

ROUNDS = 5
SECONDS = 0.05
"""Time spent on each point of each graph in one round."""

MIN_RUNS = 3
MAX_RUNS = 40


def measure(graphs: Mapping[str, Path], names: tuple[str, ...], max_tokens: int) -> dict[str, LatencyProfile]:
    """Measures graphs side by side.

    Every point is measured in rounds, and every round runs every graph: whatever else the machine does meets all of
    them alike.

    Args:
        graphs: path of each graph, by its variant.
        names: inputs of the graphs.
        max_tokens: most tokens that they read.

    Returns:
        A profile of each variant.
    """
    runners = {variant: onnx_runner(path, threads=1) for variant, path in graphs.items()}
    points: dict[str, list[LatencyPoint]] = {variant: [] for variant in graphs}
    for batch, tokens in tqdm(POINTS, desc="latency", unit="point", leave=False, disable=None):
        if tokens > max_tokens:
            continue
        feeds: Feeds = {name: np.ones((batch, tokens), np.int64) for name in names}
        feeds["input_ids"] = np.random.default_rng(0).integers(5, 100, (batch, tokens))
        if "token_type_ids" in feeds:
            feeds["token_type_ids"][:] = 0
        times: dict[str, list[float]] = {variant: [] for variant in graphs}
        for _ in range(ROUNDS):
            for variant, runner in runners.items():
                times[variant] += _run(runner, feeds)
        for variant, measured in times.items():
            p50, p99 = np.percentile(measured, (50, 99))
            points[variant].append(LatencyPoint(batch=batch, tokens=tokens, p50_ms=float(p50), p99_ms=float(p99)))
    engine = f"onnxruntime {onnxruntime.__version__}"
    return {
        variant: LatencyProfile(machine=machine(), engine=engine, threads=1, points=tuple(measured))
        for variant, measured in points.items()
    }


def _run(runner: Runner, feeds: Feeds) -> list[float]:
    """Milliseconds of the calls of one round; the first one, which finds cold caches, is left out."""
    runner(feeds)
    times: list[float] = []
    ends = time.perf_counter() + SECONDS
    while len(times) < MIN_RUNS or (time.perf_counter() < ends and len(times) < MAX_RUNS):
        began = time.perf_counter()
        runner(feeds)
        times.append(1e3 * (time.perf_counter() - began))
    return times


def single_text_ms(profile: LatencyProfile) -> float:
    """Geometric mean of the medians of one text over the lengths: one number to compare variants of a model by."""
    return geometric_mean(point.p50_ms for point in profile.points if point.batch == 1)
