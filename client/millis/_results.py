"""Response messages to results: the half of a call that both twins share after the wire.

What the gateway sends is checked where the caller would otherwise meet a puzzling IndexError.
"""

from __future__ import annotations

import math
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration

from millis import _enums
from millis.errors import InternalError
from millis.types import (
    Classification,
    ClassifiedToken,
    Embedding,
    Entity,
    Info,
    Label,
    Ranked,
    Ranking,
    Results,
    ServedBy,
    Span,
    Timing,
    Token,
    TokenClassification,
    Tokenization,
    Usage,
)
from millis.v1 import inference_pb2 as pb
from millis.v1 import types_pb2

T = TypeVar("T")

_BITS_PER_VALUE = {"float32": 32, "float16": 16, "int8": 8, "binary": 1}


def classifications(
    request: pb.ClassifyTextRequest, response: pb.ClassifyTextResponse, *, one: bool
) -> Classification | Results[Classification]:
    """The result of `classify`: one Classification, or Results of them."""
    info = call_info(response.info)
    items = tuple(
        Classification(tuple(Label(each.label, each.score) for each in result.labels), info)
        for result in response.results
    )
    return _delivered(items, info, one, len(request.texts))


def token_classifications(
    request: pb.ClassifyTokensRequest, response: pb.ClassifyTokensResponse, *, one: bool
) -> TokenClassification | Results[TokenClassification]:
    """The result of `tag`: one TokenClassification, or Results of them."""
    info = call_info(response.info)
    items = tuple(
        TokenClassification(
            tuple(_entity(each) for each in result.entities),
            tuple(ClassifiedToken(each.token, each.label, each.score, _span(each.span)) for each in result.tokens),
            result.windows,
            info,
        )
        for result in response.results
    )
    return _delivered(items, info, one, len(request.texts) + len(request.word_lists))


def embeddings(
    request: pb.EmbedTextRequest, response: pb.EmbedTextResponse, *, one: bool
) -> Embedding | Results[Embedding]:
    """The result of `embed`: one Embedding, or Results of them."""
    info = call_info(response.info)
    encoding = _enums.ENCODINGS.name(response.encoding)
    dimensions = response.dimensions
    bits = _BITS_PER_VALUE.get(encoding)
    if bits is None:
        raise gateway_bug(f"vectors in the encoding {encoding}, which this SDK does not know")
    size = math.ceil(dimensions * bits / 8)
    for result in response.results:
        if len(result.data) != size:
            raise gateway_bug(f"a vector of {len(result.data)} bytes; {dimensions} dimensions as {encoding} are {size}")
    items = tuple(Embedding(result.data, encoding, dimensions, result.scale, info) for result in response.results)
    return _delivered(items, info, one, len(request.texts))


def ranking(request: pb.RankTextsRequest, response: pb.RankTextsResponse) -> Ranking:
    """The result of `rank`; texts are taken from the request."""
    documents = request.documents
    for result in response.results:
        if result.index >= len(documents):
            raise gateway_bug(f"document {result.index} of {len(documents)}")
    return Ranking(
        tuple(Ranked(each.index, each.score, documents[each.index]) for each in response.results),
        call_info(response.info),
        _enums.SCORE_TYPES.name(response.score_type),
    )


def tokenizations(
    request: pb.TokenizeRequest, response: pb.TokenizeResponse, *, one: bool
) -> Tokenization | Results[Tokenization]:
    """The result of `tokenize`: one Tokenization, or Results of them."""
    info = call_info(response.info)
    items = tuple(
        Tokenization(
            tuple(Token(each.id, each.text, _span(each.span), each.special) for each in result.tokens),
            response.max_tokens,
            info,
        )
        for result in response.results
    )
    return _delivered(items, info, one, len(request.texts))


def _delivered(items: tuple[T, ...], info: Info, one: bool, count: int) -> T | Results[T]:
    if len(items) != count:
        raise gateway_bug(f"{len(items)} results for {count} inputs")
    return items[0] if one else Results(items, info)


def gateway_bug(what: str) -> InternalError:
    """The error of an answer that the API does not allow."""
    return InternalError(f"the gateway answered {what}. This is a bug in the gateway.")


def call_info(info: types_pb2.ResponseInfo) -> Info:
    """How a response was made."""
    served_by = info.served_by
    return Info(
        ServedBy(served_by.model, served_by.version, served_by.variant, served_by.degraded, served_by.reason),
        _usage(info.usage),
        _timing(info.timing) if info.HasField("timing") else None,
        _enums.CACHE_STATUSES.name(info.cache_status),
        tuple(info.truncated_inputs),
        info.client_request_id,
    )


def _usage(usage: types_pb2.Usage) -> Usage:
    return Usage(usage.inputs, usage.tokens, usage.padded_tokens, usage.layers, usage.generated_tokens)


def _timing(timing: types_pb2.Timing) -> Timing:
    return Timing(
        milliseconds(timing.total),
        milliseconds(timing.tokenize),
        milliseconds(timing.queue),
        milliseconds(timing.infer),
        milliseconds(timing.postprocess),
    )


def milliseconds(duration: Duration) -> float:
    """A proto duration in milliseconds."""
    return duration.ToNanoseconds() / 1e6


def _span(span: types_pb2.Span) -> Span:
    return Span(span.start, span.end, _enums.OFFSET_UNITS.name(span.unit))


def _entity(entity: pb.Entity) -> Entity:
    return Entity(
        entity.text,
        entity.label,
        entity.score,
        _span(entity.span),
        entity.first_word if entity.HasField("first_word") else None,
        entity.last_word if entity.HasField("last_word") else None,
    )
