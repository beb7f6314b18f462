"""What the sources of a build name is read and checked before the first model is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from millis_pipeline import build
from millis_pipeline.build_options import build_parser
from millis_pipeline.checkpoint import CheckpointError
from millis_pipeline.data import DataError
from millis_pipeline.inputs import check_inputs
from millis_pipeline.job import read_job
from tests import tiny

RECIPE = "name: {name}\ntask: text-classification\ncheckpoint: {checkpoint}\ntrain: train.csv\n"
KNOWN = "is not one of the 3 labels of {folder}/teacher: cancel, order, refund"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a backbone, a teacher for intents, and data for three recipes."""
    tiny.backbone(tmp_path / "backbone")
    tiny.text_classifier(tmp_path / "teacher")
    (tmp_path / "train.csv").write_text("text,label\none,order\ntwo,refund\n")
    (tmp_path / "good.csv").write_text("text,label\nfour,order\n")
    (tmp_path / "other.csv").write_text("text,label\nfour,order\nfive,animal\n")
    return tmp_path


def recipe(folder: Path, name: str, *keys: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(RECIPE.format(name=name, checkpoint=folder / "backbone") + "".join(f"{key}\n" for key in keys))
    return path


def check(source: Path | str, *options: str) -> None:
    check_inputs(read_job(str(source), build_parser().parse_args([str(source), *options])))


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_fault_of_a_later_source_is_told_before_the_first_model_is_made(folder, capsys, jobs):
    sources = [
        recipe(folder, "first", "dev: good.csv", "test: good.csv"),
        recipe(folder, "second", "dev: good.csv", "test: other.csv"),
        recipe(folder, "third", "dev: none.csv"),
    ]
    options = ["--repository", str(folder / "repository"), "--reports", str(folder / "reports"), "--jobs", jobs]
    assert build.main([*map(str, sources), *options]) == 1
    faults = (
        f"millis build: test: {folder}/other.csv:3: label 'animal' is not in the training data\n"
        f"millis build: dev: {folder}/none.csv: No such file or directory\n"
    )
    assert capsys.readouterr() == ("", faults)
    assert not (folder / "repository").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["test: other.csv"], "test: {folder}/other.csv:3: label 'animal' " + KNOWN),
        (["train: other.csv"], "train: {folder}/other.csv:3: label 'animal' " + KNOWN),
        (["dev: other.csv"], "dev: {folder}/other.csv:3: label 'animal' " + KNOWN),
        (
            ["dev: other.csv", "test: good.csv", "variants: [{name: fp32}, {name: x, exits: {after: [1]}}]"],
            "dev: {folder}/other.csv:3: label 'animal' " + KNOWN,
        ),
        (
            ["unlabelled: none.txt", "variants: [{name: fp32}, {name: x, quantize: static}]"],
            "unlabelled: {folder}/none.txt: No such file or directory",
        ),
        (["label_column: intent"], "train: {folder}/train.csv:2: column 'intent' is missing; columns are: text, label"),
    ],
)
def test_data_that_a_teacher_cannot_answer_is_named_with_its_key(folder, keys, message):
    path = recipe(folder, "taught", *(key for key in keys if not key.startswith("train")))
    if "train: other.csv" in keys:
        path.write_text(path.read_text().replace("train.csv", "other.csv"))
    with pytest.raises(DataError) as caught:
        check(path, "--teacher", str(folder / "teacher"))
    assert str(caught.value) == message.format(folder=folder)


def test_several_labels_for_a_text_need_a_teacher_that_gives_several(folder):
    path = recipe(folder, "taught", "label_separator: '|'", "test: good.csv")
    with pytest.raises(CheckpointError) as caught:
        check(path, "--teacher", str(folder / "teacher"))
    assert str(caught.value) == f"{folder}/teacher: it gives a text 1 label; label_separator says several"


def test_a_variant_that_cannot_be_made_is_told_with_the_data(folder):
    path = recipe(folder, "pruned", "variants: [{name: fp32}, {name: x, prune: {layers: 2}}]")
    with pytest.raises(CheckpointError) as caught:
        check(path)
    assert str(caught.value) == "x: prune.layers: the teacher has 2 layers, 2 cannot be removed"


def test_what_is_right_passes_and_a_checkpoint_on_the_hub_is_not_asked_for(folder):
    check(recipe(folder, "trained", "dev: good.csv", "test: good.csv"))
    check(recipe(folder, "taught", "dev: good.csv", "test: good.csv"), "--teacher", str(folder / "teacher"))
    check(folder / "teacher", "--eval-data", str(folder / "good.csv"))
    check("owner/name", "--eval-data", str(folder / "none.csv"))
    check("owner/name", "--task", "text-classification", "--eval-data", str(folder / "other.csv"))
    with pytest.raises(DataError) as caught:
        check("owner/name", "--task", "text-classification", "--eval-data", str(folder / "none.csv"))
    assert str(caught.value) == f"--eval-data: {folder}/none.csv: No such file or directory"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("test: none.jsonl", "test: {folder}/none.jsonl: No such file or directory"),
        ("dev: bad.jsonl", "dev: {folder}/bad.jsonl:1: 'messages' is missing, or no list of messages"),
        (
            "variants: [{weights: fp32}, {weights: int8, draft: {checkpoint: ./none}}]",
            "checkpoint {folder}/none: no such folder, and no hub id (owner/name)",
        ),
    ],
)
def test_what_a_model_that_generates_would_only_read_after_training_is_read_before(folder, keys, message):
    (folder / "bad.jsonl").write_text("{}\n")
    (folder / "train.txt").write_text("Where is my order?\n")
    path = folder / "talk.yaml"
    path.write_text(f"name: talk\ntask: text-generation\ncheckpoint: owner/name\ntrain: train.txt\n{keys}\n")
    with pytest.raises((DataError, CheckpointError)) as caught:
        check(path)
    assert str(caught.value) == message.format(folder=folder)
