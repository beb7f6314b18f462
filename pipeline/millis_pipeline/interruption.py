"""Ctrl-C and SIGTERM end a build as KeyboardInterrupt, wherever it is.

Python has its signal handlers run on the thread's alternate stack, if it has one. OpenVINO's CPU plugin gives such a
stack to the thread that loads it and frees it with the plugin; where several have come and gone, the thread is left
with a freed one (seen with OpenVINO 2026.4), and the next signal ends the process with a segmentation fault: nothing
would be put back in the repository. So our handlers run on the thread's own stack.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import parent_process

SA_ONSTACK = 0x08000000


class _Action(ctypes.Structure):
    """`struct sigaction` of the C library on Linux."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_byte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def raise_on_signals(*numbers: signal.Signals) -> None:
    """Has signals raise KeyboardInterrupt, in the main thread; SIGINT and SIGTERM when none is named.

    Also where the shell that started this ignores Ctrl-C, as it does for background jobs.
    """
    for number in numbers or (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
        _on_own_stack(number)


@dataclass
class _Held:
    """Whether interruptions are held back, and whether one came meanwhile."""

    back: bool = False
    came: bool = False


@dataclass
class _Raised:
    """How many interruptions were raised."""

    times: int = 0


_held = _Held()
_raised = _Raised()


@contextmanager
def hold_interruptions() -> Iterator[Callable[[], bool]]:
    """Holds back what `raise_on_signals` would raise, for work that must be ended or undone whole.

    A signal that is blocked for this thread would be taken by another one, and its handler would still run here; so
    the handler itself waits.

    Yields:
        Says whether an interruption came. It is raised at the end.
    """
    _held.back, _held.came = True, False
    try:
        yield lambda: _held.came
    finally:
        _held.back = False
        if _held.came:
            raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """For calls of libraries that make something else of a KeyboardInterrupt: an error of their own, where it comes up
    in what C++ calls, or nothing, where it comes up in a destructor. Then it is raised at the end.

    Raises:
        KeyboardInterrupt: an interruption came meanwhile.
    """
    before = _raised.times
    try:
        yield
    except Exception as error:
        if _raised.times > before:
            raise KeyboardInterrupt from error
        raise
    if _raised.times > before:
        raise KeyboardInterrupt


def end_with_parent() -> None:
    """Has this process, which multiprocessing started, get SIGTERM when its parent has ended, however that came."""
    parent = parent_process()
    assert parent is not None, "multiprocessing started it. This is a bug."

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _interrupt(_number: int, _frame: object) -> None:
    if not _held.back:
        _raised.times += 1
        raise KeyboardInterrupt
    _held.came = True


def _on_own_stack(number: int) -> None:
    library, action = ctypes.CDLL(None, use_errno=True), _Action()
    if library.sigaction(number, None, ctypes.byref(action)):
        raise OSError(ctypes.get_errno(), "sigaction")
    action.flags &= ~SA_ONSTACK
    if library.sigaction(number, ctypes.byref(action), None):
        raise OSError(ctypes.get_errno(), "sigaction")
