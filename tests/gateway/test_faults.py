"""Faults of the real parts: killed processes, taken ports, wrong settings. Nothing is left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import millis
from benchmarks.gateway import children, running_gateway
from millis_server.gateway import DEATHS_SECONDS, MAX_DEATHS
from tests.conftest import Published

PATIENCE_SECONDS = 60
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # where Triton keeps what it shares with its processes


@pytest.fixture(scope="module")
def repository(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.intent_alone(tmp_path_factory.mktemp("faults") / "repository")


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.05)


def tritons(gateway: int) -> list[int]:
    return [child for child in children(gateway) if b"tritonserver" in command(child)]


def triton_process(gateway: int) -> int:
    (found,) = tritons(gateway)
    return found


def command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def family(gateway: int) -> list[int]:
    """Triton and its models' processes."""
    triton = triton_process(gateway)
    return [triton, *children(triton)]


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def answers(client: millis.Client) -> bool:
    try:
        return client.classify("order", model="intent", variant="int8", timeout=5).label is not None
    except millis.StatusError as error:
        assert isinstance(error, millis.UnavailableError | millis.DeadlineExceededError), error
        return False


def test_a_killed_model_process_is_started_again_and_the_other_variant_answers_meanwhile(repository):
    with running_gateway(repository) as gateway, millis.Client(gateway.target) as client:
        triton = triton_process(gateway.process.pid)
        (stub,) = [child for child in children(triton) if b"intent-int8" in command(child)]
        os.kill(stub, signal.SIGKILL)
        until(lambda: not is_alive(stub))
        until(lambda: answers(client))
        (variant,) = [v for v in client.models.get("intent").variants if v.name == "int8"]
        assert (variant.state, variant.version) == ("ready", "1")


def test_a_killed_triton_is_started_again(repository):
    with running_gateway(repository) as gateway, millis.Client(gateway.target) as client:
        assert answers(client)
        triton = triton_process(gateway.process.pid)
        time.sleep(0.1)
        os.kill(triton, signal.SIGKILL)
        until(lambda: not is_alive(triton))
        until(lambda: answers(client))


def test_a_triton_that_is_killed_again_while_its_models_load_is_started_once_more(repository):
    with running_gateway(repository) as gateway, millis.Client(gateway.target) as client:
        first = triton_process(gateway.process.pid)
        os.kill(first, signal.SIGKILL)
        until(lambda: set(tritons(gateway.process.pid)) - {first} != set())
        (second,) = set(tritons(gateway.process.pid)) - {first}
        until(lambda: children(second) != [])  # it is loading
        os.kill(second, signal.SIGKILL)
        until(lambda: not is_alive(second))
        until(lambda: answers(client))


def test_a_triton_that_dies_again_and_again_ends_the_gateway(repository):
    with running_gateway(repository) as gateway:
        killed: list[int] = []
        while len(killed) < MAX_DEATHS:
            until(lambda: set(tritons(gateway.process.pid)) - set(killed) != set())
            (living,) = set(tritons(gateway.process.pid)) - set(killed)
            os.kill(living, signal.SIGKILL)
            killed.append(living)
        _, errors = gateway.process.communicate(timeout=PATIENCE_SECONDS)
        assert gateway.process.returncode == 1
    head, words, *_ = errors[errors.index("millis serve: ") :].splitlines()
    assert head == f"millis serve: Triton died {MAX_DEATHS} times in {DEATHS_SECONDS} s; the last time:"
    assert re.fullmatch(r"Triton ended with exit code -9; the end of /\S+/triton/triton\.log:", words)
    assert "Traceback" not in errors
    assert [process for process in killed if is_alive(process)] == []


def test_a_killed_gateway_leaves_no_process_behind(repository):
    with running_gateway(repository) as gateway:
        processes = family(gateway.process.pid)
        assert len(processes) == 3
        gateway.process.kill()
        until(lambda: not any(map(is_alive, processes)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_gateway_ends_well_and_leaves_nothing_behind(repository, number):
    with running_gateway(repository) as gateway:
        processes = family(gateway.process.pid)
        shared = f"millis-{gateway.process.pid}-"
        gateway.process.send_signal(number)
        assert gateway.process.wait(PATIENCE_SECONDS) == 0
    assert [process for process in processes if is_alive(process)] == []
    assert [path.name for path in SHARED_MEMORY.iterdir() if path.name.startswith(shared)] == []


def test_calls_under_way_are_answered_before_the_gateway_stops(repository):
    with running_gateway(repository) as gateway, millis.Client(gateway.target) as client:
        texts = ["order " * 40] * 1000
        results: list[object] = []
        caller = threading.Thread(target=lambda: results.append(client.classify(texts, model="intent")))
        caller.start()
        time.sleep(0.1)
        gateway.process.send_signal(signal.SIGTERM)
        caller.join()
        assert [len(result) for result in results] == [1000]


def serve(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "millis.cli", "serve", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)


def test_a_port_in_use_is_one_clear_line(repository, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = serve("--model-repository", str(repository), "--port", str(port), "--state-dir", str(tmp_path))
    assert ended.returncode == 1
    expected = f"millis serve: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    assert ended.stderr == expected


def test_a_missing_repository_is_one_clear_line(tmp_path):
    ended = serve("--model-repository", str(tmp_path / "none"), "--port", "0", "--state-dir", str(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr == f"millis serve: model repository {tmp_path}/none: No such file or directory\n"


def test_a_state_folder_that_is_a_file_is_one_clear_line(repository, tmp_path):
    file = tmp_path / "state"
    file.write_text("")
    options = ("--model-repository", str(repository), "--port", "0", "--metrics-port", "0", "--state-dir", str(file))
    ended = serve(*options)
    assert ended.returncode == 1
    expected = f"--state-dir (MILLIS_STATE_DIR) {file} cannot be written: Not a directory"
    assert ended.stderr == f"millis serve: {expected}\n"


def test_an_empty_repository_is_one_clear_line(tmp_path):
    ended = serve("--model-repository", str(tmp_path), "--port", "0", "--state-dir", str(tmp_path))
    assert ended.returncode == 1
    expected = f"model repository {tmp_path} holds no model; publish one with `millis build`"
    assert ended.stderr == f"millis serve: {expected}\n"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--port", "70000", "--port (MILLIS_PORT): Input should be less than or equal to 65535"),
        ("--triton-url", "127.0.0.1:abc", "Value error, triton_url must be host:port with a port of 1 to 65535, not"),
        ("--max-inputs", "many", "--max-inputs (MILLIS_MAX_INPUTS): Input should be a valid integer, unable to parse"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(option, value, message):
    ended = serve(option, value)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"millis serve: {message}")
    assert ended.stderr.count("\n") == 1


def test_no_good_version_at_all_is_one_clear_line(repository, tmp_path):
    broken = tmp_path / "repository"
    shutil.copytree(repository, broken)
    for variant in ("intent-fp32", "intent-int8"):
        (broken / variant / "1" / "model.onnx").write_bytes(b"no graph")
    ended = serve("--model-repository", str(broken), "--port", "0", "--state-dir", str(tmp_path / "state"))
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("millis serve: no model could be brought into service: ")
    assert "SHA-256" in last


def test_no_manifest_that_can_be_read_is_one_clear_line(repository, tmp_path):
    broken = tmp_path / "repository"
    shutil.copytree(repository / "intent-int8", broken / "intent-int8")
    manifest = broken / "intent-int8" / "1" / "manifest.json"
    manifest.write_text("{}")
    state = ("--metrics-port", "0", "--state-dir", str(tmp_path / "state"))
    ended = serve("--model-repository", str(broken), "--port", "0", *state)
    assert ended.returncode == 1
    expected = f"no model could be brought into service: intent-int8: {manifest}: model: Field required"
    assert ended.stderr.splitlines()[-1] == f"millis serve: {expected}"


def test_no_version_that_loads_in_time_is_one_clear_line(repository, tmp_path):
    state = ("--metrics-port", "0", "--state-dir", str(tmp_path / "state"))
    patience = ("--load-timeout-seconds", "0.001")
    ended = serve("--model-repository", str(repository), "--port", "0", *state, *patience)
    assert ended.returncode == 1
    late = "version 1 is not loaded yet: Triton does not answer: no answer within 0.001 s"
    expected = f"no model could be brought into service: intent-fp32: {late}; intent-int8: {late}"
    assert ended.stderr.splitlines()[-1] == f"millis serve: {expected}"


def test_a_gateway_attaches_to_a_triton_that_runs_already(repository):
    with running_gateway(repository) as first:
        attach = ("--triton-url", first.triton)
        with running_gateway(repository, *attach) as second, millis.Client(second.target) as client:
            assert second.triton == ""
            assert answers(client)
        with millis.Client(first.target) as client:
            assert answers(client)


def test_more_than_the_gateway_admits_is_refused_and_the_rest_served(repository):
    limits = ("--max-inputs", "100", "--max-pending-inputs", "100")
    with running_gateway(repository, *limits) as gateway, millis.Client(gateway.target) as client:
        outcomes: list[str] = []

        def ask() -> None:
            try:
                client.classify(["order " * 50] * 100, model="intent")
                outcomes.append("served")
            except millis.ResourceExhaustedError as error:
                assert (error.reason, error.retry_after) == ("OVERLOADED", 0.1)
                outcomes.append("refused")

        callers = [threading.Thread(target=ask) for _ in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert set(outcomes) == {"served", "refused"}
        assert answers(client)
