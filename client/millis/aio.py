"""The asyncio client: the same calls as `client.py`, awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack, overload

import grpc
from grpc import aio

from millis import _calls, _catalog, _channel, _generation, _results
from millis._aio_connection import Connection, connect
from millis._channel import KeepAliveConfig, RetryConfig, TlsConfig
from millis.catalog import Model, ModelChange
from millis.errors import (
    ClientClosedError,
    DeadlineExceededError,
    RequestCancelledError,
    UnavailableError,
    from_rpc_error,
)
from millis.generation import Prompt
from millis.generation_stream import AsyncGenerationStream
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

Request = TypeVar("Request")
Response = TypeVar("Response")


class AsyncClient:
    """A connection to a Millis gateway, for asyncio.

    Threads: use it from the thread of its event loop only.
    Event loops: it belongs to the loop of its first call, and may be made before that loop runs. On one
    loop any number of tasks share it. Code without a loop uses `Client`.
    Forks: make the first call after the fork. One that was in use before must not be used in the child.

    Connection, retries, arguments, results and errors are those of `millis.Client`; every method is awaited, but
    for `generate`, whose stream is.
    Cancelling the task cancels its call at the gateway.

        async with millis.AsyncClient("gateway:50051") as client:
            print((await client.classify("I want my money back")).label)

    Args:
        target, timeout, tls, api_key, metadata, retry, keepalive, max_message_bytes: as for `millis.Client`.

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
        self._config = config
        self._target = config.target
        self._timeout_s = None if timeout is None else _calls.seconds("timeout", timeout)
        self._metadata = _channel.call_metadata(metadata, api_key)
        self._closed = False
        self._connected: Connection | None = None
        self.models = AsyncModels(self)

    @property
    def target(self) -> str:
        """Address of the gateway."""
        return self._target

    @overload
    async def classify(self, texts: str, **options: Unpack[ClassifyOptions]) -> Classification: ...  # type: ignore[overload-overlap]
    @overload
    async def classify(self, texts: Sequence[str], **options: Unpack[ClassifyOptions]) -> Results[Classification]: ...
    async def classify(
        self, texts: str | Sequence[str], **options: Unpack[ClassifyOptions]
    ) -> Classification | Results[Classification]:
        """Labels one text, or each text of a list."""
        request = _calls.classify(texts, **options)
        response = await self._call(self._connection().inference.ClassifyText, request, options.get("timeout"))
        return _results.classifications(request, response, one=isinstance(texts, str))

    @overload
    async def tag(self, texts: str, **options: Unpack[TagOptions]) -> TokenClassification: ...  # type: ignore[overload-overlap]
    @overload
    async def tag(self, texts: Sequence[str], **options: Unpack[TagOptions]) -> Results[TokenClassification]: ...
    @overload
    async def tag(self, *, words: Words, **options: Unpack[TagOptions]) -> TokenClassification: ...
    @overload
    async def tag(self, *, words: WordLists, **options: Unpack[TagOptions]) -> Results[TokenClassification]: ...
    async def tag(
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
        response = await self._call(self._connection().inference.ClassifyTokens, request, options.get("timeout"))
        one = isinstance(texts, str) or _calls.is_one_word_list(words)
        return _results.token_classifications(request, response, one=one)

    @overload
    async def embed(self, texts: str, **options: Unpack[EmbedOptions]) -> Embedding: ...  # type: ignore[overload-overlap]
    @overload
    async def embed(self, texts: Sequence[str], **options: Unpack[EmbedOptions]) -> Results[Embedding]: ...
    async def embed(
        self, texts: str | Sequence[str], **options: Unpack[EmbedOptions]
    ) -> Embedding | Results[Embedding]:
        """Turns one text, or each text of a list, into a vector."""
        request = _calls.embed(texts, **options)
        response = await self._call(self._connection().inference.EmbedText, request, options.get("timeout"))
        return _results.embeddings(request, response, one=isinstance(texts, str))

    async def rank(self, query: str, documents: Sequence[str], **options: Unpack[RankOptions]) -> Ranking:
        """Orders documents by how well they answer a query, best first."""
        request = _calls.rank(query, documents, **options)
        response = await self._call(self._connection().inference.RankTexts, request, options.get("timeout"))
        return _results.ranking(request, response)

    @overload
    async def tokenize(self, texts: str, **options: Unpack[TokenizeOptions]) -> Tokenization: ...  # type: ignore[overload-overlap]
    @overload
    async def tokenize(self, texts: Sequence[str], **options: Unpack[TokenizeOptions]) -> Results[Tokenization]: ...
    async def tokenize(
        self, texts: str | Sequence[str], **options: Unpack[TokenizeOptions]
    ) -> Tokenization | Results[Tokenization]:
        """Shows how a model reads one text, or each text of a list; nothing is inferred or truncated."""
        request = _calls.tokenize(texts, **options)
        response = await self._call(self._connection().inference.Tokenize, request, options.get("timeout"))
        return _results.tokenizations(request, response, one=isinstance(texts, str))

    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> AsyncGenerationStream:
        """Goes on from a prompt or a conversation, and streams the text as it is made.

        Args:
            prompt: plain text; or a conversation, as a list of `Message` or of dicts with `role` and `content`; or
                a list of token ids.
            options: see `millis.options.GenerateOptions`.

        Returns:
            The stream, whose call is under way. Iterate over it, or ask for its whole `text()`, awaited; use it in
            an `async with` block, so that leaving early ends the call at the gateway.

        Raises:
            InvalidArgumentError: an argument cannot be sent. What the gateway refuses, and every later failure,
                comes out of the stream.
            ClientClosedError: the client was closed before.
        """
        connection = self._connection()
        request = _generation.request(prompt, **options)
        timeout_s = _generation.timeout_s(options.get("timeout"), self._timeout_s)
        call = connection.inference.GenerateText(request, timeout=timeout_s, metadata=self._metadata)
        return AsyncGenerationStream(call, self._target, timeout_s)

    async def wait_ready(self, timeout: Seconds = _channel.DEFAULT_TIMEOUT_S) -> None:
        """Returns as soon as the gateway says (over grpc.health.v1) that it serves.

        Raises:
            DeadlineExceededError: it did not within `timeout`.
        """
        limit_s = _calls.seconds("timeout", timeout)
        deadline = time.monotonic() + limit_s
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                health = await self._call(
                    self._connection().health, _channel.HEALTH_REQUEST, left_s, wait_for_ready=True
                )
                if health == _channel.HEALTH_SERVING:
                    return
            except (UnavailableError, DeadlineExceededError):
                pass  # it came and went: ask again while there is time
            await asyncio.sleep(min(_channel.READY_POLL_S, max(0.0, deadline - time.monotonic())))
        raise _channel.not_ready(self._target, limit_s)

    async def close(self) -> None:
        """Closes the connection; calls under way are cancelled. Closing twice is harmless."""
        self._closed = True
        if self._connected is not None:
            await self._connected.channel.close()

    def _connection(self) -> Connection:
        """The channel and its stubs; made at the first call, for grpc.aio binds them to the running loop."""
        if self._closed:
            raise ClientClosedError("this client is closed")
        loop = asyncio.get_running_loop()
        if self._connected is None:
            self._connected = connect(self._config, loop)
        elif self._connected.loop is not loop:
            raise RuntimeError("this AsyncClient belongs to another event loop; make one for each loop")
        return self._connected

    async def _call(
        self,
        method: aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: Seconds | None,
        *,
        wait_for_ready: bool | None = None,
    ) -> Response:
        timeout_s = self._timeout_s if timeout is None else _calls.seconds("timeout", timeout)
        try:
            return await method(request, timeout=timeout_s, metadata=self._metadata, wait_for_ready=wait_for_ready)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._target, timeout_s) from error
        except asyncio.CancelledError as error:
            raise self._cancellation(error) from error

    def _cancellation(self, error: asyncio.CancelledError) -> BaseException:
        """Tells a cancelled task from one whose call ended because the channel was closed."""
        task = asyncio.current_task()
        if self._closed and task is not None and not task.cancelling():
            return RequestCancelledError("the client was closed during the call")
        return error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncModels:
    """The models of a gateway, as `client.models`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def list(self, task: Task | None = None, *, timeout: Seconds | None = None) -> tuple[Model, ...]:
        """All models in the order of their names, or those of one task. Follows the pages."""
        found: list[Model] = []
        request = _calls.list_models(task)
        while True:
            method = self._client._connection().models.ListModels
            response = await self._client._call(method, request, timeout)
            found.extend(_catalog.model(each) for each in response.models)
            if not _calls.next_page(request, response):
                return tuple(found)

    async def get(self, name: str, *, timeout: Seconds | None = None) -> Model:
        """All about one model, also why a version was refused."""
        request = _calls.named(models_pb2.GetModelRequest(), name=name)
        method = self._client._connection().models.GetModel
        return _catalog.model((await self._client._call(method, request, timeout)).model)

    async def load(self, name: str, *, timeout: Seconds = _channel.LOAD_TIMEOUT_S) -> Model:
        """Brings the newest good versions of a model into service; returns when it is done or failed."""
        request = _calls.named(models_pb2.LoadModelRequest(), name=name)
        method = self._client._connection().models.LoadModel
        return _catalog.model((await self._client._call(method, request, timeout)).model)

    async def unload(self, name: str, *, timeout: Seconds = _channel.LOAD_TIMEOUT_S) -> Model:
        """Takes a model out of service; requests under way are finished first."""
        request = _calls.named(models_pb2.UnloadModelRequest(), name=name)
        method = self._client._connection().models.UnloadModel
        return _catalog.model((await self._client._call(method, request, timeout)).model)

    async def watch(
        self, name: str | None = None, *, timeout: Seconds | None = None
    ) -> AsyncGenerator[ModelChange, None]:
        """Every model (or the one named), then each change of one, until the generator is closed.

        Unlike other calls it has no limit of time unless `timeout` gives one. Use `contextlib.aclosing` when
        you leave the loop early, so that the stream ends there and then.
        """
        client = self._client
        request = _calls.named(models_pb2.WatchModelsRequest(), name=name)
        timeout_s = None if timeout is None else _calls.seconds("timeout", timeout)
        method = client._connection().models.WatchModels
        stream = method(request, timeout=timeout_s, metadata=client._metadata)
        try:
            async for message in stream:
                yield _catalog.change(message)
        except grpc.RpcError as error:
            raise from_rpc_error(error, client.target, timeout_s) from error
        except asyncio.CancelledError as error:
            raise client._cancellation(error) from error
        finally:
            stream.cancel()
