"""The texts of a recipe: students learn from them, quantization is calibrated on them, trimming keeps their tokens."""

from __future__ import annotations

from pathlib import Path

from millis_pipeline.checkpoint import Checkpoint
from millis_pipeline.data import named, read_texts
from millis_pipeline.examples import Example, Task, prepare
from millis_pipeline.recipe import Recipe
from millis_pipeline.recipe_data import taught_data


def check_texts(recipe: Recipe) -> None:
    """Reads the texts that only students learn from, before anything is trained.

    Raises:
        DataError: the file cannot be used.
    """
    if recipe.unlabelled is not None:
        _unlabelled(recipe, recipe.unlabelled)


def _unlabelled(recipe: Recipe, path: Path) -> list[str]:
    with named("unlabelled"):
        return read_texts(path, recipe.text_column)


def training_texts(recipe: Recipe, checkpoint: Checkpoint) -> list[Example]:
    """All texts of a recipe that a student may learn from: those for training, with their labels, and unlabelled ones.

    Raises:
        DataError: a file cannot be used, or has a label that the teacher lacks.
        CheckpointError: texts have several labels, and the teacher gives one.
    """
    max_tokens = min(recipe.max_tokens, checkpoint.max_tokens)
    examples: list[Example] = []
    if recipe.train is not None:
        labelled = taught_data(recipe, checkpoint.answers)
        task = Task(
            labels=checkpoint.labels,
            tokens=checkpoint.task == "token-classification",
            multi_label=checkpoint.multi_label,
            pad_id=checkpoint.tokenizer.pad_token_id or 0,
        )
        examples += prepare(labelled, checkpoint.tokenizer, task, max_tokens)
    if recipe.unlabelled is not None:
        texts = _unlabelled(recipe, recipe.unlabelled)
        encoded = checkpoint.tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"]
        examples += [Example(ids, None, [], []) for ids in encoded]
    return examples
