"""What a signal does to a build, also when a library has left the thread with a freed stack for signal handlers."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, mmap, signal, sys

from millis_pipeline.interruption import raise_on_signals

class Stack(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

memory = mmap.mmap(-1, 65536)
view = (ctypes.c_byte * 65536).from_buffer(memory)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(view), 0, 65536)), None) == 0
del view
memory.close()
raise_on_signals()
try:
    signal.raise_signal(int(sys.argv[1]))
except KeyboardInterrupt:
    print("interrupted")
"""


HELD = """
import signal

from millis_pipeline.interruption import hold_interruptions, raise_on_signals

raise_on_signals()
try:
    with hold_interruptions() as interrupted:
        before = interrupted()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        print("held back:", before, interrupted())
    print("lost")
except KeyboardInterrupt:
    print("interrupted")
with hold_interruptions() as interrupted:
    print("again:", interrupted())
try:
    signal.raise_signal(signal.SIGTERM)
    print("lost")
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_whatever_became_of_the_stack_for_its_handler(number):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(int(number))], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


def test_what_comes_while_interruptions_are_held_back_is_raised_once_at_the_end():
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, timeout=30, check=False)
    said = "held back: False True\ninterrupted\nagain: False\ninterrupted\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
