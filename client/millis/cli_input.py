"""Texts from the command line, from files and from standard input."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

STDIN = "-"


class InputError(Exception):
    """Texts that cannot be read; the message names the file and the line."""


def add_text_arguments(parser: argparse.ArgumentParser, name: str, help_: str) -> None:
    """Adds the positional texts and `--file`."""
    parser.add_argument(name, nargs="*", metavar=name.upper().removesuffix("S"), help=help_)
    parser.add_argument(
        "--file",
        metavar="FILE",
        help='one text a line, blank lines left out; .jsonl: objects with a field "text"; -: standard input',
    )


def read_texts(texts: list[str], file: str | None) -> list[str]:
    """The texts of a command.

    Raises:
        InputError: there are none, there are two sources, or a line is not UTF-8 or not JSON with a text.
    """
    if bool(texts) == (file is not None):
        raise InputError("give texts, or --file FILE" + (", not both" if texts else ""))
    if file is None:
        return texts
    with ExitStack() as stack:
        try:
            source = sys.stdin.buffer if file == STDIN else stack.enter_context(Path(file).open("rb"))
        except OSError as error:
            raise InputError(f"{file}: {error.strerror}") from error
        found = list(_lines(source, file))
    if not found:
        raise InputError(f"{_shown(file)}: there is no text in it")
    return found


def _lines(source: BinaryIO | io.BufferedReader, file: str) -> Iterator[str]:
    for number, line in enumerate(_decoded(source, file), 1):
        if not line.strip():
            continue
        yield _json_text(line, f"{_shown(file)}: line {number}") if file.endswith(".jsonl") else line.rstrip("\r\n")


def _decoded(source: Iterable[bytes], file: str) -> Iterator[str]:
    for number, line in enumerate(source, 1):
        try:
            # A byte order mark is no part of the first text.
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{_shown(file)}: line {number}: byte {error.start} is not UTF-8") from error


def _json_text(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise InputError(f'{where}: an object with a string field "text" is wanted')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code_point = ord(text[error.start])
        raise InputError(f"{where}: lone surrogate U+{code_point:04X} at offset {error.start}") from error
    return text


def _shown(file: str) -> str:
    return "standard input" if file == STDIN else file
