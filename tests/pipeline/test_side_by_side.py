"""Several builds at once: what runs beside what, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from millis_pipeline.side_by_side import Alone, side_by_side
from tests.processes import until_gone

SECONDS = 0.3


def build(folder: Path, name: str, alone: Alone) -> int:
    """Works, and is measured, for a while each."""
    for stage in ("working", "measured"):
        began = time.monotonic()
        time.sleep(SECONDS)
        (folder / f"{name} {stage}").write_text(f"{began} {time.monotonic()}")
        alone()
    return 0


def refused(alone: Alone) -> int:
    return 1


def killed(alone: Alone) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def times(folder: Path, stage: str) -> list[tuple[float, float]]:
    """When each build began and ended a stage, in order."""
    found = [path.read_text().split() for path in folder.glob(f"* {stage}")]
    return sorted((float(began), float(ended)) for began, ended in found)


def test_builds_work_side_by_side_and_are_measured_alone_whatever_becomes_of_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    three = {name: partial(build, tmp_path, name) for name in ("first", "second", "third")}
    assert side_by_side({"refused": partial(refused), **three, "killed": partial(killed)}, 2) == [1, 0, 0, 0, 1]
    assert capfd.readouterr().err == "millis build: killed: its process was ended by SIGKILL\n"
    working, measured = times(tmp_path, "working"), times(tmp_path, "measured")
    assert max(ended for _, ended in working) <= measured[0][0]
    assert [ended <= after for (_, ended), (after, _) in pairwise(measured)] == [True, True]


def test_who_waits_is_measured_before_more_is_begun_than_memory_has_room_for(tmp_path: Path) -> None:
    names = ("first", "second", "third")
    assert side_by_side({name: partial(build, tmp_path, name) for name in names}, 1) == [0, 0, 0]
    working, measured = times(tmp_path, "working"), times(tmp_path, "measured")
    order = sorted([*((began, "working") for began, _ in working), *((began, "measured") for began, _ in measured)])
    assert [stage for _, stage in order] == ["working", "working", "measured", "measured", "working", "measured"]


def endless(folder: Path, name: str, alone: Alone) -> int:
    """Works until it is interrupted, and says so."""
    (folder / f"{name} began").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        (folder / f"{name} put back").touch()
        raise
    return 0


PROGRAM = """
import sys
from functools import partial
from pathlib import Path
from millis_pipeline.interruption import raise_on_signals
from millis_pipeline.side_by_side import side_by_side
from tests.pipeline.test_side_by_side import endless

if __name__ == "__main__":
    raise_on_signals()
    side_by_side({name: partial(endless, Path(sys.argv[1]), name) for name in ("one", "two")}, 2)
"""


@pytest.mark.parametrize("by", ["Ctrl-C", "SIGTERM", "SIGKILL"])
def test_builds_that_are_interrupted_put_back_what_they_changed_and_end(tmp_path: Path, by: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, tmp_path], stderr=subprocess.PIPE, start_new_session=True
    )
    wait_for(tmp_path, "began")
    if by == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.Signals[by])
    assert process.communicate(timeout=20)[1].endswith(b"" if by == "SIGKILL" else b"KeyboardInterrupt\n")
    wait_for(tmp_path, "put back")
    until_gone(process.pid)


def wait_for(folder: Path, event: str) -> None:
    """Waits until both builds have said something."""
    ends = time.monotonic() + 20
    while len(list(folder.glob(f"* {event}"))) < 2:
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.05)
