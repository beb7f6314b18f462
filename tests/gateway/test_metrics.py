"""What an operator reads at /metrics."""

from __future__ import annotations

import os
import signal
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import millis
from benchmarks.gateway import Running, children, running_gateway
from millis_server.catalogue import State
from tests.conftest import Published
from tests.gateway.test_faults import command, serve, triton_process
from tests.gateway.test_reload import until

Samples = dict[tuple[str, ...], float]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def scrape(port: int) -> Samples:
    """Every sample, by its name and the values of its labels in the order of their names."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        families = text_string_to_metric_families(response.read().decode())
        return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def gateway(published: Published, port: int) -> Iterator[Running]:
    with running_gateway(published.repository, "--metrics-port", str(port)) as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: Running) -> Iterator[millis.Client]:
    with millis.Client(gateway.target) as connected:
        yield connected


def calls(port: int, rpc: str) -> dict[tuple[str, ...], float]:
    """Calls of an RPC by code, model and variant."""
    samples = [(key, value) for key, value in scrape(port).items() if key[0] == "millis_requests_total"]
    return {(code, model, variant): value for (_, code, model, name, variant), value in samples if name == rpc}


def test_every_call_is_counted_once_by_model_variant_and_code(client, port):
    for _ in range(3):
        client.classify("fox", model="intent", variant="int8")
    client.classify(["fox", "dog"], model="intent", variant="fp32")
    for texts in ("", "fox"):
        with pytest.raises(millis.MillisError):
            client.classify(texts, model="intent", variant="none" if texts else None)
    assert calls(port, "ClassifyText") == {
        ("OK", "intent", "int8"): 3,
        ("OK", "intent", "fp32"): 1,
        ("INVALID_ARGUMENT", "intent", ""): 1,
        ("NOT_FOUND", "intent", ""): 1,
    }
    samples = scrape(port)
    for name in ("millis_queue_seconds", "millis_infer_seconds"):
        assert samples[f"{name}_count", "intent", "int8"] == 3
    assert samples["millis_request_seconds_count", "intent", "ClassifyText", "int8"] == 3
    assert samples["millis_request_seconds_bucket", "+Inf", "intent", "ClassifyText", "int8"] == 3
    assert 0 < samples["millis_request_seconds_sum", "intent", "ClassifyText", "int8"] < 30


def test_the_name_of_an_unknown_model_becomes_no_series(client, port):
    for number in range(3):
        with pytest.raises(millis.NotFoundError):
            client.embed("fox", model=f"unknown-{number}")
    assert calls(port, "EmbedText") == {("NOT_FOUND", "", ""): 3}


def test_a_deadline_and_a_caller_who_left_are_told_apart(client, gateway, port):
    (stub,) = [process for process in children(triton_process(gateway.process.pid)) if b"ner-int8" in command(process)]
    os.kill(stub, signal.SIGSTOP)
    try:
        with pytest.raises(millis.DeadlineExceededError):
            client.tag("Angela Merkel met Tim Cook in Paris", model="ner", variant="int8", timeout=0.8)
    finally:
        os.kill(stub, signal.SIGCONT)
    until(lambda: calls(port, "ClassifyTokens") == {("DEADLINE_EXCEEDED", "ner", ""): 1})
    changes = client.models.watch("ner")
    next(iter(changes))
    changes.close()
    until(lambda: calls(port, "WatchModels") == {("CANCELLED", "", ""): 1})


def test_what_the_gateway_holds_is_read_off(client, port):
    samples = scrape(port)
    states = {key[1:]: value for key, value in samples.items() if key[0] == "millis_model_state"}
    assert {key: value for key, value in states.items() if value} == {
        (model, "ready", variant, "1"): 1.0
        for model in ("embed", "intent", "ner", "rerank", "topics")
        for variant in ("fp32", "int8")
    }
    assert len(states) == 10 * len(State)
    assert samples["millis_pending_inputs",] == 0
    assert samples["millis_cache_max_bytes",] == 0
    assert samples["process_resident_memory_bytes",] > 0


def test_a_metrics_port_in_use_is_one_clear_line(published, tmp_path):
    repository: Path = published.repository
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        options = ("--model-repository", str(repository), "--state-dir", str(tmp_path), "--port", "0")
        ended = serve(*options, "--metrics-port", port)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"millis serve: cannot serve metrics on 127.0.0.1:{port}: Address already in use; "
        "--metrics-port (MILLIS_METRICS_PORT) takes another port, or 0 for none\n"
    )
