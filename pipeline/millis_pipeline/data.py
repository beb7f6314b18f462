"""Reads labelled data: CSV and JSONL for texts, CoNLL for words; every fault is named with its file and line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

csv.field_size_limit(1 << 24)


class DataError(ValueError):
    """Data that cannot be used; the message is one line and names file, line and limit."""


@dataclass(frozen=True)
class TextExamples:
    """Texts with their labels.

    Attributes:
        texts: as written.
        labels: of each text; an empty list for each text when none were asked for.
        lines: line of the file that each text ends on, for messages.
    """

    texts: list[str]
    labels: list[list[str]]
    lines: list[int]


@dataclass(frozen=True)
class TokenExamples:
    """Words of each text with their tags (IOB2).

    Attributes:
        words: of each text.
        tags: of each text, one for each word.
        lines: line of the file that each text begins on, for messages.
    """

    words: list[list[str]]
    tags: list[list[str]]
    lines: list[int]


@contextmanager
def named(key: str) -> Iterator[None]:
    """Has messages of data that cannot be used begin with the recipe's key, or the option, that names the file.

    Raises:
        DataError: from within, with the key.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{key}: {error}") from error


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
    records = csv_records(path) if path.suffix == ".csv" else jsonl_records(path)
    examples = TextExamples([], [], [])
    for line, record in records:
        where = f"{path}:{line}"
        check_columns(where, record, [column for column in (text_column, label_column) if column is not None])
        examples.texts.append(column_text(where, text_column, record[text_column]))
        labels = _labels(where, label_column, record[label_column], label_separator) if label_column else []
        examples.labels.append(labels)
        examples.lines.append(line)
    if not examples.texts:
        raise DataError(f"{path}: it holds no examples")
    return examples


def read_texts(path: Path, text_column: str) -> list[str]:
    """Reads texts without labels: from a .csv or .jsonl file, or a text from each line of a .txt file.

    Raises:
        DataError: the file cannot be read, or a text is wrong.
    """
    if path.suffix != ".txt":
        if path.suffix not in (".csv", ".jsonl"):
            raise DataError(f"{path}: its name must end in .txt, .csv or .jsonl")
        return read_text_examples(path, text_column, None).texts
    texts = []
    for line, text in numbered_lines(path):
        if text.strip():
            _check_characters(f"{path}:{line}: the text", text)
            texts.append(text.strip())
    if not texts:
        raise DataError(f"{path}: it holds no examples")
    return texts


def read_token_examples(path: Path) -> TokenExamples:
    """Reads words and tags from a CoNLL file: first column the word, last one the tag, blank lines between texts.

    Tags in the older IOB1 form are brought to IOB2, where every entity begins with B-.

    Raises:
        DataError: the file cannot be read, or a line has no tag or a wrong one.
    """
    examples = TokenExamples([], [], [])
    open_text = False
    for line, text in numbered_lines(path):
        if not text.strip() or text.startswith("-DOCSTART-"):
            open_text = False
            continue
        columns = text.split("\t") if "\t" in text else text.split(" ")
        word, tag = columns[0].strip(), columns[-1].strip()
        if len(columns) < 2 or not word:
            raise DataError(f"{path}:{line}: a line needs a word and a tag, this one is {text!r}")
        if tag != "O" and (tag[:2] not in ("B-", "I-") or len(tag) < 3):
            raise DataError(f"{path}:{line}: tag {tag!r} is neither O nor B-… nor I-…")
        _check_characters(f"{path}:{line}: the word", word)
        if not open_text:
            examples.words.append([])
            examples.tags.append([])
            examples.lines.append(line)
            open_text = True
        examples.words[-1].append(word)
        examples.tags[-1].append(tag)
    if not examples.words:
        raise DataError(f"{path}: it holds no examples")
    return TokenExamples(examples.words, [to_iob2(tags) for tags in examples.tags], examples.lines)


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


def check_known(
    examples: TextExamples | TokenExamples, known: Sequence[str], path: Path, where: str = "in the training data"
) -> None:
    """Checks that data has no label that the training set, or a model, does not know.

    Args:
        examples: to check.
        known: labels.
        path: of the data, for the message.
        where: the labels are known, for the message.

    Raises:
        DataError: it has one; the message names its line.
    """
    tokens = isinstance(examples, TokenExamples)
    rows = examples.tags if isinstance(examples, TokenExamples) else examples.labels
    names = frozenset(known)
    for first, row in zip(examples.lines, rows, strict=True):
        for place, label in enumerate(row):
            if label not in names:
                line = first + place if tokens else first
                raise DataError(f"{path}:{line}: label {label!r} is not {where}")


def check_single(examples: TextExamples, path: Path, source: str) -> None:
    """Checks that every text has exactly one label, where a prediction is always one.

    Args:
        examples: to check.
        path: of the data, for the message.
        source: checkpoint that predicts, for the message.

    Raises:
        DataError: one has several, or none; the message names its line.
    """
    for labels, line in zip(examples.labels, examples.lines, strict=True):
        if len(labels) != 1:
            raise DataError(f"{path}:{line}: the text has {len(labels)} labels, and {source} gives a text 1")


def check_columns(where: str, record: dict[str, object], needed: Sequence[str]) -> None:
    """Refuses a record that lacks a column.

    Args:
        where: file and line, for the message.
        record: of the file.
        needed: columns.

    Raises:
        DataError: one is missing.
    """
    for column in needed:
        if column not in record:
            found = ", ".join(map(str, record)) or "none"
            raise DataError(f"{where}: column {column!r} is missing; columns are: {found}")


def column_text(where: str, column: str, value: object) -> str:
    """The text in a column of a record; `where` is file and line, for the message.

    Raises:
        DataError: it is no text, empty, or has characters that no text should have.
    """
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: column {column!r} is empty or no text")
    _check_characters(f"{where}: column {column!r}", value)
    return value


def _check_characters(what: str, value: str) -> None:
    """A NUL ends a string in half of the world's libraries, and a lone surrogate has no UTF-8 form."""
    for position, char in enumerate(value):
        if char == "\0" or "\ud800" <= char <= "\udfff":
            kind = "a NUL character" if char == "\0" else f"a lone surrogate U+{ord(char):04X}"
            raise DataError(f"{what} contains {kind} at position {position}")


def _labels(where: str, column: str, value: object, separator: str | None) -> list[str]:
    """Labels of one text; a number is taken as its digits."""
    if isinstance(value, list):
        if separator is None and len(value) != 1:
            raise DataError(f"{where}: column {column!r} has {len(value)} labels; without label_separator it needs 1")
        return [column_text(where, column, label).strip() for label in value]
    if isinstance(value, int):
        value = str(value)
    if separator is not None:
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: column {column!r} is neither a text nor a list")
        return [column_text(where, column, part).strip() for part in (value or "").split(separator) if part.strip()]
    return [column_text(where, column, value).strip()]


def csv_records(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """The records of a .csv file with a header, each with the line that it ends on."""
    reader = csv.DictReader(io.StringIO(_content(path), newline=""), strict=True)
    try:
        for record in reader:
            if None in record:
                header = len(reader.fieldnames or ())
                raise DataError(
                    f"{path}:{reader.line_num}: {header + len(record[None])} columns, the header has {header}; "
                    "a text with a comma needs quotes"
                )
            yield reader.line_num, dict(record)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.reader.line_num}: {error}") from error


def jsonl_records(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """The objects of a .jsonl file, each with its line."""
    for line, text in numbered_lines(path):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{line}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{line}: not a JSON object")
        yield line, record


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines end at a line feed only: other separators of Unicode may stand in a text."""
    for line, text in enumerate(_content(path).split("\n"), 1):
        yield line, text.rstrip("\r")


def _content(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise DataError(f"{path}:{line}: not UTF-8 (byte 0x{content[error.start]:02X})") from error
