"""A really trained model of llama2.c: the text that its page documents, token for token.

The model is not part of the project. Run by hand, with the folder that holds stories260K.bin, tok512.bin and
stories260K.md (from karpathy's tinyllamas and llama2.c):

    MILLIS_STORIES260K=FOLDER pytest tests/pipeline/decoders/test_stories260k.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import millis
from benchmarks.gateway import running_gateway
from millis_pipeline import build
from millis_pipeline.decoders.llama2c import convert_llama2c

FOLDER = os.environ.get("MILLIS_STORIES260K", "")
STEPS = 256
"""What llama2.c generates unless it is told otherwise."""


@pytest.mark.skipif(not FOLDER, reason="MILLIS_STORIES260K does not name the folder")
def test_the_documented_text_is_answered_through_the_service(tmp_path: Path) -> None:
    source, repository = Path(FOLDER), tmp_path / "repository"
    convert_llama2c(source / "stories260K.bin", source / "tok512.bin", tmp_path / "stories")
    page = (source / "stories260K.md").read_text("utf-8")
    documented = page.partition("-t 0.0\n")[2].partition("\n```")[0]
    options = ["--task", "text-generation", "--repository", str(repository), "--reports", str(tmp_path / "reports")]
    assert build.main([str(tmp_path / "stories"), *options]) == 0
    with running_gateway(repository) as running, millis.Client(running.target) as client:
        stream = client.generate([1], model="stories", variant="fp32", max_tokens=STEPS, ignore_eos=True)
        assert stream.text() == documented
