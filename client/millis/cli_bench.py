"""`millis bench`: closed-loop load on a running gateway.

Each of the N callers of a level sends its next request when it has the answer to the one before, so the
throughput is what the gateway gives and the latencies hold the time that requests wait for each other.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from millis.aio import AsyncClient
from millis.cli_commands import Commands, Parents, call_options, open_client
from millis.cli_input import read_texts
from millis.cli_output import print_json, print_table
from millis.errors import StatusError

_TEXT = "I was charged twice for the same order and would like my money back, please."
_WARM_UP = 10
"""Requests before the measurement: they open the connection and fill caches."""

Call = Callable[[str], Awaitable[object]]


@dataclass(slots=True)
class Level:
    """What was measured at one level of concurrency."""

    concurrency: int
    wanted: int
    started: float = 0.0
    ended: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    errors: int = 0
    first_error: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """A level in figures; None where nothing was answered."""

    concurrency: int
    requests: int
    errors: int
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    per_second: float | None


def add_command(commands: Commands, parents: Parents) -> None:
    """Adds bench."""
    help_ = "measure a running gateway under closed-loop load"
    more = f"{help_}; past its cache, unless --cache says otherwise"
    parser = commands.add_parser("bench", parents=parents, help=help_, description=more)
    parser.add_argument("--call", choices=["classify", "tag", "embed", "tokenize"], default="classify")
    parser.add_argument("--concurrency", type=_levels, default=(1, 4, 16, 64), metavar="1,4,…", help="callers")
    parser.add_argument(
        "--requests", type=_positive_int, default=500, metavar="N", help="requests a level (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=_positive_int,
        default=60,
        metavar="S",
        help="longest time of a level (default: %(default)s)",
    )
    parser.add_argument("--text", action="append", default=[], help="text to send; repeat for several, in turn")
    parser.add_argument("--file", metavar="FILE", help="texts to send, one a line; .jsonl; - is standard input")
    parser.set_defaults(run=bench)


def bench(options: argparse.Namespace) -> int:
    """`millis bench`: Ctrl-C ends it, and what was measured so far is printed."""
    texts = read_texts(options.text or ([] if options.file else [_TEXT]), options.file)
    levels: list[Level] = []
    code = 0
    try:
        asyncio.run(_measure(options, texts, levels))
    except KeyboardInterrupt:
        code = 130
    finally:
        _progress("\r\033[K")
    reports = [_report(level) for level in levels if level.started]
    if options.json:
        for report in reports:
            print_json(asdict(report))
    else:
        header = ["concurrency", "requests", "errors", "p50 ms", "p90 ms", "p99 ms", "requests/s"]
        print_table(header, [[_cell(value) for value in asdict(report).values()] for report in reports])
    failed = next((level.first_error for level in levels if level.first_error), "")
    if failed:
        print(f"millis bench: {sum(level.errors for level in levels)} errors, the first: {failed}", file=sys.stderr)
    return code or int(bool(failed))


async def _measure(options: argparse.Namespace, texts: list[str], levels: list[Level]) -> None:
    async with open_client(AsyncClient, options) as client:
        method = getattr(client, options.call)
        wishes = call_options(options)
        # The same few texts again and again: from the cache they would say nothing of the model.
        wishes["cache"] = options.cache or "bypass"

        def call(text: str) -> Awaitable[object]:
            result: Awaitable[object] = method(text, **wishes)
            return result

        for _ in range(_WARM_UP):
            await call(texts[0])  # an error here ends the command: nothing could be measured
        for concurrency in options.concurrency:
            levels.append(Level(concurrency, options.requests))
            await _run_level(levels[-1], call, texts, options.seconds)


async def _run_level(level: Level, call: Call, texts: list[str], seconds: int) -> None:
    turns = iter(range(level.wanted))
    level.started = level.ended = time.perf_counter()
    stop_at = level.started + seconds

    async def caller() -> None:
        for turn in turns:
            before = time.perf_counter()
            if before >= stop_at:
                return
            try:
                await call(texts[turn % len(texts)])
            except StatusError as error:
                level.errors += 1
                level.first_error = level.first_error or str(error)
            else:
                level.latencies_s.append(time.perf_counter() - before)
            level.ended = time.perf_counter()

    async with asyncio.TaskGroup() as group:
        ticker = group.create_task(_tick(level))
        callers = [group.create_task(caller()) for _ in range(level.concurrency)]
        await asyncio.wait(callers)
        ticker.cancel()


async def _tick(level: Level) -> None:
    while True:
        done = len(level.latencies_s) + level.errors
        _progress(f"\rconcurrency {level.concurrency}: {done} of {level.wanted}\033[K")
        await asyncio.sleep(0.2)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(text)
        sys.stderr.flush()


def _report(level: Level) -> Report:
    latencies = sorted(level.latencies_s)
    elapsed = level.ended - level.started
    return Report(
        concurrency=level.concurrency,
        requests=len(latencies),
        errors=level.errors,
        p50_ms=_percentile_ms(latencies, 50),
        p90_ms=_percentile_ms(latencies, 90),
        p99_ms=_percentile_ms(latencies, 99),
        per_second=len(latencies) / elapsed if latencies and elapsed > 0 else None,
    )


def _percentile_ms(sorted_s: list[float], percent: int) -> float | None:
    """The smallest time that `percent` of the requests did not exceed (nearest rank)."""
    if not sorted_s:
        return None
    return sorted_s[math.ceil(percent / 100 * len(sorted_s)) - 1] * 1000


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _levels(text: str) -> tuple[int, ...]:
    return tuple(_positive_int(each) for each in text.split(","))
