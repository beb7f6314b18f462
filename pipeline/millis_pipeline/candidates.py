"""Makes the graph of every variant that a recipe asks for, and measures them side by side."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from millis_pipeline.checkpoint import Checkpoint
from millis_pipeline.examples import Example, pad
from millis_pipeline.export import export_onnx
from millis_pipeline.gate import Measured
from millis_pipeline.latency import measure, single_text_ms
from millis_pipeline.memory import resident_bytes
from millis_pipeline.quantize import quantize_int8
from millis_pipeline.run import Feeds, onnx_runner, run_all, torch_runner
from millis_pipeline.students import Students
from millis_pipeline.tokenizer import write_tokenizer
from millis_pipeline.variants import VariantRecipe
from millis_pipeline.verify import FP32_TOLERANCE, EvaluationSet, Judgement, VerificationError, judge
from millis_server.manifest import TOKENIZER_FILE, WEIGHTS_FILE, LatencyProfile

CALIBRATION_TEXTS = 128
CHECKED_TEXTS = 64
"""Inputs on which the fp32 graph of a student is compared with its PyTorch module."""


@dataclass(frozen=True)
class Candidate:
    """A variant as it was made, not yet measured.

    Attributes:
        recipe: what was asked for.
        folder: with weights and tokenizer.
        checkpoint: the teacher, with the module that the graph was exported from.
        steps: in words how it was made.
    """

    recipe: VariantRecipe
    folder: Path
    checkpoint: Checkpoint
    steps: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the variant."""
        return self.recipe.name

    @property
    def weights(self) -> Path:
        """Its graph."""
        return self.folder / WEIGHTS_FILE

    @property
    def reference(self) -> bool:
        """Whether it is the teacher itself."""
        return not self.recipe.trained and self.recipe.quantize is None


@dataclass(frozen=True)
class Assessed:
    """A candidate with what was measured."""

    candidate: Candidate
    judgement: Judgement
    latency: LatencyProfile
    memory_bytes: int

    def for_gate(self, reference: Judgement) -> Measured:
        """What the gate decides by."""
        return Measured(
            self.candidate.name,
            self.judgement.value,
            reference.value - self.judgement.value,
            single_text_ms(self.latency),
            self.candidate.reference,
        )


def make_candidates(
    variants: Sequence[VariantRecipe],
    students: Students | None,
    teacher: Checkpoint,
    texts: Sequence[Example],
    stage: Path,
    *,
    reduce_range: bool,
    say: Callable[[str], None],
) -> list[Candidate]:
    """Makes the graph of every variant in a folder of its own; variants that differ in quantization share a training.

    Args:
        variants: to make.
        students: makes smaller modules; None where no variant needs one.
        teacher: the fine-tuned checkpoint.
        texts: to calibrate with.
        stage: folder that gets the folders.
        reduce_range: whether int8 weights get 7 bits.
        say: told what is being done.

    Raises:
        CheckpointError: the teacher cannot be made smaller.
        ExportError: PyTorch cannot export a module.
    """
    feeds = _calibration(texts, teacher)
    exported: dict[int, Path] = {}
    made = []
    for variant in variants:
        if variant.trained:
            say(f"training {variant.name}")
        checkpoint, steps = students.make(variant) if students is not None else (teacher, ())
        folder = stage / f"candidate-{variant.name}"
        folder.mkdir()
        write_tokenizer(teacher.tokenizer, folder / TOKENIZER_FILE)
        graph = exported.get(id(checkpoint.module))
        if graph is None:
            say(f"exporting {variant.name} to ONNX")
            graph = exported[id(checkpoint.module)] = stage / f"exported-{len(exported)}.onnx"
            export_onnx(checkpoint, graph)
        if variant.quantize is None:
            shutil.copyfile(graph, folder / WEIGHTS_FILE)
        else:
            say(f"quantizing {variant.name}")
            kept = quantize_int8(
                graph, folder / WEIGHTS_FILE, reduce_range=reduce_range, spec=variant.quantize, texts=feeds
            )
            steps = (*steps, _quantization(variant, kept, len(feeds), reduce_range))
        made.append(Candidate(variant, folder, checkpoint, steps))
    return made


def _calibration(texts: Sequence[Example], teacher: Checkpoint) -> list[Feeds]:
    """Some of the texts, one in each feed."""
    some = random.Random(0).sample(list(texts), min(CALIBRATION_TEXTS, len(texts)))
    feeds: list[Feeds] = []
    for text in some:
        ids, mask = pad([text], teacher.tokenizer.pad_token_id or 0)
        values: Feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        feeds.append({name: values[name] for name in teacher.inputs})
    return feeds


def _quantization(variant: VariantRecipe, kept: Sequence[str], texts: int, reduced: bool) -> str:
    assert variant.quantize is not None
    bits = "7-bit weights (no VNNI)" if reduced else "8-bit weights"
    how = f"calibrated on {texts} texts" if variant.quantize.method == "static" else "dynamic"
    return f"int8, {how}, {bits}" + (f", in fp32: {', '.join(kept)}" if kept else "")


def assess(
    candidates: Sequence[Candidate], teacher: Checkpoint, evaluation: EvaluationSet
) -> tuple[list[Assessed], Judgement]:
    """Measures all candidates: quality and agreement, latency side by side, memory.

    Returns:
        The candidates as measured, and what the PyTorch teacher was measured to be.

    Raises:
        VerificationError: a graph does not compute what its module computes.
    """
    outputs = run_all(torch_runner(teacher), evaluation.rows, teacher.inputs, "PyTorch")
    reference = judge(teacher, evaluation, outputs, outputs)
    judgements = []
    for candidate in candidates:
        ours = run_all(onnx_runner(candidate.weights), evaluation.rows, teacher.inputs, candidate.name)
        judgements.append(judge(teacher, evaluation, ours, outputs))
        if candidate.reference:
            _check_difference(candidate, judgements[-1].max_difference)
        elif candidate.recipe.quantize is None:
            _check_student(candidate, evaluation)
    latency = measure({one.name: one.weights for one in candidates}, teacher.inputs, teacher.max_tokens)
    assessed = [
        Assessed(candidate, judgement, latency[candidate.name], resident_bytes(candidate.weights))
        for candidate, judgement in zip(candidates, judgements, strict=True)
    ]
    return assessed, reference


def _check_student(candidate: Candidate, evaluation: EvaluationSet) -> None:
    """Compares a student's graph with its own module: the teacher answers otherwise."""
    names = candidate.checkpoint.inputs
    some = evaluation.rows.first(CHECKED_TEXTS)
    theirs = run_all(torch_runner(candidate.checkpoint), some, names, f"{candidate.name} check")
    ours = run_all(onnx_runner(candidate.weights), some, names, f"{candidate.name} check")
    _check_difference(candidate, max(float(abs(a - b).max()) for a, b in zip(theirs, ours, strict=True)))


def _check_difference(candidate: Candidate, difference: float) -> None:
    if not difference <= FP32_TOLERANCE:
        raise VerificationError(
            f"{candidate.name}: the exported graph differs from PyTorch by {difference:.3g}, "
            f"the limit is {FP32_TOLERANCE:g}"
        )
