import asyncio

import pytest

from millis_server.errors import DeadlineUnreachable, Overloaded
from millis_server.places import Places


async def hold(places: Places, entered: list[str], name: str, release: asyncio.Event, width: int = 1, tokens: int = 1):
    async with places.take(width, tokens, None):
        entered.append(name)
        await release.wait()


async def test_places_are_given_in_the_order_of_coming_and_a_large_caller_is_not_overtaken():
    places, entered, release = Places(2, 100, 10), [], asyncio.Event()
    first = asyncio.create_task(hold(places, entered, "first", release))
    await asyncio.sleep(0)
    wide = asyncio.create_task(hold(places, entered, "wide", release, width=2))
    await asyncio.sleep(0)
    narrow = asyncio.create_task(hold(places, entered, "narrow", release))
    await asyncio.sleep(0)
    assert (entered, places.taken, places.waiting) == (["first"], 1, 2)
    release.set()
    await asyncio.gather(first, wide, narrow)
    assert (entered, places.taken, places.waiting) == (["first", "wide", "narrow"], 0, 0)


async def test_memory_counts_beside_places():
    places, entered, release = Places(4, 100, 10), [], asyncio.Event()
    first = asyncio.create_task(hold(places, entered, "first", release, tokens=70))
    second = asyncio.create_task(hold(places, entered, "second", release, tokens=40))
    await asyncio.sleep(0.01)
    assert entered == ["first"]
    release.set()
    await asyncio.gather(first, second)
    assert entered == ["first", "second"]


async def test_a_caller_beyond_the_queue_is_refused_with_a_time_to_come_back():
    places, release = Places(1, 100, 1), asyncio.Event()
    tasks = [asyncio.create_task(hold(places, [], "", release)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="1 texts are being generated and 1 callers wait; the limit is 1") as caught:
        await hold(places, [], "", release)
    assert caught.value.retry_after >= 0.1
    release.set()
    await asyncio.gather(*tasks)


async def test_who_leaves_the_queue_leaves_no_hole():
    places, entered, release = Places(1, 100, 10), [], asyncio.Event()
    tasks = [asyncio.create_task(hold(places, entered, str(number), release)) for number in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    assert places.waiting == 1
    release.set()
    await asyncio.gather(tasks[0], tasks[2])
    assert (entered, places.taken, places.waiting) == (["0", "2"], 0, 0)


async def test_who_is_cancelled_in_the_moment_of_getting_a_place_gives_it_back():
    places, entered, release = Places(1, 100, 10), [], asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def first() -> None:
        await hold(places, entered, "first", release)
        tasks[1].cancel()  # it was given the place a moment ago, and has not run since

    tasks.append(asyncio.create_task(first()))
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(hold(places, entered, "second", release)))
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (entered, places.taken, places.waiting) == (["first"], 0, 0)


async def test_a_turn_that_would_come_after_the_deadline_is_refused_at_once():
    places = Places(1, 100, 10)
    async with places.take(1, 1, None):
        await asyncio.sleep(0.2)
    release = asyncio.Event()
    holder = asyncio.create_task(hold(places, [], "", release))
    await asyncio.sleep(0)
    with pytest.raises(DeadlineUnreachable, match=r"whose turn would come in about 0.2 s; its deadline is in 0.1 s"):
        async with places.take(1, 1, 0.1):
            pass
    release.set()
    await holder
