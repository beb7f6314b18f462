"""`millis build`: from a checkpoint, or from labelled data, to published and measured variants.

Stages: data, finetune, export (ONNX), quantize (int8), verify (against PyTorch), publish, report.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import get_args

from millis_pipeline.checkpoint import PACKAGE_PREFIX, Checkpoint, CheckpointError, infer_task, load, resolve
from millis_pipeline.data import DataError, TextExamples, TokenExamples, read_text_examples, read_token_examples
from millis_pipeline.export import ExportError, export_onnx
from millis_pipeline.finetune import finetune
from millis_pipeline.latency import measure
from millis_pipeline.publish import PublishError, publish, staging, write_version
from millis_pipeline.quantize import needs_reduced_range, quantize_int8
from millis_pipeline.recipe import Recipe, RecipeError, load_recipe
from millis_pipeline.report import Variant, write_report
from millis_pipeline.run import onnx_runner, run_all, torch_runner
from millis_pipeline.tokenizer import write_tokenizer
from millis_pipeline.verify import (
    FP32_TOLERANCE,
    EvaluationSet,
    Judgement,
    VerificationError,
    evaluation_set,
    judge,
    self_checks,
)
from millis_server.manifest import TOKENIZER_FILE, WEIGHTS_FILE, Manifest, Provenance, TaskName, sha256

ERRORS = (CheckpointError, DataError, ExportError, PublishError, RecipeError, VerificationError)
"""What a user can mend; anything else is a bug and shows its traceback."""

LIBRARIES = ("torch", "transformers", "sentence-transformers", "onnx", "onnxruntime", "tokenizers")
INT8_TOLERANCE = 0.25
"""Largest difference that passes an int8 self-check: another processor may round another way."""


@dataclass(frozen=True)
class Job:
    """One model to build.

    Attributes:
        name: logical model name.
        source: checkpoint as the user named it.
        task: None takes the one that the checkpoint implies.
        recipe: None builds the checkpoint as it is.
        evaluation: file of labelled data; None takes the built-in texts.
        dataset: its name.
        text_column, label_column, label_separator: where texts and labels stand in it.
        max_quality_loss: loss against PyTorch at which int8 may still be the default.
    """

    name: str
    source: str
    task: TaskName | None
    recipe: Recipe | None
    evaluation: Path | None
    dataset: str
    text_column: str = "text"
    label_column: str = "label"
    label_separator: str | None = None
    max_quality_loss: float = 0.01


def main(argv: Sequence[str]) -> int:
    """Runs `millis build`.

    Args:
        argv: arguments after `millis build`.

    Returns:
        Exit code: 0 when everything was published, 1 for an error of the input, 130 when interrupted.
    """
    arguments = _parser().parse_args(list(argv))
    # Also where the shell that started it ignores Ctrl-C, as it does for background jobs.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        for job in [_job(source, arguments) for source in arguments.sources]:
            build(job, arguments.repository, arguments.reports, arguments.keep)
    except ERRORS as error:
        print(f"millis build: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("millis build: interrupted; the repository is as it was before the last model", file=sys.stderr)
        return 130
    return 0


def build(job: Job, repository: Path, reports: Path, keep: Path | None = None) -> None:
    """Builds and publishes one model; the repository changes only in the last stage."""
    began = time.monotonic()
    examples = _read_evaluation(job)
    with staging(repository) as stage, tempfile.TemporaryDirectory(prefix="millis-") as scratch:
        folder = resolve(job.source)
        if job.recipe is not None and job.recipe.train is not None:
            _say(job, f"fine-tuning on {job.dataset}")
            finetune(job.recipe, folder, Path(scratch) / "checkpoint")
            folder = Path(scratch) / "checkpoint"
            if keep is not None:
                shutil.copytree(folder, keep / job.name, dirs_exist_ok=True)
        checkpoint = load(job.source, folder, job.task)
        _say(job, "exporting to ONNX")
        fp32, int8 = stage / f"{job.name}-fp32", stage / f"{job.name}-int8"
        fp32.mkdir()
        int8.mkdir()
        export_onnx(checkpoint, fp32 / WEIGHTS_FILE)
        tokenizer = write_tokenizer(checkpoint.tokenizer, fp32 / TOKENIZER_FILE)
        write_tokenizer(checkpoint.tokenizer, int8 / TOKENIZER_FILE)
        _say(job, "quantizing to int8")
        reduced = needs_reduced_range()
        quantize_int8(fp32 / WEIGHTS_FILE, int8 / WEIGHTS_FILE, reduce_range=reduced)
        evaluation = evaluation_set(checkpoint, tokenizer, examples, job.dataset)
        _say(job, f"verifying on {len(evaluation.inputs)} texts")
        variants, reference, choice = _measure(job, checkpoint, evaluation, {"fp32": fp32, "int8": int8}, reduced)
        staged = [(stage / variant.manifest.triton_model, variant.manifest) for variant in variants]
        for path, manifest in staged:
            write_version(path, manifest)
        versions = publish(repository, staged)
    published = [
        Variant(variant.manifest, variant.judgement, versions[variant.manifest.triton_model]) for variant in variants
    ]
    write_report(reports / f"{job.name}.md", published, reference, choice)
    if reference.scores is not None:
        print(reference.scores.as_text())
    _summarise(job, published, choice, time.monotonic() - began, reports)


def _measure(
    job: Job, checkpoint: Checkpoint, evaluation: EvaluationSet, folders: dict[str, Path], reduced: bool
) -> tuple[list[Variant], Judgement, str]:
    """Runs every variant on the evaluation set and against the clock, and chooses the default."""
    outputs = run_all(torch_runner(checkpoint), evaluation.rows, checkpoint.inputs, "PyTorch")
    reference = judge(checkpoint, evaluation, outputs, outputs)
    measured = []
    for name, folder in folders.items():
        path = folder / WEIGHTS_FILE
        runner = onnx_runner(path)
        ours = run_all(runner, evaluation.rows, checkpoint.inputs, name)
        judgement = judge(checkpoint, evaluation, ours, outputs)
        if name == "fp32" and not judgement.max_difference <= FP32_TOLERANCE:
            raise VerificationError(
                f"{job.name}: the exported graph differs from PyTorch by {judgement.max_difference:.3g}, "
                f"the limit is {FP32_TOLERANCE:g}"
            )
        latency = measure(path, checkpoint.inputs, checkpoint.max_tokens, f"latency {name}")
        manifest = Manifest(
            model=job.name,
            variant=name,
            task=checkpoint.task,
            labels=checkpoint.labels,
            multi_label=checkpoint.multi_label,
            max_tokens=checkpoint.max_tokens,
            pad_id=checkpoint.tokenizer.pad_token_id or 0,
            inputs=checkpoint.inputs,
            dimensions=checkpoint.dimensions,
            normalized=checkpoint.normalized,
            activation=checkpoint.activation,
            default_for_task=job.recipe is not None and job.recipe.default,
            files={file: sha256(folder / file) for file in (WEIGHTS_FILE, TOKENIZER_FILE)},
            size_bytes=path.stat().st_size,
            quality=judgement.quality,
            latency=latency,
            provenance=_provenance(job, checkpoint, reduced),
            self_check=self_checks(checkpoint, evaluation, runner),
            tolerance=FP32_TOLERANCE if name == "fp32" else INT8_TOLERANCE,
        )
        measured.append(Variant(manifest, judgement, ""))
    return _with_default(measured, reference, job.max_quality_loss)


def _with_default(
    measured: list[Variant], reference: Judgement, max_loss: float
) -> tuple[list[Variant], Judgement, str]:
    """int8 is the default when it is faster than fp32 and loses no more than allowed; else fp32 is."""
    fp32, int8 = measured
    loss = _value(reference) - _value(int8.judgement)
    ratio = _median(int8) and _median(fp32) / _median(int8)
    if ratio <= 1:
        default, why = "fp32", f"int8 is no faster ({ratio:.2f} times)"
    elif loss > max_loss:
        default, why = "fp32", f"int8 loses {loss:.4f}, more than max_quality_loss {max_loss:g}"
    else:
        default, why = "int8", f"it is {ratio:.2f} times as fast as fp32 and loses {max(loss, 0):.4f}"
    chosen = [
        Variant(
            variant.manifest.model_copy(update={"default_variant": variant.manifest.variant == default}),
            variant.judgement,
            variant.version,
        )
        for variant in measured
    ]
    return chosen, reference, f"The default variant is {default}: {why}."


def _value(judgement: Judgement) -> float:
    """Measured quality, or agreement with PyTorch where there was no data to measure on."""
    return judgement.quality.value if judgement.quality else judgement.agreement


def _median(variant: Variant) -> float:
    """Median of the single-text points together: one number to compare variants by."""
    points = variant.manifest.latency.points if variant.manifest.latency else ()
    return sum(point.p50_ms for point in points if point.batch == 1)


def _provenance(job: Job, checkpoint: Checkpoint, reduced: bool) -> Provenance:
    versions = {name: installed(name) for name in LIBRARIES}
    versions["int8 weights"] = "7 bits (no VNNI)" if reduced else "8 bits (VNNI)"
    return Provenance(
        checkpoint=job.source.removeprefix(PACKAGE_PREFIX) if job.source.startswith(PACKAGE_PREFIX) else job.source,
        dataset=job.dataset if job.recipe is not None and job.recipe.train is not None else "",
        recipe=job.recipe.digest if job.recipe is not None else "",
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions,
        license=(job.recipe.license if job.recipe is not None else "") or checkpoint.license,
    )


def _job(source: str, arguments: argparse.Namespace) -> Job:
    """Tells a recipe from a checkpoint by its ending."""
    if source.endswith((".yaml", ".yml")):
        recipe = load_recipe(Path(source), arguments.data_dir)
        return Job(
            name=arguments.name or recipe.name,
            source=recipe.checkpoint,
            task=recipe.task,
            recipe=recipe,
            evaluation=recipe.test,
            dataset=recipe.dataset or recipe.name,
            text_column=recipe.text_column,
            label_column=recipe.label_column,
            label_separator=recipe.label_separator,
            max_quality_loss=recipe.max_quality_loss,
        )
    default = Path(source.removeprefix(PACKAGE_PREFIX)).name.lower().replace("_", "-")
    return Job(
        name=arguments.name or default,
        source=source,
        task=arguments.task,
        recipe=None,
        evaluation=arguments.eval_data,
        dataset=arguments.eval_data.name if arguments.eval_data else "",
        text_column=arguments.text_column,
        label_column=arguments.label_column,
    )


def _read_evaluation(job: Job) -> TextExamples | TokenExamples | None:
    if job.evaluation is None:
        return None
    task = job.task or infer_task(job.source, resolve(job.source))
    if task == "cross-encoder":
        raise DataError(f"{job.evaluation}: evaluation data for cross-encoders is not supported")
    if task == "token-classification":
        return read_token_examples(job.evaluation)
    label = job.label_column if task == "text-classification" else None
    return read_text_examples(job.evaluation, job.text_column, label, job.label_separator)


def _summarise(job: Job, variants: Sequence[Variant], choice: str, seconds: float, reports: Path) -> None:
    for variant in variants:
        quality = variant.manifest.quality
        measured = f"{quality.metric} {quality.value:.4f}" if quality else "quality not measured"
        _say(
            job,
            f"published {variant.manifest.variant} version {variant.version}: {measured}, agreement "
            f"{variant.judgement.agreement:.4f}, {variant.manifest.size_bytes / 1e6:.0f} MB",
        )
    _say(job, f"{choice} {seconds:.0f} s; report in {reports / job.name}.md")


def _say(job: Job, message: str) -> None:
    print(f"{job.name}: {message}", flush=True)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="millis build", description=__doc__)
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a recipe (.yaml), or a checkpoint: a folder, a hub id, or package:NAME",
    )
    parser.add_argument("--task", choices=get_args(TaskName), help="what a checkpoint answers, when it does not say")
    parser.add_argument("--name", help="logical model name; the default is the recipe's or the checkpoint's")
    parser.add_argument("--eval-data", type=Path, help="labelled data to measure a checkpoint on (CSV, JSONL, CoNLL)")
    parser.add_argument("--text-column", default="text", help="column of the texts in --eval-data")
    parser.add_argument("--label-column", default="label", help="column of the labels in --eval-data")
    parser.add_argument("--data-dir", type=Path, help="folder that a recipe's data paths count from")
    parser.add_argument(
        "--repository",
        type=Path,
        default=Path(os.environ.get("MILLIS_MODEL_REPOSITORY", "model_repository")),
        help="model repository to publish into",
    )
    parser.add_argument(
        "--reports",
        type=Path,
        default=Path(os.environ.get("MILLIS_STATE_DIR", ".millis")) / "reports",
        help="folder for the reports",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="also keep the fine-tuned checkpoints in this folder")
    return parser
