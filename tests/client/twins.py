"""What lets one test speak to both clients."""

import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import millis

AnyClient = millis.Client | millis.AsyncClient


async def maybe_await(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def take(stream: AsyncIterator[Any] | Iterator[Any], count: int) -> list[Any]:
    """The next items of a stream of either client."""
    if isinstance(stream, Iterator):
        return [next(stream) for _ in range(count)]
    return [await anext(stream) for _ in range(count)]


async def close_stream(stream: Any) -> None:
    if isinstance(stream, Iterator):
        stream.close()
    else:
        await stream.aclose()
