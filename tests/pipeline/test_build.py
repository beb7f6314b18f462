"""`millis build` from end to end: training, publishing, what it refuses, and what an interruption leaves."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from google.protobuf import text_format
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast
from tritonclient.grpc import model_config_pb2

from millis_pipeline import build, precision
from millis_pipeline.precision import has_bfloat16
from millis_server.manifest_files import read_manifest, verify_files
from tests import tiny
from tests.processes import until_gone

RECIPE = """\
name: intent
task: {task}
checkpoint: {checkpoint}
train: {train}
dev: {train}
test: {train}
epochs: {epochs}
patience: {epochs}
batch_size: 8
learning_rate: 0.01
freeze_embeddings: false
max_quality_loss: 0.2
license: MIT
default: true
"""
STUDENT = """\
variants:
  - name: fp32
  - {name: student, distill: {layers: 1, epochs: 12, learning_rate: 0.01}}
  - {name: ruined, distill: {layers: 1, epochs: 2, learning_rate: 0.9}}
"""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    return tiny.backbone(tmp_path_factory.mktemp("backbone"))


def recipe(folder: Path, backbone: Path, task: str, train: str, epochs: int = 8) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(task=task, checkpoint=backbone, train=train, epochs=epochs))
    return path


def text_data(folder: Path) -> str:
    rows = [(f"{word} {n}", label) for n in range(12) for word, label in (("order", "buy"), ("fox", "animal"))]
    with (folder / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return "data.csv"


def token_data(folder: Path) -> str:
    sentence = "Angela\tB-PER\nMerkel\tI-PER\nmet\tO\nTim\tB-PER\nin\tO\nParis\tB-LOC\n\n"
    (folder / "data.conll").write_text(sentence * 48)
    return "data.conll"


def run(path: Path, repository: Path, *more: str) -> int:
    reports = repository.parent / "reports"
    return build.main([str(path), "--repository", str(repository), "--reports", str(reports), *more])


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("task", "data", "metric", "labels"),
    [
        ("text-classification", text_data, "accuracy", ("animal", "buy")),
        pytest.param(
            *("token-classification", token_data, "entity_f1", ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_family_is_trained_measured_and_published_whole(tmp_path, backbone, capsys, task, data, metric, labels):
    repository = tmp_path / "repository"
    path = recipe(tmp_path, backbone, task, data(tmp_path))
    path.write_text(path.read_text() + STUDENT)
    assert run(path, repository, "--keep", str(tmp_path / "kept")) == 0
    for variant in ("fp32", "student"):
        folder = repository / f"intent-{variant}"
        assert sorted(tree(folder)) == ["1/manifest.json", "1/model.onnx", "1/tokenizer.json", "config.pbtxt"]
        manifest = read_manifest(folder / "1")
        verify_files(folder / "1", manifest)
        assert (manifest.labels, manifest.default_for_task, manifest.provenance.license) == (labels, True, "MIT")
        assert manifest.quality is not None
        assert (manifest.quality.metric, manifest.quality.value) == (metric, 1.0)
        config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        assert (config.name, config.backend, config.version_policy.latest.num_versions) == (folder.name, "millis", 2)
        assert [(tensor.name, tensor.allow_ragged_batch) for tensor in config.input] == [
            ("input_ids", True),
            ("attention_mask", True),
        ]
        tokenizer = json.loads((folder / "1" / "tokenizer.json").read_text())
        assert (tokenizer["padding"], tokenizer["truncation"]) == (None, None)
    reports = tmp_path / "reports"
    assert sorted(path.name for path in reports.iterdir()) == ["intent.html", "intent.md", "intent.svg"]
    report = (reports / "intent.md").read_text()
    assert "| fp32 | 1 |" in report
    assert "| **student** (default) | 1 |" in report
    assert "| ruined | refused |" in report
    (why,) = (line for line in capsys.readouterr().out.splitlines() if "did not publish" in line)
    assert re.fullmatch(r"intent: did not publish ruined: it loses \S+, more than max_quality_loss 0.2; .*", why)
    assert sorted(folder.name for folder in repository.iterdir()) == ["intent-fp32", "intent-student"]
    assert (tmp_path / "kept" / "intent" / "config.json").is_file()
    assert len(list((tmp_path / "kept" / "intent-students").glob("*.safetensors"))) == 2


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (
            lambda folder: (folder / "data.csv").write_text("text,intent\na,b\n"),
            "data.csv:2: column 'label' is missing",
        ),
        (lambda folder: (folder / "data.csv").write_text("text,label\na,b\nc,b\n"), "it has 1 label (b)"),
        (lambda folder: (folder / "data.csv").unlink(), "data.csv: No such file or directory"),
    ],
)  # fmt: skip
def test_bad_data_is_one_clear_line_and_publishes_nothing(tmp_path, backbone, capsys, prepare, message):
    path = recipe(tmp_path, backbone, "text-classification", text_data(tmp_path))
    prepare(tmp_path)
    assert run(path, tmp_path / "repository") == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("millis build: ")
    assert message in last
    assert list((tmp_path / "repository").glob("*")) == []


@pytest.mark.parametrize(
    ("key", "options", "message"),
    [
        ("unlabelled: more.txt", [], "unlabelled: {folder}/more.txt: No such file or directory"),
        ("", ["--keep", "data.csv"], "--keep {folder}/data.csv: File exists"),
        ("", ["--reports", "data.csv/in"], "--reports {folder}/data.csv/in: Not a directory"),
    ],
)
def test_what_would_fail_after_minutes_is_refused_before_training(tmp_path, backbone, capsys, key, options, message):
    path = recipe(tmp_path, backbone, "text-classification", text_data(tmp_path))
    path.write_text(path.read_text() + STUDENT + key)
    assert run(path, tmp_path / "repository", *(str(tmp_path / one) if one[0] != "-" else one for one in options)) == 1
    assert capsys.readouterr() == ("", f"millis build: {message.format(folder=tmp_path)}\n")


def test_a_checkpoint_that_cannot_be_used_is_one_clear_line(tmp_path, backbone, capsys):
    bare = tmp_path / "bare"
    tiny.text_classifier(bare)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    labelled = tmp_path / "test.csv"
    labelled.write_text("text,label\nfox,animal\n")
    good = tiny.text_classifier(tmp_path / "good")
    for arguments, message in (
        ([str(bare)], "it has no tokenizer"),
        ([str(backbone)], "does not say what it answers; give --task"),
        ([str(backbone), "--task", "text-classification"], "has no trained head for text-classification"),
        ([str(tmp_path / "none")], "no such folder"),
        (["package:no_such_package"], "no Python package 'no_such_package' is installed"),
        (
            [str(good), "--eval-data", str(labelled)],
            f"--eval-data: {labelled}:2: label 'animal' is not one of the 3 labels of",
        ),
    ):
        assert build.main([*arguments, "--repository", str(tmp_path / "repository")]) == 1
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("millis build: ")
        assert message in last


TOPICS = (
    ("where is my order it should have arrived last week", ("time",)),
    ("Angela Merkel met Tim Cook in Paris on Monday", ("people", "places", "time")),
    ("shares of the company rose after it raised its forecast", ("money",)),
    ("the quick brown fox jumps over the lazy dog", ()),
)


def test_a_checkpoint_with_several_labels_for_a_text_is_measured_on_data_with_a_separator(tmp_path):
    folder = tiny.text_classifier(tmp_path / "topics", tiny.TOPICS, seed=2, multi_label=True)
    with (tmp_path / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((text, "; ".join(labels)) for text, labels in TOPICS)])
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with torch.inference_mode():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits[0].tolist() for text, _ in TOPICS]
    said = [{label for label, logit in zip(tiny.TOPICS, row, strict=True) if logit >= 0} for row in logits]
    right = sum(len(ours & set(labels)) for ours, (_, labels) in zip(said, TOPICS, strict=True))
    f1 = 2 * right / sum(len(ours) + len(labels) for ours, (_, labels) in zip(said, TOPICS, strict=True))
    options = ["--task", "text-classification", "--eval-data", str(tmp_path / "test.csv"), "--label-separator", ";"]
    assert run(folder, tmp_path / "repository", *options) == 0
    quality = read_manifest(tmp_path / "repository" / "topics-fp32" / "1").quality
    assert quality is not None
    assert (quality.metric, quality.value, quality.examples, quality.dataset) == (
        "micro_f1",
        pytest.approx(f1),
        4,
        "test.csv",
    )


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            tiny.token_classifier,
            ["--label-separator", "|", "--eval-data", "test.csv"],
            "--label-separator: a model for token-classification has no texts with several labels",
        ),
        (
            tiny.backbone,
            ["--task", "text-generation", "--label-separator", "|"],
            "--label-separator: a model for text-generation has no texts with several labels",
        ),
        (tiny.text_classifier, ["--label-separator", "", "--eval-data", "test.csv"], "--label-separator: it is empty"),
        (
            tiny.text_classifier,
            ["--label-separator", "|"],
            "--label-separator: it stands between labels in --eval-data, which is not given",
        ),
        (
            tiny.text_classifier,
            ["--label-separator", "|", "--eval-data", "test.csv"],
            "--eval-data: test.csv:2: the text has 2 labels, and {folder} gives a text 1",
        ),
    ],
)
def test_a_separator_of_labels_that_does_not_go_with_the_checkpoint_is_one_clear_line(
    tmp_path, capsys, monkeypatch, make, options, message
):
    monkeypatch.chdir(tmp_path)
    Path("test.csv").write_text("text,label\nfox,order|refund\n")
    folder = make(tmp_path / "checkpoint")
    assert run(folder, tmp_path / "repository", *options) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"millis build: {message.format(folder=folder)}"
    assert list((tmp_path / "repository").glob("*")) == []


def test_a_variant_in_bfloat16_is_built_where_the_processor_has_it_and_left_out_elsewhere(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("millis_pipeline.gate.FASTER", 1e9)  # speed on a shared machine must decide no test
    checkpoint = tiny.text_classifier(tmp_path / "tiny")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"name: tiny\ntask: text-classification\ncheckpoint: {checkpoint}\n"
        "variants: [{name: fp32}, {name: bf16, precision: bf16}]\n"
    )
    repository = tmp_path / "repository"
    if has_bfloat16():
        assert run(path, repository) == 0
        manifest = read_manifest(repository / "tiny-bf16" / "1")
        assert (manifest.precision, manifest.tolerance) == ("bf16", build.ROUNDED_TOLERANCE)
        assert manifest.provenance.steps == ("computed in bfloat16 by the engine openvino",)
        assert manifest.latency is not None
        assert manifest.latency.engine.startswith("openvino 2026.")
        # The manifest's precision decides about the engine.
        assert "engine" not in (repository / "tiny-bf16" / "config.pbtxt").read_text()
        assert (repository / "tiny-bf16" / "1" / "model.onnx").read_bytes() == (
            repository / "tiny-fp32" / "1" / "model.onnx"
        ).read_bytes()
    monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
    assert run(path, tmp_path / "elsewhere") == 0
    assert [folder.name for folder in (tmp_path / "elsewhere").iterdir()] == ["tiny-fp32"]
    said = "Left out, because this processor does not compute in bfloat16: bf16."
    assert said in capsys.readouterr().out.splitlines()[-1]
    assert said in (tmp_path / "reports" / "tiny.md").read_text()
    monkeypatch.setattr(precision, "find_spec", lambda name: None)
    assert run(path, tmp_path / "elsewhere") == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "millis build: variants: bf16: precision bf16 needs OpenVINO, which is not installed: "
        "pip install 'millis[openvino]'"
    )


def test_an_interrupted_build_leaves_the_repository_as_it_was(tmp_path, backbone):
    repository = tmp_path / "repository"
    (repository / "other-fp32" / "1").mkdir(parents=True)
    (repository / "other-fp32" / "config.pbtxt").write_text("x")
    before = tree(repository)
    path = recipe(tmp_path, backbone, "text-classification", text_data(tmp_path), epochs=1000)
    command = [sys.executable, "-m", "millis.cli", "build", str(path), "--repository", str(repository)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    for line in process.stdout or ():
        if "epoch 2/" in line:
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1].startswith("millis build: interrupted")
    assert tree(repository) == before
    assert [folder.name for folder in repository.iterdir()] == ["other-fp32"]


@pytest.mark.slow
@pytest.mark.parametrize("by", ["Ctrl-C", "SIGTERM"])
def test_interrupted_builds_that_run_side_by_side_leave_no_process_and_the_repository_as_it_was(tmp_path, backbone, by):
    repository = tmp_path / "repository"
    data = text_data(tmp_path)
    paths = []
    for name in ("one", "two"):
        path = recipe(tmp_path, backbone, "text-classification", data, epochs=1000)
        paths.append(path.rename(tmp_path / f"{name}.yaml"))
        paths[-1].write_text(paths[-1].read_text().replace("name: intent", f"name: {name}"))
    options = ["--repository", str(repository), "--jobs", "2"]
    command = [sys.executable, "-m", "millis.cli", "build", *map(str, paths), *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
    )
    seen = set()
    for line in process.stdout or ():
        seen |= {name for name in ("one", "two") if line.startswith(f"{name}: epoch 2/")}
        if seen == {"one", "two"}:
            break
    if by == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "millis build: interrupted; the repository is as it was before the last model\n"
    assert tree(repository) == {}
    until_gone(process.pid)


def test_two_sources_of_one_model_are_one_clear_line(tmp_path, backbone, capsys):
    path = recipe(tmp_path, backbone, "text-classification", text_data(tmp_path))
    assert build.main([str(path), str(path), "--repository", str(tmp_path / "repository")]) == 1
    assert capsys.readouterr().err == (
        f"millis build: {path}: model 'intent' is that of another source too; build one at a time\n"
    )
