"""The line of a step that nobody can count, and what Ctrl-C does to it."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from millis_pipeline.progress import step


class Terminal(io.StringIO):
    """Takes what is written to a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_step_shows_its_name_and_time_on_a_terminal_and_leaves_no_line(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with step("exporting"):
        assert terminal.getvalue() == "\rexporting: 00:00"
    assert terminal.getvalue().split("\r")[-2:] == [" " * len("exporting: 00:00"), ""]


def test_the_line_ticks_while_the_step_says_nothing(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("millis_pipeline.progress.TICK_SECONDS", 0.001)
    with step("exporting"):
        while terminal.getvalue().count("exporting: ") < 3:
            pass


def test_a_step_says_nothing_where_nobody_looks(capfd):
    with step("exporting"):
        pass
    assert capfd.readouterr() == ("", "")


def test_an_error_of_a_step_is_passed_on():
    with pytest.raises(ValueError, match="no such model"), step("exporting"):
        raise ValueError("no such model")


PROGRAM = """
import signal, sys

from millis_pipeline.interruption import raise_on_signals
from millis_pipeline.progress import step

def fails():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise RuntimeError("a C++ call failed")

class Destroyed:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

raise_on_signals()
sys.unraisablehook = lambda _: print("lost")
for body in (fails, Destroyed, lambda: signal.raise_signal(signal.SIGTERM)):
    try:
        with step("converting"):
            body()
        print("went on")
    except KeyboardInterrupt:
        print("interrupted")
with step("converting"):
    print("again")
"""


def test_ctrl_c_ends_a_step_whatever_the_library_makes_of_it():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30, check=False)
    said = "interrupted\nlost\ninterrupted\ninterrupted\nagain\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
