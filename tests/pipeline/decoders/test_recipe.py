"""Recipes for models that generate text: what they say, and how a wrong one is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from millis_pipeline.decoders.recipe import Architecture, DecoderRecipe, DecoderVariant, DistillDecoder
from millis_pipeline.recipe import RecipeError, load_recipe

CHECKPOINT = "name: chat\ntask: text-generation\ncheckpoint: owner/model\n"
SCRATCH = (
    "name: chat\ntask: text-generation\ntrain: train.jsonl\n"
    "architecture: {hidden_size: 64, layers: 4, heads: 4, intermediate_size: 96, vocabulary: 400, context: 128}\n"
)
VARIANTS = CHECKPOINT + "variants:\n  - {name: fp32}\n"
ONE_PLAIN = "exactly one must be, {name: fp32}, the reference that is always published"
RECIPES = Path(__file__).parents[3] / "pipeline" / "recipes"


def written(folder: Path, content: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(content)
    return path


def test_the_task_decides_of_which_kind_a_recipe_is(tmp_path: Path) -> None:
    path = written(tmp_path, CHECKPOINT + "test: talk.jsonl\n")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = {"name": "chat", "checkpoint": "owner/model", "path": path, "digest": digest}
    assert load_recipe(path) == DecoderRecipe(test=tmp_path / "talk.jsonl", **expected)
    assert load_recipe(path, Path("/data")) == DecoderRecipe(test=Path("/data/talk.jsonl"), **expected)


def test_variants_are_named_after_their_steps(tmp_path: Path) -> None:
    steps = (
        "  - {weights: int8}\n"
        "  - {weights: int4, group_size: 64, ratio: 0.8, symmetric: false}\n"
        "  - {keep_layers: 2, distill: {epochs: 1, hidden: 0.5}, weights: int8}\n"
        "  - {name: ends, keep_layers: [1, 4]}\n"
    )
    read = load_recipe(written(tmp_path, SCRATCH + "variants:\n  - {weights: fp32}\n" + steps))
    assert read.variants == (
        DecoderVariant(name="fp32"),
        DecoderVariant(name="int8", weights="int8"),
        DecoderVariant(name="int4", weights="int4", group_size=64, ratio=0.8, symmetric=False),
        DecoderVariant(
            name="layers-2-int8", keep_layers=2, distill=DistillDecoder(epochs=1, hidden=0.5), weights="int8"
        ),
        DecoderVariant(name="ends", keep_layers=(1, 4)),
    )
    assert [variant.name for variant in load_recipe(written(tmp_path, CHECKPOINT)).variants] == ["fp32", "int8"]


def test_defaults_fit_what_is_trained(tmp_path: Path) -> None:
    scratch, tuned = (load_recipe(written(tmp_path, content)) for content in (SCRATCH, CHECKPOINT))
    assert isinstance(scratch, DecoderRecipe)
    assert isinstance(tuned, DecoderRecipe)
    assert (scratch.source, scratch.peak_rate, scratch.unwritten_weight) == ("random weights", 2e-3, 0.1)
    assert (tuned.source, tuned.peak_rate, tuned.unwritten_weight) == ("owner/model", 2e-5, 0)
    assert tuned.model_copy(update={"learning_rate": 0.5, "other_weight": 1.0}).peak_rate == 0.5
    assert scratch.architecture == Architecture(
        hidden_size=64, layers=4, heads=4, intermediate_size=96, vocabulary=400, context=128
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CHECKPOINT.replace("checkpoint: owner/model\n", ""), "checkpoint: give it or architecture; neither is given"),
        (SCRATCH + "checkpoint: owner/model\n", "checkpoint: give it or architecture; both are given"),
        (
            SCRATCH.replace("train: train.jsonl\n", ""),
            "train: an architecture begins with random weights; give data to train it on",
        ),
        (CHECKPOINT + "dev: dev.jsonl\n", "dev: it is given, and train is not"),
        (CHECKPOINT + "test: talk.csv\n", "test: talk.csv must end in .jsonl (dialogues) or .txt"),
        (CHECKPOINT + "epoch: 1\n", "epoch: Extra inputs are not permitted"),
        (CHECKPOINT + "max_streams: 0\n", "max_streams: Input should be greater than or equal to 1"),
        (SCRATCH + "batch_tokens: 100\n", "batch_tokens: 100 is less than architecture.context 128"),
        (
            SCRATCH.replace("heads: 4", "heads: 5"),
            "architecture: heads: 5 heads of an even size do not make up hidden_size 64",
        ),
        (
            SCRATCH.replace("heads: 4", "heads: 4, kv_heads: 3"),
            "architecture: kv_heads: 4 heads cannot share 3 evenly",
        ),
        (
            CHECKPOINT + "variants:\n  - {weights: int8}\n",
            "variants: without steps are none; " + ONE_PLAIN,
        ),
        (
            CHECKPOINT + "variants:\n  - {name: whole}\n",
            "variants: without steps are whole; " + ONE_PLAIN,
        ),
        (VARIANTS + "  - {name: fp32, weights: int8}\n", "variants: the name 'fp32' appears 2 times"),
        (VARIANTS + "  - {weights: int2}\n", "variants.1.weights: Input should be 'fp32', 'bf16', 'int8' or 'int4'"),
        (
            VARIANTS + "  - {weights: int8, group_size: 64}\n",
            "variants.1: group_size: only weights: int4 knows it, weights is int8",
        ),
        (
            VARIANTS + "  - {name: x, distill: {epochs: 1}}\n",
            "variants.1: distill: a variant with all layers has nothing to learn; give keep_layers",
        ),
        (
            VARIANTS + "  - {keep_layers: [2, 1]}\n",
            "variants.1: keep_layers: layers in rising order, each once, not [2, 1]",
        ),
        (
            VARIANTS + "  - {keep_layers: 2, distill: {}}\n",
            "variants: layers-2-fp32: distill: it learns from texts; give train",
        ),
        (
            SCRATCH + "variants:\n  - {name: fp32}\n  - {keep_layers: 4}\n",
            "variants: layers-4-fp32: keep_layers: the model has 4 layers; keep fewer, counted from 1",
        ),
        (
            SCRATCH + "variants:\n  - {name: fp32}\n  - {weights: int8, draft: {keep_layers: 4}}\n",
            "variants: int8-draft: draft: keep_layers: the model has 4 layers; keep fewer, counted from 1",
        ),
        (
            VARIANTS + "  - {weights: int8, draft: {keep_layers: 1, checkpoint: small}}\n",
            "variants.1.draft: checkpoint: give it or keep_layers; both are given",
        ),
        (
            VARIANTS + "  - {weights: int8, draft: {checkpoint: small, distill: {}}}\n",
            "variants.1.draft: distill: a checkpoint has learned already; it goes with keep_layers",
        ),
        (
            VARIANTS + "  - {weights: int8, draft: {keep_layers: 1, distill: {}}}\n",
            "variants: int8-draft: distill: it learns from texts; give train",
        ),
        (
            VARIANTS + "  - {weights: int8, engine: transformers}\n",
            "variants.1: weights: the engine transformers takes fp32 or bf16, not int8",
        ),
        (
            VARIANTS + "  - {weights: bf16, engine: transformers, draft: {keep_layers: 1}}\n",
            "variants.1: draft: the engine transformers has none",
        ),
        (
            VARIANTS + "  - {weights: bf16}\n",
            "variants.1: weights: bf16 is for the engine transformers, not openvino_genai",
        ),
        (
            VARIANTS + "  - {weights: int8, device: cuda}\n",
            "variants.1: device: cuda is for the engine transformers, not openvino_genai",
        ),
    ],
)
def test_a_wrong_recipe_is_one_line_that_names_the_key(tmp_path: Path, content: str, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value) == f"recipe {path}: {message}"


@pytest.mark.parametrize("name", ["assistant", "qwen2.5-0.5b-instruct", "smollm2-135m-instruct"])
def test_our_recipes_are_valid_and_have_their_data(name: str) -> None:
    recipe = load_recipe(RECIPES / name / "recipe.yaml")
    assert recipe.name == name
    assert [path for path in (recipe.train, recipe.dev, recipe.test) if path is not None and not path.is_file()] == []
