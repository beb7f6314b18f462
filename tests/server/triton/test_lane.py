"""The lane, with a Triton that answers when the test says so: only so can a queue be held full."""

import asyncio
import json
from time import perf_counter

import numpy as np
import pytest

from millis_server.errors import BackendFault, DeadlinePassed
from millis_server.tokenizer import Row
from millis_server.triton.connection import HttpResponse
from millis_server.triton.lane import Lane
from tests.server.test_manifest import manifest


class HeldTriton:
    """Holds every request until it is released; answers each row with the sum of its ids."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.release = asyncio.Event()
        self.failure: Exception | None = None

    async def infer(self, path, body, header_length):
        header = json.loads(body[:header_length])
        rows, width = header["inputs"][0]["shape"]
        self.sizes.append(rows)
        await self.release.wait()
        if self.failure:
            raise self.failure
        ids = np.frombuffer(body, np.int64, rows * width, header_length).reshape(rows, width)
        output = ids.sum(1, keepdims=True).astype(np.float32)
        answer = json.dumps({"outputs": [{"shape": list(output.shape)}]}).encode()
        return HttpResponse(200, len(answer), answer + output.tobytes())


def lane(triton: HeldTriton) -> Lane:
    return Lane(triton, manifest(), "1", width=2, max_batch=4)


async def ask(lane: Lane, *values: int) -> list[float]:
    ran = await lane.run([Row([value] * (1 + value % 3)) for value in values])
    return [float(output[0]) for output in ran.outputs]


def sums(*values: int) -> list[float]:
    return [float(value * (1 + value % 3)) for value in values]


async def test_calls_beyond_the_places_share_the_next_request():
    triton = HeldTriton()
    road = lane(triton)
    calls = [asyncio.create_task(ask(road, number)) for number in range(1, 8)]
    await asyncio.sleep(0)
    triton.release.set()
    assert await asyncio.gather(*calls) == [sums(number) for number in range(1, 8)]
    assert triton.sizes == [1, 1, 4, 1]


async def test_a_long_list_is_cut_and_answered_in_order():
    triton = HeldTriton()
    triton.release.set()
    values = list(range(1, 30))
    assert await ask(lane(triton), *values) == sums(*values)
    assert max(triton.sizes) <= 4


async def test_a_caller_who_leaves_while_waiting_is_not_computed():
    triton = HeldTriton()
    road = lane(triton)
    running = [asyncio.create_task(ask(road, number)) for number in (1, 2)]
    await asyncio.sleep(0)
    leaving, staying = asyncio.create_task(ask(road, 3)), asyncio.create_task(ask(road, 4))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    triton.release.set()
    assert await asyncio.gather(*running, staying) == [sums(1), sums(2), sums(4)]
    await road.drain()
    assert triton.sizes == [1, 1, 1]


async def test_what_expires_while_waiting_is_not_computed():
    triton = HeldTriton()
    road = lane(triton)
    running = [asyncio.create_task(ask(road, number)) for number in (1, 2)]
    await asyncio.sleep(0)
    expires = perf_counter()
    late = [asyncio.create_task(road.run([Row([3])] * rows, expires)) for rows in (1, 9)]
    staying = asyncio.create_task(ask(road, 4))
    await asyncio.sleep(0)
    triton.release.set()
    assert await asyncio.gather(*running, staying) == [sums(1), sums(2), sums(4)]
    for call in late:
        with pytest.raises(DeadlinePassed, match="the deadline passed before the model was free"):
            await call
    await road.drain()
    assert triton.sizes == [1, 1, 1]


async def test_a_failure_reaches_every_caller_and_the_lane_goes_on():
    triton = HeldTriton()
    road = lane(triton)
    triton.failure = BackendFault("no memory")
    triton.release.set()
    for values in ([1], list(range(9))):
        with pytest.raises(BackendFault, match="no memory"):
            await ask(road, *values)
    triton.failure = None
    assert await ask(road, 5) == sums(5)
