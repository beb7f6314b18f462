"""The thread that steps the engine, takes requests in between steps, and hands out what each step made.

The engine's library may hold the interpreter lock for the whole of a step, so nothing else can happen in this process
meanwhile: requests come in, and callers who left are noticed, between two steps. Triton hands requests over one by one,
so when one has come the thread waits a little for more, as long as one usually takes to follow the other: prompts that
are read in one step cost less than in two, and the second would have waited for the whole of the first one's step.

The gateway gives the memory of a text that was dropped to the next one at once, and the engine frees it with the step
after the drop. So callers who left are dropped, and that step is made, before newcomers are added.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from math import inf
from time import monotonic, perf_counter
from typing import Protocol

from .generator import GenerationFailed, Generator, Piece, Request

SWITCH_SECONDS = 0.0005
"""How soon a thread that waits for the interpreter lock may have it; Python's own 5 ms is several steps of a small
model."""

LOOK_SECONDS = 0.02
"""How often Triton is asked who has left: it costs as much as a fifth of a small model's step, for each text."""

IDLE_LOOK_SECONDS = 0.2
"""The same while there is nothing to do."""

GATHER_SHARE = 0.02
"""Pause after which no more requests are waited for, as a share of the time of a step that reads prompts."""

GATHER_GAPS = 4
"""The same, at most, as a multiple of the usual time from one request of a crowd to the next."""

LONGEST_GAP = 0.005
"""Seconds after which the next request does not belong to the same crowd."""

GAIN = 1 / 8
"""Share of a step's time that goes into the mean of what was seen."""

MAX_PAUSES = 10
"""So many pauses are the longest wait in all."""


class EngineFailed(RuntimeError):
    """The engine is in no state to go on from."""


class Receiver(Protocol):
    """Who gets what is made for one request."""

    @property
    def request(self) -> Request:
        """What it asks for; raises what is wrong with it when it could not be read."""

    def take(self, pieces: Sequence[Piece]) -> bool:
        """Takes in what a step made for the request; returns whether it wants more."""

    def left(self) -> bool:
        """Whether the caller has gone."""

    def fail(self, error: Exception, cancelled: bool = False) -> None:
        """Ends with an error."""


class Outlets(Protocol):
    """Where what was handed out is gathered."""

    def __bool__(self) -> bool:
        """Whether there are any."""

    def flush(self) -> None:
        """Sends what has come together."""

    def look(self) -> None:
        """Ends those whose callers have gone."""


class Loop:
    """Steps an engine while it has work.

    Args:
        generator: the engine.
        outlets: told when a step's pieces have all been handed out.
        say: writes a line to the log.
    """

    def __init__(self, generator: Generator, outlets: Outlets, say: Callable[[str], None]) -> None:
        self._generator = generator
        self._outlets = outlets
        self._say = say
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._arrived: list[Receiver] = []
        self._under_way: dict[int, Receiver] = {}
        self._stopping = False
        self._dropped = False
        """Whether a text was dropped since the last step: the engine still holds its memory."""
        self._look = 0.0
        self._reading = 0.0
        """Mean seconds of the steps that read prompts; 0 before the first."""
        self._came = -inf
        """When the last request came."""
        self._gap = 0.0005
        """Mean seconds from one request of a crowd to the next: what Triton needs to hand it over."""
        sys.setswitchinterval(SWITCH_SECONDS)
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(self, receivers: Sequence[Receiver]) -> None:
        """Takes requests in; called from Triton's thread."""
        now = perf_counter()
        with self._changed:
            if (gap := now - self._came) < LONGEST_GAP:
                self._gap += GAIN * (gap - self._gap)
            self._came = now
            self._arrived += receivers
            self._changed.notify()

    def stop(self) -> None:
        """Ends the thread; Triton has no request left by then."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()
        self._generator.close()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as error:  # whatever the engine raises, it is no longer in a state to go on from
            self._give_up(error)

    def _turn(self) -> bool:
        """One step with what comes before and after it; returns whether there is another."""
        with self._changed:
            while not (self._arrived or self._stopping or self._generator.busy):
                if not self._changed.wait(IDLE_LOOK_SECONDS if self._outlets else None):
                    break
            if self._stopping:
                return False
            arrived = self._gather()
        if arrived:
            self._make_room()
        for receiver in arrived:
            self._add(receiver)
        began = perf_counter()
        self._step()
        if arrived:
            took = perf_counter() - began
            self._reading += GAIN * (took - self._reading) if self._reading else took
        self._outlets.flush()
        if (now := monotonic()) >= self._look:
            self._look = now + LOOK_SECONDS
            self._drop_who_left()
            self._outlets.look()
        return True

    def _gather(self) -> list[Receiver]:
        """What has arrived, and what arrives in the same moment."""
        pause = min(GATHER_SHARE * self._reading, GATHER_GAPS * self._gap)
        latest = perf_counter() + MAX_PAUSES * pause
        known = 0
        while len(self._arrived) > known and perf_counter() < latest:
            known = len(self._arrived)
            self._changed.wait(pause)
        arrived, self._arrived = self._arrived, []
        return arrived

    def _make_room(self) -> None:
        """Lets the engine free the memory of texts that nobody wants any more."""
        self._drop_who_left()
        while self._dropped:
            self._step()
        self._outlets.flush()

    def _add(self, receiver: Receiver) -> None:
        number = next(self._numbers)
        try:
            self._generator.add(number, receiver.request)
        except Exception as error:  # a wrong request must not end the others
            receiver.fail(error)
            return
        self._under_way[number] = receiver

    def _step(self) -> None:
        if not self._generator.busy:
            self._dropped = False
            return
        try:
            pieces = self._generator.step()
        except GenerationFailed as error:
            if (failed := self._under_way.pop(error.number, None)) is not None:
                failed.fail(error)
            return
        self._dropped = False
        for number, group in itertools.groupby(pieces, key=lambda piece: piece.number):
            if not self._take(self._under_way[number], list(group)):
                self._drop(number)

    def _take(self, receiver: Receiver, pieces: Sequence[Piece]) -> bool:
        try:
            return receiver.take(pieces)
        except Exception as error:  # what cannot be told to one caller must not end the others
            receiver.fail(error)
            return False

    def _drop_who_left(self) -> None:
        for number, receiver in list(self._under_way.items()):
            if receiver.left():
                self._drop(number)
                receiver.fail(RuntimeError("the caller left"), cancelled=True)

    def _drop(self, number: int) -> None:
        del self._under_way[number]
        self._dropped = self._generator.cancel(number) or self._dropped

    def _give_up(self, error: Exception) -> None:
        """Ends the process: Triton answers for it until the gateway has it loaded anew."""
        self._say(f"the engine failed and is started again: {type(error).__name__}: {error}")
        for receiver in (*self._under_way.values(), *self._arrived):
            receiver.fail(EngineFailed(str(error)))
        self._under_way.clear()
        self._outlets.flush()
        # Nothing is flushed or joined: the library's own threads may hang in the step that failed.
        os._exit(1)
