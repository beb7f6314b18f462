from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from millis_pipeline.recipe import Recipe, RecipeError, load_recipe
from millis_pipeline.variants import Distill, Exits, Prune, Quantize, VariantRecipe

ROOT = Path(__file__).parents[2]
DEFAULTS = sorted((ROOT / "pipeline/recipes").glob("*/recipe.yaml"))
BENCHMARKS = sorted((ROOT / "benchmarks/recipes").glob("*.yaml"))
FAMILY = (
    "name: intent\ntask: text-classification\ncheckpoint: owner/name\ntrain: train.csv\nvariants:\n  - {name: fp32}\n"
)
NAME_PATTERN = "'^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$'"
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


def test_a_family_of_variants_is_read_with_its_steps(tmp_path: Path) -> None:
    steps = "  - {name: small, distill: {layers: 2}, prune: {ffn: 0.5}, quantize: {method: static, keep_fp32: 1}}\n"
    read = load_recipe(written(tmp_path, FAMILY + "  - {name: int8, quantize: dynamic}\n" + steps))
    assert read.variants == (
        VariantRecipe(name="fp32"),
        VariantRecipe(name="int8", quantize=Quantize(method="dynamic")),
        VariantRecipe(
            name="small",
            distill=Distill(layers=2),
            prune=Prune(ffn=0.5),
            quantize=Quantize(method="static", keep_fp32=1),
        ),
    )
    assert load_recipe(written(tmp_path, MINIMAL)).variants == read.variants[:2]


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
        (MINIMAL + "variants: []\n", "variants: Tuple should have at least 1 item after validation, not 0"),
        (FAMILY + "  - {name: int8, quantise: dynamic}\n", "variants.1.quantise: Extra inputs are not permitted"),
        (FAMILY + "  - {name: Int8}\n", "variants.1.name: String should match pattern " + NAME_PATTERN),
        (
            FAMILY + "  - {name: x, quantize: int4}\n",
            "variants.1.quantize.method: Input should be 'dynamic' or 'static'",
        ),
        (FAMILY + "  - {name: x, distill: {epochs: 2}}\n", "variants.1.distill.layers: Field required"),
        (
            FAMILY + "  - {name: x, distill: {layers: 2, from_layers: [1]}}\n",
            "variants.1.distill: from_layers: it names 1 layers, layers says 2",
        ),
        (
            FAMILY + "  - {name: x, distill: {layers: 2, from_layers: [3, 1]}}\n",
            "variants.1.distill: from_layers: layers are counted from 1, in rising order, each once",
        ),
        (FAMILY + "  - {name: x, prune: {}}\n", "variants.1.prune: it removes nothing; give heads, ffn or layers"),
        (FAMILY + "  - {name: x, prune: {heads: 1.0}}\n", "variants.1.prune.heads: Input should be less than 1"),
        (
            FAMILY + "  - {name: x, distill: {layers: 2}, prune: {layers: 1}}\n",
            "variants.1: prune.layers: distill.layers says already how many layers there will be",
        ),
        (FAMILY + "  - {name: x, precision: f16}\n", "variants.1.precision: Input should be 'bf16'"),
        (
            FAMILY + "  - {name: x, precision: bf16, quantize: dynamic}\n",
            (
                "variants.1: precision: bf16 does not go with quantize: the engine openvino, the only one with "
                "bfloat16, runs int8 graphs slower than onnxruntime"
            ),
        ),
        (
            FAMILY + "  - {name: x, compile: torch, quantize: static}\n",
            "variants.1: compile: torch does not go with quantize, which makes int8 of the ONNX graph alone",
        ),
        (
            FAMILY + "  - {name: x, compile: torch, exits: {after: [1]}}\n",
            "variants.1: compile: torch does not go with exits: its engine runs one program, not one for each exit",
        ),
        (
            FAMILY + "  - {name: x, compile: torch, precision: bf16}\n",
            "variants.1: compile: torch does not go with precision: its engine computes in fp32 only",
        ),
        (
            FAMILY + "  - {name: fp32, quantize: dynamic}\n",
            "variants: the name 'fp32' appears 2 times",
        ),
        (
            FAMILY + "  - {name: again}\n",
            (
                "variants: 2 are without steps (fp32, again); exactly 1 must be, the reference that is always "
                "published, for example {name: fp32}"
            ),
        ),
        (
            FAMILY.replace("train: train.csv\n", "") + "  - {name: x, quantize: static}\n",
            "variants: x: it is made with texts; give train or unlabelled",
        ),
        (
            FAMILY.replace("train: train.csv\n", "unlabelled: a.txt\n").replace("text-classification", "cross-encoder")
            + "  - {name: x, prune: {ffn: 0.5}}\n",
            "variants: x: a cross-encoder knows quantize: dynamic and precision: bf16 only",
        ),
        (
            FAMILY + "unlabelled: texts.txt\n",
            "unlabelled: no variant is distilled, pruned or calibrated, so nothing would read it",
        ),
        (MINIMAL + "epochs: 3\nseed: 1\nepochs: 4\n", "epochs: it stands in line 5 and again in line 7"),
        (
            FAMILY + "  - {name: x, quantize: dynamic, quantize: static}\n",
            "quantize: it stands in line 7 and again in line 7",
        ),
        (
            FAMILY + "  - {name: x, exits: {after: [2], max_loss: 0.02}}\n",
            ("variants: x: exits.max_loss: 0.02 is more than max_quality_loss 0.01, above which nothing is published"),
        ),
        (
            "max_quality_loss: 0.004\n" + FAMILY + "  - {name: x, exits: {after: [2]}}\n",
            (
                "variants: x: exits.max_loss: 0.005 is more than max_quality_loss 0.004, above which nothing is "
                "published"
            ),
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


def test_a_merge_may_put_another_value_beside_a_key_and_equal_losses_are_taken(tmp_path: Path) -> None:
    content = (
        FAMILY
        + "  - &small {name: x, exits: {after: [2], max_loss: 0.01}}\n  - {<<: *small, name: y, prune: {ffn: 0.5}}\n"
    )
    read = load_recipe(written(tmp_path, content))
    assert isinstance(read, Recipe)
    exits = Exits(after=(2,), max_loss=0.01)
    assert read.variants[1:] == (
        VariantRecipe(name="x", exits=exits),
        VariantRecipe(name="y", exits=exits, prune=Prune(ffn=0.5)),
    )


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
    names = ["assistant", "embed", "intent", "ner", "qwen2.5-0.5b-instruct", "sentiment", "smollm2-135m-instruct"]
    assert [recipe.name for recipe in recipes] == names
    assert [recipe.path.parent.name for recipe in recipes] == names
    files = [path for recipe in recipes for path in (recipe.train, recipe.dev, recipe.test) if path is not None]
    assert [path for path in files if not path.is_file()] == []
    tasks = [recipe.task for recipe in recipes if recipe.default]
    assert sorted(tasks) == ["embedding", "text-classification", "text-generation", "token-classification"]


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_benchmark_recipes_are_valid_and_named_as_their_files(path: Path) -> None:
    assert load_recipe(path, Path("/data")).name == path.stem
