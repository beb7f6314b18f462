"""Recipes: what to train on which data, and what to accept. A YAML file with these keys."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from millis_pipeline.decoders.recipe import DecoderRecipe
from millis_pipeline.strict_yaml import read_yaml
from millis_pipeline.variants import DEFAULT_VARIANTS, VariantRecipe, check_family
from millis_server.manifest import Name, TaskName


class RecipeError(ValueError):
    """A recipe that cannot be used; the message is one line and names the file and the key."""


class Recipe(BaseModel):
    """One model to build."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    """Logical model name."""
    task: TaskName
    checkpoint: str = Field(min_length=1)
    """`package:NAME`, a local folder, or a hub id."""
    train: Path | None = None
    """Training data; without it the checkpoint is published as it is. Paths count from the recipe's folder."""
    dev: Path | None = None
    """Data for early stopping; without it `dev_fraction` of the training data is set aside."""
    test: Path | None = None
    """Data that quality is measured on; a recipe that trains and has none takes its dev data."""
    teacher: str | None = Field(default=None, min_length=1)
    """A checkpoint that is fine-tuned already: it is taken as it is, and `train` teaches only its students."""
    unlabelled: Path | None = None
    """Further texts that students learn from, labelled by the teacher: .csv or .jsonl with the text column, or .txt
    with a text on each line."""
    noisy_copies: int = Field(default=0, ge=0, le=20)
    """Changed copies of each text that students learn from as well, labelled by the teacher."""
    dataset: str = ""
    """Name of the data set, for report and manifest; the default is the recipe's name."""
    description: str = ""
    license: str = ""
    """Licence of the trained weights; the default is the checkpoint's."""
    text_column: str = "text"
    label_column: str = "label"
    label_separator: str | None = Field(default=None, min_length=1)
    """What stands between the labels of a text that can have several; without it a text has exactly one."""
    dev_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    max_tokens: int = Field(default=64, ge=8, le=8192)
    """Texts are cut to this length in training; serving reads as many tokens as the checkpoint can."""
    epochs: int = Field(default=8, ge=1, le=1000)
    patience: int = Field(default=2, ge=1)
    """Epochs without a better result on the dev data after which training stops."""
    batch_size: int = Field(default=32, ge=1, le=1024)
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 2e-4
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread over all labels, against overconfidence; text classification with one label."""
    freeze_embeddings: bool = True
    """Whether word embeddings stay as they are: half of a small model's weights, little of its quality."""
    freeze_layers: int = Field(default=0, ge=0, le=200)
    """First layers of the encoder that fine-tuning leaves as they are, and all embeddings with them. No gradient
    passes through them, so training takes less time."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    max_quality_loss: float = Field(default=0.01, ge=0, le=1)
    """Most that a variant may lose on the test data against the PyTorch model, absolute; one that loses more is not
    published."""
    variants: tuple[VariantRecipe, ...] = Field(default=DEFAULT_VARIANTS, min_length=1)
    """What to make of the fine-tuned model; without it fp32 and dynamic int8."""
    default: bool = False
    """Whether requests of this task that name no model are answered by this one."""
    path: Path = Field(default=Path(), exclude=True)
    digest: str = Field(default="", exclude=True)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.train is not None and self.task not in ("text-classification", "token-classification"):
            raise ValueError(f"train: a model for {self.task} cannot be trained by a recipe yet")
        if self.train is None and self.dev is not None:
            raise ValueError("dev: it is given, and train is not")
        if self.label_separator is not None and self.task != "text-classification":
            raise ValueError(f"label_separator: a model for {self.task} has no texts with several labels")
        if self.unlabelled is not None and not any(variant.needs_texts for variant in self.variants):
            raise ValueError("unlabelled: no variant is distilled, pruned or calibrated, so nothing would read it")
        check_family(self.variants)
        for variant in self.variants:
            self._check_texts(variant)
            self._check_loss(variant)
        if self.label_smoothing and (self.task != "text-classification" or self.label_separator is not None):
            raise ValueError("label_smoothing: only text classification with one label for each text knows it")
        return self

    def _check_texts(self, variant: VariantRecipe) -> None:
        if variant.needs_texts and self.task == "cross-encoder":
            raise ValueError(
                f"variants: {variant.name}: a cross-encoder knows quantize: dynamic and precision: bf16 only"
            )
        if variant.exits is not None and self.task not in ("text-classification", "token-classification"):
            raise ValueError(f"variants: {variant.name}: exits: a model for {self.task} has no labels to be sure of")
        if variant.exits is not None and self.train is None:
            raise ValueError(f"variants: {variant.name}: exits: they are calibrated with labels; give train")
        if variant.needs_texts and self.train is None and self.unlabelled is None:
            raise ValueError(f"variants: {variant.name}: it is made with texts; give train or unlabelled")

    def _check_loss(self, variant: VariantRecipe) -> None:
        """Refuses exits that may cost more than a variant may lose: nobody would be served what is calibrated so."""
        if variant.exits is not None and variant.exits.max_loss > self.max_quality_loss:
            raise ValueError(
                f"variants: {variant.name}: exits.max_loss: {variant.exits.max_loss:g} is more than max_quality_loss "
                f"{self.max_quality_loss:g}, above which nothing is published"
            )


def load_recipe(path: Path, data_dir: Path | None = None) -> Recipe | DecoderRecipe:
    """Reads a recipe; its key `task` decides of which kind it is.

    Args:
        path: of the YAML file.
        data_dir: folder that data paths count from; None is the recipe's own.

    Raises:
        RecipeError: the file cannot be read, or a key is wrong; the message names it.
    """
    try:
        content = path.read_bytes()
        values = read_yaml(content)
    except OSError as error:
        raise RecipeError(f"recipe {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"recipe {path}: it must be a mapping of keys to values")
    for key in values:
        if not isinstance(key, str) or key in ("path", "digest"):
            raise RecipeError(f"recipe {path}: {key}: no such key")
    base = data_dir or path.parent
    for key in ("train", "dev", "test", "unlabelled"):
        if isinstance(values.get(key), str):
            values[key] = base / values[key]
    for part in (values, *_drafts(values)):
        for key in ("checkpoint", "teacher"):
            source = part.get(key)
            if isinstance(source, str) and source.startswith("."):
                part[key] = str(path.parent / source)
    kind = DecoderRecipe if values.get("task") == "text-generation" else Recipe
    try:
        return kind(**values, path=path, digest=hashlib.sha256(content).hexdigest())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise RecipeError(f"recipe {path}: {key + ': ' if key else ''}{message}") from error


def _drafts(values: dict[Any, Any]) -> list[dict[Any, Any]]:
    """The mappings of variants that name another checkpoint."""
    variants = values.get("variants")
    drafts = [one.get("draft") for one in variants if isinstance(one, dict)] if isinstance(variants, list) else []
    return [draft for draft in drafts if isinstance(draft, dict)]
