"""What `millis build` and `millis tune` have in common on the command line: the repository, and numbers with limits."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path


def add_repository(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Adds `--repository`.

    Args:
        parser: to add it to.
        purpose: what the command does with it, for the help.
    """
    parser.add_argument(
        "--repository",
        type=Path,
        default=Path(os.environ.get("MILLIS_MODEL_REPOSITORY", "model_repository")),
        help=purpose,
    )


def count(text: str) -> int:
    """A whole number of at least 1, as argparse's `type`.

    Raises:
        ArgumentTypeError: the text is none.
    """
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return value


def number(low: float, high: float = math.inf) -> Callable[[str], float]:
    """Makes argparse's `type` of finite numbers from `low` to `high`.

    What argparse says by itself of a text that is no number names the function that it called, so the type says it.
    """
    limits = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"must be a number {limits}, got {text!r}")
        return value

    return read
