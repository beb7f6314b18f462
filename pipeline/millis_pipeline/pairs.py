"""Reads pairs of texts to measure on: how alike people found two texts, or which documents answer a query.

The columns are those of the public sets: `sentence1`, `sentence2`, `score` as in the STS benchmark, and `query`,
`document`, `relevance` as rerankers are measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from millis_pipeline.data import (
    DataError,
    TextExamples,
    TokenExamples,
    check_columns,
    column_text,
    csv_records,
    jsonl_records,
    numbered_lines,
)

Columns: TypeAlias = tuple[str, ...]
ALIKE: Columns = ("sentence1", "sentence2", "score")
"""Two texts, and how alike people found them, on any scale."""

RANKED: Columns = ("query", "document", "relevance")
"""A query, one of the documents to rank for it, and whether it is an answer: 0 or 1, or graded."""

MIN_ALIKE = 4
"""Fewest pairs: the interval of a correlation divides by their number less 3."""


@dataclass(frozen=True)
class PairExamples:
    """Pairs of texts with what people said of them.

    Attributes:
        pairs: two texts, or a query and a document.
        scores: how alike, or how relevant: above 0 is relevant.
        lines: line of the file that each pair ends on, for messages.
        ranked: whether the pairs are queries with documents.
        path: of the file, for messages.
    """

    pairs: list[tuple[str, str]]
    scores: list[float]
    lines: list[int]
    ranked: bool
    path: Path


EvaluationExamples: TypeAlias = TextExamples | TokenExamples | PairExamples
"""What models can be measured on."""


def columns_of(path: Path, known: Sequence[Columns]) -> Columns:
    """Tells by its first record what a file holds.

    Args:
        path: of the file.
        known: what it may hold; the first one whose columns are all there is taken, else the one of which most are, so
            that the next complaint names the column that is missing.

    Raises:
        DataError: the file cannot be read, is empty, or has none of these columns.
    """
    line, first = next(_records(path), (0, {}))
    if not line:
        raise DataError(f"{path}: it holds no examples")
    whole = next((columns for columns in known if first.keys() >= set(columns)), None)
    best = whole or max(known, key=lambda columns: len(first.keys() & set(columns)))
    if not first.keys() & set(best):
        needed = "; or ".join(", ".join(columns) for columns in known)
        found = ", ".join(map(str, first)) or "none"
        raise DataError(f"{path}:{line}: columns are: {found}; needed are: {needed}")
    return best


def read_pairs(path: Path, columns: Columns) -> PairExamples:
    """Reads pairs of texts from a .csv or .tsv (with a header) or .jsonl file.

    Args:
        path: of the file.
        columns: `ALIKE` or `RANKED`.

    Raises:
        DataError: the file cannot be read, a value is missing or wrong, or nothing can be measured on it.
    """
    examples = PairExamples([], [], [], columns == RANKED, path)
    for line, record in _records(path):
        where = f"{path}:{line}"
        check_columns(where, record, columns)
        first, second, score = columns
        examples.pairs.append((column_text(where, first, record[first]), column_text(where, second, record[second])))
        examples.scores.append(_number(where, score, record[score], least=0.0 if examples.ranked else -math.inf))
        examples.lines.append(line)
    if not examples.pairs:
        raise DataError(f"{path}: it holds no examples")
    (_check_rankings if examples.ranked else _check_scores)(path, examples)
    return examples


def by_query(queries: Sequence[str]) -> dict[str, list[int]]:
    """The indices of the documents of each query."""
    found: dict[str, list[int]] = {}
    for index, query in enumerate(queries):
        found.setdefault(query, []).append(index)
    return found


def _check_scores(path: Path, examples: PairExamples) -> None:
    if len(examples.pairs) < MIN_ALIKE:
        raise DataError(f"{path}: it holds {len(examples.pairs)} pairs; a correlation needs at least {MIN_ALIKE}")
    if len(set(examples.scores)) == 1:
        raise DataError(
            f"{path}: column 'score' is {examples.scores[0]:g} on every line; a correlation needs different ones"
        )


def _check_rankings(path: Path, examples: PairExamples) -> None:
    """Refuses a document that a query has twice, and queries whose documents may stand in any order."""
    seen: dict[tuple[str, str], int] = {}
    for pair, line in zip(examples.pairs, examples.lines, strict=True):
        if pair in seen:
            raise DataError(f"{path}:{line}: column 'document' is that of line {seen[pair]} again, for the same query")
        seen[pair] = line
    for indices in by_query([query for query, _ in examples.pairs]).values():
        relevant = sum(examples.scores[index] > 0 for index in indices)
        if relevant in (0, len(indices)):
            raise DataError(
                f"{path}:{examples.lines[indices[0]]}: column 'relevance' is {'above ' if relevant else ''}0 for every "
                "document of this query; ranking needs documents of both kinds"
            )


def _number(where: str, column: str, value: object, least: float) -> float:
    try:
        number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < least:
        kind = "a number" if least == -math.inf else f"a number of at least {least:g}"
        raise DataError(f"{where}: column {column!r} is {value!r}; it must be {kind}")
    return number


def _records(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    readers: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, object]]]]] = {
        ".csv": csv_records,
        ".tsv": _tsv_records,
        ".jsonl": jsonl_records,
    }
    if path.suffix not in readers:
        raise DataError(f"{path}: its name must end in .csv, .tsv or .jsonl")
    return readers[path.suffix](path)


def _tsv_records(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Cells stand between tabs as they are: the public sets quote nothing, and quotation marks belong to the texts."""
    header: list[str] = []
    for line, text in numbered_lines(path):
        if not text.strip():
            continue
        cells = text.split("\t")
        if not header:
            header = cells
        elif len(cells) != len(header):
            raise DataError(f"{path}:{line}: {len(cells)} columns, the header has {len(header)}")
        else:
            yield line, dict(zip(header, cells, strict=True))
