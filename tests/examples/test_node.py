"""The example in Node.js, where there is Node.js, and runs where its packages are installed (`npm install`)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import grpc
import pytest

from millis.testing import FakeError, FakeGateway, classified
from millis.v1 import inference_pb2 as pb

EXAMPLE = Path(__file__).parents[2] / "examples" / "node" / "classify.mjs"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")
installed = pytest.mark.skipif(
    not (EXAMPLE.parent / "node_modules").is_dir(), reason="npm install was not run in examples/node"
)


def node(*arguments: str, target: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MILLIS_TARGET": target}
    command = [NODE or "", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)


def test_the_example_is_a_program() -> None:
    checked = node("--check", str(EXAMPLE))
    assert (checked.returncode, checked.stderr) == (0, "")


@installed
def test_the_example_prints_a_label_for_each_text() -> None:
    with FakeGateway() as gateway:
        gateway.script("ClassifyText", classified("refund", "order"))
        ended = node(str(EXAMPLE), "money back", "where is it", target=gateway.target)
        (request,) = gateway.requests
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == ["refund 1.00  money back", "order 1.00  where is it"]
    assert request.message == pb.ClassifyTextRequest(model="intent", texts=["money back", "where is it"])


@installed
def test_a_failure_of_the_example_is_one_line() -> None:
    with FakeGateway() as gateway:
        gateway.script("ClassifyText", FakeError(grpc.StatusCode.NOT_FOUND, "there is no model intent"))
        ended = node(str(EXAMPLE), target=gateway.target)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "NOT_FOUND: there is no model intent\n")
