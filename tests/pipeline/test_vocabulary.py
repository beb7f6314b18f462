"""Vocabulary trimming: what the texts need stays as it was, and nothing else becomes unknown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
    set_seed,
)

from millis_pipeline.architectures import Encoder
from millis_pipeline.checkpoint import Checkpoint, CheckpointError, load
from millis_pipeline.examples import Example
from millis_pipeline.export import export_onnx
from millis_pipeline.run import graph_runner, run_all, tokenize, torch_runner
from millis_pipeline.vocabulary import trimmed
from tests import tiny

LABELS = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}, "initializer_range": 0.3}
SIZE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
USED = "where is my order"
UNUSED = "the quick brown fox jumps over the lazy dog"


def bpe() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=ROBERTA_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*tiny.SENTENCES] * 3, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return roberta_tokenizer(tokenizer)


def unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=ROBERTA_SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([*tiny.SENTENCES] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return roberta_tokenizer(tokenizer)


def roberta_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), ROBERTA_SPECIAL, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=60, cls_token="<s>", sep_token="</s>", **names
    )


ROBERTA = {**SIZE, **LABELS, "pad_token_id": 1, "max_position_embeddings": 64, "type_vocab_size": 1}
FAMILIES = {
    "WordPiece": (tiny.wordpiece_tokenizer, BertConfig(**SIZE, **LABELS, vocab_size=300, max_position_embeddings=64)),
    "BPE": (bpe, RobertaConfig(**ROBERTA, vocab_size=400)),
    "Unigram": (unigram, XLMRobertaConfig(**ROBERTA, vocab_size=160)),
}


@pytest.fixture(params=FAMILIES)
def checkpoint(request, tmp_path) -> Checkpoint:
    make, config = FAMILIES[request.param]
    return write(tmp_path, make(), config)


def write(folder: Path, tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig) -> Checkpoint:
    set_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load("tiny", folder)


def examples(checkpoint: Checkpoint, *texts: str) -> list[Example]:
    return [Example(checkpoint.tokenizer(text)["input_ids"], None, [], []) for text in texts]


def answer(checkpoint: Checkpoint, text: str) -> np.ndarray:
    ids = torch.tensor([checkpoint.tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        return checkpoint.module(ids, torch.ones_like(ids)).numpy()


def test_texts_whose_tokens_are_kept_are_answered_as_before(checkpoint) -> None:
    small, said = trimmed(checkpoint, examples(checkpoint, USED), 1)
    before, after = (len(one.tokenizer) for one in (checkpoint, small))
    assert after < before
    assert said.endswith(f"to {after} tokens")
    assert Encoder(small.module).base.get_input_embeddings().num_embeddings == after
    assert small.tokenizer.tokenize(USED) == checkpoint.tokenizer.tokenize(USED)
    np.testing.assert_allclose(answer(small, USED), answer(checkpoint, USED), atol=1e-6)


def test_the_graph_of_a_trimmed_model_answers_as_the_model(tmp_path) -> None:
    make, config = FAMILIES["WordPiece"]
    whole = write(tmp_path / "model", make(), config)
    small, _ = trimmed(whole, examples(whole, USED), 1)
    export_onnx(small, tmp_path / "small.onnx")
    rows = tokenize(small.tokenizer.backend_tokenizer, [USED, UNUSED], 64, 0)
    ours = run_all(graph_runner(tmp_path / "small.onnx"), rows, small.inputs, "graph")
    theirs = run_all(torch_runner(small), rows, small.inputs, "PyTorch")
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)


def test_other_texts_are_read_in_smaller_pieces_and_not_as_unknown(checkpoint) -> None:
    small, _ = trimmed(checkpoint, examples(checkpoint, USED), 1)
    pieces = small.tokenizer.tokenize(UNUSED)
    assert len(pieces) > len(checkpoint.tokenizer.tokenize(UNUSED))
    assert small.tokenizer.unk_token not in pieces
    assert small.tokenizer.decode(small.tokenizer(UNUSED)["input_ids"], skip_special_tokens=True).strip() == UNUSED
    assert np.isfinite(answer(small, UNUSED)).all()


def test_special_tokens_frame_a_text_and_a_pair_as_before(checkpoint) -> None:
    small, _ = trimmed(checkpoint, examples(checkpoint, USED), 1)
    for given in ((USED,), (USED, USED)):
        framed = [
            one.tokenizer.convert_ids_to_tokens(one.tokenizer(*given)["input_ids"]) for one in (checkpoint, small)
        ]
        assert framed[0] == framed[1]
    assert small.tokenizer.pad_token_id == checkpoint.tokenizer.pad_token_id


def test_the_model_that_is_trimmed_stays_as_it_is(checkpoint) -> None:
    before = answer(checkpoint, UNUSED)
    trimmed(checkpoint, examples(checkpoint, USED), 1)
    assert answer(checkpoint, UNUSED).tolist() == before.tolist()


def test_a_token_that_is_seen_too_seldom_goes(checkpoint) -> None:
    texts = examples(checkpoint, USED, USED, UNUSED)
    often, once = (len(trimmed(checkpoint, texts, count)[0].tokenizer) for count in (2, 1))
    assert often < once


def test_a_tokenizer_of_another_kind_is_refused(checkpoint) -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    other = replace(checkpoint, tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]"))
    with pytest.raises(CheckpointError, match="trim: a tokenizer of kind 'WordLevel' cannot be trimmed"):
        trimmed(other, [], 1)
