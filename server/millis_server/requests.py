"""Checks what a request carries and turns it from protobuf into tasks and wishes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, TypeVar

from millis.v1 import inference_pb2 as inference
from millis.v1 import types_pb2 as types
from millis_server.cache import Policy
from millis_server.errors import InvalidField
from millis_server.generation_requests import read_generation
from millis_server.offsets import OffsetUnit
from millis_server.routing import QUALITY_DIGITS, Wishes
from millis_server.tasks.embedding import Embedding, Encoding
from millis_server.tasks.entities import Aggregation
from millis_server.tasks.generation import TextGeneration
from millis_server.tasks.ranking import Ranking
from millis_server.tasks.text_classification import TextClassification
from millis_server.tasks.token_classification import TokenClassification
from millis_server.tokenizer import Truncation

InferenceRequest: TypeAlias = (
    inference.ClassifyTextRequest
    | inference.ClassifyTokensRequest
    | inference.EmbedTextRequest
    | inference.RankTextsRequest
    | inference.TokenizeRequest
    | inference.GenerateTextRequest
)

MAX_ID_CHARACTERS = 128
MAX_NAME_CHARACTERS = 128
"""Of a model, version or variant: errors repeat the name, and what gRPC sends beside an answer has to be small."""

Value = TypeVar("Value")

TRUNCATIONS: dict[int, Truncation] = {
    types.TRUNCATION_STRATEGY_UNSPECIFIED: "end",
    types.TRUNCATION_STRATEGY_END: "end",
    types.TRUNCATION_STRATEGY_START: "start",
    types.TRUNCATION_STRATEGY_ERROR: "error",
}
CACHE_POLICIES: dict[int, Policy] = {
    types.CACHE_POLICY_UNSPECIFIED: "default",
    types.CACHE_POLICY_DEFAULT: "default",
    types.CACHE_POLICY_BYPASS: "bypass",
    types.CACHE_POLICY_REFRESH: "refresh",
}
OFFSET_UNITS: dict[int, OffsetUnit] = {
    types.OFFSET_UNIT_UNSPECIFIED: "code_point",
    types.OFFSET_UNIT_CODE_POINT: "code_point",
    types.OFFSET_UNIT_UTF8_BYTE: "utf8_byte",
    types.OFFSET_UNIT_UTF16_CODE_UNIT: "utf16_code_unit",
}
AGGREGATIONS: dict[int, Aggregation] = {
    inference.AGGREGATION_STRATEGY_UNSPECIFIED: "first",
    inference.AGGREGATION_STRATEGY_FIRST: "first",
    inference.AGGREGATION_STRATEGY_AVERAGE: "average",
    inference.AGGREGATION_STRATEGY_MAX: "max",
    inference.AGGREGATION_STRATEGY_SIMPLE: "simple",
    inference.AGGREGATION_STRATEGY_NONE: "none",
}
ENCODINGS: dict[int, Encoding] = {
    inference.EMBEDDING_ENCODING_UNSPECIFIED: "float32",
    inference.EMBEDDING_ENCODING_FLOAT32: "float32",
    inference.EMBEDDING_ENCODING_FLOAT16: "float16",
    inference.EMBEDDING_ENCODING_INT8: "int8",
    inference.EMBEDDING_ENCODING_BINARY: "binary",
}

_NO_OPTIONS = types.RequestOptions()


class RequestReader:
    """Reads requests within limits.

    Args:
        max_inputs: most texts in one call.
        max_text_bytes: longest text, in bytes of UTF-8.
    """

    def __init__(self, max_inputs: int, max_text_bytes: int) -> None:
        self._max_inputs = max_inputs
        self._max_text_bytes = max_text_bytes

    def classify_text(self, request: inference.ClassifyTextRequest) -> TextClassification:
        """Reads a ClassifyTextRequest; raises InvalidField, as all readers here."""
        return TextClassification(
            texts=self.texts("texts", request.texts),
            top_k=request.top_k if request.HasField("top_k") else None,
            min_score=_score("min_score", request.min_score) if request.HasField("min_score") else None,
            truncation=truncation(request),
        )

    def classify_tokens(self, request: inference.ClassifyTokensRequest) -> TokenClassification:
        """Reads a ClassifyTokensRequest."""
        if request.texts and request.word_lists:
            raise InvalidField("word_lists", "is filled, and so is texts; fill one of them")
        texts, word_lists = None, None
        if request.word_lists:
            word_lists = self._word_lists(request.word_lists)
        else:
            texts = self.texts("texts", request.texts)
        return TokenClassification(
            texts=texts,
            word_lists=word_lists,
            aggregation=_known("aggregation", request.aggregation, AGGREGATIONS),
            min_score=_score("min_score", request.min_score),
            include_tokens=request.include_tokens,
            window_overlap=request.window_overlap if request.HasField("window_overlap") else None,
            truncation=truncation(request),
        )

    def embed_text(self, request: inference.EmbedTextRequest) -> Embedding:
        """Reads an EmbedTextRequest."""
        return Embedding(
            texts=self.texts("texts", request.texts),
            normalize=request.normalize if request.HasField("normalize") else None,
            dimensions=request.dimensions,
            encoding=_known("encoding", request.encoding, ENCODINGS),
            truncation=truncation(request),
        )

    def rank_texts(self, request: inference.RankTextsRequest) -> Ranking:
        """Reads a RankTextsRequest."""
        self._text("query", request.query)
        return Ranking(
            query=request.query,
            documents=self.texts("documents", request.documents),
            top_k=request.top_k,
            truncation=truncation(request),
        )

    def generate_text(self, request: inference.GenerateTextRequest) -> TextGeneration:
        """Reads a GenerateTextRequest."""
        options(request)
        return read_generation(request, self._text, self._max_inputs)

    def texts(self, field: str, texts: Sequence[str]) -> Sequence[str]:
        """Checks the texts of a field and returns them."""
        self._count(field, len(texts))
        for index, text in enumerate(texts):
            self._text(f"{field}[{index}]", text)
        return list(texts)

    def _word_lists(self, lists: Sequence[inference.WordList]) -> list[list[str]]:
        self._count("word_lists", len(lists))
        for index, words in enumerate(lists):
            field = f"word_lists[{index}].words"
            if not words.words:
                raise InvalidField(field, "is empty; a list needs at least 1 word")
            for place, word in enumerate(words.words):
                self._text(f"{field}[{place}]", word)
                if any(map(str.isspace, word)):
                    raise InvalidField(f"{field}[{place}]", "contains a space; a word is a piece without spaces")
            size = sum(len(word.encode()) + 1 for word in words.words)
            if size > self._max_text_bytes:
                raise InvalidField(field, f"has {size} bytes, the limit is {self._max_text_bytes}")
        return [list(words.words) for words in lists]

    def _count(self, field: str, count: int) -> None:
        if count == 0:
            raise InvalidField(field, f"is empty; give 1 to {self._max_inputs}")
        if count > self._max_inputs:
            raise InvalidField(field, f"has {count} entries, the limit is {self._max_inputs}")

    def _text(self, field: str, text: str) -> None:
        if not text or text.isspace():
            raise InvalidField(field, "is empty or blank")
        # A character takes 1 to 4 bytes, so most texts need not be encoded to be measured.
        if 4 * len(text) > self._max_text_bytes and (size := len(text.encode())) > self._max_text_bytes:
            raise InvalidField(field, f"has {size} bytes, the limit is {self._max_text_bytes}")
        if (place := text.find("\0")) >= 0:
            raise InvalidField(field, f"contains a NUL character at position {place}")


def truncation(request: InferenceRequest) -> Truncation:
    """What a request wants done with texts that are too long."""
    return _known("options.truncation", options(request).truncation, TRUNCATIONS)


def cache_policy(request: InferenceRequest) -> Policy:
    """Whether a request may be answered from the cache."""
    return _known("options.cache_policy", options(request).cache_policy, CACHE_POLICIES)


def offset_unit(request: InferenceRequest) -> OffsetUnit:
    """The unit in which a request wants positions."""
    return _known("options.offset_unit", options(request).offset_unit, OFFSET_UNITS)


def options(request: InferenceRequest) -> types.RequestOptions:
    """The options of a request, checked; the defaults where it has none."""
    if not request.HasField("options"):
        return _NO_OPTIONS
    found = request.options
    if len(found.client_request_id) > MAX_ID_CHARACTERS:
        raise InvalidField(
            "options.client_request_id",
            f"has {len(found.client_request_id)} characters, the limit is {MAX_ID_CHARACTERS}",
        )
    return found


def model(request: InferenceRequest) -> str:
    """The model that a request names; empty is the default one."""
    return checked_name("model", request.model)


def checked_name(field: str, name: str) -> str:
    """Returns a name, unless it is longer than any name is.

    Raises:
        InvalidField: it is.
    """
    if len(name) > MAX_NAME_CHARACTERS:
        raise InvalidField(field, f"has {len(name)} characters, the limit is {MAX_NAME_CHARACTERS}")
    return name


def wishes(request: InferenceRequest, time_left: float | None) -> Wishes:
    """The caller's wishes on the choice of version and variant.

    Args:
        request: any.
        time_left: seconds until the caller's deadline; None is no deadline.
    """
    version = checked_name("version", request.version)
    found = options(request)
    if not found.HasField("slo"):
        return Wishes(version=version, time_left=time_left)
    latency = found.slo.latency_target
    seconds = latency.seconds + latency.nanos / 1e9
    if seconds < 0 or (found.slo.HasField("latency_target") and seconds == 0):
        raise InvalidField("options.slo.latency_target", f"is {seconds:g} s, it must be more than 0")
    return Wishes(
        version=version,
        pin_variant=checked_name("options.slo.pin_variant", found.slo.pin_variant),
        # A float carries seven digits: 0.93 arrives as 0.93000001, above a measured 0.93.
        min_quality=round(_score("options.slo.min_quality", found.slo.min_quality), QUALITY_DIGITS),
        latency_target=seconds,
        time_left=time_left,
    )


def _score(field: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise InvalidField(field, f"is {value:g}, it must be 0 to 1")
    return value


def _known(field: str, number: int, names: dict[int, Value]) -> Value:
    try:
        return names[number]
    except KeyError:
        raise InvalidField(field, f"is {number}, which is no value of its enum") from None
