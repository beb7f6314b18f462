"""The streams that `generate` returns: one for each client, over the same record of what has come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from millis import _generation
from millis.errors import RequestCancelledError, StatusError, from_rpc_error
from millis.generation import Generated, TextDelta
from millis.types import Info
from millis.v1 import inference_pb2 as pb

_CANCELLED = "the stream was cancelled before its end"


class _Progress:
    """What has come of a stream so far; both twins write it, neither waits in it."""

    def __init__(self, call: Any, target: str, timeout_s: float | None) -> None:
        self.started: Info | None = None
        self.finished: Generated | None = None
        self._call = call
        self._target = target
        self._timeout_s = timeout_s
        self._pieces: list[str] = []
        self._failure: StatusError | None = None

    def cancel(self) -> None:
        """Ends the call; the gateway stops working on it. Harmless after the end.

        Whoever iterates then, in whichever thread or task, gets a RequestCancelledError.
        """
        self._call.cancel()

    def _take(self, message: pb.GenerateTextResponse) -> TextDelta | None:
        """Writes a message down, and makes a delta of it when it is one."""
        event = message.WhichOneof("event")
        if event == "started":
            self.started = _generation.started(message.started)
        elif event == "finished":
            self.finished = _generation.generated(message.finished)
        elif event == "delta":
            delta = _generation.delta(message.delta)
            if delta.index == 0:
                self._pieces.append(delta.text)
            return delta
        return None  # also for an event that only a newer gateway knows

    def _failed(self, error: grpc.RpcError) -> StatusError:
        self._failure = from_rpc_error(error, self._target, self._timeout_s)
        return self._failure

    def _check_end(self) -> None:
        """A stream that failed fails again; one that ended well had its last message."""
        if self._failure is not None:
            raise self._failure
        if self.finished is None:
            self._failure = _generation.cut_short()
            raise self._failure


class GenerationStream(_Progress):
    """Text that `Client.generate` streams: an iterator of `TextDelta`.

    The call is under way from the beginning; iterating waits for what comes. Leaving a `with` block, or `cancel`,
    ends it at the gateway at once. A stream that nobody refers to any more is cancelled too.

        with client.generate("Once upon a time") as stream:
            for delta in stream:
                print(delta.text, end="", flush=True)
        print(stream.finished.completions[0].finish_reason)

    Threads: one thread iterates; any may cancel. Iterating and `text` raise a `millis.StatusError` when the call
    fails, also in the middle of a text; `RequestCancelledError` when it was cancelled.

    Attributes:
        started: who answers, and how many tokens the prompt has; None before the first message.
        finished: how it ended; None before the end.
    """

    def __iter__(self) -> Iterator[TextDelta]:
        return self

    def __next__(self) -> TextDelta:
        try:
            for message in self._call:
                delta = self._take(message)
                if delta is not None:
                    return delta
        except grpc.RpcError as error:
            raise self._failed(error) from error
        self._check_end()
        raise StopIteration

    def text(self) -> str:
        """Waits for the end.

        Returns:
            The whole text of answer 0, with what was iterated over before.

        Raises:
            StatusError: the call failed; `TextDelta`s that came before are lost unless you iterate.
        """
        for _ in self:
            pass
        return "".join(self._pieces)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class AsyncGenerationStream(_Progress):
    """Text that `AsyncClient.generate` streams: an asynchronous iterator of `TextDelta`.

    As `GenerationStream`, with `async with`, `async for` and `await stream.text()`. Cancelling the task that
    iterates cancels the call at the gateway; a stream that is only dropped may go on for a while.

    Attributes:
        started: who answers, and how many tokens the prompt has; None before the first message.
        finished: how it ended; None before the end.
    """

    def __aiter__(self) -> AsyncIterator[TextDelta]:
        return self

    async def __anext__(self) -> TextDelta:
        try:
            async for message in self._call:
                delta = self._take(message)
                if delta is not None:
                    return delta
        except grpc.RpcError as error:
            raise self._failed(error) from error
        except asyncio.CancelledError as error:
            self._failure = RequestCancelledError(_CANCELLED)
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise self._failure from error  # it was the call that was cancelled: by `cancel`, or with its client
        self._check_end()
        raise StopAsyncIteration

    async def text(self) -> str:
        """Waits for the end.

        Returns:
            The whole text of answer 0, with what was iterated over before.

        Raises:
            StatusError: the call failed; `TextDelta`s that came before are lost unless you iterate.
        """
        async for _ in self:
            pass
        return "".join(self._pieces)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
