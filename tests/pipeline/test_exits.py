"""Early exits: the cascade computes what the model computes, and confidence is that of what will be answered."""

from __future__ import annotations

import csv
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    BertForTokenClassification,
    set_seed,
)

from millis_pipeline import build, candidates
from millis_pipeline.calibrate import Calibration
from millis_pipeline.candidates import Candidate, CandidateMaker
from millis_pipeline.checkpoint import Checkpoint, load
from millis_pipeline.exits import ExitModel
from millis_pipeline.export import export_stages
from millis_pipeline.run import CascadeRunner, Rows, run_all, tokenize, torch_runner
from millis_pipeline.side_by_side import in_turn
from millis_pipeline.tokenizer import write_tokenizer
from millis_pipeline.variants import Exits, Quantize, VariantRecipe
from millis_pipeline.verify import EvaluationSet
from millis_server.manifest import Manifest
from millis_server.manifest_files import read_manifest
from millis_server.triton.backend.cascade import Stage, load_stages
from millis_server.triton.backend.engine import EngineOptions, load_engine
from millis_server.triton.backend.microbatch import run_unpadded
from tests import tiny
from tests.pipeline.architectures import ARCHITECTURES

EARLY = VariantRecipe(name="exits", exits=Exits(after=(1, 3)))
WORDS = {"order": "buy", "fox": "animal", "Paris": "place", "Zürich": "place"}


def checkpoint(folder: Path, family: str) -> Checkpoint:
    set_seed(0)
    if family == "tokens":
        model = BertForTokenClassification(tiny.bert_config(tiny.TAGS, num_hidden_layers=4))
    else:
        model = AutoModelForSequenceClassification.from_config(ARCHITECTURES[family])
    model.save_pretrained(folder)
    tiny.wordpiece_tokenizer().save_pretrained(folder)
    return load(family, folder)


@dataclass(frozen=True)
class Exported:
    """A model with exits after layers 1 and 3 of 4, as graphs; the heads are not those of the model."""

    checkpoint: Checkpoint
    model: ExitModel
    paths: list[Path]
    rows: Rows

    def runner(self, *thresholds: float) -> CascadeRunner:
        engines = [load_engine("onnxruntime", path, EngineOptions()) for path in self.paths]
        return CascadeRunner([Stage(*each) for each in zip(engines, (1, 3, 4), (*thresholds, None), strict=True)])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    given = checkpoint(folder / "model", "bert")
    model = ExitModel(given.module, (1, 3), given).eval()
    with torch.no_grad():
        for head in model.heads:
            # What the model says last is what these deny most.
            head.weight.neg_()
            head.bias.neg_()
    rows = tokenize(write_tokenizer(given.tokenizer, folder / "tokenizer.json"), tiny.SENTENCES, 64, 0)
    return Exported(given, model, export_stages(model, given, folder), rows)


@pytest.mark.parametrize("family", [*ARCHITECTURES, "tokens"])
def test_the_parts_of_a_model_one_after_the_other_are_the_model(tmp_path, family) -> None:
    given = checkpoint(tmp_path / "model", family)
    first, second, last = ExitModel(given.module, (1, 3), given).eval().stages()
    ids = torch.randint(5, 100, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with torch.inference_mode():
        _, _, hidden = first(ids, mask)
        _, _, hidden = second(hidden, mask)
        torch.testing.assert_close(last(hidden, mask), given.module(ids, mask), atol=1e-5, rtol=1e-5)


def test_a_cascade_that_nobody_leaves_answers_as_the_model(exported) -> None:
    assert [path.name for path in exported.paths] == ["model.onnx", "stage-2.onnx", "stage-3.onnx"]
    runner = exported.runner(2.0, 2.0)
    ours = run_all(runner, exported.rows, exported.checkpoint.inputs, "cascade")
    theirs = run_all(torch_runner(exported.checkpoint), exported.rows, exported.checkpoint.inputs, "PyTorch")
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)
    assert runner.left == {4: len(tiny.SENTENCES)}


@pytest.mark.parametrize(("thresholds", "layers", "number"), [((0.0, 0.0), 1, 0), ((2.0, 0.0), 3, 1)])
def test_a_text_that_leaves_is_answered_by_the_head_of_its_exit(exported, thresholds, layers, number) -> None:
    feeds = exported.rows.feeds([0], exported.checkpoint.inputs)
    ids, mask = (torch.from_numpy(feeds[name]) for name in ("input_ids", "attention_mask"))
    runner = exported.runner(*thresholds)
    with torch.inference_mode():
        hidden = exported.model.module.model.base_model(
            input_ids=ids, attention_mask=mask, output_hidden_states=True
        ).hidden_states[layers]
        expected = exported.model.exit_logits(number, hidden, mask)
    np.testing.assert_allclose(runner(feeds), expected.numpy(), atol=1e-4)
    assert runner.left == {layers: 1}


def maker(exported: Exported, folder: Path, held_out: EvaluationSet) -> CandidateMaker:
    return CandidateMaker(
        replace(exported.checkpoint, module=exported.model),
        None,
        held_out,
        folder,
        reduce_range=True,
        max_loss=0.01,
        say=print,
        alone=in_turn,
    )


def test_exits_that_are_always_wrong_make_a_variant_unfit(exported, tmp_path, monkeypatch) -> None:
    # The graphs that there are already: exporting takes long.
    monkeypatch.setattr(candidates, "export_stages", lambda *_: exported.paths)
    texts = sorted({word for sentence in tiny.SENTENCES for word in sentence.split()} | {*tiny.SENTENCES})
    tokenizer = write_tokenizer(exported.checkpoint.tokenizer, tmp_path / "tokenizer.json")
    rows = tokenize(tokenizer, texts, 64, 0)
    said = []
    for thresholds in ((0.0, 0.0), (2.0, 0.0), (2.0, 2.0)):
        outputs = run_all(exported.runner(*thresholds), rows, exported.checkpoint.inputs, "cascade")
        said.append([exported.checkpoint.labels[int(output.argmax())] for output in outputs])
    wrong = [(text, [last]) for text, *early, last in zip(texts, *said, strict=True) if last not in early]
    chosen, truth = zip(*wrong, strict=True)
    assert len(chosen) >= 3
    held_out = EvaluationSet("dev", chosen, tokenize(tokenizer, chosen, 64, 0), labels=truth)
    made = maker(exported, tmp_path, held_out).make(EARLY)
    assert made.unfit == "no thresholds of its exits save time within exits.max_loss 0.005"
    assert [exit.threshold for exit in made.exits] == [1.0, 1.0, None]


@pytest.fixture
def one_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration finds that nobody should leave at the first of two exits, and a threshold for one that is alone."""
    found = {2: Calibration((None, 0.9), 0.0, 0.3), 1: Calibration((0.8,), 0.0, 0.4)}
    monkeypatch.setattr(candidates, "calibrate", lambda trace, costs, max_loss: found[len(trace.confidence)])


@pytest.mark.usefixtures("one_in_use")
def test_the_exits_that_are_left_are_calibrated_on_their_own_graphs(exported, tmp_path, monkeypatch) -> None:
    def exported_stages(model: ExitModel, _: Checkpoint, folder: Path) -> list[Path]:
        """Graphs that there are, as many as the model has stages: exporting takes long."""
        folder.mkdir(exist_ok=True)
        targets = [folder / path.name for path in exported.paths[: len(model.ends)]]
        for path, target in zip([*exported.paths[: len(model.after)], exported.paths[-1]], targets, strict=True):
            shutil.copyfile(path, target)
        return targets

    monkeypatch.setattr(candidates, "export_stages", exported_stages)
    held_out = EvaluationSet("dev", tiny.SENTENCES, exported.rows, labels=[["a"]] * len(tiny.SENTENCES))
    quantized = EARLY.model_copy(update={"quantize": Quantize(method="dynamic", keep_fp32=("head",))})
    made = maker(exported, tmp_path, held_out).make(quantized)
    assert [(exit.file, exit.layers, exit.threshold) for exit in made.exits] == [
        ("model.onnx", 3, 0.8),
        ("stage-2.onnx", 4, None),
    ]
    assert sorted(path.name for path in made.folder.iterdir()) == ["model.onnx", "stage-2.onnx", "tokenizer.json"]
    assert made.steps == (
        "int8, dynamic, 7-bit weights (no VNNI), in fp32: head",
        (
            "calibrated on 6 texts set aside: a text leaves with a confidence of at least 0.800 after layer 3; there "
            "that loses 0.0000 and saves 40 % of the time"
        ),
    )


@pytest.mark.slow
@pytest.mark.usefixtures("one_in_use")
def test_graphs_from_which_an_exit_was_taken_answer_as_the_model(exported, tmp_path) -> None:
    held_out = EvaluationSet("dev", tiny.SENTENCES, exported.rows, labels=[["a"]] * len(tiny.SENTENCES))
    made = maker(exported, tmp_path, held_out).make(EARLY)
    assert [(exit.file, exit.layers) for exit in made.exits] == [("model.onnx", 3), ("stage-2.onnx", 4)]
    ours = run_all(made.exact_runner(), exported.rows, exported.checkpoint.inputs, "cascade")
    theirs = run_all(torch_runner(exported.checkpoint), exported.rows, exported.checkpoint.inputs, "PyTorch")
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)


def test_the_confidence_of_a_text_is_the_probability_of_its_label(tmp_path) -> None:
    model = ExitModel(*exit_arguments(tmp_path, "bert"))
    logits = torch.tensor([[1.0, 3.0, 0.5]])
    assert float(model.confidence(logits, torch.ones(1, 5))) == pytest.approx(float(logits.softmax(-1)[0, 1]))


def test_the_confidence_of_tokens_is_that_of_the_least_certain_without_special_ones_and_padding(tmp_path) -> None:
    model = ExitModel(*exit_arguments(tmp_path, "tokens"))
    sure, unsure, less = [9.0, 0, 0, 0, 0], [0.0, 0, 0, 0, 0], [2.0, 0, 0, 0, 0]
    logits = torch.tensor([[unsure, sure, less, sure, unsure, unsure], [unsure, sure, sure, sure, less, unsure]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    expected = torch.tensor([less, less]).softmax(-1)[:, 0]
    assert model.confidence(logits, mask).tolist() == pytest.approx(expected.tolist())


def test_a_text_without_tokens_of_its_own_is_certain(tmp_path) -> None:
    model = ExitModel(*exit_arguments(tmp_path, "tokens"))
    assert model.confidence(torch.zeros(1, 2, 5), torch.ones(1, 2)).tolist() == [1.0]


def test_the_confidence_of_several_labels_is_that_of_the_least_certain_yes_or_no(tmp_path) -> None:
    source = tiny.text_classifier(tmp_path / "topics", tiny.TOPICS, multi_label=True)
    given = load("topics", source)
    model = ExitModel(given.module, (1,), given)
    logits = torch.tensor([[4.0, -0.5, -6.0, 3.0]])
    assert float(model.confidence(logits, torch.ones(1, 3))) == pytest.approx(1 / (1 + np.exp(-0.5)))


def exit_arguments(folder: Path, family: str) -> tuple[torch.nn.Module, tuple[int, ...], Checkpoint]:
    given = checkpoint(folder / "model", family)
    return given.module, (1,), given


def write_recipe(folder: Path, variant: str, **changes: object) -> Path:
    for name, numbers in (("train", range(24)), ("test", range(24, 36))):
        rows = [(f"{word} {number} the", label) for number in numbers for word, label in WORDS.items()]
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    lines = {
        "name": "tiny",
        "task": "text-classification",
        "checkpoint": folder / "backbone",
        "train": "train.csv",
        "test": "test.csv",
        "epochs": 8,
        "patience": 8,
        "learning_rate": 0.005,
        "dev_fraction": 0.25,
        "batch_size": 8,
        "freeze_embeddings": "false",
        "max_quality_loss": 0.05,
        "variants": f"[{{name: fp32}}, {{name: exits, {variant}}}]",
    } | changes
    (folder / "recipe.yaml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    return folder / "recipe.yaml"


def run(recipe: Path) -> int:
    reports = ["--reports", str(recipe.parent / "reports")]
    return build.main([str(recipe), "--repository", str(recipe.parent / "repository"), *reports])


def test_a_recipe_makes_calibrated_cascades_with_their_exit_distributions(tmp_path, capsys, monkeypatch) -> None:
    # Five layers of which one suffices: leaving early pays on any machine; which of the two is faster matters not.
    monkeypatch.setattr("millis_pipeline.gate.FASTER", 1e9)
    tiny.backbone(tmp_path / "backbone", layers=5)
    exits = "exits: {after: [1], epochs: 4, learning_rate: 0.005}"
    recipe = write_recipe(
        tmp_path, f"{exits}, quantize: dynamic}}, {{name: small, {exits}, trim: {{}}, quantize: static"
    )
    assert run(recipe) == 0, capsys.readouterr().err
    for variant in ("exits", "small"):
        folder = tmp_path / "repository" / f"tiny-{variant}" / "1"
        manifest = read_manifest(folder)
        assert [exit.layers for exit in manifest.exits] == [1, 5]
        assert sum(exit.share for exit in manifest.exits) == pytest.approx(1)
        assert manifest.exits[0].share > 0.5
        assert set(manifest.files) == {"model.onnx", "stage-2.onnx", "tokenizer.json"}
        steps = manifest.provenance.steps
        assert steps[0] == "exits after layers 1; 4 epochs on 72 texts"
        assert "calibrated on 24 texts set aside: a text leaves with a confidence of at least" in steps[-1]
        expected = [check.expected for check in manifest.self_check]
        np.testing.assert_allclose(answered(folder, manifest), expected, atol=1e-3)
    assert steps[1].startswith("vocabulary trimmed from 190 to ")
    assert steps[2].startswith("int8, calibrated on 72 texts, ")
    report = (tmp_path / "reports" / "tiny.md").read_text()
    assert "## Early exits" in report


def answered(folder: Path, manifest: Manifest) -> list[tuple[float, ...]]:
    """What the backend's own code answers to the texts of the self-check."""
    stages = load_stages(folder, lambda path: load_engine("onnxruntime", path, EngineOptions()))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = tokenize(tokenizer, [check.text for check in manifest.self_check], manifest.max_tokens, manifest.pad_id)
    asked = [rows.feeds([text], manifest.inputs) for text in range(len(rows.encodings))]
    return [tuple(run_unpadded(stages, [feeds])[0].output[0].tolist()) for feeds in asked]


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("exits: {after: [4]}", "exits: exits.after: it names layer 4, and the model has 4; after the last one the "),
        ("exits: {after: [3], epochs: 1}, distill: {layers: 2}", "exits: exits.after: it names layer 3, and the model"),
        ("exits: {after: [2, 1]}", "variants.1.exits: after: layers in rising order, each once, not [2, 1]"),
        (
            "exits: {after: [1]}, quantize: {method: static, keep_fp32: [layer 5 attention]}",
            "exits: quantize.keep_fp32: the model has no block 'layer 5 attention'; it has head, and attention and ",
        ),
        ("exits: {after: []}", "variants.1.exits.after: "),
        ("exits: {after: [1], max_loss: 2}", "variants.1.exits.max_loss: "),
    ],
)
def test_impossible_exits_are_refused_before_anything_is_trained(tmp_path, capsys, variant, message) -> None:
    tiny.backbone(tmp_path / "backbone", layers=4)
    assert run(write_recipe(tmp_path, variant)) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert "epoch" not in captured.out


def test_exits_need_labels_to_be_calibrated_with(tmp_path, capsys) -> None:
    tiny.backbone(tmp_path / "backbone", layers=4)
    (tmp_path / "more.txt").write_text("order 1\nfox 2\n")
    recipe = write_recipe(tmp_path, "exits: {after: [1]}")
    recipe.write_text(recipe.read_text().replace("train: train.csv", "unlabelled: more.txt"))
    assert run(recipe) == 1
    assert "variants: exits: exits: they are calibrated with labels; give train" in capsys.readouterr().err


def test_a_candidate_without_exits_runs_its_one_graph(tmp_path) -> None:
    given = checkpoint(tmp_path / "model", "bert")
    assert Candidate(VariantRecipe(name="fp32"), tmp_path, given, ()).graphs == [tmp_path / "model.onnx"]
