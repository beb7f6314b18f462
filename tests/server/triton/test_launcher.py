"""What is kept of Triton's log. A program that only talks stands in for Triton, which says little in a test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from millis_server.triton import launcher
from millis_server.triton.launcher import TAIL_LINES, EmbeddedTriton, TritonFailed

LIMIT = 4096


def talkative(folder: Path, script: str) -> Path:
    """A wheel like pytriton's whose tritonserver is a Python script; it gets the ports and never answers on them."""
    triton = folder / "wheel" / "tritonserver"
    program = triton / "bin" / "tritonserver"
    stub = triton / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    for path in (program.parent, stub, triton / "backends" / "python"):
        path.mkdir(parents=True)
    (stub / "triton_python_backend_stub").touch()
    program.write_text(f"#!{sys.executable}\n{script}\n")
    program.chmod(0o755)
    return folder / "wheel"


async def said(folder: Path) -> str:
    """Starts it and returns what the failure says."""
    with pytest.raises(TritonFailed) as caught:
        await EmbeddedTriton(folder / "repository", folder / "state").start(timeout=30)
    return str(caught.value)


def logs(folder: Path) -> dict[str, list[str]]:
    return {path.name: path.read_text().splitlines() for path in (folder / "state" / "triton").glob("triton.log*")}


async def test_the_log_of_triton_is_turned_over_at_its_limit_and_one_older_file_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"line {number} of a server that talks" for number in range(1000)]
    script = f"for number in range({len(lines)}): print('line', number, 'of a server that talks')\nraise SystemExit(3)"
    monkeypatch.setattr(launcher, "LOG_BYTES", LIMIT)
    monkeypatch.setattr(launcher, "_wheel", lambda: talkative(tmp_path, script))
    words = await said(tmp_path)
    log = tmp_path / "state" / "triton" / "triton.log"
    assert words.splitlines() == [f"Triton ended with exit code 3; the end of {log}:", *lines[-TAIL_LINES:]]
    kept = logs(tmp_path)
    assert sorted(kept) == ["triton.log", "triton.log.1"]
    together = kept["triton.log.1"] + kept["triton.log"]
    assert together == lines[-len(together) :]
    older, newer = (path.stat().st_size for path in (log.with_name("triton.log.1"), log))
    assert 0.9 * LIMIT < older <= LIMIT
    assert 0 < newer <= LIMIT


async def test_a_triton_that_is_started_again_adds_to_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = talkative(tmp_path, "import os, sys\nprint('told by', os.environ['TOLD_BY'])")
    monkeypatch.setattr(launcher, "_wheel", lambda: wheel)
    for name in ("one", "two"):
        monkeypatch.setenv("TOLD_BY", name)
        await said(tmp_path)
    assert logs(tmp_path) == {"triton.log": ["told by one", "told by two"]}


async def test_a_line_longer_than_any_buffer_is_kept_in_pieces_and_what_follows_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "print('x' * 1_000_000)\nprint('y')"
    monkeypatch.setattr(launcher, "_wheel", lambda: talkative(tmp_path, script))
    words = await said(tmp_path)
    assert words.endswith("x\ny")
    (pieces,) = logs(tmp_path).values()
    assert "".join(pieces) == "x" * 1_000_000 + "y"
