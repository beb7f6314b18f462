"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack, overload

import grpc

from millis import _calls, _catalog, _channel, _generation, _results
from millis._channel import KeepAliveConfig, RetryConfig, TlsConfig
from millis.catalog import Model, ModelChange
from millis.errors import ClientClosedError, DeadlineExceededError, UnavailableError, from_rpc_error
from millis.generation import Prompt
from millis.generation_stream import GenerationStream
from millis.options import (
    ClassifyOptions,
    EmbedOptions,
    GenerateOptions,
    RankOptions,
    Seconds,
    TagOptions,
    Task,
    TokenizeOptions,
    WordLists,
    Words,
)
from millis.types import Classification, Embedding, Ranking, Results, TokenClassification, Tokenization
from millis.v1 import models_pb2
from millis.v1.inference_pb2_grpc import InferenceServiceStub
from millis.v1.models_pb2_grpc import ModelServiceStub

Request = TypeVar("Request")
Response = TypeVar("Response")


class Client:
    """A connection to a Millis gateway, for code that may block.

    Threads: one client serves any number of threads; make one and share it.
    Event loops: every method blocks, so do not call it on a running loop; use `AsyncClient` there.
    Forks: make the client after the fork. One that was made before must not be used in the child.

    The connection is made at the first call and made again when it breaks. Calls that end with UNAVAILABLE
    are retried within their timeout; nothing else is.

        with millis.Client("gateway:50051") as client:
            print(client.classify("I want my money back").label)

    Every inference method takes one text and returns one result, or takes a list and returns `Results` in the
    same order; only `generate` takes one prompt and returns a stream. `millis.options` explains their keyword
    arguments. A call that fails raises a `millis.StatusError` (the tree is in `millis.errors`); arguments of a
    wrong type raise TypeError.

    Args:
        target: address of the gateway, `host:port`. Default: the environment's `MILLIS_TARGET`, else
            `127.0.0.1:50051`.
        timeout: limit of every call that states none, in seconds or as a timedelta; None for no limit.
            `generate` has at least 120 s, `models.load` and `models.unload` have 300 s.
        tls: True for an encrypted connection trusting gRPC's own authorities, or a `TlsConfig`.
        api_key: sent with every call, where the gateway knows its callers. Default: the environment's
            `MILLIS_API_KEY`, else none.
        metadata: sent with every call beside it.
        retry: how UNAVAILABLE is retried.
        keepalive: how a dead connection is found.
        max_message_bytes: largest request sent and largest response taken.

    Raises:
        ValueError: the target has no port, the key cannot be sent, or a setting is out of range.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        timeout: Seconds | None = _channel.DEFAULT_TIMEOUT_S,
        tls: TlsConfig | bool = False,
        api_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry: RetryConfig | None = None,
        keepalive: KeepAliveConfig | None = None,
        max_message_bytes: int = _channel.DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        config = _channel.channel_config(target, tls, retry, keepalive, max_message_bytes)
        credentials = config.credentials()
        if credentials is None:
            channel = grpc.insecure_channel(config.target, config.options)
        else:
            channel = grpc.secure_channel(config.target, credentials, config.options)
        self._target = config.target
        self._timeout_s = None if timeout is None else _calls.seconds("timeout", timeout)
        self._metadata = _channel.call_metadata(metadata, api_key)
        self._closed = False
        self._channel = channel
        self._inference = InferenceServiceStub(channel)
        self._health: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_channel.HEALTH_METHOD)
        self.models = Models(self, ModelServiceStub(channel))

    @property
    def target(self) -> str:
        """Address of the gateway."""
        return self._target

    @overload
    def classify(self, texts: str, **options: Unpack[ClassifyOptions]) -> Classification: ...  # type: ignore[overload-overlap]
    @overload
    def classify(self, texts: Sequence[str], **options: Unpack[ClassifyOptions]) -> Results[Classification]: ...
    def classify(
        self, texts: str | Sequence[str], **options: Unpack[ClassifyOptions]
    ) -> Classification | Results[Classification]:
        """Labels one text, or each text of a list."""
        request = _calls.classify(texts, **options)
        response = self._call(self._inference.ClassifyText, request, options.get("timeout"))
        return _results.classifications(request, response, one=isinstance(texts, str))

    @overload
    def tag(self, texts: str, **options: Unpack[TagOptions]) -> TokenClassification: ...  # type: ignore[overload-overlap]
    @overload
    def tag(self, texts: Sequence[str], **options: Unpack[TagOptions]) -> Results[TokenClassification]: ...
    @overload
    def tag(self, *, words: Words, **options: Unpack[TagOptions]) -> TokenClassification: ...
    @overload
    def tag(self, *, words: WordLists, **options: Unpack[TagOptions]) -> Results[TokenClassification]: ...
    def tag(
        self,
        texts: str | Sequence[str] | None = None,
        *,
        words: Words | WordLists | None = None,
        **options: Unpack[TagOptions],
    ) -> TokenClassification | Results[TokenClassification]:
        """Finds entities in one text, or in each text of a list; long texts are read in overlapping windows.

        Instead of `texts`, `words` takes one text split into words, or a list of such texts. Spans then
        count in the words joined with one space, and entities carry word indices.
        """
        request = _calls.tag(texts, words, **options)
        response = self._call(self._inference.ClassifyTokens, request, options.get("timeout"))
        one = isinstance(texts, str) or _calls.is_one_word_list(words)
        return _results.token_classifications(request, response, one=one)

    @overload
    def embed(self, texts: str, **options: Unpack[EmbedOptions]) -> Embedding: ...  # type: ignore[overload-overlap]
    @overload
    def embed(self, texts: Sequence[str], **options: Unpack[EmbedOptions]) -> Results[Embedding]: ...
    def embed(self, texts: str | Sequence[str], **options: Unpack[EmbedOptions]) -> Embedding | Results[Embedding]:
        """Turns one text, or each text of a list, into a vector."""
        request = _calls.embed(texts, **options)
        response = self._call(self._inference.EmbedText, request, options.get("timeout"))
        return _results.embeddings(request, response, one=isinstance(texts, str))

    def rank(self, query: str, documents: Sequence[str], **options: Unpack[RankOptions]) -> Ranking:
        """Orders documents by how well they answer a query, best first."""
        request = _calls.rank(query, documents, **options)
        response = self._call(self._inference.RankTexts, request, options.get("timeout"))
        return _results.ranking(request, response)

    @overload
    def tokenize(self, texts: str, **options: Unpack[TokenizeOptions]) -> Tokenization: ...  # type: ignore[overload-overlap]
    @overload
    def tokenize(self, texts: Sequence[str], **options: Unpack[TokenizeOptions]) -> Results[Tokenization]: ...
    def tokenize(
        self, texts: str | Sequence[str], **options: Unpack[TokenizeOptions]
    ) -> Tokenization | Results[Tokenization]:
        """Shows how a model reads one text, or each text of a list; nothing is inferred or truncated."""
        request = _calls.tokenize(texts, **options)
        response = self._call(self._inference.Tokenize, request, options.get("timeout"))
        return _results.tokenizations(request, response, one=isinstance(texts, str))

    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> GenerationStream:
        """Goes on from a prompt or a conversation, and streams the text as it is made.

        Args:
            prompt: plain text; or a conversation, as a list of `Message` or of dicts with `role` and `content`; or
                a list of token ids.
            options: see `millis.options.GenerateOptions`.

        Returns:
            The stream, whose call is under way. Iterate over it, or ask for its whole `text()`; use it in
            a `with` block, so that leaving early ends the call at the gateway.

        Raises:
            InvalidArgumentError: an argument cannot be sent. What the gateway refuses, and every later failure,
                comes out of the stream.
            ClientClosedError: the client was closed before.
        """
        if self._closed:
            raise ClientClosedError("this client is closed")
        request = _generation.request(prompt, **options)
        timeout_s = _generation.timeout_s(options.get("timeout"), self._timeout_s)
        call = self._inference.GenerateText(request, timeout=timeout_s, metadata=self._metadata)
        return GenerationStream(call, self._target, timeout_s)

    def wait_ready(self, timeout: Seconds = _channel.DEFAULT_TIMEOUT_S) -> None:
        """Returns as soon as the gateway says (over grpc.health.v1) that it serves.

        Raises:
            DeadlineExceededError: it did not within `timeout`.
        """
        limit_s = _calls.seconds("timeout", timeout)
        deadline = time.monotonic() + limit_s
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                health = self._call(self._health, _channel.HEALTH_REQUEST, left_s, wait_for_ready=True)
                if health == _channel.HEALTH_SERVING:
                    return
            except (UnavailableError, DeadlineExceededError):
                pass  # it came and went: ask again while there is time
            time.sleep(min(_channel.READY_POLL_S, max(0.0, deadline - time.monotonic())))
        raise _channel.not_ready(self._target, limit_s)

    def close(self) -> None:
        """Closes the connection; calls under way are cancelled. Closing twice is harmless."""
        self._closed = True
        self._channel.close()

    def _call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: Seconds | None,
        *,
        wait_for_ready: bool | None = None,
    ) -> Response:
        if self._closed:
            raise ClientClosedError("this client is closed")
        timeout_s = self._timeout_s if timeout is None else _calls.seconds("timeout", timeout)
        try:
            return method(request, timeout=timeout_s, metadata=self._metadata, wait_for_ready=wait_for_ready)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._target, timeout_s) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Models:
    """The models of a gateway, as `client.models`."""

    def __init__(self, client: Client, stub: ModelServiceStub) -> None:
        self._client = client
        self._stub = stub

    def list(self, task: Task | None = None, *, timeout: Seconds | None = None) -> tuple[Model, ...]:
        """All models in the order of their names, or those of one task. Follows the pages."""
        found: list[Model] = []
        request = _calls.list_models(task)
        while True:
            response = self._client._call(self._stub.ListModels, request, timeout)
            found.extend(_catalog.model(each) for each in response.models)
            if not _calls.next_page(request, response):
                return tuple(found)

    def get(self, name: str, *, timeout: Seconds | None = None) -> Model:
        """All about one model, also why a version was refused."""
        request = _calls.named(models_pb2.GetModelRequest(), name=name)
        return _catalog.model(self._client._call(self._stub.GetModel, request, timeout).model)

    def load(self, name: str, *, timeout: Seconds = _channel.LOAD_TIMEOUT_S) -> Model:
        """Brings the newest good versions of a model into service; returns when it is done or failed."""
        request = _calls.named(models_pb2.LoadModelRequest(), name=name)
        return _catalog.model(self._client._call(self._stub.LoadModel, request, timeout).model)

    def unload(self, name: str, *, timeout: Seconds = _channel.LOAD_TIMEOUT_S) -> Model:
        """Takes a model out of service; requests under way are finished first."""
        request = _calls.named(models_pb2.UnloadModelRequest(), name=name)
        return _catalog.model(self._client._call(self._stub.UnloadModel, request, timeout).model)

    def watch(self, name: str | None = None, *, timeout: Seconds | None = None) -> Generator[ModelChange, None, None]:
        """Every model (or the one named), then each change of one, until the generator is closed.

        Unlike other calls it has no limit of time unless `timeout` gives one. Close the client, from any
        thread, to end a watch that waits: it then raises RequestCancelledError.
        """
        client = self._client
        if client._closed:
            raise ClientClosedError("this client is closed")
        request = _calls.named(models_pb2.WatchModelsRequest(), name=name)
        timeout_s = None if timeout is None else _calls.seconds("timeout", timeout)
        stream = self._stub.WatchModels(request, timeout=timeout_s, metadata=client._metadata)
        try:
            for message in stream:
                yield _catalog.change(message)
        except grpc.RpcError as error:
            raise from_rpc_error(error, client.target, timeout_s) from error
        finally:
            stream.cancel()
