"""The answers of the fake gateway: made from the text alone, so that equal inputs give equal answers.

They mean nothing. They have the form, the order and the options of real ones.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
import zlib
from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration

from millis.v1 import inference_pb2 as pb
from millis.v1 import models_pb2, types_pb2

LABELS = ("negative", "neutral", "positive")
DIMENSIONS = 8
MAX_TOKENS = 128
_WORD = re.compile(r"\S+")


def model(name: str = "fake") -> models_pb2.Model:
    """A text classifier with two variants that are ready."""
    variants = [
        models_pb2.ModelVariant(
            name=variant,
            triton_model=f"{name}-{variant}",
            state=models_pb2.VARIANT_STATE_READY,
            version="1",
            is_default=variant == "int8",
            size_bytes=1_000_000,
        )
        for variant in ("fp32", "int8")
    ]
    return models_pb2.Model(
        name=name,
        task=types_pb2.TASK_TEXT_CLASSIFICATION,
        variants=variants,
        labels=LABELS,
        max_tokens=MAX_TOKENS,
        is_default=True,
        provenance="millis.testing",
    )


def classify(request: pb.ClassifyTextRequest) -> pb.ClassifyTextResponse:
    """Scores of three labels from a hash of each text."""
    top_k = request.top_k if request.HasField("top_k") else 1
    results = []
    for text in request.texts:
        weights = [1 + byte for byte in _digest(text)[: len(LABELS)]]
        scores = sorted(
            ((weight / sum(weights), label) for weight, label in zip(weights, LABELS, strict=True)),
            key=lambda pair: -pair[0],
        )
        labels = [pb.LabelScore(label=label, score=score) for score, label in scores[: top_k or None]]
        results.append(pb.TextClassification(labels=[each for each in labels if each.score >= request.min_score]))
    return pb.ClassifyTextResponse(
        results=results, info=response_info(request.model, request.version, request.options, request.texts)
    )


def tag(request: pb.ClassifyTokensRequest) -> pb.ClassifyTokensResponse:
    """Every word that begins with a capital letter is a NAME."""
    texts = list(request.texts) or [" ".join(each.words) for each in request.word_lists]
    results = []
    for text in texts:
        result = pb.TokenClassification(windows=1)
        for index, word in enumerate(_WORD.finditer(text)):
            named = word[0][0].isupper()
            span = _span(text, word.start(), word.end(), request.options.offset_unit)
            if request.include_tokens:
                label = "B-NAME" if named else "O"
                result.tokens.add(token=word[0], label=label, score=0.75, span=span)
            if named and request.min_score <= 0.75:
                entity = result.entities.add(text=word[0], label="NAME", score=0.75, span=span)
                if request.word_lists:
                    entity.first_word = entity.last_word = index
        results.append(result)
    return pb.ClassifyTokensResponse(
        results=results, info=response_info(request.model, request.version, request.options, texts)
    )


def embed(request: pb.EmbedTextRequest) -> pb.EmbedTextResponse:
    """Vectors of 8 dimensions from a hash of each text, of length 1 unless `normalize` is False."""
    dimensions = min(request.dimensions or DIMENSIONS, DIMENSIONS)
    encoding = request.encoding or pb.EMBEDDING_ENCODING_FLOAT32
    results = []
    for text in request.texts:
        vector = [byte - 127.5 for byte in _digest(text)[:dimensions]]
        if request.normalize or not request.HasField("normalize"):
            length = math.hypot(*vector)
            vector = [value / length for value in vector]
        results.append(_packed(vector, encoding))
    return pb.EmbedTextResponse(
        results=results,
        dimensions=dimensions,
        encoding=encoding,
        info=response_info(request.model, request.version, request.options, request.texts),
    )


def rank(request: pb.RankTextsRequest) -> pb.RankTextsResponse:
    """The share of words that query and document have in common."""
    query = set(request.query.casefold().split())
    scored = []
    for index, document in enumerate(request.documents):
        words = set(document.casefold().split())
        scored.append((len(query & words) / max(1, len(query | words)), index))
    scored.sort(key=lambda pair: -pair[0])
    return pb.RankTextsResponse(
        results=[
            pb.RankedText(
                index=index,
                score=score,
                text=request.documents[index] if request.return_documents else "",
            )
            for score, index in scored[: request.top_k or None]
        ],
        score_type=pb.SCORE_TYPE_PROBABILITY,
        info=response_info(request.model, request.version, request.options, request.documents),
    )


def tokenize(request: pb.TokenizeRequest) -> pb.TokenizeResponse:
    """A token for each word, between [CLS] and [SEP]."""
    special = request.add_special_tokens or not request.HasField("add_special_tokens")
    unit = request.options.offset_unit
    results = []
    for text in request.texts:
        tokens = [
            pb.Token(
                id=token_id(word[0]),
                text=word[0],
                span=_span(text, word.start(), word.end(), unit),
            )
            for word in _WORD.finditer(text)
        ]
        if special:
            nowhere = _span(text, 0, 0, unit)
            tokens.insert(0, pb.Token(id=101, text="[CLS]", span=nowhere, special=True))
            tokens.append(pb.Token(id=102, text="[SEP]", span=nowhere, special=True))
        results.append(pb.Tokenization(tokens=tokens))
    return pb.TokenizeResponse(
        results=results,
        max_tokens=MAX_TOKENS,
        info=response_info(request.model, request.version, request.options, request.texts),
    )


def token_id(word: str) -> int:
    """Number of a word in the vocabulary."""
    return 1000 + zlib.crc32(word.encode()) % 29000


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _packed(vector: list[float], encoding: pb.EmbeddingEncoding.ValueType) -> pb.Embedding:
    if encoding == pb.EMBEDDING_ENCODING_FLOAT16:
        return pb.Embedding(data=struct.pack(f"<{len(vector)}e", *vector))
    if encoding == pb.EMBEDDING_ENCODING_INT8:
        scale = max(abs(value) for value in vector) / 127
        return pb.Embedding(
            data=struct.pack(f"{len(vector)}b", *(round(value / scale) for value in vector)), scale=scale
        )
    if encoding == pb.EMBEDDING_ENCODING_BINARY:
        bits = "".join("1" if value > 0 else "0" for value in vector)
        size = math.ceil(len(bits) / 8)
        return pb.Embedding(data=int(bits.ljust(8 * size, "0"), 2).to_bytes(size, "big"))
    return pb.Embedding(data=struct.pack(f"<{len(vector)}f", *vector))


def _span(text: str, start: int, end: int, unit: types_pb2.OffsetUnit.ValueType) -> types_pb2.Span:
    unit = unit or types_pb2.OFFSET_UNIT_CODE_POINT
    if unit == types_pb2.OFFSET_UNIT_UTF8_BYTE:
        start, end = len(text[:start].encode()), len(text[:end].encode())
    elif unit == types_pb2.OFFSET_UNIT_UTF16_CODE_UNIT:
        start, end = (len(text[:each].encode("utf-16-le")) // 2 for each in (start, end))
    return types_pb2.Span(start=start, end=end, unit=unit)


def response_info(
    model: str, version: str, options: types_pb2.RequestOptions, texts: Iterable[str]
) -> types_pb2.ResponseInfo:
    """Who answers, and a token for each word beside two special ones."""
    texts = list(texts)
    info = types_pb2.ResponseInfo(
        client_request_id=options.client_request_id,
        served_by=types_pb2.ServedBy(
            model=model or "fake",
            version=version or "1",
            variant=options.slo.pin_variant or "int8",
            reason="fake gateway",
        ),
        usage=types_pb2.Usage(inputs=len(texts), tokens=sum(2 + len(text.split()) for text in texts)),
        cache_status=types_pb2.CACHE_STATUS_DISABLED,
    )
    if options.include_timing:
        millisecond = Duration(nanos=1_000_000)
        info.timing.CopyFrom(types_pb2.Timing(total=millisecond, infer=millisecond))
    return info
