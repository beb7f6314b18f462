"""The thread that steps a generating engine."""

from __future__ import annotations

import threading
from time import sleep

import pytest

from millis_server.triton.generation_backend.decoding import loop as loops
from millis_server.triton.generation_backend.decoding.generator import Piece, Request
from millis_server.triton.generation_backend.decoding.loop import Loop


class Steps:
    """An engine that ends every text with its first step, and notes which texts each step had."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self._waiting: list[int] = []

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def add(self, number: int, request: Request) -> None:
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

    def __init__(self) -> None:
        self.request = Request([5])
        self.ended = threading.Event()

    def take(self, pieces) -> bool:
        self.ended.set()
        return False

    def left(self) -> bool:
        return False

    def fail(self, error: Exception, cancelled: bool = False) -> None:
        raise AssertionError(error)


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
    loop.stop()
    assert engine.seen == [[0], [1, 2, 3, 4]]
