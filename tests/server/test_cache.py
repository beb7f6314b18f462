"""The answer cache, before a lane whose Triton answers when the test says so."""

import asyncio
import gc
import tracemalloc
from collections.abc import Sequence
from time import perf_counter

import numpy as np
import pytest

from millis_server.cache import AnswerCache, Counts, Policy, Status
from millis_server.errors import BackendFault, DeadlinePassed
from millis_server.tokenizer import Row
from millis_server.triton.lane import Deadline, Lane, Ran
from tests.server.test_manifest import manifest
from tests.server.triton.test_lane import HeldTriton, lane

PLENTY = 1 << 20


class PaddedLane(Lane):
    """Says 3 tokens of padding and 6 layers for each row."""

    def start(self, rows: Sequence[Row], deadline: Deadline) -> asyncio.Future[Ran]:
        running = super().start(rows, deadline)

        async def told() -> Ran:
            return (await running)._replace(padded=3 * len(rows), layers=6 * len(rows))

        return asyncio.get_running_loop().create_task(told())


def released() -> HeldTriton:
    triton = HeldTriton()
    triton.release.set()
    return triton


async def ask(cache: AnswerCache, lane: Lane, *values: int, policy: Policy = "default") -> tuple[list[float], Status]:
    """Asks for rows of one token each, which HeldTriton answers with that token."""
    outputs = await cache.run(lane, [Row([value]) for value in values], policy)
    return [float(output[0]) for output in outputs.rows], outputs.status


def rows_counted(cache: AnswerCache) -> tuple[int, int, int]:
    (counts,) = cache.counts.values()
    return counts.hits, counts.misses, counts.shared


async def test_a_row_is_computed_once_and_then_known():
    triton, cache = released(), AnswerCache(PLENTY)
    road = lane(triton)
    assert await ask(cache, road, 7) == ([7.0], "miss")
    assert await ask(cache, road, 7) == ([7.0], "hit")
    assert (triton.sizes, rows_counted(cache), len(cache)) == ([1], (1, 1, 0), 1)


async def test_a_list_with_known_rows_computes_only_the_others():
    triton, cache = released(), AnswerCache(PLENTY)
    road = lane(triton)
    await ask(cache, road, 1, 3)
    assert await ask(cache, road, 1, 2, 3, 4) == ([1.0, 2.0, 3.0, 4.0], "partial")
    assert (triton.sizes, rows_counted(cache)) == ([2, 2], (2, 4, 0))


async def test_equal_rows_of_one_call_are_computed_once():
    triton, cache = released(), AnswerCache(PLENTY)
    assert await ask(cache, lane(triton), 5, 6, 5, 5) == ([5.0, 6.0, 5.0, 5.0], "miss")
    assert (triton.sizes, rows_counted(cache)) == ([2], (0, 2, 2))


async def test_equal_calls_at_the_same_time_share_one_computation():
    triton, cache = HeldTriton(), AnswerCache(PLENTY)
    road = lane(triton)
    calls = [asyncio.create_task(ask(cache, road, 1, 2, 3)) for _ in range(20)]
    await asyncio.sleep(0)
    triton.release.set()
    assert await asyncio.gather(*calls) == [([1.0, 2.0, 3.0], "miss")] * 20
    assert (triton.sizes, rows_counted(cache)) == ([3], (0, 3, 57))


async def test_a_list_longer_than_a_request_is_shared_too():
    triton, cache = HeldTriton(), AnswerCache(PLENTY)
    road = lane(triton)
    values = list(range(1, 11))
    calls = [asyncio.create_task(ask(cache, road, *values)) for _ in range(2)]
    await asyncio.sleep(0)
    triton.release.set()
    assert await asyncio.gather(*calls) == [([float(value) for value in values], "miss")] * 2
    assert sum(triton.sizes) == 10


async def test_who_joins_a_computation_is_told_its_own_share_of_what_was_computed():
    triton, cache = HeldTriton(), AnswerCache(PLENTY)
    road = PaddedLane(triton, manifest(), "1", width=2, max_batch=4)
    whole = asyncio.create_task(cache.run(road, [Row([value]) for value in (1, 2)], "default"))
    await asyncio.sleep(0)
    joining = asyncio.create_task(cache.run(road, [Row([value]) for value in (2, 9)], "default"))
    await asyncio.sleep(0)
    triton.release.set()
    first, second = await asyncio.gather(whole, joining)
    assert (first.padded, first.layers) == (6, 12)
    assert (second.padded, second.layers) == (3 + 3, 6 + 6)


async def test_a_lone_row_does_not_wait_for_a_list_that_holds_it():
    triton, cache = HeldTriton(), AnswerCache(PLENTY)
    road = lane(triton)
    listed = asyncio.create_task(ask(cache, road, 1, 2, 3))
    await asyncio.sleep(0)
    alone = asyncio.create_task(ask(cache, road, 2))
    await asyncio.sleep(0)
    joining = asyncio.create_task(ask(cache, road, 2, 1))
    await asyncio.sleep(0)
    triton.release.set()
    answers = await asyncio.gather(listed, alone, joining)
    assert answers == [([1.0, 2.0, 3.0], "miss"), ([2.0], "miss"), ([2.0, 1.0], "miss")]
    assert triton.sizes == [3, 1, 1]


async def test_a_computation_goes_on_as_long_as_the_most_patient_of_those_who_wait():
    triton, cache = HeldTriton(), AnswerCache(PLENTY)
    road = lane(triton)
    before = [asyncio.create_task(cache.run(road, [Row([token])], "default")) for token in (7, 8, 9)]
    await asyncio.sleep(0)
    now = perf_counter()
    hurried = asyncio.create_task(cache.run(road, [Row([1])], "default", now))
    await asyncio.sleep(0)
    patient = asyncio.create_task(cache.run(road, [Row([1])], "default"))
    gone = asyncio.create_task(cache.run(road, [Row([2])], "default", now))
    await asyncio.sleep(0)
    triton.release.set()
    await asyncio.gather(*before)
    assert [(await call).own for call in (hurried, patient)] == [True, False]
    with pytest.raises(DeadlinePassed):
        await gone


async def test_only_what_was_computed_for_a_call_alone_tells_how_long_rows_take():
    triton, cache = released(), AnswerCache(PLENTY)
    road = lane(triton)
    calls: list[list[int]] = [[1, 2], [1, 2], [2, 3], [4, 4]]
    assert [(await cache.run(road, [Row([v]) for v in values], "default")).own for values in calls] == [
        True,
        False,
        False,
        False,
    ]


async def test_a_failure_reaches_every_caller_and_is_not_kept():
    triton, cache = HeldTriton(), AnswerCache(PLENTY)
    triton.failure = BackendFault("broken")
    road = lane(triton)
    calls = [asyncio.create_task(ask(cache, road, 1)) for _ in range(3)]
    await asyncio.sleep(0)
    triton.release.set()
    failures = await asyncio.gather(*calls, return_exceptions=True)
    assert failures == [triton.failure] * 3
    assert (triton.sizes, len(cache)) == ([1], 0)
    triton.failure = None
    assert await ask(cache, road, 1) == ([1.0], "miss")


async def test_a_caller_who_leaves_does_not_take_the_others_along():
    triton, cache = HeldTriton(), AnswerCache(PLENTY)
    road = lane(triton)
    first, second, third = [asyncio.create_task(ask(cache, road, 1)) for _ in range(3)]
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    third.cancel()
    triton.release.set()
    assert await second == ([1.0], "miss")
    with pytest.raises(asyncio.CancelledError):
        await first
    assert triton.sizes == [1]


async def test_what_all_have_left_is_not_computed_and_the_next_caller_starts_anew():
    triton, cache = HeldTriton(), AnswerCache(PLENTY)
    road = lane(triton)
    holding = [asyncio.create_task(ask(cache, road, value)) for value in (8, 9)]  # both places of the lane
    await asyncio.sleep(0)
    leaving = [asyncio.create_task(ask(cache, road, 1)) for _ in range(2)]
    await asyncio.sleep(0)
    for call in leaving:
        call.cancel()
    coming = asyncio.create_task(ask(cache, road, 1))  # while the flight is being cancelled
    await asyncio.sleep(0)
    triton.release.set()
    assert await asyncio.gather(*holding, coming) == [([8.0], "miss"), ([9.0], "miss"), ([1.0], "miss")]
    assert triton.sizes == [1, 1, 1]


async def test_a_bypass_neither_reads_nor_writes():
    triton, cache = released(), AnswerCache(PLENTY)
    road = lane(triton)
    assert await ask(cache, road, 1, policy="bypass") == ([1.0], "bypassed")
    assert len(cache) == 0
    await ask(cache, road, 1)
    assert await ask(cache, road, 1, policy="bypass") == ([1.0], "bypassed")
    assert triton.sizes == [1, 1, 1]


async def test_a_refresh_computes_anew_and_writes():
    triton, cache = released(), AnswerCache(PLENTY)
    road = lane(triton)
    for _ in range(2):
        assert await ask(cache, road, 1, policy="refresh") == ([1.0], "miss")
    assert (len(cache), cache.bytes) == (1, cache.bytes)
    assert await ask(cache, road, 1) == ([1.0], "hit")
    assert triton.sizes == [1, 1]


async def test_a_cache_of_no_bytes_is_off():
    triton, cache = released(), AnswerCache(0)
    road = lane(triton)
    for policy in ("default", "bypass", "refresh"):
        assert await ask(cache, road, 1, policy=policy) == ([1.0], "disabled")
    assert (triton.sizes, len(cache), cache.counts) == ([1, 1, 1], 0, {})


async def test_two_lanes_to_the_same_version_share_nothing():
    triton, cache = released(), AnswerCache(PLENTY)
    assert await ask(cache, lane(triton), 1) == ([1.0], "miss")
    assert await ask(cache, lane(triton), 1) == ([1.0], "miss")


async def test_pairs_with_the_same_tokens_and_other_segments_are_two_rows():
    triton, cache = released(), AnswerCache(PLENTY)
    road = lane(triton)
    rows = [Row([1, 2, 3], segments) for segments in (None, [0, 0, 1], [0, 1, 1])]
    outputs = [await cache.run(road, [row], "default") for row in rows * 2]
    assert [each.status for each in outputs] == ["miss"] * 3 + ["hit"] * 3


async def test_the_row_used_least_recently_makes_room():
    triton, cache = released(), AnswerCache(PLENTY)
    road = lane(triton)
    await ask(cache, road, 1)
    cache.max_bytes = 3 * cache.bytes
    await ask(cache, road, 2)
    await ask(cache, road, 3)
    await ask(cache, road, 1)
    await ask(cache, road, 4)
    assert (len(cache), cache.evictions, cache.bytes) == (3, 1, cache.max_bytes)
    statuses = [(await ask(cache, road, value))[1] for value in (1, 3, 4, 2)]
    assert statuses == ["hit", "hit", "hit", "miss"]


async def test_an_answer_larger_than_the_cache_leaves_it_as_it_is():
    triton, cache = released(), AnswerCache(PLENTY)
    road = lane(triton)
    await ask(cache, road, 1)
    cache.max_bytes = cache.bytes
    await cache.run(road, [Row([1] * 100)], "default")
    assert await ask(cache, road, 1) == ([1.0], "hit")


async def test_when_a_version_goes_its_answers_go_and_the_others_stay():
    triton, cache = released(), AnswerCache(PLENTY)
    old, new = lane(triton), lane(triton)
    await ask(cache, old, *range(1, 1501))
    await ask(cache, new, 1)
    left = cache.bytes / 1501
    await cache.keep_only([new])
    assert (len(cache), cache.bytes) == (1, left)
    assert await ask(cache, new, 1) == ([1.0], "hit")
    assert await ask(cache, old, 1) == ([1.0], "miss")


async def test_hits_save_what_a_row_cost_of_late():
    triton, cache = released(), AnswerCache(PLENTY)
    road = lane(triton)
    await ask(cache, road, 1)
    (counts,) = cache.counts.values()
    await ask(cache, road, 1, 1)
    assert counts == Counts(hits=2, misses=1, saved_seconds=2 * counts.row_seconds, row_seconds=counts.row_seconds)
    assert counts.row_seconds > 0


class WideTriton(HeldTriton):
    """Answers each row with 77 values."""

    async def infer(self, path, body, header_length):
        response = await super().infer(path, body, header_length)
        rows = self.sizes[-1]
        wide = np.zeros((rows, 77), np.float32).tobytes()
        return type(response)(200, 0, wide)


@pytest.mark.parametrize("entries", [20_000, 22_000])  # before and after the dictionary grows
async def test_the_bytes_counted_are_those_that_are_used(entries):
    triton, cache = WideTriton(), AnswerCache(64 * PLENTY)
    triton.release.set()
    road = Lane(triton, manifest(), "1", width=2, max_batch=32)
    tracemalloc.start()
    try:
        for start in range(0, entries, 100):
            rows = [Row([*range(12), number]) for number in range(start, start + 100)]
            await cache.run(road, rows, "default")
        del rows
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(cache) == entries
    assert used == pytest.approx(cache.bytes, rel=0.1)
