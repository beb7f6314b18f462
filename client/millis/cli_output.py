"""Tables for people and JSON lines for programs."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from millis.catalog import Model
from millis.types import Info

_GAP = "  "
_KEPT = "\u00a0\u200c\u200d\u3000"
"""Spaces and joiners of real scripts, which Python does not call printable."""


def print_json(value: dict[str, Any]) -> None:
    """One line of JSON, readable where the stream can hold the text and escaped where it cannot."""
    line = json.dumps(value, ensure_ascii=False, default=_json_default)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(value, default=_json_default)
    sys.stdout.write(line + "\n")


def with_info(value: dict[str, Any], info: Info) -> dict[str, Any]:
    """A JSON result with how it was made."""
    return {**value, "info": asdict(info)}


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table: numbers are aligned right, and a last column of text is cut to the width of the terminal."""
    cells = [[visible(cell) for cell in row] for row in rows]
    widths = [max([_width(name), *(_width(row[column]) for row in cells)]) for column, name in enumerate(header)]
    right = [bool(cells) and all(_is_number(row[column]) for row in cells) for column in range(len(header))]
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() and not right[-1] else None
    for row in ([name.upper() for name in header], *cells):
        padded = [_pad(cell, widths[column], right[column]) for column, cell in enumerate(row)]
        line = _GAP.join(padded).rstrip()
        sys.stdout.write((line if limit is None else _cut(line, limit)) + "\n")


def print_model(model: Model) -> None:
    """All about one model, one fact a line, and a table of its variants."""
    facts = {
        "name": model.name + (" (default)" if model.is_default else ""),
        "task": model.task,
        "labels": ", ".join(model.labels),
        "max tokens": str(model.max_tokens),
        "dimensions": str(model.dimensions or ""),
        "provenance": model.provenance,
        "license": model.license,
    }
    for name, value in facts.items():
        if value:
            sys.stdout.write(f"{name + ':':<12}{visible(value)}\n")
    sys.stdout.write("\n")
    print_table(["variant", "state", "version", "quality", "size", "reason"], map(_variant_row, model.variants))
    for variant in model.variants:
        for refused in variant.refused_versions:
            sys.stdout.write(visible(f"{variant.name}: version {refused.version} refused: {refused.reason}") + "\n")


def _variant_row(variant: Any) -> list[str]:
    quality = f"{variant.quality.metric} {variant.quality.value:.4f}" if variant.quality else "-"
    name = variant.name + (" (default)" if variant.is_default else "")
    size = f"{variant.size_bytes / 1e6:.1f} MB"
    return [name, variant.state, variant.version or "-", quality, size, variant.reason]


def visible(text: str, keep: str = "") -> str:
    """The text with control characters written out, but for those in `keep`.

    A text must not steer the terminal or break the table.
    """
    kept = _KEPT + keep
    return "".join(
        each if each.isprintable() or each in kept else each.encode("unicode_escape").decode() for each in text
    )


def _width(text: str) -> int:
    """Columns on a terminal: two for wide characters, none for combining ones."""
    return sum(_columns(each) for each in text)


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


def _cut(line: str, limit: int) -> str:
    if _width(line) <= limit:
        return line
    kept, used = [], 1
    for character in line:
        used += _columns(character)
        if used > limit:
            break
        kept.append(character)
    return "".join(kept) + "…"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _json_default(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} in JSON output. This is a bug.")
