"""Encoder families, random weights: what is exported computes what PyTorch computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ModernBertConfig,
    PretrainedConfig,
    RobertaConfig,
    XLMRobertaConfig,
    set_seed,
)

from millis_pipeline.checkpoint import load
from millis_pipeline.export import export_onnx
from millis_pipeline.run import Feeds, Rows, graph_runner, tokenize, torch_runner
from millis_pipeline.tokenizer import write_tokenizer
from tests import tiny

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
COMMON = {"vocab_size": 300, "pad_token_id": 0, "initializer_range": 0.3, **LABELS}
FAMILIES: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**SIZE, **COMMON, max_position_embeddings=64),
    "roberta": RobertaConfig(**SIZE, **COMMON, max_position_embeddings=66, type_vocab_size=1),
    "xlm-roberta": XLMRobertaConfig(**SIZE, **COMMON, max_position_embeddings=66, type_vocab_size=1),
    "distilbert": DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, **COMMON, max_position_embeddings=64),
    "deberta-v2": DebertaV2Config(
        **SIZE,
        **COMMON,
        max_position_embeddings=64,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        type_vocab_size=0,
    ),
    "modernbert": ModernBertConfig(
        **SIZE, **COMMON, max_position_embeddings=64, cls_token_id=2, sep_token_id=3, local_attention=16
    ),
}  # fmt: skip
TEXTS = [*tiny.SENTENCES, "fox", "order " * 90]


def write(folder: Path, family: str, kind: type) -> Path:
    set_seed(1)
    kind.from_config(FAMILIES[family]).save_pretrained(folder)
    tiny.wordpiece_tokenizer().save_pretrained(folder)
    return folder


KINDS = (AutoModelForSequenceClassification, AutoModelForTokenClassification)
# Each family once, with the two heads in turn; the other half of the pairs takes as long again.
PAIRS = [
    pytest.param(family, kind, marks=() if number % 2 == place % 2 else pytest.mark.slow)
    for number, family in enumerate(FAMILIES)
    for place, kind in enumerate(KINDS)
]


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_the_exported_graph_computes_what_pytorch_does_alone_and_padded(tmp_path, family, kind):
    checkpoint = load(family, write(tmp_path, family, kind))
    assert checkpoint.labels == ("a", "b", "c")
    assert checkpoint.max_tokens in (63, 64, 65)
    export_onnx(checkpoint, tmp_path / "model.onnx")
    rows = tokenize(write_tokenizer(checkpoint.tokenizer, tmp_path / "t.json"), TEXTS, checkpoint.max_tokens, 0)
    reference, ours = torch_runner(checkpoint), graph_runner(tmp_path / "model.onnx", 1)
    for batch in ([0], [6], [7], list(range(len(TEXTS)))):
        feeds = rows.feeds(batch, checkpoint.inputs)
        expected, got = (real(output, feeds) for output in (reference(feeds), ours(feeds)))
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert_padding_changes_nothing(rows, ours, checkpoint.inputs)


def real(output: np.ndarray, feeds: Feeds) -> torch.Tensor:
    """Leaves out what a token classifier says of padding: nobody reads it, and attention gives it no fixed value."""
    tokens = output[feeds["attention_mask"].astype(bool)] if output.ndim == 3 else output
    return torch.from_numpy(tokens)


def assert_padding_changes_nothing(rows: Rows, runner, names) -> None:
    together = runner(rows.feeds([0, 7], names))[0]
    alone = runner(rows.feeds([0], names))[0]
    if together.ndim == 2:
        together = together[: len(alone)]
    torch.testing.assert_close(torch.from_numpy(together), torch.from_numpy(alone), atol=1e-4, rtol=1e-4)
