from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from millis_pipeline.recipe import Recipe, RecipeError, load_recipe

ROOT = Path(__file__).parents[2]
DEFAULTS = sorted((ROOT / "pipeline/recipes").glob("*/recipe.yaml"))
BENCHMARKS = sorted((ROOT / "benchmarks/recipes").glob("*.yaml"))
MINIMAL = "name: intent\ntask: text-classification\ncheckpoint: owner/name\ntrain: train.csv\n"


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def test_paths_count_from_the_recipe_or_from_the_data_folder(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL)
    digest = hashlib.sha256(MINIMAL.encode()).hexdigest()
    values = {"name": "intent", "task": "text-classification", "checkpoint": "owner/name"}
    assert load_recipe(path) == Recipe(**values, train=tmp_path / "train.csv", path=path, digest=digest)
    assert load_recipe(path, Path("/data")) == Recipe(**values, train="/data/train.csv", path=path, digest=digest)


def test_a_checkpoint_that_begins_with_a_dot_counts_from_the_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL.replace("owner/name", "./model"))
    assert load_recipe(path, Path("/data")).checkpoint == str(tmp_path / "model")


def test_exponents_that_yaml_takes_for_text_are_numbers(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, MINIMAL + "learning_rate: 2e-4\n")).learning_rate == 2e-4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (MINIMAL.replace("name: intent\n", ""), "name: Field required"),
        (MINIMAL + "epoch: 3\n", "epoch: Extra inputs are not permitted"),
        (MINIMAL + "epochs: 0\n", "epochs: Input should be greater than or equal to 1"),
        (MINIMAL + "epochs: many\n", "epochs: Input should be a valid integer, unable to parse string as an integer"),
        (MINIMAL + "seed: -1\n", "seed: Input should be greater than or equal to 0"),
        (MINIMAL + "label_separator: ''\n", "label_separator: String should have at least 1 character"),
        (MINIMAL + "path: x\n", "path: no such key"),
        (MINIMAL + "1: x\n", "1: no such key"),
        (MINIMAL.replace("train", "dev"), "dev: it is given, and train is not"),
        (
            MINIMAL.replace("text-classification", "embedding"),
            "train: a model for embedding cannot be trained by a recipe yet",
        ),
        (
            MINIMAL.replace("text", "token") + "label_separator: '|'\n",
            "label_separator: a model for token-classification has no texts with several labels",
        ),
        (
            MINIMAL + "label_separator: '|'\nlabel_smoothing: 0.1\n",
            "label_smoothing: only text classification with one label for each text knows it",
        ),
        ("- name\n", "it must be a mapping of keys to values"),
        ("", "it must be a mapping of keys to values"),
    ],
)
def test_a_wrong_recipe_is_one_line_that_names_file_and_key(tmp_path: Path, content: str, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value) == f"recipe {path}: {message}"


@pytest.mark.parametrize("content", [b"name: [\n", b"name: \xff\n"])
def test_a_file_that_is_no_yaml_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path, content)
    with pytest.raises(RecipeError, match=r"^recipe .*recipe\.yaml: [^\n]+$"):
        load_recipe(path)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "none.yaml")
    assert str(caught.value) == f"recipe {tmp_path / 'none.yaml'}: No such file or directory"


def test_the_default_models_have_recipes_with_their_data() -> None:
    recipes = [load_recipe(path) for path in DEFAULTS]
    assert [recipe.name for recipe in recipes] == ["embed", "intent", "ner", "sentiment"]
    assert [recipe.path.parent.name for recipe in recipes] == ["embed", "intent", "ner", "sentiment"]
    files = [path for recipe in recipes for path in (recipe.train, recipe.dev, recipe.test) if path is not None]
    assert [path for path in files if not path.is_file()] == []
    tasks = [recipe.task for recipe in recipes if recipe.default]
    assert sorted(tasks) == ["embedding", "text-classification", "token-classification"]


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_benchmark_recipes_are_valid_and_named_as_their_files(path: Path) -> None:
    assert load_recipe(path, Path("/data")).name == path.stem
