"""A variant's config.pbtxt: which engine it names, what it pads, and how a change of it reaches a running gateway."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

import millis
from benchmarks.gateway import Running, children, running_gateway
from millis_pipeline.precision import has_bfloat16
from millis_pipeline.publish import triton_config, write_version
from millis_server.manifest_files import read_manifest
from millis_server.repository import CONFIG_FILE
from tests.conftest import Published

PATIENCE_SECONDS = 60
ROUNDED_TOLERANCE = 0.25
"""What the manifest of the variant in bfloat16 says that a logit may be off by; bfloat16 keeps eight bits."""
TEXTS = ["where is my order", "fox", "the quick brown fox jumps over the lazy dog in Paris on Monday last week"]
STUB_THREADS = 4
"""What Triton starts in the process of a model, whatever the machine."""
VARIANTS = {
    "intent-fp32": {},
    "embed-fp32": {"engine": "openvino", "workers": "1"},
    "embed-int8": {"workers": "1"},
    "topics-fp32": {"engine": "abacus"},
    "topics-int8": {"device": "cuda"},
    "rerank-fp32": {"max_padding": "unlimited", "workers": "1", "intra_op_threads": "5"},
}


def configure(folder: Path, **parameters: str) -> None:
    """Changes parameters of a variant's config, by a rename as `millis tune` does."""
    config = text_format.Parse((folder / "config.pbtxt").read_text(), triton.ModelConfig())
    for name, value in parameters.items():
        config.parameters[name].string_value = value
    aside = folder / ".config.pbtxt.new"
    aside.write_text(text_format.MessageToString(config))
    aside.rename(folder / "config.pbtxt")


@pytest.fixture(scope="module")
def repository(published: Published, compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config") / "repository"
    publish_compiled(published, compiled, folder)
    publish_rounded(published, folder)
    for variant, parameters in VARIANTS.items():
        shutil.copytree(published.repository / variant, folder / variant)
        configure(folder / variant, **parameters)
    return folder


def publish_compiled(published: Published, compiled: Path, repository: Path) -> None:
    """`intent` once more as the model `compiled`, run by PyTorch."""
    version = repository / "compiled-fp32" / "1"
    shutil.copytree(published.repository / "intent-fp32" / "1", version)
    shutil.copy(compiled, version)
    manifest = read_manifest(published.repository / "intent-fp32" / "1").model_copy(update={"model": "compiled"})
    write_version(version, manifest)
    (version.parent / CONFIG_FILE).write_text(triton_config(manifest))
    configure(version.parent, engine="torch")


def publish_rounded(published: Published, repository: Path) -> None:
    """`intent` once more as the model `rounded`, computed in bfloat16."""
    version = repository / "rounded-bf16" / "1"
    shutil.copytree(published.repository / "intent-fp32" / "1", version)
    manifest = read_manifest(published.repository / "intent-fp32" / "1").model_copy(
        update={"model": "rounded", "variant": "bf16", "precision": "bf16", "tolerance": ROUNDED_TOLERANCE}
    )
    write_version(version, manifest)
    (version.parent / CONFIG_FILE).write_text(triton_config(manifest))


@pytest.fixture(scope="module")
def configured(repository: Path) -> Iterator[Running]:
    with running_gateway(repository, "--repository-poll-seconds", "0.1") as running:
        yield running


@pytest.fixture(scope="module")
def client(configured: Running) -> Iterator[millis.Client]:
    with millis.Client(configured.target) as connected:
        yield connected


def threads(gateway: Running, variant: str) -> int:
    """How many threads the process of a variant has."""
    (triton,) = children(gateway.process.pid)
    (process,) = [each for each in children(triton) if f"/{variant}/" in Path(f"/proc/{each}/cmdline").read_text()]
    return len(list(Path(f"/proc/{process}/task").iterdir()))


def variant(client: millis.Client, model: str, name: str) -> millis.ModelVariant:
    return next(each for each in client.models.get(model).variants if each.name == name)


def log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.05)


def test_openvino_answers_as_onnx_runtime_does(client, published, gateway):
    openvino = client.embed(TEXTS, model="embed", variant="fp32")
    with millis.Client(gateway.target) as other:
        expected = other.embed(TEXTS, model="embed", variant="fp32")
    for ours, theirs in zip(openvino, expected, strict=True):
        assert ours.values == pytest.approx(theirs.values, abs=1e-4)


def test_pytorch_answers_as_onnx_runtime_does(client):
    for text in TEXTS:
        ours, theirs = (client.classify(text, model=model, variant="fp32", top_k=3) for model in ("compiled", "intent"))
        assert [label.name for label in ours.labels] == [label.name for label in theirs.labels]
        assert [label.score for label in ours.labels] == pytest.approx(
            [label.score for label in theirs.labels], abs=1e-4
        )
    together = client.classify(TEXTS, model="compiled")
    assert [answer.label for answer in together] == [client.classify(text, model="intent").label for text in TEXTS]


def test_a_variant_in_bfloat16_answers_where_the_processor_has_it_and_says_so_elsewhere(client):
    if not has_bfloat16():
        (refused,) = variant(client, "rounded", "bf16").refused_versions
        assert refused.reason == (
            "Triton did not load it: Internal: ValueError: the version was measured in bf16, in which this processor "
            "does not compute"
        )
        return
    for text in TEXTS:
        ours, theirs = (client.classify(text, model=model, top_k=3) for model in ("rounded", "intent"))
        assert (ours.info.served_by.variant, ours.label) == ("bf16", theirs.label)
        # Two logits may each be off by the tolerance, in opposite directions.
        assert log_odds(ours.score) == pytest.approx(log_odds(theirs.score), abs=2 * ROUNDED_TOLERANCE)
        assert ours.score != theirs.score


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fp32", "parameter engine must be one of onnxruntime, openvino, torch, not 'abacus'"),
        ("int8", "parameter device is 'cuda', for which this onnxruntime"),
    ],
)
def test_a_config_that_cannot_be_met_is_refused_with_its_reason(client, name, reason):
    (refused,) = variant(client, "topics", name).refused_versions
    assert refused.reason.startswith(f"Triton did not load it: Internal: ValueError: {reason}")


def test_padding_is_counted_as_the_engine_computed_it(client):
    documents = ["order", "the quick brown fox jumps", "the order"]
    lengths = [len(each.tokens) for each in client.tokenize(["where is my order", *documents], model="rerank")]
    pairs = [lengths[0] + length - 1 for length in lengths[1:]]
    padded = client.rank("where is my order", documents, model="rerank", variant="fp32").info.usage
    assert padded == millis.Usage(inputs=3, tokens=sum(pairs), padded_tokens=3 * max(pairs) - sum(pairs))
    grouped = client.embed(TEXTS, model="embed", variant="int8").info.usage
    assert grouped.padded_tokens == 0
    assert client.embed("alone", model="embed", variant="int8").info.usage.padded_tokens == 0


def test_a_model_has_the_threads_that_its_config_says_and_none_for_each_core(client, configured):
    assert threads(configured, "embed-int8") == STUB_THREADS
    assert threads(configured, "rerank-fp32") == STUB_THREADS + 4
    client.classify(TEXTS * 8, model="intent", variant="fp32")  # the second worker comes with the first batch
    assert threads(configured, "intent-fp32") == STUB_THREADS + 1


def test_a_changed_config_takes_effect_under_traffic_and_a_broken_one_changes_nothing(client, repository):
    failures: list[Exception] = []
    answers: list[float] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                answers.append(client.classify("where is my order", model="intent").score)
            except Exception as error:
                failures.append(error)
                return

    def asked_since(before: int) -> bool:
        return bool(failures) or len(answers) > before + 20

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    folder = repository / "intent-fp32"
    try:
        configure(folder, engine="abacus")
        until(lambda: variant(client, "intent", "fp32").reason != "")
        assert variant(client, "intent", "fp32").state == "ready"
        assert variant(client, "intent", "fp32").reason == (
            "its changed config.pbtxt was refused: load failed for model 'intent-fp32': version 1 is at UNAVAILABLE "
            "state: Internal: ValueError: parameter engine must be one of onnxruntime, openvino, torch, not 'abacus'"
        )
        before = len(answers)
        until(lambda: asked_since(before))
        configure(folder, engine="openvino", lanes="1")
        until(lambda: variant(client, "intent", "fp32").reason == "")
        before = len(answers)
        until(lambda: asked_since(before))
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert failures == []
    assert max(answers) - min(answers) < 1e-4


def test_a_version_refused_for_its_config_serves_once_the_config_is_mended(client, repository):
    configure(repository / "topics-int8", device="cpu")
    until(lambda: variant(client, "topics", "int8").state == "ready")
    assert client.classify("order", model="topics", variant="int8", top_k=0).labels
