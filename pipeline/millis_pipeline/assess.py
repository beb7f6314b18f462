"""Measures the candidates side by side: quality and agreement, latency, memory, and who leaves where."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from millis_pipeline.candidates import Candidate
from millis_pipeline.checkpoint import Checkpoint
from millis_pipeline.data import DataError
from millis_pipeline.gate import Measured
from millis_pipeline.latency import Graph, graph_inputs, measure, single_text_ms, sizes
from millis_pipeline.machine import cores
from millis_pipeline.memory import resident_bytes
from millis_pipeline.pair_scores import SPEARMAN
from millis_pipeline.progress import step
from millis_pipeline.run import CascadeRunner, Runner, run_all, torch_runner
from millis_pipeline.side_by_side import Alone
from millis_pipeline.verify import (
    FP32_TOLERANCE,
    EvaluationSet,
    Judgement,
    VerificationError,
    judge,
    largest_difference,
)
from millis_server.manifest import TOKENIZER_FILE, Exit, LatencyProfile
from millis_server.triton.backend.engine import DEFAULT_ENGINES, EngineOptions, load_engine

EXPORTED = "the exported graph differs from PyTorch"
COMPILED = "the compiled program differs from the graph"

CHECKED_TEXTS = 64
"""Inputs on which the fp32 graph of a student is compared with its PyTorch module."""


@dataclass(frozen=True)
class Original:
    """What the PyTorch model answers.

    Attributes:
        outputs: one for each input of the evaluation set.
        judgement: what they are worth.
    """

    outputs: Sequence[NDArray[np.float32]]
    judgement: Judgement


@dataclass(frozen=True)
class Assessed:
    """A candidate with what was measured.

    Attributes:
        candidate: that was measured.
        judgement: what it is worth.
        latency: of its graphs, and their memory.
        evaluation: what it was measured on, as its tokenizer reads it.
        exits: those of the candidate, with the shares of the evaluation data that left there.
    """

    candidate: Candidate
    judgement: Judgement
    evaluation: EvaluationSet
    latency: LatencyProfile
    exits: tuple[Exit, ...] = ()

    @property
    def memory_bytes(self) -> int:
        """After one text of 64 tokens, or of the longest length below that was measured."""
        return max(point.memory_bytes for point in self.latency.points if point.batch == 1 and point.tokens <= 64)

    def for_gate(self, reference: Judgement) -> Measured:
        """What the gate decides by."""
        return Measured(
            self.candidate.name,
            self.judgement.value,
            reference.value - self.judgement.value,
            single_text_ms(self.latency),
            self.candidate.reference,
            self.candidate.unfit,
        )


def ask_teacher(teacher: Checkpoint, evaluation: EvaluationSet) -> Original:
    """Runs the PyTorch model over the evaluation data.

    Raises:
        DataError: its cosines do not rise with people's scores, so that these could not tell good variants from bad
            ones.
    """
    outputs = run_all(torch_runner(teacher), evaluation.rows, teacher.inputs, "PyTorch")
    with step("scoring"):
        judgement = judge(teacher, evaluation, outputs, evaluation, outputs)
    score = judgement.score
    if evaluation.pairs is not None and score is not None and score.metric == SPEARMAN and score.value <= 0:
        raise DataError(
            f"{evaluation.pairs.path}: the cosines of {teacher.source} do not rise with the scores (Spearman "
            f"{score.value:.4f}, {score.examples} pairs); a higher score must mean that two texts are more alike"
        )
    return Original(outputs, judgement)


def assess(
    candidates: Sequence[Candidate], teacher: Checkpoint, evaluation: EvaluationSet, original: Original, alone: Alone
) -> list[Assessed]:
    """Measures all candidates: quality and agreement, latency side by side, memory.

    Args:
        candidates: of one model.
        teacher: what they are compared with.
        evaluation: what they are measured on.
        original: what the teacher answers there.
        alone: called before latencies are measured.

    Raises:
        VerificationError: a graph does not compute what its module computes.
    """
    judgements, exits, read = [], [], []
    for candidate in candidates:
        own = _own_reading(candidate, evaluation)
        runner = candidate.runner()
        ours = run_all(runner, own.rows, teacher.inputs, candidate.name)
        with step("scoring"):
            judgements.append(judge(teacher, own, ours, evaluation, original.outputs))
        exits.append(_with_shares(candidate.exits, runner))
        read.append(own)
        if candidate.reference:
            _check_difference(candidate, judgements[-1].max_difference, EXPORTED)
        elif candidate.recipe.quantize is None:
            _check_student(candidate, own)
        if candidate.recipe.compile is not None:
            _check_compiled(candidate, own)
    graphs = {one.name: _reached(one, left) for one, left in zip(candidates, exits, strict=True)}
    points = sizes(teacher.max_tokens)
    with ThreadPoolExecutor(cores()) as pool:  # each waits for a process of its own
        measured = pool.map(lambda candidate: _memory(candidate, points), candidates)
        bar = tqdm(measured, total=len(candidates), desc="memory", unit="variant", leave=False, disable=None)
        memory = list(bar)
    alone()
    latency = measure(graphs, teacher.max_tokens)
    return [
        Assessed(candidate, judgement, own, _with_memory(latency[candidate.name], resident), left)
        for candidate, judgement, own, resident, left in zip(candidates, judgements, read, memory, exits, strict=True)
    ]


def _memory(candidate: Candidate, points: Sequence[tuple[int, int]]) -> list[int]:
    graphs = {path: graph_inputs(path) for path in candidate.graphs}
    return resident_bytes(graphs, DEFAULT_ENGINES[candidate.precision], candidate.precision, points)


def _with_memory(latency: LatencyProfile, memory: Sequence[int]) -> LatencyProfile:
    points = [
        point.model_copy(update={"memory_bytes": size}) for point, size in zip(latency.points, memory, strict=True)
    ]
    return latency.model_copy(update={"points": tuple(points)})


def _own_reading(candidate: Candidate, evaluation: EvaluationSet) -> EvaluationSet:
    """The evaluation data as the candidate's tokenizer reads it: another one than the teacher's once trimmed."""
    if candidate.recipe.trim is None:
        return evaluation
    return evaluation.read_by(candidate.checkpoint, Tokenizer.from_file(str(candidate.folder / TOKENIZER_FILE)))


def _with_shares(exits: Sequence[Exit], runner: Runner) -> tuple[Exit, ...]:
    """Exits with the shares of the inputs that left there."""
    if not isinstance(runner, CascadeRunner):
        return ()
    texts = runner.left.total()
    return tuple(exit.model_copy(update={"share": runner.left[exit.layers] / texts}) for exit in exits)


def _reached(candidate: Candidate, exits: Sequence[Exit]) -> list[Graph]:
    """The graphs with the share of the inputs that each is run for."""
    left = [0.0, *accumulate(exit.share for exit in exits)]
    return [
        Graph(path, max(0.0, 1 - gone), candidate.precision) for path, gone in zip(candidate.graphs, left, strict=False)
    ]


def _check_student(candidate: Candidate, evaluation: EvaluationSet) -> None:
    """Compares a student's graph, in single precision, with its own module: the teacher answers otherwise."""
    _compare(candidate, evaluation, candidate.exact_runner(), torch_runner(candidate.checkpoint), EXPORTED)


def _check_compiled(candidate: Candidate, evaluation: EvaluationSet) -> None:
    """Compares the compiled program with the graph."""
    engine = load_engine("torch", candidate.graphs[0], EngineOptions())
    _compare(candidate, evaluation, lambda feeds: engine.run(feeds)[0], candidate.runner(), COMPILED)


def _compare(candidate: Candidate, evaluation: EvaluationSet, ours: Runner, theirs: Runner, what: str) -> None:
    some = evaluation.rows.first(CHECKED_TEXTS)
    outputs = [run_all(run, some, candidate.checkpoint.inputs, f"{candidate.name} check") for run in (ours, theirs)]
    _check_difference(candidate, largest_difference(list(zip(*outputs, strict=True))), what)


def _check_difference(candidate: Candidate, difference: float, what: str) -> None:
    if not difference <= FP32_TOLERANCE:
        raise VerificationError(f"{candidate.name}: {what} by {difference:.3g}, the limit is {FP32_TOLERANCE:g}")
