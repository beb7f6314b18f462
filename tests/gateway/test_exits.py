"""A variant with early exits through the whole service: who leaves where is told and counted, alone and in a batch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import millis
from benchmarks.gateway import running_gateway
from millis_pipeline.checkpoint import load
from millis_pipeline.exits import ExitModel
from millis_pipeline.export import export_stages
from millis_pipeline.publish import triton_config, write_version
from millis_pipeline.run import CascadeRunner, tokenize
from millis_pipeline.tokenizer import write_tokenizer
from millis_pipeline.verify import evaluation_set, self_checks
from millis_server.manifest import Exit
from millis_server.manifest_files import read_manifest, sha256
from millis_server.repository import CONFIG_FILE
from millis_server.triton.backend.cascade import Stage
from millis_server.triton.backend.engine import EngineOptions, load_engine
from tests import tiny
from tests.conftest import Published
from tests.gateway.test_metrics import free_port, scrape

TEXTS = [*tiny.SENTENCES, "where", "the dog jumps over the fox", "Paris on Monday", "it rose last week"]


@dataclass(frozen=True)
class Expected:
    """What the exported graphs answer in this process.

    Attributes:
        labels: of each text.
        layers: that each went through.
        threshold: of the exit, far from the confidence of every text.
    """

    labels: list[str]
    layers: list[int]
    threshold: float


@pytest.fixture(scope="module")
def expected(published: Published, repository: Path) -> Expected:
    """Publishes `intent-exits` into the repository: some texts leave after its first layer."""
    checkpoint = load("intent", published.checkpoints / "intent")
    folder = repository / "intent-exits" / "1"
    folder.mkdir(parents=True)
    paths = export_stages(ExitModel(checkpoint.module, (1,), checkpoint).eval(), checkpoint, folder)
    tokenizer = write_tokenizer(checkpoint.tokenizer, folder / "tokenizer.json")
    rows = tokenize(tokenizer, TEXTS, checkpoint.max_tokens, 0)
    engines = [load_engine("onnxruntime", path, EngineOptions()) for path in paths]
    feeds = [rows.feeds([index], checkpoint.inputs) for index in range(len(TEXTS))]
    confidence = sorted(float(engines[0].run(feed)[1][0]) for feed in feeds)
    gaps = np.diff(confidence)[2:-2]
    threshold = confidence[2 + int(gaps.argmax())] + float(gaps.max()) / 2
    stages = [Stage(engines[0], 1, threshold), Stage(engines[1], 2)]
    labels, layers = [], []
    for feed in feeds:
        runner = CascadeRunner(stages)
        labels.append(checkpoint.labels[int(runner(feed)[0].argmax())])
        layers += list(runner.left)
    evaluation = evaluation_set(checkpoint, tokenizer, None, "")
    exits = (
        Exit(file=paths[0].name, layers=1, threshold=threshold, share=layers.count(1) / len(TEXTS)),
        Exit(file=paths[1].name, layers=2, share=layers.count(2) / len(TEXTS)),
    )
    manifest = read_manifest(published.repository / "intent-fp32" / "1").model_copy(
        update={
            "variant": "exits",
            "default_variant": False,
            "exits": exits,
            "files": {path.name: sha256(path) for path in (*paths, folder / "tokenizer.json")},
            "self_check": self_checks(checkpoint, evaluation, CascadeRunner(stages), [0, 1]),
        }
    )
    (folder.parent / CONFIG_FILE).write_text(triton_config(manifest))
    write_version(folder, manifest)
    return Expected(labels, layers, threshold)


@pytest.fixture(scope="module")
def repository(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exits") / "repository"
    shutil.copytree(published.repository / "intent-fp32", folder / "intent-fp32")
    return folder


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def client(repository: Path, expected: Expected, port: int) -> Iterator[millis.Client]:
    assert expected.layers
    options = ("--metrics-port", str(port), "--cache-bytes", "1000000")
    with running_gateway(repository, *options) as gateway, millis.Client(gateway.target) as connected:
        yield connected


def test_each_text_is_answered_where_it_is_confident_enough(client, expected) -> None:
    answers = [client.classify(text, model="intent", variant="exits", cache="bypass") for text in TEXTS]
    assert [answer.label for answer in answers] == expected.labels
    assert [answer.info.usage.layers for answer in answers] == expected.layers
    assert set(expected.layers) == {1, 2}


def test_a_batch_tells_the_layers_of_all_its_texts_together(client, expected) -> None:
    answers = client.classify(TEXTS, model="intent", variant="exits", cache="bypass")
    assert [answer.label for answer in answers] == expected.labels
    assert answers.info.usage.layers == sum(expected.layers)


def test_what_comes_from_the_cache_went_through_no_layer(client) -> None:
    asked = [client.classify("the lazy fox", model="intent", variant="exits") for _ in range(2)]
    assert [answer.info.cache for answer in asked] == ["miss", "hit"]
    assert asked[0].info.usage.layers > 0
    assert asked[1].info.usage.layers == 0
    assert asked[0].labels == asked[1].labels


def test_a_variant_without_exits_tells_no_layers(client) -> None:
    assert client.classify(TEXTS[0], model="intent", variant="fp32").info.usage.layers == 0


def test_a_model_says_where_its_variants_answer(client, expected) -> None:
    variants = {variant.name: variant for variant in client.models.get("intent").variants}
    assert variants["fp32"].exits == ()
    assert variants["exits"].exits == (
        millis.Exit(1, expected.threshold, expected.layers.count(1) / len(TEXTS)),
        millis.Exit(2, None, expected.layers.count(2) / len(TEXTS)),
    )


def test_exits_are_counted_by_layer(client, expected, port) -> None:
    def counted() -> dict[str, float]:
        return {
            key[1]: value for key, value in scrape(port).items() if key[0] == "millis_exits_total" and key[3] == "exits"
        }

    before = counted()
    client.classify(TEXTS, model="intent", variant="exits", cache="bypass")
    after = counted()
    assert {layers: after[layers] - before[layers] for layers in after} == {
        "1": expected.layers.count(1),
        "2": expected.layers.count(2),
    }
