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
    """An engine that ends every text with its first step, and notes which texts each step had."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self._waiting: list[int] = []

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def add(self, number: int, request: Request) -> None:
        if request.max_tokens == WRONG:
            raise TypeError("max_tokens")
        self._waiting.append(number)

    def step(self) -> list[Piece]:
        sleep(0.05)
        numbers, self._waiting = self._waiting, []
        self.seen.append(numbers)
        return [Piece(number, 0, [1], (), 1, "length") for number in numbers]

    def cancel(self, number: int) -> None:
        """Nothing goes on after a step."""

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
        self.ended = threading.Event()
        self.failure: Exception | None = None
        self._deaf = deaf

    def take(self, pieces) -> bool:
        if self._deaf:
            raise UnicodeError("cannot be told")
        self.ended.set()
        return False

    def left(self) -> bool:
        return False

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
