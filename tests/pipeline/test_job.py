"""What a recipe and the command line make of a build."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from millis_pipeline.data import DataError, TextExamples
from millis_pipeline.job import Job, read_evaluation, read_job
from millis_pipeline.pairs import EvaluationExamples, PairExamples
from millis_pipeline.recipe import RecipeError, load_recipe
from millis_pipeline.variants import DEFAULT_VARIANTS
from millis_server.manifest import TaskName
from tests import tiny

RECIPE = "name: intent\ntask: text-classification\ncheckpoint: owner/base\ntrain: train.csv\n"


@pytest.mark.parametrize(
    ("key", "option", "source", "trains"),
    [
        ("", None, "owner/base", True),
        ("teacher: owner/tuned\n", None, "owner/tuned", False),
        ("teacher: owner/tuned\n", "kept/intent", "kept/intent", False),
        ("", "kept/intent", "kept/intent", False),
    ],
)
def test_a_teacher_is_taken_as_it_is_and_the_option_goes_before_the_key(tmp_path: Path, key, option, source, trains):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE + key)
    arguments = argparse.Namespace(data_dir=None, name=None, teacher=option, engine=None, label_separator=None)
    assert read_job(str(path), arguments) == Job(
        name="intent",
        source=source,
        task="text-classification",
        recipe=load_recipe(path),
        evaluation=None,
        dataset="intent",
        trains=trains,
        max_quality_loss=0.01,
        variants=DEFAULT_VARIANTS,
    )


def test_a_recipe_that_trains_and_has_no_test_data_is_measured_on_its_dev_data(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\nred,a\nblue,b\n")
    (tmp_path / "dev.csv").write_text("text,label\ngreen,a\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE + "dev: dev.csv\ndataset: Colours\n")
    arguments = argparse.Namespace(data_dir=None, name=None, teacher=None, engine=None, label_separator=None)
    job = read_job(str(path), arguments)
    assert isinstance(job, Job)
    assert read_evaluation(job) == (TextExamples(["green"], [["a"]], [2]), "Colours, dev")
    path.write_text(path.read_text() + "test: train.csv\n")
    job = read_job(str(path), arguments)
    assert isinstance(job, Job)
    assert read_evaluation(job) == (TextExamples(["red", "blue"], [["a"], ["b"]], [2, 3]), "Colours")


def test_a_teacher_without_a_recipe_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        read_job("owner/base", argparse.Namespace(teacher="kept/intent", engine=None, label_separator=None))
    assert str(caught.value) == "--teacher: it goes with a recipe, and owner/base is a checkpoint"


def test_a_recipe_says_itself_what_separates_labels(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    with pytest.raises(RecipeError) as caught:
        read_job(str(path), argparse.Namespace(teacher=None, engine=None, label_separator="|"))
    assert str(caught.value) == f"--label-separator: {path} is a recipe; its key label_separator says it"


def test_a_separator_for_a_checkpoint_that_is_not_there_yet_is_refused_once_its_task_is_known(tmp_path: Path) -> None:
    folder = tiny.token_classifier(tmp_path / "tags")
    job = Job("tags", str(folder), None, None, tmp_path / "test.conll", "test.conll", label_separator="|")
    with pytest.raises(RecipeError) as caught:
        read_evaluation(job)
    assert str(caught.value) == "--label-separator: a model for token-classification has no texts with several labels"


@pytest.mark.parametrize(
    ("task", "name", "content", "expected"),
    [
        ("embedding", "a.csv", "text,label\nred,a\n", TextExamples(["red"], [[]], [2])),
        (
            "embedding",
            "a.tsv",
            "sentence1\tsentence2\tscore\na\tb\t1\na\tc\t2\na\td\t3\na\te\t4\n",
            PairExamples(
                [("a", "b"), ("a", "c"), ("a", "d"), ("a", "e")],
                [1, 2, 3, 4],
                [2, 3, 4, 5],
                ranked=False,
                path=Path("a.tsv"),
            ),
        ),
        *(
            (
                task,
                "a.csv",
                "query,document,relevance\nq,a,1\nq,b,0\n",
                PairExamples([("q", "a"), ("q", "b")], [1, 0], [2, 3], ranked=True, path=Path("a.csv")),
            )
            for task in ("embedding", "cross-encoder")
        ),
    ],
)
def test_vectors_and_rankings_are_measured_on_what_the_columns_of_their_file_say(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: TaskName,
    name: str,
    content: str,
    expected: EvaluationExamples,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(content)
    assert read_evaluation(Job("model", "source", task, None, Path(name), "shop")) == (expected, "shop")


def test_a_cross_encoder_is_measured_on_rankings_only(tmp_path: Path) -> None:
    path = tmp_path / "sts.csv"
    path.write_text("text,sentence1,sentence2,score\nx,a,b,1\n")
    with pytest.raises(DataError) as caught:
        read_evaluation(Job("model", "source", "cross-encoder", None, path, "shop"))
    assert str(caught.value) == (
        f"--eval-data: {path}:2: columns are: text, sentence1, sentence2, score; needed are: query, document, relevance"
    )
