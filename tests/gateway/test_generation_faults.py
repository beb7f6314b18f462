"""Faults and crowds for a model that generates: killed processes, callers who leave, more callers than places."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedModel

import millis
from benchmarks.gateway import Running, children, running_gateway
from tests import tiny_generation as tiny
from tests.gateway.test_faults import command, family, until
from tests.gateway.test_metrics import free_port, scrape

PLACES = 8
WAITING = 1000
TRIES = 5
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny.language_model("llama")


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def gateway(model, port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    repository = tmp_path_factory.mktemp("generation-faults") / "repository"
    tiny.publish_language_model(repository, "chat", model, max_streams=PLACES, cache_tokens=PLACES * 200)
    options = ["--max-waiting-generations", str(WAITING), "--metrics-port", str(port)]
    with running_gateway(repository, *options) as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: Running) -> Iterator[millis.Client]:
    with millis.Client(gateway.target) as connected:
        yield connected


def engine_process(gateway: Running) -> int:
    """The process of the model."""
    (found,) = [process for process in family(gateway.process.pid)[1:] if b"chat-fp32" in command(process)]
    return found


def memory(process: int) -> int:
    """Resident bytes."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("a process has memory")


def as_ever(client: millis.Client, model: PreTrainedModel) -> None:
    """All places at once generate what they should: no page of memory and no place is lost."""
    prompts = tiny.prompts(PLACES, seed=21)
    made: dict[int, list[int]] = {}

    def ask(place: int) -> None:
        stream = client.generate(prompts[place], max_tokens=120, ignore_eos=True)
        made[place] = [token for delta in stream for token in delta.token_ids]

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(PLACES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == {place: tiny.greedy(model, prompt, 120) for place, prompt in enumerate(prompts)}


def ends(stream: millis.GenerationStream) -> str:
    """How a stream ends: `whole`, or the name of the error."""
    try:
        list(stream)
    except millis.StatusError as error:
        return type(error).__name__
    return "whole"


def test_a_killed_process_fails_the_texts_under_way_and_comes_back(gateway, client, model):
    def answers() -> bool:
        try:
            return len(list(client.generate("fox", max_tokens=3, ignore_eos=True))) == 3
        except millis.UnavailableError:
            return False

    # On a busy machine this process may sleep until the texts are made; a kill that came too late tells nothing.
    for _ in range(TRIES):
        process = engine_process(gateway)
        streams = [client.generate("fox", max_tokens=490, ignore_eos=True) for _ in range(3)]
        for stream in streams:
            next(stream)
        os.kill(process, signal.SIGKILL)
        ended = [ends(stream) for stream in streams]
        until(answers)
        as_ever(client, model)
        if "whole" not in ended:
            break
    assert ended == ["UnavailableError"] * 3


def test_a_crowd_is_answered_in_turn_and_nobody_starves(client):
    lengths: list[int] = []

    async def ask(crowd: millis.AsyncClient) -> None:
        stream = crowd.generate("fox", max_tokens=20, ignore_eos=True)
        lengths.append(len([token async for delta in stream for token in delta.token_ids]))

    async def all_at_once() -> None:
        async with millis.AsyncClient(client.target) as crowd:
            await asyncio.gather(*(ask(crowd) for _ in range(64)))

    asyncio.run(all_at_once())
    assert lengths == [20] * 64


async def leave_at_random(target: str, callers: int) -> int:
    """Callers, 100 at a time, most of whom leave after some tokens; returns how many stayed."""
    choose = random.Random(3)
    stayed = 0

    async def one(crowd: millis.AsyncClient, tokens: int, leaves: bool) -> None:
        nonlocal stayed
        async with crowd.generate("fox", max_tokens=40, ignore_eos=True) as stream:
            seen = 0
            async for _ in stream:
                seen += 1
                if leaves and seen > tokens:
                    return
        stayed += 1

    async with millis.AsyncClient(target) as crowd:
        for _ in range(callers // 100):
            await asyncio.gather(*(one(crowd, choose.randrange(30), choose.random() < 0.8) for _ in range(100)))
    return stayed


def under_way(port: int) -> tuple[float, float]:
    """Texts that hold places, and callers who wait for one."""
    samples = scrape(port)
    return tuple(samples[f"millis_generation_{what}", "chat", "fp32", "1"] for what in ("places", "waiting"))


def test_callers_who_leave_at_random_leave_nothing_behind(client, model, port):
    assert 0 < asyncio.run(leave_at_random(client.target, 100)) < 100
    until(lambda: under_way(port) == (0, 0))
    as_ever(client, model)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_is_flat_over_a_thousand_who_leave_and_ten_thousand_who_stay(gateway, client, model, port):
    watched = {"gateway": gateway.process.pid, "engine": engine_process(gateway)}

    def grown(before: dict[str, int]) -> dict[str, int]:
        return {name: memory(process) - before.get(name, 0) for name, process in watched.items()}

    asyncio.run(leave_at_random(client.target, 200))  # what is made once is there then
    before = grown({})
    asyncio.run(leave_at_random(client.target, 1000))
    after_leavers = grown(before)
    assert all(size < 16 * MEGABYTE for size in after_leavers.values()), after_leavers
    assert under_way(port) == (0, 0)
    as_ever(client, model)

    async def ask(crowd: millis.AsyncClient, count: int) -> None:
        for _ in range(count):
            await crowd.generate("fox", max_tokens=4, ignore_eos=True).text()

    async def ten_thousand() -> None:
        async with millis.AsyncClient(client.target) as crowd:
            await asyncio.gather(*(ask(crowd, 1250) for _ in range(PLACES)))

    asyncio.run(ten_thousand())
    after_all = grown(before)
    assert all(size < 16 * MEGABYTE for size in after_all.values()), after_all
    assert under_way(port) == (0, 0)
    as_ever(client, model)


def test_stopping_takes_no_longer_for_an_open_session(tmp_path, model):
    tiny.publish_language_model(tmp_path, "chat", model)
    with running_gateway(tmp_path) as running, millis.Client(running.target) as client:
        client.generate("fox", max_tokens=2, ignore_eos=True).text()
        began = time.monotonic()
        processes = family(running.process.pid)
    assert time.monotonic() - began < 8
    assert not any(b"triton" in command(process) for process in [*processes, *children(os.getpid())])
