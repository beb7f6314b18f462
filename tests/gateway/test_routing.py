"""Routing on a real Triton. Load is made by stopping the process of one variant: what it has stays under way.

The profiles in the manifests are slower than the tiny models are, so that the choice does not depend on the machine.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from benchmarks.gateway import Running, children, running_gateway
from millis.errors import from_rpc_error
from millis.v1 import inference_pb2, inference_pb2_grpc, types_pb2
from millis_pipeline.publish import CONFIG_FILE, triton_config, write_version
from millis_server.manifest import LatencyPoint, LatencyProfile, Quality, read_manifest
from tests.conftest import Published
from tests.gateway.test_faults import command, triton_process

FAMILY = {"best": (0.95, 400.0), "good": (0.92, 200.0), "light": (0.80, 10.0)}
"""Quality and milliseconds for a text of 16 tokens, as the manifests tell them."""

TEXT = "where is my order it should have come by now ok"
"""As long as the estimate of characters for 16 tokens."""

SOON = 0.9
"""A deadline in seconds: near enough to ask for the best answer in time, far enough for a slow machine."""


def publish_family(published: Published, repository: Path) -> None:
    for name, (quality, milliseconds) in FAMILY.items():
        manifest = read_manifest(published.repository / "intent-fp32" / "1")
        points = (LatencyPoint(batch=1, tokens=16, p50_ms=milliseconds, p99_ms=milliseconds),)
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


@dataclass
class Subject:
    gateway: Running
    stub: inference_pb2_grpc.InferenceServiceStub

    def ask(self, *, texts: int = 1, timeout: float | None = None, **slo: object) -> grpc.Future:
        options = types_pb2.RequestOptions(slo=types_pb2.Slo(**slo))
        request = inference_pb2.ClassifyTextRequest(model="intent", texts=[TEXT] * texts, options=options)
        return self.stub.ClassifyText.future(request, timeout=timeout)

    def answer(self, **wishes: object) -> tuple[str, bool]:
        served_by = self.ask(**wishes).result().info.served_by
        return served_by.variant, served_by.degraded

    def refusal(self, **wishes: object) -> tuple[grpc.StatusCode, str, bool]:
        """Status, reason, and whether a delay of less than a second is stated."""
        error = from_rpc_error(self.ask(**wishes).exception(), "", None)
        assert error.details.retry_after is not None
        return error.code, error.details.reason, 0 < error.details.retry_after < 1

    @contextmanager
    def held(self, texts: int) -> Iterator[None]:
        """Calls of one text each that the best variant does not get done for the length of a `with` block."""
        triton = triton_process(self.gateway.process.pid)
        (process,) = [child for child in children(triton) if b"intent-best" in command(child)]
        os.kill(process, signal.SIGSTOP)
        try:
            calls = [self.ask(pin_variant="best") for _ in range(texts)]
            yield
        finally:
            os.kill(process, signal.SIGCONT)
        assert {call.result().info.served_by.variant for call in calls} == {"best"}

    def rows_run(self, variant: str) -> int:
        """Texts that Triton has run for a variant."""
        connection = http.client.HTTPConnection(self.gateway.triton)
        connection.request("GET", f"/v2/models/intent-{variant}/versions/1/stats")
        (stats,) = json.loads(connection.getresponse().read())["model_stats"]
        connection.close()
        return int(stats["inference_count"])


@pytest.fixture
def subject(published: Published, tmp_path: Path) -> Iterator[Subject]:
    """A gateway of its own for each test: what one teaches the predictor is nothing to the next."""
    publish_family(published, tmp_path / "repository")
    with running_gateway(tmp_path / "repository") as gateway, grpc.insecure_channel(gateway.target) as channel:
        yield Subject(gateway, inference_pb2_grpc.InferenceServiceStub(channel))


UNREACHABLE = (grpc.StatusCode.RESOURCE_EXHAUSTED, "DEADLINE_UNREACHABLE", True)


def test_under_load_lighter_variants_answer_before_a_call_is_refused(subject):
    assert subject.answer(timeout=SOON) == ("best", False)
    with subject.held(2):
        assert subject.answer(timeout=SOON) == ("good", True)
    with subject.held(3):
        assert subject.answer(timeout=SOON) == ("light", True)
        assert subject.refusal(timeout=SOON, min_quality=0.92) == UNREACHABLE
        assert subject.answer(timeout=SOON, pin_variant="light") == ("light", False)
        assert subject.refusal(timeout=SOON, pin_variant="best") == UNREACHABLE
        assert subject.answer() == ("good", False)
        assert subject.answer(latency_target={"nanos": 1_000_000}, min_quality=0.92) == ("good", False)
    with subject.held(8):
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
    assert [call.result().info.served_by.variant for call in staying] == ["best"] * 3
    assert subject.rows_run("best") - before == 2 + 15
