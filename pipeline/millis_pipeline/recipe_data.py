"""The labelled data of a recipe: read, checked, and parted into what trains and what stops the training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from sklearn.model_selection import train_test_split

from millis_pipeline.checkpoint import Answers, CheckpointError
from millis_pipeline.data import (
    DataError,
    TextExamples,
    TokenExamples,
    check_known,
    check_single,
    label_names,
    named,
    read_text_examples,
    read_token_examples,
)
from millis_pipeline.recipe import Recipe

Examples: TypeAlias = TextExamples | TokenExamples


def labelled_data(recipe: Recipe) -> tuple[Examples, Examples, tuple[str, ...]]:
    """Training and dev data, and the labels; a test set is checked for unknown labels before time is spent.

    Raises:
        DataError: a file cannot be used.
    """
    train = read_examples(recipe, "train")
    with named("train"):
        labels = label_names(_gold(train), _file(recipe, "train"))
    if isinstance(train, TokenExamples):
        # Both prefixes of every label: a B- that training data happens to lack may still be predicted.
        names = sorted({label[2:] for label in labels if label != "O"})
        labels = ("O", *(f"{prefix}-{name}" for name in names for prefix in "BI"))
    kept, dev = _parted(train, recipe)
    for key, examples in (("dev", dev), ("test", read_examples(recipe, "test") if recipe.test else dev)):
        if getattr(recipe, key) is not None:
            with named(key):
                check_known(examples, labels, _file(recipe, key))
    return kept, dev, labels


def taught_data(recipe: Recipe, answers: Answers) -> Examples:
    """What students may learn from of the training data of a recipe whose teacher is there already.

    Exits are calibrated, and what has no test data is measured, on dev data that nobody may have learned from.

    Raises:
        DataError: a file cannot be used, or has a label that the teacher lacks.
        CheckpointError: texts have several labels, and the teacher gives one.
    """
    if recipe.label_separator is not None and not answers.multi_label:
        raise CheckpointError(f"{answers.source}: it gives a text 1 label; label_separator says several")
    if recipe.test is not None and all(variant.exits is None for variant in recipe.variants):
        kept = read_examples(recipe, "train")
    else:
        kept, dev = train_and_dev(recipe)
        check_answers(dev, answers, dev_key(recipe), _file(recipe, dev_key(recipe)))
    check_answers(kept, answers, "train", _file(recipe, "train"))
    return kept


def check_answers(examples: Examples, answers: Answers, key: str, path: Path) -> None:
    """Checks that a checkpoint can give the labels that data has.

    Args:
        examples: the data.
        answers: of the checkpoint.
        key: of the recipe, or the option, that names the data.
        path: of the data.

    Raises:
        DataError: it lacks a label, or a text has several, or none, and the checkpoint gives one.
    """
    some = f"{', '.join(answers.labels[:8])}{', …' if len(answers.labels) > 8 else ''}"
    with named(key):
        check_known(
            examples, answers.labels, path, f"one of the {len(answers.labels)} labels of {answers.source}: {some}"
        )
        if isinstance(examples, TextExamples) and not answers.multi_label:
            check_single(examples, path, answers.source)


def dev_key(recipe: Recipe) -> str:
    """The key that names the file of a recipe's dev data."""
    return "train" if recipe.dev is None else "dev"


def train_and_dev(recipe: Recipe) -> tuple[Examples, Examples]:
    """Training data and dev data of a recipe; the dev data is a part of the training data where there is no other.

    Raises:
        DataError: a file cannot be used.
    """
    return _parted(read_examples(recipe, "train"), recipe)


def read_examples(recipe: Recipe, key: str) -> Examples:
    """Reads the labelled file of a key of a recipe.

    Raises:
        DataError: it cannot be used.
    """
    path = _file(recipe, key)
    with named(key):
        if recipe.task == "token-classification":
            return read_token_examples(path)
        return read_text_examples(path, recipe.text_column, recipe.label_column, recipe.label_separator)


def _file(recipe: Recipe, key: str) -> Path:
    path = getattr(recipe, key)
    assert isinstance(path, Path), f"only for recipes with {key} data. This is a bug."
    return path


def _parted(train: Examples, recipe: Recipe) -> tuple[Examples, Examples]:
    """What trains, and the dev data: a file of its own, or a part that is set aside."""
    return (train, read_examples(recipe, "dev")) if recipe.dev is not None else _split(train, recipe)


def _gold(examples: Examples) -> list[list[str]]:
    return examples.tags if isinstance(examples, TokenExamples) else examples.labels


def _split(examples: Examples, recipe: Recipe) -> tuple[Examples, Examples]:
    """Sets a part of the training data aside; single labels keep their shares where both parts can hold them all."""
    gold = _gold(examples)
    if len(gold) < 2:
        raise DataError(f"train: {recipe.train}: it has 1 example; at least 2 are needed, or a dev set")
    strata = None
    if isinstance(examples, TextExamples) and recipe.label_separator is None:
        counts = Counter(labels[0] for labels in gold)
        if min(counts.values()) >= 2 and len(counts) <= recipe.dev_fraction * len(gold):
            strata = [labels[0] for labels in gold]
    kept, aside = train_test_split(
        range(len(gold)), test_size=recipe.dev_fraction, random_state=recipe.seed, stratify=strata
    )
    return _chosen(examples, kept), _chosen(examples, aside)


def _chosen(examples: Examples, indices: Sequence[int]) -> Examples:
    lines = [examples.lines[i] for i in indices]
    if isinstance(examples, TokenExamples):
        return TokenExamples([examples.words[i] for i in indices], [examples.tags[i] for i in indices], lines)
    return TextExamples([examples.texts[i] for i in indices], [examples.labels[i] for i in indices], lines)
