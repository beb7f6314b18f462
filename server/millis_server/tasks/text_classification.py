"""Text classification: labels for a whole text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from millis_server.errors import InputTooLong
from millis_server.manifest import Manifest, TaskName
from millis_server.tasks import Prepared
from millis_server.tasks.activations import sigmoid, softmax
from millis_server.tokenizer import Tokenizer, TooLong, Truncation


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label and how sure the model is of it, 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class TextClassification:
    """Asks for the labels of texts.

    Attributes:
        texts: the texts.
        top_k: most labels for each text; 0 is all; None is 1 for single-label models and all for multi-label ones.
        min_score: lowest score; None is 0 for single-label models and the manifest's threshold for multi-label ones.
        truncation: what happens to a text that is too long.
    """

    texts: Sequence[str]
    top_k: int | None = None
    min_score: float | None = None
    truncation: Truncation = "end"
    name: ClassVar[str] = "ClassifyText"
    answered_by: ClassVar[tuple[TaskName, ...]] = ("text-classification",)

    @property
    def inputs(self) -> int:
        """Number of texts."""
        return len(self.texts)

    @property
    def characters(self) -> int:
        """Length of all texts together."""
        return sum(map(len, self.texts))

    def preprocess(self, manifest: Manifest, tokenizer: Tokenizer) -> Prepared:
        """One row for each text."""
        return text_rows(self.texts, manifest, tokenizer, self.truncation)

    def postprocess(self, manifest: Manifest, outputs: list[NDArray[np.float32]]) -> list[list[LabelScore]]:
        """Labels of each text, best first. `outputs`: logits [labels] of each text."""
        if not manifest.multi_label and self.top_k in (None, 1):
            return [_first(row.tolist(), manifest.labels, self.min_score or 0.0) for row in outputs]
        if manifest.multi_label:
            scores = sigmoid(np.stack(outputs))
            keep = self.top_k or len(manifest.labels)
            floor = manifest.threshold if self.min_score is None else self.min_score
        else:
            scores = softmax(np.stack(outputs))
            keep = self.top_k or len(manifest.labels)
            floor = self.min_score or 0.0
        return [_best(row, manifest.labels, keep, floor) for row in scores]


def _first(logits: list[float], labels: Sequence[str], floor: float) -> list[LabelScore]:
    """The label of the largest logit, the usual question. Softmax of the maximum needs one sum and no array; numpy's
    way took 0.1 ms of a request where caches were cold, this one 0.02."""
    top = max(logits)
    score = 1 / sum([exp(logit - top) for logit in logits])
    return [LabelScore(labels[logits.index(top)], score)] if score >= floor else []


def _best(scores: NDArray[np.float32], labels: Sequence[str], keep: int, floor: float) -> list[LabelScore]:
    order = np.argsort(-scores, kind="stable")[:keep]
    return [LabelScore(labels[index], float(scores[index])) for index in order if scores[index] >= floor]


def text_rows(texts: Sequence[str], manifest: Manifest, tokenizer: Tokenizer, truncation: Truncation) -> Prepared:
    """One row for each text of a field `texts`.

    Raises:
        InputTooLong: a text is too long and `truncation` is `error`.
    """
    try:
        return Prepared(*tokenizer.rows(texts, truncation))
    except TooLong as error:
        raise InputTooLong(
            f"texts[{error.index}]",
            f"has {error.tokens} tokens, the limit of {manifest.model} is {manifest.max_tokens}",
        ) from error
