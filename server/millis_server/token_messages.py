"""Tokens and entities as messages of ClassifyTokens and Tokenize."""

from __future__ import annotations

from collections.abc import Sequence

from millis.v1 import inference_pb2 as inference
from millis.v1 import types_pb2 as types
from millis_server.offsets import OffsetUnit, converter
from millis_server.tasks.token_classification import TaggedText
from millis_server.tokenizer import Tokenizer

SPAN_UNITS: dict[OffsetUnit, types.OffsetUnit.ValueType] = {
    "code_point": types.OFFSET_UNIT_CODE_POINT,
    "utf8_byte": types.OFFSET_UNIT_UTF8_BYTE,
    "utf16_code_unit": types.OFFSET_UNIT_UTF16_CODE_UNIT,
}


def tagged_text(tagged: TaggedText, unit: OffsetUnit, given_words: bool) -> inference.TokenClassification:
    """Entities and tokens of one text as a message.

    Args:
        tagged: what was found.
        unit: of the positions in the message.
        given_words: whether the caller gave words, so that entities tell which.
    """
    convert = converter(tagged.text, unit)
    number = SPAN_UNITS[unit]
    return inference.TokenClassification(
        entities=[
            inference.Entity(
                text=tagged.text[entity.start : entity.end],
                label=entity.label,
                score=entity.score,
                span=types.Span(start=convert(entity.start), end=convert(entity.end), unit=number),
                first_word=entity.first if given_words else None,
                last_word=entity.last if given_words else None,
            )
            for entity in tagged.entities
        ],
        tokens=[
            inference.ClassifiedToken(
                token=token.token,
                label=token.label,
                score=token.score,
                span=types.Span(start=convert(token.start), end=convert(token.end), unit=number),
            )
            for token in tagged.tokens
        ],
        windows=tagged.windows,
    )


def tokenization(tokenizer: Tokenizer, text: str, special: bool, unit: OffsetUnit) -> inference.Tokenization:
    """How one text is read, as a message.

    Args:
        tokenizer: of the model.
        text: as the caller sent it.
        special: whether the model's own tokens are added.
        unit: of the positions in the message.
    """
    encoding = tokenizer.encoding(text, special)
    convert = converter(text, unit)
    number = SPAN_UNITS[unit]
    columns: Sequence[Sequence[object]] = (
        encoding.ids,
        encoding.tokens,
        encoding.offsets,
        encoding.special_tokens_mask,
    )
    return inference.Tokenization(
        tokens=[
            inference.Token(
                id=token_id,
                text=token,
                span=types.Span(start=convert(start), end=convert(end), unit=number),
                special=bool(is_special),
            )
            for token_id, token, (start, end), is_special in zip(*columns, strict=True)
        ]
    )
