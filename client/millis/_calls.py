"""Python arguments to request messages: the half of a call that both twins share before the wire.

Only what cannot be sent is refused here (a wrong type, text that has no UTF-8 form, a number that the field
cannot hold); every limit is the gateway's to state. An argument left out costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar, Unpack

from google.protobuf.message import Message

from millis import _enums
from millis.errors import InvalidArgumentError
from millis.options import CallOptions, Seconds
from millis.v1 import inference_pb2 as pb
from millis.v1 import models_pb2

InferenceRequest: TypeAlias = (
    pb.ClassifyTextRequest
    | pb.ClassifyTokensRequest
    | pb.EmbedTextRequest
    | pb.RankTextsRequest
    | pb.TokenizeRequest
    | pb.GenerateTextRequest
)
M = TypeVar("M", bound=Message)


def classify(
    texts: object,
    *,
    top_k: int | None = None,
    min_score: float | None = None,
    **options: Unpack[CallOptions],
) -> pb.ClassifyTextRequest:
    """The request of `classify`."""
    request = pb.ClassifyTextRequest()
    set_texts(request.texts, "texts", _many(texts))
    if top_k is not None:
        set_field(request, "top_k", top_k)
    if min_score is not None:
        set_field(request, "min_score", min_score)
    if options:
        call_options(request, **options)
    return request


def tag(
    texts: object,
    words: object,
    *,
    aggregation: str | None = None,
    min_score: float | None = None,
    include_tokens: bool | None = None,
    window_overlap: int | None = None,
    **options: Unpack[CallOptions],
) -> pb.ClassifyTokensRequest:
    """The request of `tag`."""
    if (texts is None) == (words is None):
        raise TypeError("give either texts or words")
    request = pb.ClassifyTokensRequest()
    if words is None:
        set_texts(request.texts, "texts", _many(texts))
    elif is_one_word_list(words):
        set_texts(request.word_lists.add().words, "words", words)
    else:
        for index, each in enumerate(_iterable("words", words)):
            set_texts(request.word_lists.add().words, f"words[{index}]", each)
    if aggregation is not None:
        request.aggregation = _enums.AGGREGATIONS.number("aggregation", aggregation)
    if min_score is not None:
        set_field(request, "min_score", min_score)
    if include_tokens is not None:
        set_field(request, "include_tokens", include_tokens)
    if window_overlap is not None:
        set_field(request, "window_overlap", window_overlap)
    if options:
        call_options(request, **options)
    return request


def embed(
    texts: object,
    *,
    normalize: bool | None = None,
    dimensions: int | None = None,
    encoding: str | None = None,
    **options: Unpack[CallOptions],
) -> pb.EmbedTextRequest:
    """The request of `embed`."""
    request = pb.EmbedTextRequest()
    set_texts(request.texts, "texts", _many(texts))
    if normalize is not None:
        set_field(request, "normalize", normalize)
    if dimensions is not None:
        set_field(request, "dimensions", dimensions)
    if encoding is not None:
        request.encoding = _enums.ENCODINGS.number("encoding", encoding)
    if options:
        call_options(request, **options)
    return request


def rank(
    query: object, documents: object, *, top_k: int | None = None, **options: Unpack[CallOptions]
) -> pb.RankTextsRequest:
    """The request of `rank`. The documents are not asked back: the request itself still has them."""
    request = pb.RankTextsRequest()
    set_field(request, "query", query)
    set_texts(request.documents, "documents", documents)
    if top_k is not None:
        set_field(request, "top_k", top_k)
    if options:
        call_options(request, **options)
    return request


def tokenize(
    texts: object, *, add_special_tokens: bool | None = None, **options: Unpack[CallOptions]
) -> pb.TokenizeRequest:
    """The request of `tokenize`."""
    request = pb.TokenizeRequest()
    set_texts(request.texts, "texts", _many(texts))
    if add_special_tokens is not None:
        set_field(request, "add_special_tokens", add_special_tokens)
    if options:
        call_options(request, **options)
    return request


def call_options(
    request: InferenceRequest,
    *,
    model: str | None = None,
    version: str | None = None,
    variant: str | None = None,
    latency_target: Seconds | None = None,
    min_quality: float | None = None,
    truncation: str | None = None,
    cache: str | None = None,
    include_timing: bool | None = None,
    offset_unit: str | None = None,
    client_request_id: str | None = None,
    timeout: Seconds | None = None,  # the twin reads it: it is a property of the call, not of the request
) -> None:
    """Fills in what any request may ask for."""
    options = request.options
    if model is not None:
        set_field(request, "model", model)
    if version is not None:
        set_field(request, "version", version)
    if variant is not None:
        set_field(options.slo, "pin_variant", variant, "variant")
    if latency_target is not None:
        nanoseconds = round(seconds("latency_target", latency_target) * 1e9)
        set_field(options.slo.latency_target, "seconds", nanoseconds // 10**9, "latency_target")
        options.slo.latency_target.nanos = nanoseconds % 10**9
    if min_quality is not None:
        set_field(options.slo, "min_quality", min_quality)
    if truncation is not None:
        options.truncation = _enums.TRUNCATIONS.number("truncation", truncation)
    if cache is not None:
        options.cache_policy = _enums.CACHE_POLICIES.number("cache", cache)
    if include_timing is not None:
        set_field(options, "include_timing", include_timing)
    if offset_unit is not None:
        options.offset_unit = _enums.OFFSET_UNITS.number("offset_unit", offset_unit)
    if client_request_id is not None:
        set_field(options, "client_request_id", client_request_id)


def list_models(task: str | None) -> models_pb2.ListModelsRequest:
    """The request for the first page of `models.list`."""
    request = models_pb2.ListModelsRequest()
    if task is not None:
        request.task = _enums.TASKS.number("task", task)
    return request


def next_page(request: models_pb2.ListModelsRequest, response: models_pb2.ListModelsResponse) -> bool:
    """Turns `request` to the page after `response`; False when that was the last."""
    if response.next_page_token == request.page_token:  # both empty, or a gateway that goes in circles
        return False
    request.page_token = response.next_page_token
    return bool(request.page_token)


def named(message: M, **fields: object) -> M:
    """A request of the model API: fills the fields of `message` that are not None."""
    for field, value in fields.items():
        if value is not None:
            set_field(message, field, value)
    return message


def is_one_word_list(words: object) -> bool:
    """Whether `words` is one text split into words, and not a list of such texts. An empty list is one."""
    return isinstance(words, (list, tuple)) and all(isinstance(word, str) for word in words)


def seconds(field: str, value: Seconds) -> float:
    """A time in seconds.

    Raises:
        TypeError: `value` is neither a number nor a timedelta.
        InvalidArgumentError: it is not finite.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{field} must be seconds as a number or a timedelta, not {type(value).__name__}")
    if not math.isfinite(value):
        raise InvalidArgumentError.for_field(field, f"must be a finite number of seconds, got {value}")
    return value


def set_field(message: Message, field: str, value: object, argument: str | None = None) -> None:
    """Sets a field, and names the argument when the value does not fit it."""
    name = argument or field
    if isinstance(value, bytes):  # protobuf takes bytes for text
        raise TypeError(f"{name} must be a str, not bytes")
    try:
        setattr(message, field, value)
    except UnicodeEncodeError as error:
        raise _unencodable(name, error) from None
    except ValueError:
        raise InvalidArgumentError.for_field(name, f"{value} is out of the field's range") from None
    except TypeError:
        raise TypeError(f"{name} cannot be a {type(value).__name__}: {value!r:.80}") from None


def set_texts(field: Any, name: str, texts: object) -> None:
    """Fills a repeated string field, and names the element that does not fit."""
    texts = tuple(_iterable(name, texts))
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{index}] must be a str, not {type(text).__name__}")
    try:
        field.extend(texts)
    except UnicodeEncodeError:
        for index, text in enumerate(texts):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise _unencodable(f"{name}[{index}]", error) from None
        raise


def _many(texts: object) -> object:
    return (texts,) if isinstance(texts, str) else texts


def _iterable(name: str, values: object) -> Iterable[Any]:
    if isinstance(values, (str, bytes, bytearray, Mapping)) or not isinstance(values, Iterable):
        expected = "a str or a list of str" if name in ("texts", "stop") else "a list of str"
        raise TypeError(f"{name} must be {expected}, not {type(values).__name__}")
    return values


def _unencodable(name: str, error: UnicodeEncodeError) -> InvalidArgumentError:
    code_point = ord(error.object[error.start])
    return InvalidArgumentError.for_field(
        name, f"lone surrogate U+{code_point:04X} at offset {error.start} has no UTF-8 form"
    )
