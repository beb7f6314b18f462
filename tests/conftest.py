"""What the whole test session shares: tiny published models, and one gateway with its own Triton that serves them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import millis
from benchmarks.gateway import Running, running_gateway


@dataclass(frozen=True)
class Published:
    """Tiny models in a model repository, with the checkpoints that they were built from."""

    repository: Path
    checkpoints: Path

    def intent_alone(self, folder: Path) -> Path:
        """Copies the model `intent` into a repository of its own, to be changed there."""
        for variant in ("intent-fp32", "intent-int8"):
            shutil.copytree(self.repository / variant, folder / variant)
        return folder


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """`intent` (single-label), `topics` (multi-label), `ner`, `embed` and `rerank`, built by `millis build`."""
    # Imported here: tests of the SDK alone must not wait for torch.
    from tests import tiny
    from tests.publishing import publish_all

    checkpoints = tmp_path_factory.mktemp("checkpoints")
    repository = tmp_path_factory.mktemp("models") / "repository"
    folders = [
        tiny.text_classifier(checkpoints / "intent"),
        tiny.text_classifier(checkpoints / "topics", tiny.TOPICS, seed=2, multi_label=True),
        tiny.token_classifier(checkpoints / "ner"),
        tiny.sentence_model(checkpoints / "embed"),
        tiny.cross_encoder(checkpoints / "rerank"),
    ]
    options = ["--repository", str(repository), "--reports", str(repository.parent / "reports"), "--jobs", "1"]
    assert publish_all(*map(str, folders), *options) == 0
    return Published(repository, checkpoints)


@pytest.fixture(scope="session")
def compiled(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`intent` in fp32, compiled for PyTorch."""
    from millis_pipeline.aot import compile_torch
    from millis_pipeline.checkpoint import load

    path = tmp_path_factory.mktemp("compiled") / "model.pt2"
    compile_torch(load("intent", published.checkpoints / "intent"), path)
    return path


@pytest.fixture(scope="session")
def gateway(published: Published) -> Iterator[Running]:
    """A gateway that serves the published models; tests leave its models as they find them."""
    with running_gateway(published.repository, "--repository-poll-seconds", "0.2") as running:
        yield running


@pytest.fixture(scope="session")
def client(gateway: Running) -> Iterator[millis.Client]:
    """The SDK, connected to the session's gateway."""
    with millis.Client(gateway.target) as connected:
        yield connected
