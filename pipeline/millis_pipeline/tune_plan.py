"""What `millis tune` is asked: its options, and the variants, texts and limits that they mean."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import get_args

from millis_pipeline.circumstances import Circumstances, circumstances_of
from millis_pipeline.configuration import Configuration, configuration_of
from millis_pipeline.data import read_text_examples
from millis_pipeline.options import add_repository, count, number
from millis_pipeline.search import Objective, Target
from millis_pipeline.stand import Subject
from millis_server.manifest import COMPILED_FILE, TOKENIZER_FILE, Manifest
from millis_server.manifest_files import read_manifest
from millis_server.repository import scan
from millis_server.tokenizer import Row, Tokenizer
from millis_server.triton.backend.engine import ENGINES
from millis_server.triton.model_config import read_config

MAX_TEXTS = 256
"""Texts that are asked, in turn; more of a file are left out."""


class TuneError(ValueError):
    """What was asked cannot be searched; the message is one line."""


class NotMet(Exception):
    """Nothing that could be tried is good enough; the message says what comes nearest."""


@dataclass(frozen=True)
class Plan:
    """What to search, and how long.

    Attributes:
        model: logical name.
        subjects: variants that are good enough, by name.
        qualities: measured, by variant; 0 where none was.
        min_quality: that is wanted.
        baseline: the configuration in the repository that is compared with.
        target: what is wanted.
        budget: seconds for the search.
        phase: seconds of one measurement.
        callers: at saturation.
        rounds: of the finals.
        folder: of the model, for its trials and reports.
    """

    model: str
    subjects: dict[str, Subject]
    qualities: dict[str, float]
    min_quality: float
    baseline: Configuration
    target: Target
    budget: float
    phase: float
    callers: int
    rounds: int
    folder: Path

    @property
    def compiled(self) -> bool:
        """Whether one of the variants was compiled for the engine `torch`."""
        return any(COMPILED_FILE in subject.manifest.files for subject in self.subjects.values())

    def circumstances(self) -> dict[tuple[str, str], Circumstances]:
        """What measurements depend on beside their configurations, by variant and engine."""
        return {
            (name, engine): circumstances_of(subject, engine, self.callers, self.phase)
            for name, subject in self.subjects.items()
            for engine in {*ENGINES, self.baseline.engine}
        }


def read_plan(arguments: argparse.Namespace) -> Plan:
    """Reads the repository and everything else that can be wrong, before anything is started.

    Raises:
        TuneError, ConfigurationError, ConfigUnreadable, DataError, ManifestError, RepositoryError: what cannot be used.
        NotMet: no variant is good enough.
    """
    repository: Path = arguments.repository
    manifests = _manifests(repository, arguments.model)
    if any(manifest.generation is not None for manifest, _ in manifests.values()):
        raise TuneError(f"{arguments.model} generates text; only models that answer in one step can be tuned")
    qualities = {name: manifest.quality.value if manifest.quality else 0.0 for name, (manifest, _) in manifests.items()}
    good = [name for name in manifests if qualities[name] >= arguments.min_quality]
    if not good:
        best = max(qualities, key=qualities.__getitem__)
        raise NotMet(
            f"no variant of {arguments.model} was measured at {arguments.min_quality:g} or better; "
            f"the nearest is {best} with {qualities[best]:.4g}"
        )
    texts = read_text_examples(arguments.texts, arguments.text_column, None).texts if arguments.texts else None
    subjects = {name: _subject(repository, *manifests[name], texts) for name in good}
    default = next((name for name in good if manifests[name][0].default_variant), max(good, key=qualities.__getitem__))
    folder = arguments.state_dir / "tune" / arguments.model
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TuneError(f"{folder}: {error.strerror}") from error
    return Plan(
        model=arguments.model,
        subjects=subjects,
        qualities=qualities,
        min_quality=arguments.min_quality,
        baseline=configuration_of(default, subjects[default].config, subjects[default].manifest.precision),
        target=Target(arguments.objective, arguments.latency_ms),
        budget=arguments.budget_seconds,
        phase=arguments.phase_seconds,
        callers=arguments.callers,
        rounds=arguments.rounds,
        folder=folder,
    )


def _manifests(repository: Path, model: str) -> dict[str, tuple[Manifest, Path]]:
    """Newest manifest and version folder of each variant of a model."""
    found: dict[str, tuple[Manifest, Path]] = {}
    known = set()
    for name, versions in sorted(scan(repository).items()):
        folder = repository / name / versions[0]
        manifest = read_manifest(folder)
        known.add(manifest.model)
        if manifest.model == model:
            found[manifest.variant] = manifest, folder
    if not found:
        names = ", ".join(sorted(known)) or "none"
        raise TuneError(f"model repository {repository} has no model {model!r}; models are: {names}")
    return found


def _subject(repository: Path, manifest: Manifest, folder: Path, texts: list[str] | None) -> Subject:
    tokenizer = Tokenizer(folder / TOKENIZER_FILE, manifest.max_tokens)
    config = read_config(repository / manifest.triton_model)
    return Subject(manifest, folder, config, tokenizer, _rows(manifest, tokenizer, texts))


def _rows(manifest: Manifest, tokenizer: Tokenizer, texts: list[str] | None) -> list[Row]:
    """What is asked: the given texts, or the manifest's own, each alone and joined with others for the longer ones."""
    if texts is None:
        own = [check.pair or check.text for check in manifest.self_check]
        texts = [" ".join(part) for count in range(1, len(own) + 1) for part in combinations(own, count)]
    texts = texts[:MAX_TEXTS]
    if manifest.task == "cross-encoder":
        return tokenizer.pair_rows(manifest.self_check[0].text, texts, "end")[0]
    return tokenizer.rows(texts, "end")[0]


def parser() -> argparse.ArgumentParser:
    """The options of `millis tune`."""
    options = argparse.ArgumentParser(
        prog="millis tune",
        description="Finds how a model runs best on this machine: variant, engine, device, threads, batching.",
        epilog="Exit codes: 0 done, 1 an error, 3 nothing meets the target, 130 interrupted (what was found is kept).",
    )
    options.add_argument("model", help="logical model name")
    options.add_argument(
        "--latency-ms", type=number(0.001), metavar="MS", help="largest p99 of a lone caller; default: none"
    )
    options.add_argument(
        "--min-quality",
        type=number(0.0, 1.0),
        default=0.0,
        metavar="SCORE",
        help="lowest measured quality, 0 to 1; variants below it are left out (default: %(default)g)",
    )
    options.add_argument(
        "--objective",
        choices=get_args(Objective),
        default="latency",
        help="the median of a lone caller, or the texts a second at saturation (default: %(default)s)",
    )
    options.add_argument(
        "--budget-seconds",
        type=number(0.0),
        default=300.0,
        metavar="S",
        help="time for the search; the closing comparison comes on top (default: %(default)g)",
    )
    options.add_argument("--apply", action="store_true", help="write the winner into the variant's config.pbtxt")
    options.add_argument(
        "--texts", type=Path, metavar="FILE", help="texts to ask, .csv or .jsonl; default: the model's"
    )
    options.add_argument("--text-column", default="text", help="their column in --texts (default: %(default)s)")
    options.add_argument(
        "--callers", type=count, default=32, metavar="N", help="callers at saturation (default: %(default)d)"
    )
    options.add_argument(
        "--phase-seconds",
        type=number(0.05),
        default=1.5,
        metavar="S",
        help="time of one measurement; a trial is two (default: %(default)g)",
    )
    options.add_argument(
        "--rounds", type=count, default=5, metavar="N", help="of the closing comparison (default: %(default)d)"
    )
    add_repository(options, "model repository")
    options.add_argument(
        "--state-dir",
        type=Path,
        default=Path(os.environ.get("MILLIS_STATE_DIR", ".millis")),
        help="folder for trials and reports",
    )
    return options
