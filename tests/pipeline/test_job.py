"""What a recipe and the command line make of a build."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from millis_pipeline.job import Job, read_job
from millis_pipeline.recipe import RecipeError, load_recipe
from millis_pipeline.variants import DEFAULT_VARIANTS

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
    arguments = argparse.Namespace(data_dir=None, name=None, teacher=option, engine=None)
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


def test_a_teacher_without_a_recipe_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        read_job("owner/base", argparse.Namespace(teacher="kept/intent", engine=None))
    assert str(caught.value) == "--teacher: it goes with a recipe, and owner/base is a checkpoint"
