"""`millis tune` on a tiny model and a real Triton: what it writes, how it resumes, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from millis_pipeline import tune
from millis_pipeline.configuration import (
    Configuration,
    configuration_of,
    configured,
    search_space,
    unable,
    write_config,
)
from millis_pipeline.publish import publish, staging
from millis_pipeline.search import Search, Target, Trial, finalists
from millis_pipeline.stand import Measured
from millis_server.manifest_files import read_manifest
from millis_server.triton.model_config import read_config
from tests.conftest import Published

PATIENCE_SECONDS = 60
QUICK = ["--phase-seconds", "0.1", "--rounds", "1", "--callers", "4"]
OTHER = Configuration("fp32", "openvino", 2, 1, 16, 4, 200, 3)
ON_CUDA = replace(OTHER, engine="onnxruntime", device="cuda")


@pytest.fixture(scope="module")
def repository(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "repository"
    for variant in ("fp32", "int8"):
        shutil.copytree(published.repository / f"intent-{variant}", folder / f"intent-{variant}")
    return folder


def arguments(repository: Path, state: Path, *more: str) -> list[str]:
    return ["intent", "--repository", str(repository), "--state-dir", str(state), *QUICK, *more]


def test_a_configuration_is_read_back_as_it_was_written(repository, tmp_path):
    config = read_config(repository / "intent-fp32")
    (tmp_path / "config.pbtxt").write_text("")
    write_config(tmp_path, configured(config, OTHER))
    assert [path.name for path in tmp_path.iterdir()] == ["config.pbtxt"]
    assert configuration_of("fp32", read_config(tmp_path)) == OTHER
    write_config(tmp_path, configured(config, ON_CUDA))
    assert configuration_of("fp32", read_config(tmp_path)) == ON_CUDA
    assert configuration_of("fp32", config) == Configuration("fp32", "onnxruntime", 1, 2, 64, 0, 0, 2)


def test_a_search_writes_report_trials_and_a_config_that_serves_and_is_resumed(repository, tmp_path, capfd):
    options = arguments(repository, tmp_path, "--objective", "throughput", "--apply")
    assert tune.main([*options, "--budget-seconds", "4"]) == 0
    folder = tmp_path / "tune" / "intent" / "throughput"
    trials = json.loads((folder / "trials.json").read_text())
    assert trials[0]["configuration"] | {"variant": ""} == asdict(Configuration("", "onnxruntime", 1, 2, 64, 0, 0, 2))
    assert len(trials) >= 2
    report = (folder / "report.md").read_text()
    assert "## Finals: measured in turn, medians of the rounds" in report
    assert report.count("**winner**") == 1
    for variant in ("fp32", "int8"):
        text_format.Parse((repository / f"intent-{variant}" / "config.pbtxt").read_text(), triton.ModelConfig())
    # What was applied is the configuration in the repository now, and is measured first.
    assert tune.main([*options, "--budget-seconds", "0"]) == 0
    assert f"intent: goes on from {len(trials) - 1} trials of an earlier run" in capfd.readouterr().out
    again = json.loads((folder / "trials.json").read_text())
    assert [trial["configuration"] for trial in again[1:]] == [trial["configuration"] for trial in trials[1:]]


def test_a_target_that_nothing_meets_says_what_comes_nearest(repository, tmp_path, capfd):
    options = arguments(repository, tmp_path, "--latency-ms", "0.001", "--budget-seconds", "0", "--apply")
    before = (repository / "intent-fp32" / "config.pbtxt").read_bytes()
    assert tune.main(options) == 3
    message = capfd.readouterr().err.splitlines()[-1]
    assert message.startswith("millis tune: no configuration of intent answers a lone caller within 0.001 ms (p99); ")
    assert "the nearest takes " in message
    assert (repository / "intent-fp32" / "config.pbtxt").read_bytes() == before


def test_a_quality_that_no_variant_has_is_refused_before_anything_starts(repository, tmp_path, capsys):
    assert tune.main(arguments(repository, tmp_path, "--min-quality", "0.9")) == 3
    assert capsys.readouterr().err == (
        "millis tune: no variant of intent was measured at 0.9 or better; the nearest is fp32 with 0\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_model_is_named_with_those_there_are(repository, tmp_path, capsys):
    assert tune.main(["weather", "--repository", str(repository), "--state-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"millis tune: model repository {repository} has no model 'weather'; models are: intent\n"
    )


def test_ctrl_c_keeps_what_was_measured_and_leaves_no_triton(repository, tmp_path):
    command = [sys.executable, "-m", "millis.cli", "tune", *arguments(repository, tmp_path, "--budget-seconds", "600")]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        command, env={**os.environ, "TMPDIR": str(scratch)}, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    study = tmp_path / "tune" / "intent" / "latency" / "study.db"
    ends = time.monotonic() + PATIENCE_SECONDS
    while not (study.is_file() and finished(study)):
        assert time.monotonic() < ends and process.poll() is None, "no trial was finished in time"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, errors
    trials = json.loads((study.parent / "trials.json").read_text())
    assert errors.splitlines()[-1] == (
        f"millis tune: interrupted; {len(trials)} trials are kept in {study.parent}, "
        "and the same command goes on from there"
    )
    assert list(scratch.glob("millis-*")) == []
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(scratch).encode() in command_line(path)]


def finished(study: Path) -> bool:
    with sqlite3.connect(study) as database:
        try:
            (count,) = database.execute("select count(*) from trials where state = 'COMPLETE'").fetchone()
        except sqlite3.OperationalError:  # its tables are being made
            return False
    return bool(count)


def command_line(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_an_interrupted_trial_is_not_taken_for_a_finished_one(tmp_path):
    space = search_space(["fp32", "int8"])
    target = Target("latency")
    first = Search(tmp_path / "study.db", "intent", space, target, OTHER)
    kept = first.tell(first.propose(), Measured(2.0, 3.0, 100.0, 20.0))
    broken = first.tell(first.propose(), None, "it does not load")
    assert first.propose() is not None
    again = Search(tmp_path / "study.db", "intent", space, target, OTHER)
    assert again.trials() == [kept, broken]
    assert again.propose() not in (kept.configuration, broken.configuration, None)


def test_a_search_begins_with_one_change_at_a_time(tmp_path):
    now = Configuration("fp32", "onnxruntime", 1, 2, 64, 0, 0, 2)
    space = {**search_space(["fp32", "int8"]), "threads": (1, 2), "workers": (1, 2), "lanes": (1, 2)}
    search = Search(tmp_path / "study.db", "intent", space, Target("latency"), now)
    proposed = []
    for _ in range(4):
        proposed.append(search.propose())
        search.tell(proposed[-1], Measured(1.0, 1.0, 10.0, 1.0))
    changes = [{"threads": 2, "workers": 1}, {"variant": "int8"}, {"engine": "openvino"}, {"threads": 2}]
    assert proposed == [replace(now, **change) for change in changes]


def test_an_engine_that_fails_a_variant_twice_is_not_tried_with_it_again(tmp_path):
    space = {**search_space(["fp32", "int8"]), "max_batch": (8,), "preferred_batch": (0,), "delay_us": (0,)}
    search = Search(tmp_path / "study.db", "intent", space, Target("latency"), OTHER)
    failures = 0
    for _ in range(12):
        configuration = search.propose()
        broken = (configuration.variant, configuration.engine) == ("int8", "openvino")
        failures += broken
        search.tell(configuration, None if broken else Measured(1.0, 1.0, 10.0, 1.0), "wrong" if broken else "")
    assert failures <= 2
    assert sum(trial.measured is None for trial in search.trials()) == failures


def test_cuda_is_searched_where_onnx_runtime_has_it(monkeypatch):
    assert search_space(["fp32"])["device"] == ("cpu",)
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: providers)
    assert search_space(["fp32"])["device"] == ("cpu", "cuda")


def test_a_device_that_cannot_be_used_is_left_after_two_failures_and_the_search_goes_on(tmp_path, monkeypatch):
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: providers)
    monkeypatch.setattr("millis_pipeline.search.MAX_REPEATS", 2)
    space = {**search_space(["fp32"]), "max_batch": (8,), "preferred_batch": (0,), "delay_us": (0,), "lanes": (1, 2)}
    space |= {"threads": (1, 2), "workers": (1, 2)}
    search = Search(tmp_path / "study.db", "intent", space, Target("latency"), OTHER)
    tried = []
    while (configuration := search.propose()) is not None:
        tried.append((configuration.engine, configuration.device))
        works = configuration.device == "cpu"
        search.tell(configuration, Measured(1.0, 1.0, 10.0, 1.0) if works else None, "" if works else "no CUDA")
    assert sorted(tried) == ([("onnxruntime", "cpu")] * 8 + [("onnxruntime", "cuda")] * 2 + [("openvino", "cpu")] * 8)


def test_a_variant_is_never_tried_with_an_engine_that_does_not_compute_in_its_precision(tmp_path, monkeypatch):
    monkeypatch.setattr("millis_pipeline.search.MAX_REPEATS", 2)
    space = {**search_space(["fp32", "bf16"]), "max_batch": (8,), "preferred_batch": (0,), "delay_us": (0,)}
    space |= {"threads": (1,), "workers": (1,), "lanes": (1, 2)}
    never = unable({"fp32": "f32", "bf16": "bf16"}, space["engine"])
    assert never == {("bf16", "onnxruntime")}
    search = Search(tmp_path / "study.db", "intent", space, Target("latency"), OTHER, never)
    tried = []
    while (configuration := search.propose()) is not None:
        tried.append((configuration.variant, configuration.engine))
        search.tell(configuration, Measured(1.0, 1.0, 10.0, 1.0))
    assert sorted(tried) == [("bf16", "openvino")] * 2 + [("fp32", "onnxruntime")] * 2 + [("fp32", "openvino")] * 2


def test_a_search_ends_when_everything_was_tried(tmp_path):
    space = {**search_space(["fp32"]), "engine": ("onnxruntime",), "threads": (1,), "workers": (1, 2)}
    space |= {"max_batch": (8,), "preferred_batch": (0,), "delay_us": (0,), "lanes": (1,)}
    search = Search(tmp_path / "study.db", "intent", space, Target("throughput"), OTHER)
    tried = 0
    while (configuration := search.propose()) is not None:
        search.tell(configuration, Measured(1.0, 1.0, 10.0, 1.0))
        tried += 1
    assert tried == 2


def test_a_search_whose_proposals_repeat_draws_what_was_not_tried(tmp_path, monkeypatch):
    space = {**search_space(["fp32"]), "engine": ("onnxruntime",), "threads": (1, 2), "workers": (1, 2)}
    space |= {"max_batch": (8,), "preferred_batch": (0, 4), "delay_us": (0,), "lanes": (1,)}
    now = Configuration("fp32", "onnxruntime", 1, 1, 8, 0, 0, 1)
    search = Search(tmp_path / "study.db", "intent", space, Target("latency"), now)
    monkeypatch.setattr("millis_pipeline.search.MAX_REPEATS", 3)
    # A sampler that has found what it takes for the best proposes nothing else.
    first = {name: values[0] for name, values in space.items()}
    monkeypatch.setattr(search._study.sampler, "sample_independent", lambda study, trial, name, _: first[name])
    tried = set()
    while (configuration := search.propose()) is not None:
        assert configuration not in tried
        tried.add(configuration)
        search.tell(configuration, Measured(1.0, 1.0, 10.0, 1.0))
    assert tried == {replace(now, threads=t, workers=w) for t, w in ((2, 1), (1, 2), (2, 2))}


@pytest.mark.parametrize("option", ["--callers=-3", "--rounds=-1", "--rounds=0"])
def test_counts_below_one_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        tune.main(["intent", option])
    name, value = option.split("=")
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"millis tune: error: argument {name}: must be a whole number of at least 1, got {value!r}"
    )


def test_trials_are_not_compared_across_an_edit_of_what_tune_does_not_vary(repository, tmp_path):
    def study(*edits: tuple[str, str], runs: Configuration | None = None) -> str:
        folder = tmp_path / "repository"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(repository, folder)
        config = read_config(folder / "intent-fp32")
        if runs is not None:
            config = configured(config, runs)
        for name, value in edits:
            config.parameters[name].string_value = value
        write_config(folder / "intent-fp32", config)
        return tune._study_name(tune.read_plan(tune.parser().parse_args(arguments(folder, tmp_path))))

    names = [study((name, "1")) for name in ("precision", "max_padding")]
    assert len({study(), *names}) == 3
    # What tune writes itself makes no other study.
    assert study(runs=OTHER) == study()


def trial(number: int, p50: float, p99: float, per_second: float) -> Trial:
    return Trial(number, OTHER, Measured(p50, p99, per_second, 10.0))


def test_among_equals_the_other_objective_decides_and_the_limit_comes_first():
    trials = [trial(1, 2.00, 3.0, 100), trial(2, 2.01, 3.0, 200), trial(3, 1.0, 9.0, 300), trial(4, 2.5, 3.0, 300)]
    names = [each.number for each in finalists([*trials, Trial(5, OTHER, None, "broken")], Target("latency", 4.0), 3)]
    assert names == [2, 1, 4]
    assert [each.number for each in finalists(trials, Target("throughput"), 2)] == [3, 4]
    assert [each.number for each in finalists(trials, Target("latency", 0.5), 2)] == [1, 2]


def test_a_new_version_keeps_the_tuned_config(repository, tmp_path):
    variant = tmp_path / "repository" / "intent-fp32"
    shutil.copytree(repository / "intent-fp32", variant)
    write_config(variant, configured(read_config(variant), OTHER))
    with staging(tmp_path / "repository") as stage:
        shutil.copytree(variant / "1", stage / "intent-fp32")
        assert publish(variant.parent, [(stage / "intent-fp32", read_manifest(variant / "1"))])[0] == {
            "intent-fp32": "2"
        }
    assert configuration_of("fp32", read_config(variant)) == OTHER
