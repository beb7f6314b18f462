"""A really trained model of llama2.c: the text that its page documents, token for token.

The model is not part of the project. Run by hand, with the folder that holds stories260K.bin, tok512.bin and
stories260K.md (from karpathy's tinyllamas and llama2.c):

    MILLIS_STORIES260K=FOLDER pytest tests/pipeline/decoders/test_stories260k.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from millis_pipeline.checkpoint import resolve
from millis_pipeline.decoders.checkpoint import load_decoder
from millis_pipeline.decoders.convert import convert
from millis_pipeline.decoders.engine import EXACT, Engine
from millis_pipeline.decoders.llama2c import convert_llama2c
from millis_pipeline.decoders.reference import torch_greedy

FOLDER = os.environ.get("MILLIS_STORIES260K", "")
STEPS = 256
"""What llama2.c generates unless it is told otherwise."""


@pytest.mark.skipif(not FOLDER, reason="MILLIS_STORIES260K does not name the folder")
def test_the_documented_text_is_generated(tmp_path: Path) -> None:
    source = Path(FOLDER)
    convert_llama2c(source / "stories260K.bin", source / "tok512.bin", tmp_path / "model")
    page = (source / "stories260K.md").read_text("utf-8")
    documented = page.partition("-t 0.0\n")[2].partition("\n```")[0]
    decoder = load_decoder("stories260K", resolve(str(tmp_path / "model")))
    tokens = torch_greedy(decoder.model, [1], STEPS, ()).tokens
    assert decoder.tokenizer.decode(tokens) == documented
    convert(decoder.model, tmp_path / "graph")
    assert Engine(tmp_path / "graph", EXACT, 512).greedy([[1]], STEPS) == [tokens]
