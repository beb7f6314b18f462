"""Reads labelled data: CSV and JSONL for texts, CoNLL for words; every fault is named with its file and line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

csv.field_size_limit(1 << 24)


class DataError(ValueError):
    """Data that cannot be used; the message is one line and names file, line and limit."""


@dataclass(frozen=True)
class TextExamples:
    """Texts with their labels; `labels` holds an empty list for each text when none were asked for."""

    texts: list[str]
    labels: list[list[str]]


@dataclass(frozen=True)
class TokenExamples:
    """Words of each text with their tags (IOB2)."""

    words: list[list[str]]
    tags: list[list[str]]


def read_text_examples(
    path: Path, text_column: str, label_column: str | None, label_separator: str | None = None
) -> TextExamples:
    """Reads texts from a .csv (with a header) or .jsonl file.

    Args:
        path: of the file.
        text_column: column, or key, of the text.
        label_column: column of the label; None reads texts only.
        label_separator: what stands between several labels of a text; None means one label for each text. A JSONL
            label may also be a list.

    Raises:
        DataError: the file cannot be read, a column is missing, or a text or label is empty.
    """
    if path.suffix not in (".csv", ".jsonl"):
        raise DataError(f"{path}: its name must end in .csv or .jsonl")
    records = _csv_records(path) if path.suffix == ".csv" else _jsonl_records(path)
    texts, labels = [], []
    for line, record in records:
        for column in (text_column, label_column):
            if column is not None and column not in record:
                found = ", ".join(map(str, record)) or "none"
                raise DataError(f"{path}:{line}: column {column!r} is missing; columns are: {found}")
        texts.append(_text(path, line, text_column, record[text_column]))
        labels.append(_labels(path, line, record[label_column], label_separator) if label_column else [])
    if not texts:
        raise DataError(f"{path}: it holds no examples")
    return TextExamples(texts, labels)


def read_token_examples(path: Path) -> TokenExamples:
    """Reads words and tags from a CoNLL file: first column the word, last one the tag, blank lines between texts.

    Tags in the older IOB1 form are brought to IOB2, where every entity begins with B-.

    Raises:
        DataError: the file cannot be read, or a line has no tag or a wrong one.
    """
    words: list[list[str]] = []
    tags: list[list[str]] = []
    open_text = False
    for line, text in _lines(path):
        if not text.strip() or text.startswith("-DOCSTART-"):
            open_text = False
            continue
        columns = text.split("\t") if "\t" in text else text.split(" ")
        word, tag = columns[0].strip(), columns[-1].strip()
        if len(columns) < 2 or not word:
            raise DataError(f"{path}:{line}: a line needs a word and a tag, this one is {text!r}")
        if tag != "O" and (tag[:2] not in ("B-", "I-") or len(tag) < 3):
            raise DataError(f"{path}:{line}: tag {tag!r} is neither O nor B-… nor I-…")
        if not open_text:
            words.append([])
            tags.append([])
            open_text = True
        words[-1].append(word)
        tags[-1].append(tag)
    if not words:
        raise DataError(f"{path}: it holds no examples")
    return TokenExamples(words, [to_iob2(text) for text in tags])


def to_iob2(tags: Sequence[str]) -> list[str]:
    """An I- that continues nothing of its label begins an entity."""
    fixed = []
    before = "O"
    for tag in tags:
        begins = tag.startswith("I-") and before[2:] != tag[2:]
        fixed.append("B-" + tag[2:] if begins else tag)
        before = tag
    return fixed


def label_names(labels: Iterable[Sequence[str]], path: Path) -> tuple[str, ...]:
    """All labels of a training set, sorted.

    Raises:
        DataError: there are fewer than 2.
    """
    names = tuple(sorted({label for row in labels for label in row}))
    if len(names) < 2:
        raise DataError(f"{path}: it has {len(names)} label ({', '.join(names)}); training needs at least 2")
    return names


def check_known(labels: Iterable[Sequence[str]], known: Sequence[str], path: Path) -> None:
    """Checks that a dev or test set has no label that the training set lacks.

    Raises:
        DataError: it has one; the message names it.
    """
    for number, row in enumerate(labels, 1):
        for label in row:
            if label not in known:
                raise DataError(f"{path}: example {number} has label {label!r}, which the training data lacks")


def _text(path: Path, line: int, column: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{path}:{line}: column {column!r} is empty or no text")
    for position, char in enumerate(value):
        if char == "\0" or "\ud800" <= char <= "\udfff":
            kind = "a NUL character" if char == "\0" else f"a lone surrogate U+{ord(char):04X}"
            raise DataError(f"{path}:{line}: column {column!r} contains {kind} at position {position}")
    return value


def _labels(path: Path, line: int, value: object, separator: str | None) -> list[str]:
    if isinstance(value, list):
        return [_text(path, line, "label", label) for label in value]
    if value is not None and not isinstance(value, str):
        value = str(value)
    if separator is not None:
        return [part.strip() for part in (value or "").split(separator) if part.strip()]
    return [_text(path, line, "label", value).strip()]


def _csv_records(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for record in reader:
                yield reader.line_num, {key: value for key, value in record.items() if key is not None}
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from error
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: {error}") from error


def _jsonl_records(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    for line, text in _lines(path):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except ValueError as error:
            raise DataError(f"{path}:{line}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{line}: not a JSON object")
        yield line, record


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for line, text in enumerate(file, 1):
                yield line, text.rstrip("\r\n")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from error
