"""Who wins the finals of `millis tune`."""

from dataclasses import replace

import pytest

from millis_pipeline.configuration import Configuration
from millis_pipeline.finals import Findings, check_answers, choose
from millis_pipeline.search import Target
from millis_pipeline.stand import Measured

NOW = Configuration("fp32", "onnxruntime", 1, 2, 64, 0, 0, 2)
OTHER = replace(NOW, engine="openvino", threads=2)
LATENCY = Target("latency")


def rounds(*milliseconds: float) -> list[Measured]:
    return [Measured(each, each, 1e3 / each, 1.0) for each in milliseconds]


def winner(ours: list[Measured], theirs: list[Measured], target: Target = LATENCY) -> Configuration | None:
    findings = Findings(rounds={NOW: theirs, OTHER: ours})
    choose(NOW, target, findings)
    return findings.winner


def test_a_gain_within_the_noise_leaves_the_repository_as_it_is():
    assert winner(rounds(1.0), rounds(1.04)) == NOW
    assert winner(rounds(1.0), rounds(1.06)) == OTHER


def test_what_meets_the_target_wins_by_however_little_when_the_other_misses_it():
    assert winner(rounds(1.0), rounds(1.04), Target("latency", 1.02)) == OTHER
    assert winner(rounds(1.0), rounds(1.04), Target("latency", 0.9)) is None


def test_gains_are_those_of_each_round_so_that_a_slow_hour_meets_both():
    findings = Findings(rounds={NOW: rounds(2.0, 4.0, 8.0, 2.2), OTHER: rounds(1.0, 2.0, 4.0, 1.1)})
    choose(NOW, LATENCY, findings)
    assert (findings.winner, round(findings.margin, 6)) == (OTHER, 2.0)
    choose(NOW, Target("throughput"), findings)
    assert (findings.winner, round(findings.margin, 6)) == (OTHER, 2.0)


def test_a_gain_in_half_of_the_rounds_is_luck():
    assert winner(rounds(1.0, 1.0, 1.3, 1.3), rounds(1.25, 1.25, 1.2, 1.2)) == NOW
    assert winner(rounds(1.0, 1.0, 1.0, 1.3), rounds(1.25, 1.25, 1.2, 1.2)) == OTHER


@pytest.mark.parametrize(
    ("agreement", "min_quality", "refused"),
    [
        (1.0, 0.95, None),
        (0.995, 0.94, None),
        (0.98, 0.0, "98.00% of its answers are the measured ones, 99% must"),
        (
            0.992,
            0.95,
            "99.20% of its answers are the measured ones, so its quality may be 0.942; 0.95 was asked for",
        ),
    ],
)
def test_whose_answers_are_not_those_that_were_measured_does_not_win(agreement, min_quality, refused):
    findings = Findings(rounds={NOW: rounds(2.0), OTHER: rounds(1.0)}, agreement={OTHER: agreement})
    check_answers(findings, {"fp32": 0.95}, min_quality)
    choose(NOW, LATENCY, findings)
    assert findings.refused.get(OTHER) == refused
    assert findings.winner == (OTHER if refused is None else NOW)
