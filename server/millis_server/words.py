"""Splits a text into words, the same way for every model.

Tokenizers disagree on what a word is (to a SentencePiece tokenizer a Chinese sentence is one), so entities would
begin and end differently from model to model. The rule here: a run of letters, digits, marks and underscores is a
word; a Chinese or Japanese character is a word by itself; so is any other character that is not a space.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from unicodedata import category

_ASCII_WORD = re.compile(r"[A-Za-z0-9_]+|[^A-Za-z0-9_\s]")
_NO_WORD = -1


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a text."""

    spans: list[tuple[int, int]]
    """Place of each word, code points, [start, end)."""
    at: list[int]
    """For each code point of the text the index of its word, -1 for a space."""


def split_words(text: str) -> Words:
    """Splits a text by the rule of this module."""
    spans = [match.span() for match in _ASCII_WORD.finditer(text)] if text.isascii() else _unicode_spans(text)
    return Words(spans, _index(spans, len(text)))


def given_words(words: list[str]) -> tuple[str, Words]:
    """Joins words that the caller split with one space, and returns the text and its words."""
    spans = []
    start = 0
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    text = " ".join(words)
    return text, Words(spans, _index(spans, len(text)))


def _index(spans: list[tuple[int, int]], length: int) -> list[int]:
    at = [_NO_WORD] * length
    for index, (start, end) in enumerate(spans):
        at[start:end] = [index] * (end - start)
    return at


def _unicode_spans(text: str) -> list[tuple[int, int]]:
    spans = []
    start = -1
    for position, char in enumerate(text):
        kind = category(char)
        joins = (kind[0] in "LNM" or char == "_") and not _stands_alone(char)
        if joins:
            if start < 0:
                start = position
            continue
        if start >= 0:
            spans.append((start, position))
            start = -1
        if not char.isspace():
            spans.append((position, position + 1))
    if start >= 0:
        spans.append((start, len(text)))
    return spans


def _stands_alone(char: str) -> bool:
    """Han, Hiragana and Katakana are written without spaces."""
    return (
        "\u3040" <= char <= "\u30ff"
        or "\u3400" <= char <= "\u4dbf"
        or "\u4e00" <= char <= "\u9fff"
        or "\uf900" <= char <= "\ufaff"
        or "\U00020000" <= char <= "\U0003ffff"
    )
