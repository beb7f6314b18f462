"""Writes what a run of `millis tune` found, to be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from millis_pipeline.configuration import Configuration
from millis_pipeline.finals import Findings
from millis_pipeline.machine import machine
from millis_pipeline.search import Target, finalists
from millis_pipeline.stand import Measured
from millis_pipeline.trials import TRIALS_FILE
from millis_pipeline.tune_plan import Plan

SHOWN = 10
"""Trials in the report; the file of trials has all, numbered by their lines."""

CONFIGURATION_HEADER = "variant | engine | threads | workers | max batch | preferred | delay µs | lanes | device"


def report_path(folder: Path, target: Target) -> Path:
    """Where the report of a run that begins now goes: a file of its own, so that no run writes over another's."""
    limit = f"-{target.latency_ms:g}ms" if target.latency_ms else ""
    return folder / f"{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}-{target.objective}{limit}.md"


def write_report(path: Path, plan: Plan, findings: Findings) -> None:
    """Writes the report as Markdown.

    Args:
        path: file to write.
        plan: what was wanted.
        findings: what was measured, also when the search was interrupted.
    """
    target = plan.target
    limit = f"p99 of a lone caller at most {target.latency_ms:g} ms" if target.latency_ms else "no limit on latency"
    quality = f"quality at least {plan.min_quality:g}" if plan.min_quality else "any quality"
    failed = [trial for trial in findings.trials if trial.measured is None]
    tried = f"{len(findings.trials)} configurations tried, {findings.earlier} of them in earlier runs; "
    tried += f"{len(failed)} could not run."
    lines = [
        f"# Tuning {plan.model}",
        "",
        f"Wanted: {target.objective}, {limit}, {quality}. Machine: {machine()}.",
        tried,
        "Times are from the gateway's lane to Triton and back.",
        "",
        *_finals(plan.baseline, findings),
        f"## The best {SHOWN} trials, measured once",
        "",
        f"Numbers are lines of {TRIALS_FILE}.",
        "",
        *_table(
            [
                (str(trial.number), trial.configuration, trial.measured)
                for trial in finalists(findings.trials, target, SHOWN)
            ]
        ),
        "",
    ]
    if failed:
        lines += ["## Could not run", ""]
        lines += [f"- {trial.configuration}: {trial.failure}" for trial in failed] + [""]
    path.write_text("\n".join(lines), "utf-8")


def _finals(baseline: Configuration, findings: Findings) -> list[str]:
    if not findings.finals:
        return ["The search was interrupted before its finals.", ""]
    rows = []
    for runner, measured in findings.finals.items():
        roles = (runner == baseline and "in the repository", runner == findings.winner and "**winner**")
        rows.append((", ".join(role for role in roles if role), runner, measured))
    if findings.winner is None:
        verdict = "Nothing meets the target; these come nearest."
    elif findings.winner == baseline:
        verdict = f"What is in the repository stays; the best found is {findings.margin:.2f} times as good."
    else:
        verdict = f"The winner is {findings.margin:.2f} times as good as what is in the repository."
    lines = ["## Finals: measured in turn, medians of the rounds", "", *_table(rows), "", verdict, ""]
    lines += [
        f"- {runner}: {share:.2%} of the answers are those of the engine that {runner.variant} was measured with"
        for runner, share in findings.agreement.items()
    ]
    lines += [f"- refused: {runner}: {reason}" for runner, reason in findings.refused.items()]
    return [*lines, ""] if findings.agreement else lines


def _table(rows: Sequence[tuple[str, Configuration, Measured | None]]) -> list[str]:
    lines = [
        f"| | {CONFIGURATION_HEADER} | p50 ms | p99 ms | texts/s | p99 ms, saturated |",
        "|---|" + "---|" * (CONFIGURATION_HEADER.count("|") + 5),
    ]
    for name, configuration, measured in rows:
        if measured is None:
            continue
        cells = [name, *map(str, asdict(configuration).values())]
        cells += [f"{measured.p50_ms:.2f}", f"{measured.p99_ms:.2f}"]
        cells.append("" if measured.per_second is None else f"{measured.per_second:.0f}")
        cells.append("" if measured.loaded_p99_ms is None else f"{measured.loaded_p99_ms:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines
