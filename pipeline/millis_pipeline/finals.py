"""The finals of `millis tune`: who won, by how much, and whether its answers are those that were measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from millis_pipeline.configuration import Configuration
from millis_pipeline.search import Target
from millis_pipeline.stand import Measured
from millis_pipeline.trials import Trial

WORTH_IT = 1.05
"""How many times better than the one in the repository a configuration must be to replace it: less than that is
within what two measurements of the same thing differ by."""

MOST_ROUNDS = 0.75
"""Share of the rounds in which it must be better: a gain in the median alone may be two lucky rounds."""

LEAST_AGREEMENT = 0.99
"""Share of the answers that must be those of the engine that the variant's quality was measured with."""


@dataclass
class Findings:
    """What has been measured so far.

    Attributes:
        trials: the repository's configuration first, then those of earlier runs, then those of this one.
        earlier: number of those of earlier runs.
        rounds: of each finalist, and of the repository's configuration, what it did in each round of the finals.
        agreement: share of the answers that are those of the engine that the variant was measured with, of each
            finalist with another one.
        refused: finalists whose answers are not good enough, and why.
        winner: None while there is none that meets the target.
        margin: how many times better the winner is than the repository's configuration, the median of the rounds.
    """

    trials: list[Trial] = field(default_factory=list)
    earlier: int = 0
    rounds: dict[Configuration, list[Measured]] = field(default_factory=dict)
    agreement: dict[Configuration, float] = field(default_factory=dict)
    refused: dict[Configuration, str] = field(default_factory=dict)
    winner: Configuration | None = None
    margin: float = 1.0

    @property
    def finals(self) -> dict[Configuration, Measured]:
        """Medians of the rounds."""
        return {runner: _median(measured) for runner, measured in self.rounds.items()}


def check_answers(findings: Findings, qualities: dict[str, float], min_quality: float) -> None:
    """Refuses finalists whose answers are not those that were measured.

    Where answers differ from the measured ones each of them may be wrong, so that the quality is no less than the
    measured one less the share that differs.

    Args:
        findings: with the agreement of its finalists.
        qualities: measured, by variant.
        min_quality: that was asked for.
    """
    for runner, agreement in findings.agreement.items():
        least = qualities[runner.variant] - (1 - agreement)
        if agreement < LEAST_AGREEMENT:
            findings.refused[runner] = (
                f"{agreement:.2%} of its answers are the measured ones, {LEAST_AGREEMENT:.0%} must"
            )
        elif least < min_quality:
            findings.refused[runner] = (
                f"{agreement:.2%} of its answers are the measured ones, so its quality may be {least:.4g}; "
                f"{min_quality:g} was asked for"
            )


def choose(baseline: Configuration, target: Target, findings: Findings) -> None:
    """Names the winner: the best of the finals that meets the target, or what the repository has, unless the best is
    worth the change."""
    finals = findings.finals
    meeting = {
        runner: measured
        for runner, measured in finals.items()
        if target.met(measured) and runner not in findings.refused
    }
    if not meeting:
        return
    findings.winner = min(meeting, key=lambda runner: target.cost(meeting[runner]))
    if baseline not in finals:
        return
    gains = [
        gain(target, ours, theirs)
        for ours, theirs in zip(findings.rounds[findings.winner], findings.rounds[baseline], strict=True)
    ]
    findings.margin = statistics.median(gains)
    better = sum(each > 1 for each in gains) >= ceil(MOST_ROUNDS * len(gains))
    if baseline in meeting and (findings.margin < WORTH_IT or not better):
        findings.winner = baseline


def gain(target: Target, ours: Measured, theirs: Measured) -> float:
    """How many times better the first is by the target's objective."""
    if target.objective == "latency":
        return theirs.p50_ms / ours.p50_ms
    return (ours.per_second or 0.0) / (theirs.per_second or 1e-3)


def _median(rounds: Sequence[Measured]) -> Measured:
    def middle(values: Sequence[float | None]) -> float:
        return statistics.median([value for value in values if value is not None])

    return Measured(
        middle([each.p50_ms for each in rounds]),
        middle([each.p99_ms for each in rounds]),
        middle([each.per_second for each in rounds]),
        middle([each.loaded_p99_ms for each in rounds]),
    )
