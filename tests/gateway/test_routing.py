"""Routing on a real Triton, behind a relay that holds the requests for one variant: what it has stays under way.

The profiles in the manifests are much slower than the tiny models are, which the gateway sees when it loads them and
believes to a quarter: so the choice does not depend on the machine.
"""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from benchmarks.gateway import running_gateway
from millis.errors import from_rpc_error
from millis.v1 import inference_pb2, inference_pb2_grpc, types_pb2
from millis_pipeline.publish import triton_config, write_version
from millis_server.manifest import LatencyPoint, LatencyProfile, Quality
from millis_server.manifest_files import read_manifest
from millis_server.pace import LARGEST_FACTOR
from millis_server.repository import CONFIG_FILE
from tests.conftest import Published
from tests.gateway.test_reload import until

LANES = 2
"""Requests under way at once for a variant, the gateway's default."""

FAMILY = {"best": (0.95, 540.0), "good": (0.92, 270.0), "light": (0.80, 8.0)}
"""Quality and milliseconds for a text of 16 tokens, as the gateway counts with them; what is promised is a third
longer."""

TEXT = "where is my order it should have come by now ok"
"""As long as the estimate of characters for 16 tokens."""

SOON = 0.9
"""A deadline in seconds: near enough to ask for the best answer in time, far enough for a slow machine."""


def publish_family(published: Published, repository: Path) -> None:
    for name, (quality, milliseconds) in FAMILY.items():
        manifest = read_manifest(published.repository / "intent-fp32" / "1")
        told = LARGEST_FACTOR * milliseconds
        points = (LatencyPoint(batch=1, tokens=16, p50_ms=told, p99_ms=told),)
        described = manifest.model_copy(
            update={
                "variant": name,
                "default_variant": name == "good",
                "quality": Quality(metric="accuracy", value=quality, low=0, high=1, examples=100, dataset="d"),
                "latency": LatencyProfile(machine="m", engine="e", threads=1, points=points),
            }
        )
        folder = repository / described.triton_model
        shutil.copytree(published.repository / "intent-fp32", folder)
        (folder / CONFIG_FILE).write_text(triton_config(described))
        write_version(folder / "1", described)


class Relay(socketserver.ThreadingTCPServer):
    """Stands between gateway and Triton, and can hold what is for the best variant."""

    def __init__(self, triton: str) -> None:
        super().__init__(("127.0.0.1", 0), _Relayed)
        self.triton = ("127.0.0.1", int(triton.rpartition(":")[2]))
        self.open = threading.Event()
        self.open.set()
        self.holding = 0
        """Requests that are held now."""


class _Relayed(socketserver.BaseRequestHandler):
    server: Relay

    def handle(self) -> None:
        with socket.create_connection(self.server.triton) as upstream:
            threading.Thread(target=_copy, args=(upstream, self.request), daemon=True).start()
            with suppress(OSError):
                while data := self.request.recv(65536):
                    if b"/intent-best/" in data:
                        self.server.holding += 1
                        self.server.open.wait()
                        self.server.holding -= 1
                    upstream.sendall(data)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)


@dataclass
class Subject:
    relay: Relay
    stub: inference_pb2_grpc.InferenceServiceStub

    def ask(self, *, texts: int = 1, timeout: float | None = None, **slo: object) -> grpc.Future:
        options = types_pb2.RequestOptions(slo=types_pb2.Slo(**slo))
        request = inference_pb2.ClassifyTextRequest(model="intent", texts=[TEXT] * texts, options=options)
        return self.stub.ClassifyText.future(request, timeout=timeout)

    def answer(self, **wishes: object) -> tuple[str, bool]:
        served_by = self.ask(**wishes).result().info.served_by
        return served_by.variant, served_by.degraded

    def refusal(self, **wishes: object) -> tuple[grpc.StatusCode, str, bool]:
        """Status, reason, and whether a delay of a few seconds is stated."""
        error = from_rpc_error(self.ask(**wishes).exception(), "", None)
        assert error.details.retry_after is not None
        return error.code, error.details.reason, 0 < error.details.retry_after < 3

    @contextmanager
    def held(self, texts: int) -> Iterator[None]:
        """Calls of one text each that the best variant does not get done for the length of a `with` block."""
        self.relay.open.clear()
        try:
            calls = [self.ask(pin_variant="best") for _ in range(texts)]
            until(lambda: self.relay.holding == min(texts, LANES))
            yield
        finally:
            self.relay.open.set()
        assert {call.result().info.served_by.variant for call in calls} == {"best"}

    def rows_run(self, variant: str) -> int:
        """Texts that Triton has run for a variant, which it counts some time after it has answered."""
        seen = -1
        while seen != (seen := self._rows_counted(variant)):
            time.sleep(0.3)
        return seen

    def _rows_counted(self, variant: str) -> int:
        connection = http.client.HTTPConnection(*self.relay.triton)
        connection.request("GET", f"/v2/models/intent-{variant}/versions/1/stats")
        (stats,) = json.loads(connection.getresponse().read())["model_stats"]
        connection.close()
        return int(stats["inference_count"])


@pytest.fixture(scope="module")
def triton(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A repository with the family, and the address of a Triton that has it loaded."""
    repository = tmp_path_factory.mktemp("family") / "repository"
    publish_family(published, repository)
    with running_gateway(repository) as gateway:
        yield repository, gateway.triton


@pytest.fixture
def subject(triton: tuple[Path, str]) -> Iterator[Subject]:
    """A gateway of its own for each test: what one teaches the predictor is nothing to the next."""
    repository, address = triton
    with Relay(address) as relay:
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        attach = ("--triton-url", f"127.0.0.1:{relay.server_address[1]}")
        with running_gateway(repository, *attach) as gateway, grpc.insecure_channel(gateway.target) as channel:
            yield Subject(relay, inference_pb2_grpc.InferenceServiceStub(channel))
        relay.shutdown()


UNREACHABLE = (grpc.StatusCode.RESOURCE_EXHAUSTED, "DEADLINE_UNREACHABLE", True)


def test_under_load_lighter_variants_answer_before_a_call_is_refused(subject):
    assert subject.answer(timeout=SOON) == ("best", False)
    with subject.held(1):
        assert subject.answer(timeout=SOON) == ("good", True)
    with subject.held(2):
        assert subject.refusal(timeout=SOON, min_quality=0.92) == UNREACHABLE
        assert subject.refusal(timeout=SOON, pin_variant="best") == UNREACHABLE
        assert subject.answer(timeout=SOON) == ("light", True)
        assert subject.answer(timeout=SOON, pin_variant="light") == ("light", False)
        assert subject.answer() == ("good", False)
        assert subject.answer(latency_target={"nanos": 1_000_000}, min_quality=0.92) == ("good", False)
    with subject.held(6):
        assert subject.refusal(timeout=SOON) == UNREACHABLE


def test_work_for_callers_who_left_or_whose_deadline_passed_never_reaches_triton(subject):
    before = subject.rows_run("best")
    with subject.held(2):
        expired = subject.ask(pin_variant="best", timeout=1.5)
        assert expired.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        leaving = [subject.ask(texts=5, pin_variant="best") for _ in range(3)]
        staying = [subject.ask(texts=5, pin_variant="best", timeout=60.0) for _ in range(3)]
        for call in leaving:
            call.cancel()
        time.sleep(1)  # The gateway hears of it over the network, and must have when the model is free again.
    assert [call.result().info.served_by.variant for call in staying] == ["best"] * 3
    assert subject.rows_run("best") - before == 2 + 15
