"""Several builds at once, each in a process of its own: they work side by side, and are measured alone.

One training does not fill the cores, and an export runs on one. But a latency is worth something only where nothing
else runs. So a build that comes to its first one waits until no other is at work any more, and has the machine to
itself from there to its end.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, partialmethod
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import RLock
from time import monotonic

from tqdm import tqdm

from millis_pipeline.interruption import end_with_parent, raise_on_signals
from millis_pipeline.machine import cores

END_SECONDS = 10
"""How long a build that is interrupted may take to put back what it has changed."""

INTERRUPTIONS = 3
"""After so many a build is killed. Where a destructor runs Python only reports an interruption, and goes on."""

Alone = Callable[[], None]
"""Returns when nothing else is at work here; from the second call on, at once."""

Build = partial[int]
"""Called with an `Alone`, builds one model and returns an exit code. It is sent to a process, so it can be pickled."""


def in_turn() -> None:
    """The `Alone` of builds that follow one another."""


def side_by_side(builds: Mapping[str, Build], at_once: int) -> list[int]:
    """Runs builds in processes of their own. One that fails does not hold up the others.

    Args:
        builds: by the name of their model.
        at_once: how many of them work side by side; they share the cores.

    Returns:
        Exit codes, in the order of the builds.

    Raises:
        KeyboardInterrupt: it was interrupted; no build is left running.
    """
    builders = _Builders(builds, at_once)
    try:
        while builders.step():
            pass
    finally:
        builders.end()
    return [builders.code(name) for name in builds]


class _Builders:
    """Starts builds, and gives the machine to those that are to be measured, one at a time."""

    def __init__(self, builds: Mapping[str, Build], at_once: int) -> None:
        self._builds = builds
        self._at_once = at_once
        # What the builds import takes seconds: a process imports it once, and the others are its copies.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(sorted({build.func.__module__ for build in builds.values()}))
        self._lock = self._context.RLock()
        self._processes: dict[str, BaseProcess] = {}
        self._to_come = deque(builds)
        self._working: dict[Connection, str] = {}
        self._waiting: dict[Connection, str] = {}
        self._measured: dict[Connection, str] = {}
        self._measuring = False

    def step(self) -> bool:
        """Starts what can be started and waits for something to happen; false when all have ended."""
        while self._to_come and self._has_room():
            self._start(self._to_come.popleft())
        if not self._working and not self._measured and self._waiting:
            connection = next(iter(self._waiting))
            self._measured[connection] = self._waiting.pop(connection)
            self._measuring = True
            connection.send(None)
        states = (self._working, self._waiting, self._measured)
        names = {connection: name for state in states for connection, name in state.items()}
        heard = wait(list(names))
        for connection in [each for each in names if each in heard]:
            try:
                connection.recv()
                self._waiting[connection] = self._working.pop(connection)
            except EOFError:
                self._processes[names[connection]].join()
                for state in states:
                    state.pop(connection, None)
        self._measuring = self._measuring and bool(self._waiting or self._measured)
        return bool(self._to_come or any(states))

    def _has_room(self) -> bool:
        """Whether one more may start. Those who wait keep in memory what they made, so there are few of them, and
        once the first is measured the others are as well."""
        at_work, waiting = len(self._working), len(self._waiting)
        return not self._measuring and at_work < self._at_once and at_work + waiting < 2 * self._at_once

    def _start(self, name: str) -> None:
        ours, theirs = self._context.Pipe()
        place = len(self._processes) % self._at_once
        process = self._context.Process(target=_run, args=(name, self._builds[name], theirs, self._lock, place))
        with _threads(max(1, cores() // self._at_once)):
            process.start()
        theirs.close()
        self._processes[name] = process
        self._working[ours] = name

    def end(self) -> None:
        """Interrupts the builds that are still there, and waits for them."""
        for _ in range(INTERRUPTIONS):
            for process in self._processes.values():
                if process.is_alive():
                    process.terminate()
            ends = monotonic() + END_SECONDS
            for process in self._processes.values():
                process.join(max(0.0, ends - monotonic()))
        for process in self._processes.values():
            process.kill()

    def code(self, name: str) -> int:
        """The exit code of a build that has ended; of one that was killed, which could say nothing, it says so."""
        code = self._processes[name].exitcode
        assert code is not None, "it was waited for. This is a bug."
        if code < 0:
            print(f"millis build: {name}: its process was ended by {signal.Signals(-code).name}", file=sys.stderr)
            return 1
        return code


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """How many threads PyTorch has for an operation, in processes that are started meanwhile, unless the user said."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(number)
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def _run(name: str, build: Build, parent: Connection, lock: RLock, place: int) -> None:
    """What a process does: one build. Its progress bars have a line of their own."""
    # Ctrl-C goes to all of them, and the parent sends on what only it gets: one signal each, as SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_on_signals(signal.SIGTERM)
    end_with_parent()
    tqdm.set_lock(lock)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Lines stay whole beside those of the others, where PYTHONUNBUFFERED has text and line end written apart.
        sys.stdout.reconfigure(line_buffering=True, write_through=False)
    # tqdm's own way to change a default.
    tqdm.__init__ = partialmethod(tqdm.__init__, position=place)  # type: ignore[assignment, method-assign]
    is_alone = False

    def alone() -> None:
        nonlocal is_alone
        if is_alone:
            return
        print(f"{name}: waits until nothing else is at work, to be measured", flush=True)
        parent.send(None)
        parent.recv()
        is_alone = True

    try:
        sys.exit(build(alone))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
