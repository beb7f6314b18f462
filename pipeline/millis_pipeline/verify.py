"""Compares what was exported with the PyTorch model, and measures what each variant is worth.

The evaluation set is the recipe's test set, a file that the user names, or, when there is none, a few built-in
texts: then agreement is still checked, and no quality is claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from millis_pipeline.checkpoint import Checkpoint
from millis_pipeline.data import TextExamples, TokenExamples
from millis_pipeline.evaluate import Scores, classification_scores, entity_scores, mean_interval
from millis_pipeline.examples import word_at, word_starts
from millis_pipeline.run import Rows, Runner, tokenize
from millis_server.manifest import Quality, SelfCheck

BUILT_IN_TEXTS = (
    "Where is my order? It should have arrived last week.",
    "Shares of the company rose 4 % after it raised its forecast for the year.",
    "Dr. Amara Okafor will speak at the University of Lagos on 3 May.",
    "Hi",
    "The café in Zürich doesn't take cards, so bring some cash; the museum next door opens at ten.",
    "我想订一张去北京的火车票。",
)
BUILT_IN_QUERY = "Where is my order?"

FP32_TOLERANCE = 1e-3
"""Largest absolute difference between an output of PyTorch and of the exported fp32 graph. Both compute in single
precision, in another order."""


class VerificationError(RuntimeError):
    """An exported graph that does not compute what the checkpoint computes; the message is one line."""


@dataclass(frozen=True)
class EvaluationSet:
    """Inputs with what is known of their answers.

    Attributes:
        name: of the data set.
        inputs: texts, or pairs for a cross-encoder.
        rows: the inputs, tokenized.
        labels: labels of each text, for text classification.
        words: words of each text, for token classification.
        tags: tag of each word, for token classification.
    """

    name: str
    inputs: Sequence[str] | Sequence[tuple[str, str]]
    rows: Rows
    labels: Sequence[Sequence[str]] = ()
    words: Sequence[Sequence[str]] = ()
    tags: Sequence[Sequence[str]] = ()

    def read_by(self, checkpoint: Checkpoint, tokenizer: Tokenizer) -> EvaluationSet:
        """The same inputs as another tokenizer reads them."""
        pad_id = checkpoint.tokenizer.pad_token_id or 0
        return replace(self, rows=tokenize(tokenizer, self.inputs, checkpoint.max_tokens, pad_id))


@dataclass(frozen=True)
class Judgement:
    """What a variant was measured to be.

    Attributes:
        quality: for the manifest; None without evaluation data.
        scores: label by label; None for embeddings and ranking, and without evaluation data.
        agreement: share of inputs (of words, for tokens) with the same prediction as the PyTorch model; the mean
            cosine for embeddings.
        max_difference: largest absolute difference from the PyTorch model's outputs.
    """

    quality: Quality | None
    scores: Scores | None
    agreement: float
    max_difference: float

    @property
    def value(self) -> float:
        """Measured quality, or agreement with PyTorch where there was no data to measure on."""
        return self.quality.value if self.quality else self.agreement


def evaluation_set(
    checkpoint: Checkpoint, tokenizer: Tokenizer, examples: TextExamples | TokenExamples | None, name: str
) -> EvaluationSet:
    """Prepares the evaluation set of a checkpoint.

    Args:
        checkpoint: whose limits and labels hold.
        tokenizer: as written for the gateway.
        examples: labelled data, with labels that the checkpoint knows; None takes the built-in texts.
        name: of the data set.
    """
    pad_id = checkpoint.tokenizer.pad_token_id or 0
    if isinstance(examples, TokenExamples):
        texts = [" ".join(words) for words in examples.words]
        rows = tokenize(tokenizer, texts, checkpoint.max_tokens, pad_id)
        return EvaluationSet(name, texts, rows, words=examples.words, tags=examples.tags)
    if examples is not None:
        rows = tokenize(tokenizer, examples.texts, checkpoint.max_tokens, pad_id)
        return EvaluationSet(name, examples.texts, rows, labels=examples.labels)
    inputs: Sequence[str] | Sequence[tuple[str, str]] = BUILT_IN_TEXTS
    if checkpoint.task == "cross-encoder":
        inputs = [(BUILT_IN_QUERY, text) for text in BUILT_IN_TEXTS]
    return EvaluationSet("", inputs, tokenize(tokenizer, inputs, checkpoint.max_tokens, pad_id))


def judge(
    checkpoint: Checkpoint,
    evaluation: EvaluationSet,
    outputs: Sequence[NDArray[np.float32]],
    teacher: EvaluationSet,
    reference: Sequence[NDArray[np.float32]],
) -> Judgement:
    """Measures outputs against the data and against the PyTorch model.

    Args:
        checkpoint: that was exported.
        evaluation: its inputs, as the variant's tokenizer reads them.
        outputs: of the variant, one for each input.
        teacher: the inputs as the PyTorch model's tokenizer reads them.
        reference: its outputs.
    """
    # Tokens of a text that the two tokenizers cut differently cannot be compared one by one.
    pairs = [(ours, theirs) for ours, theirs in zip(outputs, reference, strict=True) if ours.shape == theirs.shape]
    difference = largest_difference(pairs)
    if checkpoint.task == "embedding":
        cosines = np.array([_cosine(ours, theirs) for ours, theirs in zip(outputs, reference, strict=True)])
        quality = None
        if evaluation.name:
            low, high = mean_interval(cosines)
            quality = _quality("cosine_to_teacher", float(cosines.mean()), low, high, len(cosines), evaluation.name)
        return Judgement(quality, None, float(cosines.mean()), difference)
    if checkpoint.task == "cross-encoder":
        order = np.argsort([float(output[0]) for output in outputs])
        expected = np.argsort([float(output[0]) for output in reference])
        return Judgement(None, None, float((order == expected).mean()), difference)
    predictions = predict(checkpoint, evaluation, outputs)
    expected_labels = predict(checkpoint, teacher, reference)
    agreement = _agreement(predictions, expected_labels, by_word=checkpoint.task == "token-classification")
    scores = None
    if evaluation.tags:
        scores = entity_scores(evaluation.tags, predictions)
    elif evaluation.labels:
        scores = classification_scores(
            evaluation.labels, predictions, checkpoint.labels, multi_label=checkpoint.multi_label
        )
    quality = None
    if scores is not None:
        quality = _quality(scores.metric, scores.value, scores.low, scores.high, scores.examples, evaluation.name)
    return Judgement(quality, scores, agreement, difference)


def largest_difference(pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> float:
    """Largest absolute difference within pairs of outputs; NaN when any of them has one."""
    # Python's max would lose a NaN: nothing is greater than it, and it is greater than nothing.
    return float(np.max([np.abs(ours - theirs).max() for ours, theirs in pairs])) if pairs else 0.0


def predict(
    checkpoint: Checkpoint, evaluation: EvaluationSet, outputs: Sequence[NDArray[np.float32]]
) -> list[list[str]]:
    """Labels of each text, or the tag of each word: a word takes the tag of its first token."""
    if checkpoint.task == "token-classification" and evaluation.words:
        return [
            word_tags(words, _places(encoding), output, checkpoint.labels)
            for words, encoding, output in zip(evaluation.words, evaluation.rows.encodings, outputs, strict=True)
        ]
    if checkpoint.task == "token-classification":
        return [[checkpoint.labels[label] for label in output.argmax(axis=-1)] for output in outputs]
    if checkpoint.multi_label:
        return [
            [label for label, logit in zip(checkpoint.labels, output, strict=True) if logit >= 0] for output in outputs
        ]
    return [[checkpoint.labels[int(output.argmax())]] for output in outputs]


def word_tags(
    words: Sequence[str], places: Sequence[tuple[int, int]], output: NDArray[np.float32], labels: Sequence[str]
) -> list[str]:
    """The tag of each word: that of its first token, or O where it has none because it was cut off.

    Args:
        words: of a text that is these words with a space between them.
        places: [start, end) of each token in that text; empty for a special token.
        output: logits [tokens, labels].
        labels: names in the order of `output`.
    """
    starts = word_starts(words)
    tags: list[str | None] = [None] * len(words)
    best = output.argmax(axis=-1)
    for token, (start, end) in enumerate(places):
        if end <= start:
            continue
        word = word_at(starts, end)
        if tags[word] is None:
            tags[word] = labels[best[token]]
    return [tag or "O" for tag in tags]


def self_checks(
    checkpoint: Checkpoint, evaluation: EvaluationSet, runner: Runner, chosen: Sequence[int]
) -> tuple[SelfCheck, ...]:
    """Some inputs with the variant's own answers, for the gateway to ask before a version takes traffic.

    Each is run alone: dynamic quantization scales activations over the whole batch, so an int8 graph answers a
    little differently in company.
    """
    checks = []
    for index in chosen:
        given = evaluation.inputs[index]
        output = runner(evaluation.rows.feeds([index], checkpoint.inputs))[0]
        expected = output[0] if output.ndim == 2 else output
        text, pair = given if isinstance(given, tuple) else (given, None)
        checks.append(SelfCheck(text=text, pair=pair, expected=tuple(float(value) for value in expected)))
    return tuple(checks)


def _places(encoding: Encoding) -> list[tuple[int, int]]:
    return [
        (0, 0) if special else place
        for place, special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    ]


def _agreement(ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]], *, by_word: bool) -> float:
    """Share of texts with equal labels; for tags, of words with equal tags."""
    if by_word:
        pairs = [(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=False)]
        return sum(a == b for a, b in pairs) / len(pairs)
    return sum(list(x) == list(y) for x, y in zip(ours, theirs, strict=True)) / len(ours)


def _quality(metric: str, value: float, low: float, high: float, examples: int, dataset: str) -> Quality:
    """Rounding of cosines may leave 1 by a hair."""
    return Quality(
        metric=metric,
        value=min(max(value, 0.0), 1.0),
        low=min(max(low, 0.0), 1.0),
        high=min(max(high, 0.0), 1.0),
        examples=examples,
        dataset=dataset,
    )


def _cosine(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    return float(ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs)))
