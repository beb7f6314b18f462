"""Distillation and pruning of tiny models of every supported architecture and task."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    set_seed,
)

from millis_pipeline.architectures import Encoder, Shape, shaped
from millis_pipeline.checkpoint import Checkpoint, CheckpointError, load
from millis_pipeline.data import DataError, TextExamples
from millis_pipeline.distill import recovered_layers, taken_layers, taught_layers
from millis_pipeline.export import export_onnx
from millis_pipeline.finetune import finetune
from millis_pipeline.job import Job, read_evaluation
from millis_pipeline.prune import kept_parts
from millis_pipeline.recipe import Recipe
from millis_pipeline.run import graph_runner, run_all, tokenize, torch_runner
from millis_pipeline.students import Students, check_variants
from millis_pipeline.tokenizer import write_tokenizer
from millis_pipeline.training_texts import training_texts
from millis_pipeline.variants import Distill, Prune, Quantize, Trim, VariantRecipe
from tests import tiny
from tests.pipeline.architectures import ARCHITECTURES, WIDE

WORDS = {"order": "buy", "fox": "animal", "Paris": "place"}
TEXTS = [f"{word} {number} the" for number in range(16) for word in WORDS]
SENTENCE = "Angela\tB-PER\nMerkel\tI-PER\nmet\tO\nTim\tB-PER\nin\tO\nParis\tB-LOC\n\n"
ONE_LAYER = VariantRecipe(name="student", distill=Distill(layers=1, epochs=8, learning_rate=0.01))
HALF = VariantRecipe(name="half", prune=Prune(heads=0.5, ffn=0.5, epochs=2, learning_rate=0.005))


def recipe(source: Path, task: str, **changes: object) -> Recipe:
    values = {"name": "tiny", "task": task, "checkpoint": str(source), "batch_size": 8, "freeze_embeddings": False}
    training = {"epochs": 10, "patience": 10, "learning_rate": 0.005}
    return Recipe.model_validate(values | training | changes)


def labelled(folder: Path) -> Path:
    with (folder / "train.csv").open("w", newline="") as file:
        rows = [(text, WORDS[text.split()[0]]) for text in TEXTS]
        csv.writer(file).writerows([("text", "label"), *rows])
    return folder / "train.csv"


def outputs(checkpoint: Checkpoint, folder: Path, texts: list[str]) -> list[np.ndarray]:
    tokenizer = write_tokenizer(checkpoint.tokenizer, folder / "tokenizer.json")
    rows = tokenize(tokenizer, texts, checkpoint.max_tokens, 0)
    return run_all(torch_runner(checkpoint), rows, checkpoint.inputs, "PyTorch")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Checkpoint]:
    folder = tmp_path_factory.mktemp("classifier")
    source = tiny.backbone(folder / "backbone", layers=4)
    written = recipe(source, "text-classification", train=labelled(folder), test=labelled(folder))
    finetune(written, source, folder / "teacher")
    return written, load("teacher", folder / "teacher")


def students(
    written: Recipe, teacher: Checkpoint, scratch: Path, *variants: VariantRecipe, kept: Path | None = None
) -> Students:
    asked = written.model_copy(update={"variants": (VariantRecipe(name="fp32"), *variants)})
    return Students(teacher, asked, training_texts(written, teacher), scratch, kept)


def test_a_distilled_classifier_has_fewer_layers_and_learns(tmp_path, classifier) -> None:
    written, teacher = classifier
    student, steps = students(written, teacher, tmp_path, ONE_LAYER).make(ONE_LAYER)
    assert len(Encoder(student.module).layers) == 1
    assert len(Encoder(teacher.module).layers) == 4
    assert steps == ("distilled into 1 of 4 layers, begun as 1; 8 epochs on 48 texts",)
    predicted = [student.labels[int(row.argmax())] for row in outputs(student, tmp_path, TEXTS)]
    assert predicted == [WORDS[text.split()[0]] for text in TEXTS]
    untaught = replace(teacher, module=shaped(teacher.module, Shape([0])))
    expected = outputs(teacher, tmp_path, TEXTS)
    assert distance(outputs(student, tmp_path, TEXTS), expected) < 0.5 * distance(
        outputs(untaught, tmp_path, TEXTS), expected
    )


def distance(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    return float(np.mean([np.abs(a - b).mean() for a, b in zip(ours, theirs, strict=True)]))


def test_a_distilled_token_classifier_learns(tmp_path) -> None:
    source = tiny.backbone(tmp_path / "backbone", layers=3)
    (tmp_path / "train.conll").write_text(SENTENCE * 48)
    data = tmp_path / "train.conll"
    written = recipe(source, "token-classification", train=data, test=data, epochs=6, noisy_copies=1)
    finetune(written, source, tmp_path / "teacher")
    teacher = load("teacher", tmp_path / "teacher")
    student, steps = students(written, teacher, tmp_path, ONE_LAYER).make(ONE_LAYER)
    assert steps == ("distilled into 1 of 3 layers, begun as 1; 8 epochs on 96 texts",)
    (expected,), (got,) = (outputs(one, tmp_path, ["Angela Merkel met Tim in Paris"]) for one in (teacher, student))
    assert got.argmax(-1).tolist() == expected.argmax(-1).tolist()


def test_an_embedding_model_is_distilled_from_texts_without_labels(tmp_path) -> None:
    teacher = load("teacher", tiny.sentence_model(tmp_path / "teacher"))
    (tmp_path / "texts.txt").write_text("\n".join([*TEXTS, *tiny.SENTENCES]))
    written = recipe(tmp_path, "embedding", unlabelled=tmp_path / "texts.txt", variants=[{"name": "fp32"}, ONE_LAYER])
    student, _ = students(written, teacher, tmp_path, ONE_LAYER).make(ONE_LAYER)
    untaught = replace(teacher, module=shaped(teacher.module, Shape([0])))
    expected = np.stack(outputs(teacher, tmp_path, TEXTS))
    taught, before = (
        float((np.stack(outputs(one, tmp_path, TEXTS)) * expected).sum(-1).mean()) for one in (student, untaught)
    )
    assert before < 0.9 < taught


def test_a_student_that_is_kept_is_not_trained_again_and_answers_the_same(tmp_path, classifier, capsys) -> None:
    written, teacher = classifier
    both = VariantRecipe(name="both", distill=Distill(layers=2, epochs=1), prune=Prune(heads=0.5, ffn=0.5, epochs=1))
    first, steps = students(written, teacher, tmp_path, both, kept=tmp_path / "kept").make(both)
    assert len(list((tmp_path / "kept").iterdir())) == 1
    capsys.readouterr()
    again, told = students(written, teacher, tmp_path, both, kept=tmp_path / "kept").make(both)
    assert (capsys.readouterr().out, told) == ("", steps)
    for ours, theirs in zip(outputs(first, tmp_path, TEXTS), outputs(again, tmp_path, TEXTS), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    other = both.model_copy(update={"prune": None})
    students(written, teacher, tmp_path, other, kept=tmp_path / "kept").make(other)
    assert len(list((tmp_path / "kept").iterdir())) == 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pruning_shrinks_the_graph_and_the_graph_answers_as_the_pruned_module(tmp_path, name) -> None:
    set_seed(1)
    AutoModelForSequenceClassification.from_config(ARCHITECTURES[name]).save_pretrained(tmp_path / "teacher")
    tiny.wordpiece_tokenizer().save_pretrained(tmp_path / "teacher")
    teacher = load(name, tmp_path / "teacher")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    pruning = HALF.model_copy(update={"prune": Prune(heads=0.5, ffn=0.5, layers=1, epochs=1)})
    written = recipe(
        tmp_path, "text-classification", unlabelled=tmp_path / "texts.txt", variants=[{"name": "fp32"}, HALF]
    )
    small, _ = students(written, teacher, tmp_path, pruning).make(pruning)
    encoder = Encoder(small.module)
    assert len(encoder.layers) == 3
    heads = [encoder.attended(layer).in_features // encoder.head_size for layer in encoder.layers]
    neurons = [encoder.narrowing(layer).in_features for layer in encoder.layers]
    assert (sum(heads), min(heads) >= 1) == (6, True)
    assert (sum(neurons) <= 224, {count % 32 for count in neurons}) == (True, {0})
    path = tmp_path / "model.onnx"
    export_onnx(small, path)
    rows = tokenize(write_tokenizer(small.tokenizer, tmp_path / "t.json"), TEXTS, small.max_tokens, 0)
    feeds = rows.feeds(range(len(TEXTS)), small.inputs)
    np.testing.assert_allclose(graph_runner(path)(feeds), torch_runner(small)(feeds), atol=1e-4)
    # Weights alone: the file of so small a model is mostly the exporter's notes.
    written_weights = sum(int(np.prod(tensor.dims)) for tensor in onnx.load(path).graph.initializer)
    assert written_weights < 0.6 * sum(parameter.numel() for parameter in teacher.module.parameters())


def test_removing_heads_and_neurons_is_the_same_as_silencing_them(tmp_path) -> None:
    teacher = load("teacher", tiny.text_classifier(tmp_path / "teacher"))
    small = shaped(teacher.module, Shape([0, 1], [[1], [0, 1]], [list(range(32)), list(range(32, 64))]))
    encoder = Encoder(teacher.module)
    with torch.no_grad():
        encoder.attended(encoder.layers[0]).weight[:, :16] = 0
        encoder.narrowing(encoder.layers[0]).weight[:, 32:] = 0
        encoder.narrowing(encoder.layers[1]).weight[:, :32] = 0
    silenced, removed = (
        outputs(replace(teacher, module=module), tmp_path, TEXTS) for module in (teacher.module, small)
    )
    np.testing.assert_allclose(np.stack(removed), np.stack(silenced), atol=1e-5)


def test_the_least_important_parts_go_wherever_they_are() -> None:
    worth = np.array([[4.0, 3.0, 0.1, 0.1], [1.0, 1.0, 1.0, 1.0]])
    assert kept_parts(worth, 0.25, at_least=1, step=1) == [[0, 1], [0, 1, 2, 3]]
    assert kept_parts(worth, 0.99, at_least=1, step=1) == [[0], [0]]
    assert kept_parts(worth, 0.0, at_least=1, step=1) == [[0, 1, 2, 3], [0, 1, 2, 3]]


def test_layers_are_spread_from_the_first_to_the_last() -> None:
    assert [taken_layers(Distill(layers=count), 6) for count in (1, 2, 3, 4)] == [[0], [0, 5], [0, 2, 5], [0, 2, 3, 5]]
    assert taken_layers(Distill(layers=2, from_layers=(1, 2)), 6) == [0, 1]
    assert taught_layers(2, 6) == {0: 2, 1: 5}
    assert taught_layers(3, 6) == {0: 1, 1: 3, 2: 5}
    # Of many layers four are matched.
    assert taught_layers(12, 12) == {2: 2, 5: 5, 8: 8, 11: 11}
    assert taught_layers(6, 12) == {1: 3, 2: 5, 3: 7, 5: 11}


def test_a_pruned_model_learns_what_its_layers_were_taught_and_its_last_one_the_last() -> None:
    assert recovered_layers([0, 2, 4], taught_layers(6, 6), 6) == {1: 2, 2: 5}
    assert recovered_layers([0, 1], taught_layers(2, 6), 6) == {0: 2, 1: 5}


def deep(folder: Path) -> Path:
    return tiny.text_classifier(folder)


def distilled(folder: Path) -> Path:
    ARCHITECTURES["distilbert"].save_pretrained(folder)
    return folder


def by_words(folder: Path) -> Path:
    tiny.text_classifier(folder)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    return folder


def unsupported(folder: Path) -> Path:
    from transformers import ModernBertConfig

    ModernBertConfig(**WIDE).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("write", "variant", "message"),
    [
        (
            deep,
            VariantRecipe(name="x", distill=Distill(layers=2)),
            "x: distill: the teacher has 2 layers; a student needs fewer, taken from these",
        ),
        (
            deep,
            VariantRecipe(name="x", distill=Distill(layers=1, from_layers=(3,))),
            "x: distill: the teacher has 2 layers; a student needs fewer, taken from these",
        ),
        (
            deep,
            VariantRecipe(name="x", prune=Prune(layers=2)),
            "x: prune.layers: the teacher has 2 layers, 2 cannot be removed",
        ),
        (
            deep,
            VariantRecipe(name="x", prune=Prune(heads=0.51)),
            (
                "x: prune.heads: a share of 0.51 cannot be removed, every layer keeps 1 of its 2 attention heads: "
                "at most 0.5"
            ),
        ),
        (
            deep,
            VariantRecipe(name="x", distill=Distill(layers=1), prune=Prune(heads=0.5, ffn=0.999)),
            (
                "x: prune.ffn: a share of 0.999 cannot be removed, every layer keeps 32 of its "
                "64 feed-forward neurons: "
                "at most 0.5"
            ),
        ),
        (
            distilled,
            VariantRecipe(name="x", prune=Prune(ffn=0.76)),
            (
                "x: prune.ffn: a share of 0.76 cannot be removed, every layer keeps 32 of its "
                "128 feed-forward neurons: "
                "at most 0.75"
            ),
        ),
        (
            unsupported,
            HALF,
            (
                "distill, prune, exits and trim: architecture 'modernbert' is not supported; "
                "supported are bert, roberta, xlm-roberta, distilbert"
            ),
        ),
        (
            by_words,
            VariantRecipe(name="x", trim=Trim()),
            "x: trim: a tokenizer of kind 'WordLevel' cannot be trimmed; WordPiece, BPE and Unigram can",
        ),
        (
            deep,
            VariantRecipe(name="x", quantize=Quantize(method="dynamic", keep_fp32=("layer 2 attention", "layer 3"))),
            (
                "x: quantize.keep_fp32: the model has no block 'layer 3'; it has head, and attention and feed-forward "
                "of layers 1 to 2, for example 'layer 1 attention'"
            ),
        ),
        (
            deep,
            VariantRecipe(
                name="x",
                distill=Distill(layers=1),
                quantize=Quantize(method="static", keep_fp32=("head", "layer 1 feed-forward", "layer 2 attention")),
            ),
            (
                "x: quantize.keep_fp32: the model has no block 'layer 2 attention'; it has head, and attention and "
                "feed-forward of layers 1 to 1, for example 'layer 1 attention'"
            ),
        ),
        (
            deep,
            VariantRecipe(name="x", quantize=Quantize(method="dynamic", keep_fp32=6)),
            (
                "x: quantize.keep_fp32: 6 blocks cannot stay in fp32, the model has at most 5: head, and attention and "
                "feed-forward of layers 1 to 2"
            ),
        ),
        (
            unsupported,
            VariantRecipe(name="x", quantize=Quantize(method="static", keep_fp32=96)),
            (
                "x: quantize.keep_fp32: 96 blocks cannot stay in fp32, the model has at most 45: head, and attention "
                "and feed-forward of layers 1 to 22"
            ),
        ),
    ],
)
def test_what_cannot_be_made_smaller_is_refused_before_training(
    tmp_path, write: Callable[[Path], Path], variant: VariantRecipe, message: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_variants([variant], write(tmp_path / "checkpoint"))
    assert str(caught.value) == message


def test_the_largest_shares_and_all_blocks_are_what_there_is(tmp_path) -> None:
    largest = VariantRecipe(name="x", prune=Prune(heads=0.5, ffn=0.5), quantize=Quantize(method="dynamic", keep_fp32=5))
    check_variants([largest], tiny.text_classifier(tmp_path / "checkpoint"))


def test_students_do_not_learn_from_what_they_are_measured_on_where_there_is_no_test_data(tmp_path) -> None:
    teacher = load("teacher", tiny.text_classifier(tmp_path / "teacher", ("animal", "buy", "place")))
    written = recipe(tmp_path, "text-classification", train=labelled(tmp_path), dev_fraction=0.25)
    measured, _ = read_evaluation(Job("tiny", "teacher", None, written, None, "tiny"))
    assert isinstance(measured, TextExamples)
    assert len(measured.texts) == 12
    assert len(training_texts(written, teacher)) == 36
    assert len(training_texts(written.model_copy(update={"test": written.train}), teacher)) == 48


def test_texts_with_labels_that_the_teacher_lacks_are_refused(tmp_path) -> None:
    teacher = load("teacher", tiny.text_classifier(tmp_path / "teacher"))
    written = recipe(tmp_path, "text-classification", train=labelled(tmp_path), test=labelled(tmp_path))
    with pytest.raises(DataError) as caught:
        training_texts(written, teacher)
    assert str(caught.value) == (
        f"train: {tmp_path}/train.csv:2: label 'buy' is not one of the 3 labels of teacher: cancel, order, refund"
    )
