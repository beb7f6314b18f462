"""Numbers on the command lines of the pipeline: what is taken, and what is said of the rest."""

from __future__ import annotations

import pytest

from millis_pipeline.build_options import build_parser
from millis_pipeline.tune_plan import parser as tune_parser

COUNT = "must be a whole number of at least 1"


@pytest.mark.parametrize(
    ("command", "option", "text", "message"),
    [
        ("build", "--jobs", "abc", COUNT),
        ("build", "--jobs", "0", COUNT),
        ("build", "--jobs", "1.5", COUNT),
        ("tune", "--callers", "abc", COUNT),
        ("tune", "--rounds", "-1", COUNT),
        ("tune", "--latency-ms", "abc", "must be a number of at least 0.001"),
        ("tune", "--latency-ms", "0", "must be a number of at least 0.001"),
        ("tune", "--latency-ms", "nan", "must be a number of at least 0.001"),
        ("tune", "--budget-seconds", "inf", "must be a number of at least 0"),
        ("tune", "--phase-seconds", "", "must be a number of at least 0.05"),
        ("tune", "--min-quality", "1.01", "must be a number from 0 to 1"),
    ],
)
def test_a_number_that_cannot_be_meant_is_one_line_with_its_option_and_limit(capsys, command, option, text, message):
    parser = {"build": build_parser, "tune": tune_parser}[command]()
    with pytest.raises(SystemExit):
        parser.parse_args(["intent", f"{option}={text}"])
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"millis {command}: error: argument {option}: {message}, got {text!r}"
    )


def test_numbers_at_their_limits_are_taken():
    tuned = tune_parser().parse_args(["intent", "--min-quality", "1", "--budget-seconds", "0", "--latency-ms", "0.001"])
    assert (tuned.min_quality, tuned.budget_seconds, tuned.latency_ms) == (1.0, 0.0, 0.001)
    assert build_parser().parse_args(["recipe.yaml", "--jobs", "1"]).jobs == 1
