"""The file of `millis tune` with every trial: what it keeps, and which of it a search may go on from."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from millis_pipeline.circumstances import Circumstances
from millis_pipeline.configuration import Configuration, configured, write_config
from millis_pipeline.stand import Measured
from millis_pipeline.trials import Trial, Trials, TrialsError
from millis_pipeline.tune_plan import parser, read_plan
from millis_server.triton.model_config import read_config
from tests.conftest import Published

NOW = Configuration("fp32", "onnxruntime", 1, 2, 64, 0, 0, 2)
OTHER = replace(NOW, threads=2)
HERE = Circumstances("a machine", {"onnxruntime": "1"}, "files", "config", "texts", 32, 1.5)
FAST = Measured(1.0, 2.0, 100.0, 20.0)
HOPELESS = Measured(9.0, 9.0)


def trials(folder: Path, circumstances: Circumstances = HERE) -> Trials:
    return Trials(folder / "trials.jsonl", {("fp32", "onnxruntime"): circumstances})


def test_trials_are_read_back_as_they_were_kept_and_the_newest_of_a_configuration_counts(tmp_path):
    assert trials(tmp_path).comparable() == []
    kept = [trials(tmp_path).keep(NOW, HOPELESS), trials(tmp_path).keep(OTHER, None, "it does not load")]
    kept.append(trials(tmp_path).keep(NOW, FAST))
    assert kept == [Trial(1, NOW, HOPELESS), Trial(2, OTHER, None, "it does not load"), Trial(3, NOW, FAST)]
    assert trials(tmp_path).comparable() == [kept[2], kept[1]]


def test_a_trial_that_was_broken_off_while_it_was_written_costs_no_other(tmp_path):
    first = trials(tmp_path).keep(NOW, FAST)
    whole = (tmp_path / "trials.jsonl").read_bytes()
    (tmp_path / "trials.jsonl").write_bytes(whole + whole[:40])
    assert trials(tmp_path).comparable() == [first]
    second = trials(tmp_path).keep(OTHER, FAST)
    assert second.number == 2
    assert trials(tmp_path).comparable() == [first, second]


@pytest.mark.parametrize("line", ["{", "[]", '{"configuration": {"variant": "fp32"}}'])
def test_a_line_that_is_no_trial_is_named(tmp_path, line):
    trials(tmp_path).keep(NOW, FAST)
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(TrialsError) as refused:
        trials(tmp_path).comparable()
    assert str(refused.value) == f"{tmp_path}/trials.jsonl:2: it is no trial; delete the line"


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "trials.jsonl").mkdir()
    with pytest.raises(TrialsError) as refused:
        trials(tmp_path).keep(NOW, FAST)
    assert str(refused.value) == f"{tmp_path}/trials.jsonl: Is a directory"


@pytest.mark.parametrize(
    "change",
    [
        {"machine": "another"},
        {"versions": {"onnxruntime": "2"}},
        {"files": "retrained"},
        {"config": "edited"},
        {"texts": "longer"},
        {"callers": 8},
        {"phase_seconds": 0.5},
    ],
)
def test_what_was_measured_in_other_circumstances_is_kept_and_not_compared(tmp_path, change):
    kept = trials(tmp_path).keep(NOW, FAST)
    assert trials(tmp_path, replace(HERE, **change)).comparable() == []
    trials(tmp_path, replace(HERE, **change)).keep(NOW, HOPELESS)
    assert trials(tmp_path).comparable() == [kept]
    lines = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert [line["measured"] for line in lines] == [asdict(FAST), asdict(HOPELESS)]


def test_circumstances_change_with_what_tune_does_not_vary_and_not_with_the_target(published: Published, tmp_path):
    folder = tmp_path / "repository"
    for variant in ("fp32", "int8"):
        shutil.copytree(published.repository / f"intent-{variant}", folder / f"intent-{variant}")
    untouched = read_config(folder / "intent-fp32")

    def found(*options: str) -> dict[tuple[str, str], Circumstances]:
        arguments = ["intent", "--repository", str(folder), "--state-dir", str(tmp_path), *options]
        return read_plan(parser().parse_args(arguments)).circumstances()

    first = found()
    assert {variant for variant, _ in first} == {"fp32", "int8"}
    assert found("--objective", "throughput", "--latency-ms", "3", "--rounds", "2", "--budget-seconds", "0") == first
    # What tune writes itself is what it varies.
    write_config(folder / "intent-fp32", configured(untouched, OTHER))
    assert found() == first
    for name in ("precision", "max_padding"):
        edited = configured(untouched, OTHER)
        edited.parameters[name].string_value = "1"
        write_config(folder / "intent-fp32", edited)
        changed = {key for key, circumstances in found().items() if circumstances != first[key]}
        assert {variant for variant, _ in changed} == {"fp32"}
