"""`millis build`: from a checkpoint, or from labelled data, to published and measured variants.

Stages: data, finetune, the candidates (distill, prune, export to ONNX, quantize), verify and measure, gate, publish,
report.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer
from tqdm import tqdm

from millis_pipeline.assess import Assessed, ask_teacher, assess
from millis_pipeline.build_options import build_parser
from millis_pipeline.candidates import CandidateMaker
from millis_pipeline.checkpoint import Checkpoint, CheckpointError, load
from millis_pipeline.data import DataError, named
from millis_pipeline.decoders.recipe import DecoderRecipe
from millis_pipeline.entry import Entry, make_entry
from millis_pipeline.export import ExportError
from millis_pipeline.finetune import finetune
from millis_pipeline.gate import Decision, decide, decide_unmeasured
from millis_pipeline.inputs import check_inputs
from millis_pipeline.interruption import raise_on_signals
from millis_pipeline.job import Job, check_evaluation, read_evaluation, read_job
from millis_pipeline.memory import MeasurementError
from millis_pipeline.precision import possible_here
from millis_pipeline.progress import step
from millis_pipeline.publish import PublishError, check_folder, publish, staging, write_version
from millis_pipeline.recipe import RecipeError
from millis_pipeline.recipe_data import train_and_dev
from millis_pipeline.report import write_report
from millis_pipeline.side_by_side import Alone, Build, in_turn, side_by_side
from millis_pipeline.sources import resolve
from millis_pipeline.students import Students, check_variants
from millis_pipeline.tokenizer import write_tokenizer
from millis_pipeline.training_texts import training_texts
from millis_pipeline.verify import (
    EvaluationSet,
    Judgement,
    VerificationError,
    evaluation_set,
)
from millis_server.manifest import TOKENIZER_FILE
from millis_server.processor import saturates

ERRORS = (CheckpointError, DataError, ExportError, MeasurementError, PublishError, RecipeError, VerificationError)
"""What a user can mend; anything else is a bug and shows its traceback."""


def main(argv: Sequence[str]) -> int:
    """Runs `millis build`.

    Args:
        argv: arguments after `millis build`.

    Returns:
        Exit code: 0 when everything was published, 1 for an error of the input, 130 when interrupted.
    """
    parser = build_parser()
    arguments = parser.parse_args(list(argv))
    if arguments.teacher is not None and len(arguments.sources) > 1:
        parser.error(f"--teacher: it goes with 1 recipe, {len(arguments.sources)} are given")
    raise_on_signals()
    try:
        jobs = [read_job(source, arguments) for source in arguments.sources]
        for option, folder in (("--reports", arguments.reports), ("--keep", arguments.keep)):
            if folder is not None:
                check_folder(folder, option)
        return _build_all(jobs, arguments)
    except ERRORS as error:
        return _failed(error)
    except KeyboardInterrupt:
        print("millis build: interrupted; the repository is as it was before the last model", file=sys.stderr)
        return 130


def _build_all(jobs: Sequence[Job | DecoderRecipe], arguments: argparse.Namespace) -> int:
    """Builds all models, whatever becomes of the others; returns the exit code.

    Those that generate text are built in turn, at the end: their training fills the cores by itself.
    """
    encoders: dict[str, Build] = {}
    decoders: dict[str, Build] = {}
    for job, source in zip(jobs, arguments.sources, strict=True):
        if job.name in encoders or job.name in decoders:
            raise RecipeError(f"{source}: model {job.name!r} is that of another source too; build one at a time")
        (encoders if isinstance(job, Job) else decoders)[job.name] = partial(_build, job, arguments)
    wrong = [_wrong(job) for job in jobs]
    if any(wrong):
        return 1
    at_once = min(len(encoders), arguments.jobs)
    codes = side_by_side(encoders, at_once) if at_once > 1 else [build_one(in_turn) for build_one in encoders.values()]
    codes += [build_one(in_turn) for build_one in decoders.values()]
    return max(codes)


def _wrong(job: Job | DecoderRecipe) -> bool:
    """Says what is wrong with the inputs of a job, if anything is."""
    try:
        check_inputs(job)
    except ERRORS as error:
        _failed(error)
        return True
    return False


def _build(job: Job | DecoderRecipe, arguments: argparse.Namespace, alone: Alone) -> int:
    """Builds one model; returns the exit code."""
    try:
        run: Callable[..., None] = build if isinstance(job, Job) else _decoder_build()
        run(job, arguments.repository, arguments.reports, arguments.keep, alone)
    except ERRORS as error:
        return _failed(error)
    return 0


def _failed(error: Exception) -> int:
    print(f"millis build: {error}", file=sys.stderr)
    return 1


def _decoder_build() -> Callable[..., None]:
    """The build of models that generate text, whose libraries are an extra.

    Raises:
        ExportError: they are not installed.
    """
    try:
        module = importlib.import_module("millis_pipeline.decoders.build")
    except ModuleNotFoundError as error:
        raise ExportError(
            f"text-generation needs {error.name}, which is not installed: pip install 'millis[generation-build]'"
        ) from error
    build: Callable[..., None] = module.build
    return build


def build(job: Job, repository: Path, reports: Path, keep: Path | None = None, alone: Alone = in_turn) -> None:
    """Builds and publishes one model; the repository changes only in the last stage.

    Args:
        job: what to build.
        repository: to publish into.
        reports: folder for the report.
        keep: folder for fine-tuned checkpoints and students.
        alone: called before anything is timed.
    """
    began = time.monotonic()
    variants, left_out = possible_here(job.variants)
    job = replace(job, variants=variants)
    examples, measured_on = read_evaluation(job)
    with staging(repository) as stage, tempfile.TemporaryDirectory(prefix="millis-") as scratch:
        teacher = _teacher(job, Path(scratch), keep)
        if teacher.labels:
            check_evaluation(job, examples, teacher.answers)
        tokenizer = write_tokenizer(teacher.tokenizer, Path(scratch) / TOKENIZER_FILE)
        with named(job.evaluation_key):
            with step("tokenizing"):
                evaluation = evaluation_set(teacher, tokenizer, examples, measured_on)
            original = ask_teacher(teacher, evaluation)
        students = None
        if job.recipe is not None:
            kept = keep / f"{job.name}-students" if keep is not None else None
            with step("tokenizing"):
                texts = training_texts(job.recipe, teacher)
            students = Students(teacher, job.recipe, texts, Path(scratch), kept)
        with step("tokenizing"):
            held_out = _held_out(job, teacher, tokenizer)
        maker = CandidateMaker(
            teacher,
            students,
            held_out,
            stage,
            reduce_range=saturates(),
            max_loss=job.max_quality_loss,
            say=partial(_say, job),
            alone=alone,
        )
        candidates = [maker.make(variant) for variant in job.variants]
        _say(job, f"verifying and measuring {len(candidates)} variants on {len(evaluation.inputs)} texts")
        assessed = assess(candidates, teacher, evaluation, original, alone)
        decision = _decide(job, assessed, original.judgement)
        checked = tqdm(assessed, desc="manifests", unit="variant", leave=False, disable=None)
        entries = [make_entry(job, one, decision) for one in checked]
        folders = {one.candidate.name: one.candidate.folder for one in assessed}
        staged = [(folders[entry.manifest.variant], entry.manifest) for entry in entries if not entry.refused]
        for path, manifest in staged:
            write_version(path, manifest)
        versions, retired = publish(repository, staged)
    entries = [entry.published_as(versions.get(entry.manifest.triton_model, "")) for entry in entries]
    choice = f"The default variant is {decision.default}: {decision.why}."
    if left_out:
        choice += f" Left out, because this processor does not compute in bfloat16: {', '.join(left_out)}."
    write_report(reports, job.name, entries, original.judgement, choice, job.max_quality_loss)
    if original.judgement.score is not None:
        print(original.judgement.score.as_text())
    _summarise(job, entries, retired)
    _say(job, f"{choice} {time.monotonic() - began:.0f} s; report in {reports / job.name}.md and .html")


def _teacher(job: Job, scratch: Path, keep: Path | None) -> Checkpoint:
    """The checkpoint, fine-tuned when the recipe says so."""
    folder = resolve(job.source)
    check_variants(job.variants, folder)
    if job.trains:
        assert job.recipe is not None, "only a recipe trains. This is a bug."
        _say(job, f"fine-tuning on {job.dataset}")
        finetune(job.recipe, folder, scratch / "checkpoint")
        folder = scratch / "checkpoint"
        if keep is not None:
            shutil.copytree(folder, keep / job.name, dirs_exist_ok=True)
    with step("loading"):
        return load(job.source, folder, job.task)


def _held_out(job: Job, teacher: Checkpoint, tokenizer: Tokenizer) -> EvaluationSet | None:
    """What exits are calibrated on: the dev data, from which neither the teacher nor a student learned."""
    if job.recipe is None or all(variant.exits is None for variant in job.variants):
        return None
    return evaluation_set(teacher, tokenizer, train_and_dev(job.recipe)[1], "dev")


def _decide(job: Job, assessed: Sequence[Assessed], reference: Judgement) -> Decision:
    """The gate; without data to measure quality on it goes by agreement with PyTorch."""
    measured = [one.for_gate(reference) for one in assessed]
    if reference.quality is None:
        return decide_unmeasured(measured, job.max_quality_loss)
    return decide(measured, job.max_quality_loss)


def _summarise(job: Job, entries: Sequence[Entry], retired: Sequence[str]) -> None:
    for entry in entries:
        manifest = entry.manifest
        quality = manifest.quality
        agreed = f"agreement {entry.judgement.agreement:.4f}"
        if quality:
            measured = f"{quality.metric} {quality.value:.4f}, {agreed}"
        else:
            measured = f"quality not measured, {agreed} on {entry.judgement.inputs} built-in texts"
        measured += f", {manifest.size_bytes / 1e6:.0f} MB"
        if entry.refused:
            _say(job, f"did not publish {manifest.variant}: {entry.refused}; {measured}")
        else:
            _say(job, f"published {manifest.variant} version {entry.version}: {measured}")
    for folder in retired:
        _say(job, f"moved {folder} to .retired: this build does not have it")


def _say(job: Job, message: str) -> None:
    print(f"{job.name}: {message}", flush=True)
