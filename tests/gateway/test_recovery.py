"""A variant whose process died and whose version cannot be loaded any more: it holds up nothing, and can be helped."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import millis
from benchmarks.gateway import Running, children, running_gateway
from tests.conftest import Published
from tests.gateway.test_faults import command, is_alive, triton_process

PATIENCE_SECONDS = 30


@pytest.fixture(scope="module")
def repository(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.intent_alone(tmp_path_factory.mktemp("recovery") / "repository")


@pytest.fixture(scope="module")
def gateway(repository: Path) -> Iterator[Running]:
    with running_gateway(repository, "--repository-poll-seconds", "0.1") as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: Running) -> Iterator[millis.Client]:
    with millis.Client(gateway.target) as connected:
        yield connected


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.05)


def standing(client: millis.Client) -> dict[str, tuple[str, str]]:
    """State and version of each variant."""
    return {variant.name: (variant.state, variant.version) for variant in client.models.get("intent").variants}


def publish(good: Path, folder: Path, version: str) -> None:
    staged = folder.parent / f".staging-{folder.name}"
    shutil.copytree(good, staged)
    staged.rename(folder / version)


def lose(gateway: Running, client: millis.Client, repository: Path, version: str) -> None:
    """Damages a version of int8 and kills its process."""
    (repository / "intent-int8" / version / "model.onnx").write_bytes(b"no graph")
    stubs = [child for child in children(triton_process(gateway.process.pid)) if b"intent-int8" in command(child)]
    for stub in stubs:
        os.kill(stub, signal.SIGKILL)
    until(lambda: not any(map(is_alive, stubs)))
    with pytest.raises((millis.UnavailableError, millis.DeadlineExceededError)):  # the SDK tries again to the last
        client.classify("order", model="intent", variant="int8", timeout=2)
    until(lambda: "could not be started again yet" in reason(client))


def reason(client: millis.Client) -> str:
    (variant,) = [each for each in client.models.get("intent").variants if each.name == "int8"]
    return variant.reason


def test_a_variant_that_cannot_recover_holds_up_nothing_and_a_newer_version_heals_it(
    gateway, client, repository, published
):
    lose(gateway, client, repository, "1")
    with pytest.raises(millis.UnavailableError, match="intent-int8 is recovering: it could not be started again yet"):
        client.models.load("intent", timeout=20)
    publish(published.repository / "intent-fp32" / "1", repository / "intent-fp32", "2")
    until(lambda: standing(client) == {"fp32": ("ready", "2"), "int8": ("recovering", "1")})
    publish(published.repository / "intent-int8" / "1", repository / "intent-int8", "2")
    until(lambda: standing(client) == {"fp32": ("ready", "2"), "int8": ("ready", "2")})
    answer = client.classify("order", model="intent", variant="int8")
    assert answer.info.served_by.version == "2"


def test_a_variant_that_cannot_recover_is_gone_when_its_folder_is(gateway, client, repository):
    lose(gateway, client, repository, "2")
    shutil.rmtree(repository / "intent-int8")
    until(lambda: standing(client) == {"fp32": ("ready", "2")})
