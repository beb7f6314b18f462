"""`millis tune` on a tiny model and a real Triton: what it writes, how it resumes, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
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
    write_config,
)
from millis_pipeline.publish import publish, staging
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


def test_a_search_writes_trials_a_report_and_a_config_that_serves_and_another_target_goes_on_from_it(
    repository, tmp_path, capfd
):
    options = arguments(repository, tmp_path, "--apply", "--objective")
    assert tune.main([*options, "throughput", "--budget-seconds", "4"]) == 0
    folder = tmp_path / "tune" / "intent"
    trials = (folder / "trials.jsonl").read_text().splitlines()
    before = json.loads(trials[0])["configuration"]
    assert before | {"variant": ""} == asdict(Configuration("", "onnxruntime", 1, 2, 64, 0, 0, 2))
    assert len(trials) >= 2
    (path,) = folder.glob("*Z-throughput.md")
    report = path.read_text()
    assert f"{len(trials)} configurations tried, 0 of them in earlier runs; " in report
    assert "## Finals: measured in turn, medians of the rounds" in report
    assert report.count("**winner**") == 1
    for variant in ("fp32", "int8"):
        text_format.Parse((repository / f"intent-{variant}" / "config.pbtxt").read_text(), triton.ModelConfig())
    # What was applied is the configuration in the repository now, and is measured first.
    assert tune.main([*options, "latency", "--latency-ms", "1000", "--budget-seconds", "0"]) == 0
    assert f"intent: goes on from {len(trials) - 1} trials of earlier runs" in capfd.readouterr().out
    assert (folder / "trials.jsonl").read_text().splitlines()[:-1] == trials
    assert path.read_text() == report
    (path,) = folder.glob("*Z-latency-1000ms.md")
    assert f"{len(trials)} configurations tried, {len(trials) - 1} of them in earlier runs; " in path.read_text()


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


def test_ctrl_c_keeps_what_was_measured_for_any_target_and_leaves_no_triton(repository, tmp_path, capfd):
    command = [sys.executable, "-m", "millis.cli", "tune", *arguments(repository, tmp_path, "--budget-seconds", "600")]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        command, env={**os.environ, "TMPDIR": str(scratch)}, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    kept = tmp_path / "tune" / "intent" / "trials.jsonl"
    ends = time.monotonic() + PATIENCE_SECONDS
    while not (kept.is_file() and kept.read_text().count("\n") >= 2):
        assert time.monotonic() < ends and process.poll() is None, "no trial was finished in time"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, errors
    trials = kept.read_text().splitlines()
    assert errors.splitlines()[-1] == (
        f"millis tune: interrupted; {len(trials)} trials are kept in {kept}, and the same command goes on from there, "
        "or one with another target"
    )
    assert len(list(kept.parent.glob("*Z-latency.md"))) == 1
    assert list(scratch.glob("millis-*")) == []
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(scratch).encode() in command_line(path)]
    options = ["--objective", "latency", "--latency-ms", "0.001", "--budget-seconds", "0"]
    assert tune.main(arguments(repository, tmp_path, *options)) == 3
    assert f"intent: goes on from {len(trials) - 1} trials of earlier runs" in capfd.readouterr().out
    assert kept.read_text().splitlines()[:-1] == trials


def command_line(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("option", ["--callers=-3", "--rounds=-1", "--rounds=0"])
def test_counts_below_one_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        tune.main(["intent", option])
    name, value = option.split("=")
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"millis tune: error: argument {name}: must be a whole number of at least 1, got {value!r}"
    )


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
