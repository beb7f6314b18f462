"""Converts positions in a text from code points, in which the tokenizer counts, to the caller's unit."""

from collections.abc import Callable
from itertools import accumulate
from typing import Literal

OffsetUnit = Literal["code_point", "utf8_byte", "utf16_code_unit"]


def converter(text: str, unit: OffsetUnit) -> Callable[[int], int]:
    """Returns a function from a code point position in `text` to the same position in `unit`.

    The table is built once for each text, and not at all where the units agree.
    """
    if unit == "code_point" or text.isascii():
        return _unchanged
    if unit == "utf8_byte":
        widths = (1 if char < "\x80" else 2 if char < "\u0800" else 3 if char < "\U00010000" else 4 for char in text)
    else:
        widths = (1 if char < "\U00010000" else 2 for char in text)
    return list(accumulate(widths, initial=0)).__getitem__


def _unchanged(position: int) -> int:
    return position
