"""Steps of a recipe one after the other: exits, trim and quantization of one model compose, and answer as in fp32."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import to_array

from millis_pipeline import calibrate
from millis_pipeline.blocks import blocks
from millis_pipeline.candidates import Candidate, CandidateMaker
from millis_pipeline.chain import passed
from millis_pipeline.checkpoint import Checkpoint, load
from millis_pipeline.finetune import finetune
from millis_pipeline.precision import has_bfloat16
from millis_pipeline.quantize import Floor, quantize_int8, sensitivity
from millis_pipeline.recipe import Recipe
from millis_pipeline.recipe_data import train_and_dev
from millis_pipeline.run import CascadeRunner, Feeds, Runner, load_cascade, run_all
from millis_pipeline.side_by_side import in_turn
from millis_pipeline.students import Students
from millis_pipeline.tokenizer import write_tokenizer
from millis_pipeline.training_texts import training_texts
from millis_pipeline.variants import Exits, Quantize, Trim, VariantRecipe
from millis_pipeline.verify import EvaluationSet, evaluation_set
from millis_server.processor import saturates
from millis_server.triton.backend import engine_openvino
from millis_server.triton.backend.engine_openvino import OpenVinoEngine
from millis_server.triton.backend.microbatch import HIDDEN
from tests import tiny

WORDS = {"order": "buy", "fox": "animal", "Paris": "place"}
EXITS = Exits(after=(1,), max_loss=1, epochs=1, learning_rate=0.005)
TRIM = Trim(min_count=2)
BITS = "7-bit weights (no VNNI)" if saturates() else "8-bit weights"
CALIBRATED = f"int8, calibrated on 40 texts, {BITS}"


@dataclass(frozen=True)
class Family:
    """A maker of variants of a trained model, with the data that exits are calibrated on."""

    maker: CandidateMaker
    students: Students
    teacher: Checkpoint
    held_out: EvaluationSet

    def make(self, name: str, **steps: Any) -> Candidate:
        return self.maker.make(VariantRecipe(name=name, **steps))

    def answers(self, candidate: Candidate, runner: Runner) -> np.ndarray:
        """Logits [texts, labels] of the held out texts."""
        own = self.held_out.read_by(candidate.checkpoint, candidate.checkpoint.tokenizer.backend_tokenizer)
        return np.stack(run_all(runner, own.rows, self.teacher.inputs, candidate.name))


def written(folder: Path) -> Recipe:
    with (folder / "train.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(f"{word} {number} the", label) for number in range(16) for word, label in WORDS.items()]
        # Words that are there once: trimmed by count they are read in smaller pieces.
        rare = [(sentence, "place") for sentence in tiny.SENTENCES]
        csv.writer(file).writerows([("text", "label"), *rows, *rare])
    return Recipe(
        name="tiny",
        task="text-classification",
        checkpoint=str(folder / "backbone"),
        train=folder / "train.csv",
        epochs=6,
        learning_rate=0.005,
        dev_fraction=0.25,
        batch_size=8,
        freeze_embeddings=False,
        max_quality_loss=1,
        variants=(VariantRecipe(name="fp32"), VariantRecipe(name="exits", exits=EXITS)),
    )


@pytest.fixture(scope="module", autouse=True)
def pace() -> Iterator[None]:
    """Speed on a shared machine must decide no test: leaving early is worth it, whatever was measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "WORTH", 1e9)
        yield


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("family")
    recipe = written(folder)
    finetune(recipe, tiny.backbone(folder / "backbone", layers=2), folder / "teacher")
    teacher = load("teacher", folder / "teacher")
    tokenizer = write_tokenizer(teacher.tokenizer, folder / "tokenizer.json")
    held_out = evaluation_set(teacher, tokenizer, train_and_dev(recipe)[1], "dev")
    students = Students(teacher, recipe, training_texts(recipe, teacher), folder, None)
    (folder / "stage").mkdir()
    maker = CandidateMaker(
        teacher,
        students,
        held_out,
        folder / "stage",
        reduce_range=saturates(),
        max_loss=0.0,
        say=print,
        alone=in_turn,
    )
    return Family(maker, students, teacher, held_out)


@pytest.fixture(scope="module")
def texts() -> list[Feeds]:
    generator = np.random.default_rng(0)
    rows = [generator.integers(5, 100, (1, 4 + number % 12)) for number in range(16)]
    return [{"input_ids": row, "attention_mask": np.ones_like(row)} for row in rows]


@pytest.fixture(scope="module")
def plain(family: Family) -> Candidate:
    return family.make("exits", exits=EXITS)


def largest(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference of logits, in standard deviations of the exact ones."""
    return float(np.abs(ours - theirs).max() / theirs.std())


@pytest.mark.parametrize(
    ("name", "quantize", "step"),
    [
        ("static", Quantize(method="static"), CALIBRATED),
        (
            "static-kept",
            Quantize(method="static", keep_fp32=("layer 2 attention", "head")),
            f"{CALIBRATED}, in fp32: layer 2 attention, head",
        ),
        (
            "dynamic-kept",
            Quantize(method="dynamic", keep_fp32=("layer 2 attention", "head")),
            f"int8, dynamic, {BITS}, in fp32: layer 2 attention, head",
        ),
    ],
)
def test_a_quantized_cascade_answers_as_in_fp32_and_is_calibrated_as_it_is(family, plain, name, quantize, step) -> None:
    made = family.make(name, exits=EXITS, quantize=quantize)
    (threshold,) = (exit.threshold for exit in made.exits if exit.threshold is not None)
    assert made.steps[:2] == ("exits after layers 1; 1 epochs on 40 texts", step)
    assert f"a text leaves with a confidence of at least {threshold:.3f} after layer 1" in made.steps[2]
    assert [(exit.file, exit.layers) for exit in made.exits] == [("model.onnx", 1), ("stage-2.onnx", 2)]
    assert 0 < largest(family.answers(made, made.exact_runner()), family.answers(plain, plain.exact_runner())) < 0.5
    # All may leave here, whatever it costs: the threshold is the least confidence of the quantized graph.
    rows, first = family.held_out.rows, made.stages()[0].engine
    said = [first.run(rows.feeds([text], family.teacher.inputs))[1][0] for text in range(14)]
    assert threshold == pytest.approx(min(said), abs=0.01 if quantize.method == "dynamic" else 1e-4)
    assert threshold != plain.exits[0].threshold


def test_blocks_of_a_cascade_are_those_of_the_model(plain) -> None:
    assert {name: [node.graph for node in nodes] for name, nodes in blocks(plain.graphs).items()} == {
        "layer 1 attention": [0, 0, 0, 0],
        "layer 1 feed-forward": [0, 0],
        "head": [0, 1],
        "layer 2 attention": [1, 1, 1, 1],
        "layer 2 feed-forward": [1, 1],
    }


def test_a_later_graph_is_calibrated_on_what_the_quantized_one_before_it_makes_of_all_texts(
    plain, texts, tmp_path
) -> None:
    targets = [tmp_path / "first.onnx", tmp_path / "last.onnx"]
    quantize_int8(plain.graphs, targets, reduce_range=True, spec=Quantize(method="static"), texts=texts)
    _, handed = passed(targets[0], texts)
    assert len(handed) == len(texts)
    lowest, highest = (pick(float(pick(feeds[HIDDEN].ravel())) for feeds in handed) for pick in (min, max))
    scales = {tensor.name: to_array(tensor) for tensor in onnx.load(targets[1]).graph.initializer}
    assert float(scales["hidden_states_scale"]) == pytest.approx((highest - lowest) / 255, rel=1e-5)


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_the_blocks_of_a_cascade_that_are_harmed_most_at_all_exits_stay_in_fp32(plain, texts, tmp_path, method) -> None:
    targets = [tmp_path / "first.onnx", tmp_path / "last.onnx"]
    spec = Quantize(method=method, keep_fp32=2)
    harm = sensitivity(plain.graphs, spec, texts, reduce_range=True)
    kept = quantize_int8(plain.graphs, targets, reduce_range=True, spec=spec, texts=texts)
    assert list(kept) == sorted(harm, key=lambda name: -harm[name])[:2]
    # What is left of the matrix products with weights; the quantizer makes a MatMul of a Gemm.
    left = {(node.graph, node.name.removesuffix("_MatMul")) for nodes in blocks(targets).values() for node in nodes}
    known = blocks(plain.graphs)
    assert left == {(node.graph, node.name) for name in kept for node in known[name]}


@pytest.mark.parametrize(("least", "kept"), [((0.0, 0.0), 0), ((2.0, 0.0), 5), ((0.0, 2.0), 5)])
def test_as_many_blocks_of_a_cascade_stay_in_fp32_as_every_exit_needs(plain, texts, tmp_path, least, kept) -> None:
    needs = iter(least * 6)  # of each graph in turn, for each number of blocks
    found = quantize_int8(
        plain.graphs,
        [tmp_path / "first.onnx", tmp_path / "last.onnx"],
        reduce_range=True,
        spec=Quantize(method="static", keep_fp32="auto"),
        texts=texts,
        floor=Floor(lambda ours, theirs: 1 - next(needs), 1.0),
    )
    assert len(found) == kept


def test_a_trimmed_model_is_calibrated_on_its_own_tokens_and_answers_as_in_fp32(family) -> None:
    exact = family.make("small", trim=TRIM)
    made = family.make("small-static", trim=TRIM, quantize=Quantize(method="static", keep_fp32=("head",)))
    assert made.steps == ("vocabulary trimmed from 190 to 79 tokens", f"{CALIBRATED}, in fp32: head")
    assert 0 < largest(family.answers(made, made.runner()), family.answers(exact, exact.runner())) < 0.5


def test_texts_are_read_by_the_tokenizer_of_a_trimmed_model(family) -> None:
    small = family.make("small-read", trim=TRIM).checkpoint
    whole, own = family.students.texts(family.teacher), family.students.texts(small)
    assert [small.tokenizer.decode(text.ids) for text in own] == [
        family.teacher.tokenizer.decode(text.ids) for text in whole
    ]
    assert sum(len(text.ids) for text in own) > sum(len(text.ids) for text in whole)
    assert max(max(text.ids) for text in own) < len(small.tokenizer) < max(max(text.ids) for text in whole)


def test_a_cascade_in_bfloat16_is_calibrated_and_run_by_openvino(family, plain, monkeypatch) -> None:
    if not has_bfloat16():  # OpenVINO takes the hint all the same, and computes in single precision
        monkeypatch.setattr(engine_openvino, "_check_precision", lambda core, precision: None)
    made = family.make("exits-bf16", exits=EXITS, precision="bf16")
    assert [type(stage.engine) for stage in made.stages()] == [OpenVinoEngine, OpenVinoEngine]
    assert made.steps[1] == "computed in bfloat16 by the engine openvino"
    assert made.exits[0].threshold == pytest.approx(plain.exits[0].threshold, abs=0.02)
    # Through all graphs: a text as sure as the threshold may leave on one engine and not on the other.
    layers = [exit.layers for exit in made.exits]
    whole = CascadeRunner(load_cascade(made.graphs, layers, precision=made.precision))
    assert largest(family.answers(made, whole), family.answers(plain, plain.exact_runner())) < 0.1
