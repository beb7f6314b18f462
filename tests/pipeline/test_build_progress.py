"""What a build shows on a terminal: every step that may take seconds."""

from __future__ import annotations

import re
import shutil
import sys
from itertools import groupby
from pathlib import Path

import pytest

from millis_pipeline import build, candidates
from tests import tiny
from tests.conftest import Published
from tests.pipeline.test_progress import Terminal

VARIANTS = """
  - {name: fp32, compile: torch}
  - {name: trimmed, trim: {min_count: 1}, quantize: dynamic}
  - {name: static, quantize: {method: static, keep_fp32: 1}}
"""
SHOWN = (
    *("loading", "tokenizing", "PyTorch", "scoring", "tokenizing"),
    *("exporting", "compiling"),
    *("trimming", "exporting", "quantizing"),
    *("fp32 answers", "sensitivity", "quantizing"),
    *("fp32", "scoring", "fp32 check", "trimmed", "scoring", "static", "scoring"),
    *("memory", "loading", "latency", "manifests"),
)


def test_every_step_that_may_take_seconds_is_shown(
    published: Published, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "export_onnx", lambda _, path: shutil.copy(graph, path))
    monkeypatch.setattr(candidates, "compile_torch", lambda _, path: shutil.copy(compiled, path))
    graph = published.repository / "intent-fp32" / "1" / "model.onnx"
    (tmp_path / "texts.csv").write_text("text\n" + "".join(f"{text}\n" for text in tiny.SENTENCES))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: intent\ntask: text-classification\ncheckpoint: {published.checkpoints / 'intent'}\n"
        f"unlabelled: texts.csv\nmax_quality_loss: 1\nvariants: {VARIANTS}"
    )
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    folders = ["--repository", str(tmp_path / "repository"), "--reports", str(tmp_path / "reports")]
    assert build.main([str(recipe), *folders]) == 0, terminal.getvalue()
    names = re.findall(r"\r([\w ]+): ", terminal.getvalue())
    assert tuple(name for name, _ in groupby(names)) == SHOWN
