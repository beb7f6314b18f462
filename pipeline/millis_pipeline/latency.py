"""Measures the bare engine: one graph, one thread, by batch and length."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnxruntime
from tqdm import tqdm

from millis_pipeline.machine import machine
from millis_pipeline.run import Feeds, onnx_runner
from millis_server.manifest import LatencyPoint, LatencyProfile

POINTS = ((1, 8), (1, 16), (1, 32), (1, 64), (1, 128), (8, 16), (8, 64))
"""(batch, tokens); those longer than the model reads are left out."""

SECONDS = 0.25
"""Time spent on each point."""

MIN_RUNS = 11
MAX_RUNS = 200


def measure(path: Path, names: tuple[str, ...], max_tokens: int, what: str) -> LatencyProfile:
    """Measures a graph.

    Args:
        path: of the graph.
        names: its inputs.
        max_tokens: most tokens that it reads.
        what: for the progress bar.
    """
    runner = onnx_runner(path, threads=1)
    points = []
    for batch, tokens in tqdm(POINTS, desc=what, unit="point", leave=False, disable=None):
        if tokens > max_tokens:
            continue
        feeds: Feeds = {name: np.ones((batch, tokens), np.int64) for name in names}
        feeds["input_ids"] = np.random.default_rng(0).integers(5, 100, (batch, tokens))
        if "token_type_ids" in feeds:
            feeds["token_type_ids"][:] = 0
        for _ in range(2):
            runner(feeds)
        times: list[float] = []
        ends = time.perf_counter() + SECONDS
        while len(times) < MIN_RUNS or (time.perf_counter() < ends and len(times) < MAX_RUNS):
            began = time.perf_counter()
            runner(feeds)
            times.append(1e3 * (time.perf_counter() - began))
        p50, p99 = np.percentile(times, (50, 99))
        points.append(LatencyPoint(batch=batch, tokens=tokens, p50_ms=float(p50), p99_ms=float(p99)))
    return LatencyProfile(
        machine=machine(), engine=f"onnxruntime {onnxruntime.__version__}", threads=1, points=tuple(points)
    )
