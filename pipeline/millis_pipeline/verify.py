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

from millis_pipeline.agreement import unit_length
from millis_pipeline.checkpoint import Checkpoint
from millis_pipeline.data import DataError, TokenExamples
from millis_pipeline.evaluate import Score, classification_scores, entity_scores, mean_interval
from millis_pipeline.examples import word_at, word_starts
from millis_pipeline.pair_scores import pair_score, same_order
from millis_pipeline.pairs import EvaluationExamples, PairExamples, by_query
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
        pairs: what people said of pairs of texts, for embeddings and cross-encoders.
    """

    name: str
    inputs: Sequence[str] | Sequence[tuple[str, str]]
    rows: Rows
    labels: Sequence[Sequence[str]] = ()
    words: Sequence[Sequence[str]] = ()
    tags: Sequence[Sequence[str]] = ()
    pairs: PairExamples | None = None

    def read_by(self, checkpoint: Checkpoint, tokenizer: Tokenizer) -> EvaluationSet:
        """The same inputs as another tokenizer reads them."""
        pad_id = checkpoint.tokenizer.pad_token_id or 0
        return replace(self, rows=tokenize(tokenizer, self.inputs, checkpoint.max_tokens, pad_id))


@dataclass(frozen=True)
class Judgement:
    """What a variant was measured to be.

    Attributes:
        quality: for the manifest; None without evaluation data.
        score: the same as it was measured, label by label where there are labels: a correlation may be below 0.
        agreement: share of inputs (of words, for tokens) with the same prediction as the PyTorch model; the mean
            cosine for embeddings, the share of pairs of documents in the same order for cross-encoders.
        max_difference: largest absolute difference from the PyTorch model's outputs.
        inputs: that agreement was seen on: texts, pairs or prompts.
    """

    quality: Quality | None
    score: Score | None
    agreement: float
    max_difference: float
    inputs: int

    @property
    def value(self) -> float:
        """Measured quality, or agreement with PyTorch where there was no data to measure on."""
        if self.score is not None:
            return self.score.value
        return self.quality.value if self.quality else self.agreement


def evaluation_set(
    checkpoint: Checkpoint, tokenizer: Tokenizer, examples: EvaluationExamples | None, name: str
) -> EvaluationSet:
    """Prepares the evaluation set of a checkpoint.

    Args:
        checkpoint: whose limits and labels hold.
        tokenizer: as written for the gateway.
        examples: labelled data, with labels that the checkpoint knows; None takes the built-in texts.
        name: of the data set.

    Raises:
        DataError: a query of the data leaves no room for a document.
    """
    pad_id = checkpoint.tokenizer.pad_token_id or 0
    if isinstance(examples, TokenExamples):
        texts = [" ".join(words) for words in examples.words]
        rows = tokenize(tokenizer, texts, checkpoint.max_tokens, pad_id)
        return EvaluationSet(name, texts, rows, words=examples.words, tags=examples.tags)
    if isinstance(examples, PairExamples):
        given: Sequence[str] | Sequence[tuple[str, str]] = examples.pairs
        if checkpoint.task == "cross-encoder":
            _check_queries(checkpoint, tokenizer, examples)
        else:
            given = list(dict.fromkeys(text for pair in examples.pairs for text in pair))
        return EvaluationSet(name, given, tokenize(tokenizer, given, checkpoint.max_tokens, pad_id), pairs=examples)
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
    if checkpoint.task == "embedding":
        agreement, score = _judge_vectors(evaluation, outputs, reference)
    elif checkpoint.task == "cross-encoder":
        agreement, score = _judge_rankings(evaluation, outputs, reference)
    else:
        predictions = predict(checkpoint, evaluation, outputs)
        expected = predict(checkpoint, teacher, reference)
        agreement = _agreement(predictions, expected, by_word=checkpoint.task == "token-classification")
        score = _judge_labels(checkpoint, evaluation, predictions)
    quality = _quality(score, evaluation.name) if score is not None else None
    return Judgement(quality, score, agreement, largest_difference(pairs), len(outputs))


def _judge_vectors(
    evaluation: EvaluationSet, outputs: Sequence[NDArray[np.float32]], reference: Sequence[NDArray[np.float32]]
) -> tuple[float, Score | None]:
    """Mean cosine to the PyTorch model; and what people's scores say, or else that cosine."""
    vectors, theirs = unit_length(outputs), unit_length(reference)
    cosines = (vectors * theirs).sum(axis=1)
    agreement = float(cosines.mean())
    if evaluation.pairs is not None:
        place = {text: index for index, text in enumerate(evaluation.inputs)}
        alike = [vectors[place[first]] @ vectors[place[second]] for first, second in evaluation.pairs.pairs]
        return agreement, pair_score(evaluation.pairs, np.array(alike))
    if not evaluation.name:
        return agreement, None
    return agreement, Score("cosine_to_teacher", agreement, *mean_interval(cosines), len(cosines))


def _judge_rankings(
    evaluation: EvaluationSet, outputs: Sequence[NDArray[np.float32]], reference: Sequence[NDArray[np.float32]]
) -> tuple[float, Score | None]:
    """Agreement with the order in which the PyTorch model puts documents; and what their relevance says."""
    ours, theirs = (np.array([output[0] for output in each], np.float64) for each in (outputs, reference))
    agreement = same_order([pair[0] for pair in evaluation.inputs], ours, theirs)
    return agreement, pair_score(evaluation.pairs, ours) if evaluation.pairs is not None else None


def _judge_labels(
    checkpoint: Checkpoint, evaluation: EvaluationSet, predictions: Sequence[Sequence[str]]
) -> Score | None:
    if evaluation.tags:
        return entity_scores(evaluation.tags, predictions)
    if evaluation.labels:
        return classification_scores(
            evaluation.labels, predictions, checkpoint.labels, multi_label=checkpoint.multi_label
        )
    return None


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


def _check_queries(checkpoint: Checkpoint, tokenizer: Tokenizer, examples: PairExamples) -> None:
    """Refuses a query that leaves no room for a document, as the service does."""
    special = tokenizer.num_special_tokens_to_add(is_pair=True)
    queries = list(by_query([query for query, _ in examples.pairs]).items())
    encodings = tokenizer.encode_batch([query for query, _ in queries], add_special_tokens=False)
    for encoding, (_, indices) in zip(encodings, queries, strict=True):
        tokens = len(encoding.ids)
        if tokens + special >= checkpoint.max_tokens:
            raise DataError(
                f"{examples.path}:{examples.lines[indices[0]]}: the query has {tokens} tokens; with {special} special "
                f"ones and at least 1 of a document the limit of {checkpoint.source} is {checkpoint.max_tokens}"
            )


def _agreement(ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]], *, by_word: bool) -> float:
    """Share of texts with equal labels; for tags, of words with equal tags."""
    if by_word:
        pairs = [(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=False)]
        return sum(a == b for a, b in pairs) / len(pairs)
    return sum(list(x) == list(y) for x, y in zip(ours, theirs, strict=True)) / len(ours)


def _quality(score: Score, dataset: str) -> Quality:
    """For the manifest, which knows 0 to 1: a correlation may be below 0, and rounding of cosines leave 1 by a hair."""
    value, low, high = (min(max(number, 0.0), 1.0) for number in (score.value, score.low, score.high))
    return Quality(metric=score.metric, value=value, low=low, high=high, examples=score.examples, dataset=dataset)
