"""The thread that steps a generating engine."""

from __future__ import annotations

import threading
from time import sleep

import pytest

from millis_server.triton.generation_backend.decoding import loop as loops
from millis_server.triton.generation_backend.decoding.generator import Piece, Request
from millis_server.triton.generation_backend.decoding.loop import Loop

WRONG = -1


class Steps:
    """An engine that ends every text with its first step, and notes which texts each step had.

    Args:
        endless: texts, by number, that go on until they are dropped, and are still there in the step after that.
    """

    def __init__(self, endless: frozenset[int] = frozenset()) -> None:
        self.seen: list[list[int]] = []
        self._waiting: list[int] = []
        self._endless = set(endless)
        self._dropped: set[int] = set()

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def add(self, number: int, request: Request) -> None:
        if request.max_tokens == WRONG:
            raise TypeError("max_tokens")
        self._waiting.append(number)

    def step(self) -> list[Piece]:
        sleep(0.05)
        numbers, self._waiting = self._waiting, [number for number in self._waiting if number in self._endless]
        self.seen.append(numbers)
        wanted = [number for number in numbers if number not in self._dropped]
        return [Piece(number, 0, [1], (), 1, "" if number in self._waiting else "length") for number in wanted]

    def cancel(self, number: int) -> bool:
        self._endless.discard(number)
        self._dropped.add(number)
        return number in self._waiting

    def close(self) -> None:
        """Nothing runs."""


class Nobody:
    """No sessions."""

    def __bool__(self) -> bool:
        return False

    def flush(self) -> None:
        """Nothing was gathered."""

    def look(self) -> None:
        """Nobody left."""


class Answered:
    """Whoever asked, and sees when the answer is there."""

    def __init__(self, max_tokens: int = 16, deaf: bool = False) -> None:
        self.request = Request([5], max_tokens)
        self.began = threading.Event()
        self.ended = threading.Event()
        self.gone = False
        self.failure: Exception | None = None
        self._deaf = deaf

    def take(self, pieces) -> bool:
        if self._deaf:
            raise UnicodeError("cannot be told")
        self.began.set()
        if not pieces[-1].finish:
            return True
        self.ended.set()
        return False

    def left(self) -> bool:
        return self.gone

    def fail(self, error: Exception, cancelled: bool = False) -> None:
        self.failure = error
        self.ended.set()


def test_prompts_that_come_one_after_the_other_are_read_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # A long pause, so that a slow machine cannot part what comes within a moment.
    monkeypatch.setattr(loops, "GATHER_SHARE", 100)
    monkeypatch.setattr(loops, "GATHER_GAPS", 1000)
    engine = Steps()
    loop = Loop(engine, Nobody(), print)
    alone, *crowd = (Answered() for _ in range(5))
    loop.submit([alone])
    assert alone.ended.wait(10)
    for one in crowd:
        loop.submit([one])
        sleep(0.001)
    assert all(one.ended.wait(10) for one in crowd)
    assert [one.failure for one in (alone, *crowd)] == [None] * 5
    loop.stop()
    assert engine.seen == [[0], [1, 2, 3, 4]]


def test_what_cannot_be_asked_and_what_cannot_be_told_fails_alone() -> None:
    loop = Loop(Steps(), Nobody(), print)
    wrong, deaf, good = Answered(max_tokens=WRONG), Answered(deaf=True), Answered()
    loop.submit([wrong, deaf, good])
    assert all(one.ended.wait(10) for one in (wrong, deaf, good))
    loop.stop()
    assert [repr(one.failure) for one in (wrong, deaf, good)] == [
        "TypeError('max_tokens')",
        "UnicodeError('cannot be told')",
        "None",
    ]


def test_memory_of_who_left_is_free_before_newcomers_are_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody looks for callers who left but because somebody comes.
    monkeypatch.setattr(loops, "LOOK_SECONDS", 1000)
    engine = Steps(endless=frozenset([1]))
    loop = Loop(engine, Nobody(), print)
    first, leaver, newcomer = (Answered() for _ in range(3))
    loop.submit([first])
    assert first.ended.wait(10)
    loop.submit([leaver])
    assert leaver.began.wait(10)
    leaver.gone = True
    loop.submit([newcomer])
    assert newcomer.ended.wait(10)
    loop.stop()
    assert engine.seen[-2:] == [[1], [2]]
    assert repr(leaver.failure) == "RuntimeError('the caller left')"


def test_a_text_that_the_engine_has_ended_costs_newcomers_no_step() -> None:
    newcomer = Answered()

    class Follower(Answered):
        def take(self, pieces) -> bool:
            loop.submit([newcomer])
            return super().take(pieces)

    engine = Steps(endless=frozenset([0]))
    loop = Loop(engine, Nobody(), print)
    loop.submit([Answered(), Follower()])
    assert newcomer.ended.wait(10)
    loop.stop()
    assert engine.seen[:2] == [[0, 1], [0, 2]]
