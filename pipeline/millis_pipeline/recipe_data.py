"""The labelled data of a recipe: read, checked, and parted into what trains and what stops the training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from sklearn.model_selection import train_test_split

from millis_pipeline.data import (
    DataError,
    TextExamples,
    TokenExamples,
    check_known,
    label_names,
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
    assert recipe.train is not None, "build() trains only recipes with data. This is a bug."
    train = read_examples(recipe, recipe.train)
    labels = label_names(_gold(train), recipe.train)
    if isinstance(train, TokenExamples):
        # Both prefixes of every label: a B- that training data happens to lack may still be predicted.
        names = sorted({label[2:] for label in labels if label != "O"})
        labels = ("O", *(f"{prefix}-{name}" for name in names for prefix in "BI"))
    for path in (recipe.dev, recipe.test):
        if path is not None:
            check_known(read_examples(recipe, path), labels, path)
    return *train_and_dev(recipe), labels


def train_and_dev(recipe: Recipe) -> tuple[Examples, Examples]:
    """Training data and dev data of a recipe; the dev data is a part of the training data where there is no other.

    Raises:
        DataError: a file cannot be used.
    """
    assert recipe.train is not None, "only for recipes with training data. This is a bug."
    train = read_examples(recipe, recipe.train)
    if recipe.dev is not None:
        return train, read_examples(recipe, recipe.dev)
    return _split(train, recipe)


def read_examples(recipe: Recipe, path: Path) -> Examples:
    """Reads a labelled file of a recipe."""
    if recipe.task == "token-classification":
        return read_token_examples(path)
    return read_text_examples(path, recipe.text_column, recipe.label_column, recipe.label_separator)


def _gold(examples: Examples) -> list[list[str]]:
    return examples.tags if isinstance(examples, TokenExamples) else examples.labels


def _split(examples: Examples, recipe: Recipe) -> tuple[Examples, Examples]:
    """Sets a part of the training data aside; single labels keep their shares where both parts can hold them all."""
    gold = _gold(examples)
    if len(gold) < 2:
        raise DataError(f"{recipe.train}: it has 1 example; at least 2 are needed, or a dev set")
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
