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


def end_with_parent() -> None:
    """Has this process, which multiprocessing started, get SIGTERM when its parent has ended, however that came."""
    parent = parent_process()
    assert parent is not None, "multiprocessing started it. This is a bug."

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _on_own_stack(number: int) -> None:
    library, action = ctypes.CDLL(None, use_errno=True), _Action()
    if library.sigaction(number, None, ctypes.byref(action)):
        raise OSError(ctypes.get_errno(), "sigaction")
    action.flags &= ~SA_ONSTACK
    if library.sigaction(number, ctypes.byref(action), None):
        raise OSError(ctypes.get_errno(), "sigaction")
