"""Fine-tuning of a tiny encoder: what it learns, what it writes, and what it refuses."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    BertModel,
    CLIPTextConfig,
    LongformerConfig,
    PreTrainedConfig,
    T5Config,
)

from millis_pipeline.checkpoint import CheckpointError, load
from millis_pipeline.classifier import MeanPoolClassifier
from millis_pipeline.data import DataError
from millis_pipeline.finetune import finetune
from millis_pipeline.recipe import Recipe
from millis_pipeline.run import run_all, tokenize, torch_runner
from millis_pipeline.tokenizer import write_tokenizer
from tests import tiny

WORDS = {"order": "buy", "fox": "animal", "Paris": "place"}
TEXTS = [f"{word} {number} the" for number in range(16) for word in WORDS]
LABELS = [label for _ in range(16) for label in WORDS.values()]
SENTENCE = "Angela\tB-PER\nMerkel\tI-PER\nmet\tO\nTim\tB-PER\nin\tO\nParis\tB-LOC\n\n"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.backbone(tmp_path_factory.mktemp("backbone"))


def table(path: Path, texts: list[str], labels: list[str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    return path


def recipe(backbone: Path, train: Path, task: str = "text-classification", **changes: object) -> Recipe:
    values: dict[str, object] = {
        "name": "tiny",
        "task": task,
        "checkpoint": str(backbone),
        "train": train,
        "epochs": 12,
        "patience": 12,
        "batch_size": 8,
        "learning_rate": 0.01,
        "freeze_embeddings": False,
    }
    return Recipe.model_validate(values | changes)


def logits(folder: Path, texts: list[str]) -> list[torch.Tensor]:
    checkpoint = load("tiny", folder)
    tokenizer = write_tokenizer(checkpoint.tokenizer, folder.parent / "tokenizer.json")
    rows = tokenize(tokenizer, texts, checkpoint.max_tokens, 0)
    outputs = run_all(torch_runner(checkpoint), rows, checkpoint.inputs, "PyTorch")
    return [torch.from_numpy(output) for output in outputs]


def test_a_text_classifier_learns_and_is_written_whole(tmp_path: Path, backbone: Path) -> None:
    finetune(recipe(backbone, table(tmp_path / "train.csv", TEXTS, LABELS)), backbone, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "head.safetensors",
        "millis_head.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    checkpoint = load("tiny", tmp_path / "out")
    assert (checkpoint.task, checkpoint.labels, checkpoint.multi_label) == (
        "text-classification",
        ("animal", "buy", "place"),
        False,
    )
    predicted = [checkpoint.labels[int(row.argmax())] for row in logits(tmp_path / "out", TEXTS)]
    assert predicted == LABELS


def test_a_text_can_have_several_labels(tmp_path: Path, backbone: Path) -> None:
    texts = ["order the", "fox the", "order fox the", "the"] * 12
    labels = ["buy", "animal", "buy|animal", ""] * 12
    train = table(tmp_path / "train.csv", texts, labels)
    finetune(recipe(backbone, train, label_separator="|", epochs=20), backbone, tmp_path / "out")
    checkpoint = load("tiny", tmp_path / "out")
    assert (checkpoint.labels, checkpoint.multi_label) == (("animal", "buy"), True)
    predicted = [[bool(logit >= 0) for logit in row] for row in logits(tmp_path / "out", texts[:4])]
    assert predicted == [[False, True], [True, False], [True, True], [False, False]]


def test_a_token_classifier_learns_both_prefixes_of_every_label(tmp_path: Path, backbone: Path) -> None:
    train = tmp_path / "train.conll"
    train.write_text(SENTENCE * 48)
    finetune(recipe(backbone, train, "token-classification", learning_rate=0.003), backbone, tmp_path / "out")
    checkpoint = load("tiny", tmp_path / "out")
    assert (checkpoint.task, checkpoint.labels) == (
        "token-classification",
        ("O", "B-LOC", "I-LOC", "B-PER", "I-PER"),
    )
    (row,) = logits(tmp_path / "out", ["Angela Merkel met Tim in Paris"])
    ids = checkpoint.tokenizer("Angela Merkel met Tim in Paris", return_offsets_mapping=True)
    starts = {
        start: checkpoint.labels[int(row[token].argmax())]
        for token, (start, end) in reversed(list(enumerate(ids["offset_mapping"])))
        if end > start
    }
    assert [starts[start] for start in (0, 7, 14, 18, 22, 25)] == ["B-PER", "I-PER", "O", "B-PER", "O", "B-LOC"]


def test_the_same_seed_gives_the_same_weights(tmp_path: Path, backbone: Path) -> None:
    train = table(tmp_path / "train.csv", TEXTS, LABELS)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        finetune(recipe(backbone, train, seed=seed, epochs=1), backbone, tmp_path / name)
    first, second, third = (load_file(tmp_path / name / "head.safetensors")["weight"] for name in "abc")
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(first, third, atol=1e-3)


def test_frozen_word_embeddings_stay_as_they_are(tmp_path: Path, backbone: Path) -> None:
    train = table(tmp_path / "train.csv", TEXTS, LABELS)
    finetune(recipe(backbone, train, freeze_embeddings=True, epochs=1), backbone, tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (backbone, tmp_path / "out"))
    assert torch.equal(before["embeddings.word_embeddings.weight"], after["embeddings.word_embeddings.weight"])
    query = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(before[query], after[query])


def test_frozen_layers_stay_as_they_are_and_the_others_learn(tmp_path: Path, backbone: Path) -> None:
    train = table(tmp_path / "train.csv", TEXTS, LABELS)
    finetune(recipe(backbone, train, freeze_layers=1, epochs=1), backbone, tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (backbone, tmp_path / "out"))
    learned = {name for name in before if not torch.equal(before[name], after[name])}
    assert learned == {name for name in before if name.startswith("encoder.layer.1.")}
    with pytest.raises(CheckpointError, match=r"^freeze_layers: 2, and checkpoint \S+ has 2 layers; freeze fewer$"):
        finetune(recipe(backbone, train, freeze_layers=2), backbone, tmp_path / "none")


def test_training_stops_when_the_dev_data_gets_no_better(
    tmp_path: Path, backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = table(tmp_path / "train.csv", TEXTS, LABELS)
    # A rate this small changes no prediction, so no epoch after the first can be better.
    finetune(recipe(backbone, train, epochs=9, patience=2, learning_rate=1e-12), backbone, tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1] for line in lines] == [" epoch 1/9", " epoch 2/9", " epoch 3/9"]
    assert [line.endswith("(best)") for line in lines] == [True, False, False]


def test_texts_longer_than_the_encoder_can_read_are_cut(tmp_path: Path, backbone: Path) -> None:
    train = table(tmp_path / "train.csv", [f"{text} " + "order " * 200 for text in TEXTS], LABELS)
    finetune(recipe(backbone, train, max_tokens=4096, epochs=1), backbone, tmp_path / "out")
    assert load("tiny", tmp_path / "out").max_tokens == tiny.MAX_TOKENS


@pytest.mark.parametrize(
    ("dev", "message"),
    [
        (["animal", "tree"], "dev.csv:3: label 'tree' is not in the training data"),
        (None, "dev.csv: No such file or directory"),
    ],
)
def test_dev_data_that_does_not_fit_stops_before_training(
    tmp_path: Path, backbone: Path, dev: list[str] | None, message: str
) -> None:
    train = table(tmp_path / "train.csv", TEXTS, LABELS)
    if dev is not None:
        table(tmp_path / "dev.csv", ["one", "two"], dev)
    with pytest.raises(DataError) as caught:
        finetune(recipe(backbone, train, dev=tmp_path / "dev.csv"), backbone, tmp_path / "out")
    assert str(caught.value) == f"dev: {tmp_path}/{message}"
    assert not (tmp_path / "out").exists()


def test_a_label_seen_once_does_not_stop_the_split(tmp_path: Path, backbone: Path) -> None:
    train = table(tmp_path / "train.csv", [*TEXTS, "rare"], [*LABELS, "once"])
    finetune(recipe(backbone, train, epochs=1), backbone, tmp_path / "out")
    assert load("tiny", tmp_path / "out").labels == ("animal", "buy", "once", "place")


def test_one_example_cannot_be_split(tmp_path: Path, backbone: Path) -> None:
    train = tmp_path / "train.conll"
    train.write_text(SENTENCE)
    with pytest.raises(DataError) as caught:
        finetune(recipe(backbone, train, "token-classification"), backbone, tmp_path / "out")
    assert str(caught.value) == f"train: {train}: it has 1 example; at least 2 are needed, or a dev set"


def test_a_checkpoint_without_tokenizer_or_weights_is_named(tmp_path: Path, backbone: Path) -> None:
    train = table(tmp_path / "train.csv", TEXTS, LABELS)
    bare = tmp_path / "bare"
    BertModel(tiny.bert_config(("a", "b"))).save_pretrained(bare)
    with pytest.raises(CheckpointError, match=r"^checkpoint .*/bare: it has no tokenizer"):
        finetune(recipe(bare, train), bare, tmp_path / "out")
    tiny.wordpiece_tokenizer().save_pretrained(bare)
    (bare / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"^checkpoint .*/bare: [^\n]+$"):
        finetune(recipe(bare, train), bare, tmp_path / "out")


def other_backbone(folder: Path, config: PreTrainedConfig) -> Path:
    """Writes a tiny model of an architecture that nothing here was made for."""
    AutoModel.from_config(config).save_pretrained(folder)
    tiny.wordpiece_tokenizer().save_pretrained(folder)
    return folder


LONGFORMER = LongformerConfig(
    vocab_size=300,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=128,
    attention_window=[8],
    pad_token_id=0,
)
T5 = T5Config(vocab_size=300, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
CLIP = CLIPTextConfig(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)


@pytest.mark.parametrize(
    ("config", "task", "message"),
    [
        # What the libraries say of it is theirs.
        (T5, "text-classification", "t5 does not answer a text as an encoder does: "),
        (CLIP, "token-classification", "Unrecognized configuration class "),
        (LONGFORMER, "text-classification", "it cannot be exported to ONNX: "),
    ],
    ids=["no encoder", "no such head", "no graph"],
)
def test_what_training_could_come_to_nothing_with_is_one_line_before_it_begins(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], config: PreTrainedConfig, task: str, message: str
) -> None:
    source = other_backbone(tmp_path / "other", config)
    train = table(tmp_path / "train.csv", TEXTS, LABELS)
    if task == "token-classification":
        train = tmp_path / "train.conll"
        train.write_text(SENTENCE * 4)
    with pytest.raises(CheckpointError) as caught:
        finetune(recipe(source, train, task), source, tmp_path / "out")
    expected = f"checkpoint {source}: {message}"
    said = str(caught.value)
    assert (said[: len(expected)], said.count("\n"), capfd.readouterr().out) == (expected, 0, "")
    assert not (tmp_path / "out").exists()


def test_a_mean_pooling_classifier_is_read_back_and_ignores_padding(tmp_path: Path) -> None:
    classifier = MeanPoolClassifier(BertModel(tiny.bert_config(tiny.INTENTS))).eval()
    tiny.wordpiece_tokenizer().save_pretrained(tmp_path)
    classifier.save(tmp_path)
    again = MeanPoolClassifier.load(tmp_path).eval()
    ids = torch.tensor([[2, 9, 8, 3]])
    padded, mask = torch.tensor([[2, 9, 8, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0, 0]])
    with torch.inference_mode():
        expected = classifier(ids, torch.ones_like(ids))
        torch.testing.assert_close(again(ids, torch.ones_like(ids)), expected, atol=0, rtol=0)
        torch.testing.assert_close(again(padded, mask), expected, atol=1e-5, rtol=1e-5)
    assert AutoConfig.from_pretrained(tmp_path).id2label == dict(enumerate(tiny.INTENTS))
