"""Hot reload: new versions, broken versions and roll-back, in a repository of their own and under traffic."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import millis
from benchmarks.gateway import running_gateway
from millis_server.manifest_files import sha256
from tests import tiny
from tests.conftest import Published
from tests.publishing import publish_all

OLD, NEW = ("cancel", "order", "refund"), ("abort", "buy", "pay")
CALLERS = 8
PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def repository(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with the model `intent` only."""
    return published.intent_alone(tmp_path_factory.mktemp("reload") / "repository")


@pytest.fixture(scope="module")
def new_version(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with another `intent`: other weights and other labels."""
    checkpoint = tiny.text_classifier(tmp_path_factory.mktemp("new") / "intent", NEW, seed=9)
    folder = checkpoint.parent / "repository"
    publish = [str(checkpoint), "--name", "intent", "--repository", str(folder)]
    assert publish_all(*publish, "--reports", str(checkpoint.parent)) == 0
    return folder


@pytest.fixture(scope="module")
def client(repository: Path) -> Iterator[millis.Client]:
    with (
        running_gateway(repository, "--repository-poll-seconds", "0.1") as gateway,
        millis.Client(gateway.target) as connected,
    ):
        yield connected


def until(condition: Callable[[], bool]) -> None:
    """Waits for what the gateway does by itself."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.05)


def served(client: millis.Client) -> set[str]:
    return {variant.version for variant in client.models.get("intent").variants}


def publish(source: Path, repository: Path, version: str) -> None:
    """Publishes version 1 of another repository under a new number, by renames."""
    for variant in ("intent-fp32", "intent-int8"):
        staged = repository / f".staging-{variant}"
        shutil.copytree(source / variant / "1", staged)
        staged.rename(repository / variant / version)


def withdraw(repository: Path, version: str) -> None:
    for variant in ("intent-fp32", "intent-int8"):
        shutil.rmtree(repository / variant / version)


def test_a_version_that_failed_for_a_reason_that_passes_is_tried_again(published, new_version, tmp_path):
    repository = tmp_path / "repository"
    for variant in ("intent-fp32", "intent-int8"):
        shutil.copytree(published.repository / variant, repository / variant)
    options = ("--repository-poll-seconds", "0.1", "--state-dir", str(tmp_path / "state"))
    with running_gateway(repository, *options) as gateway, millis.Client(gateway.target) as client:
        needed = tmp_path / "state" / "triton" / "backends" / "millis" / "microbatch.py"
        away = needed.rename(needed.with_suffix(".away"))
        publish(new_version, repository, "2")
        until(lambda: all(each.refused_versions for each in client.models.get("intent").variants))
        reasons = {each.refused_versions[0].reason for each in client.models.get("intent").variants}
        assert all("No module named 'microbatch'" in reason for reason in reasons)
        assert client.classify("where is my order", model="intent").info.served_by.version == "1"
        away.rename(needed)
        until(lambda: {each.version for each in client.models.get("intent").variants} == {"2"})
        assert all(each.refused_versions == () for each in client.models.get("intent").variants)


def test_under_traffic_no_call_fails_and_no_answer_mixes_versions(client, repository, new_version):
    answers: list[tuple[str, frozenset[str]]] = []
    failures: list[Exception] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                result = client.classify("where is my order", model="intent", top_k=0)
            except Exception as error:
                failures.append(error)
                return
            answers.append((result.info.served_by.version, frozenset(label.name for label in result.labels)))

    callers = [threading.Thread(target=ask) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    publish(new_version, repository, "2")
    until(lambda: served(client) == {"2"})
    until(lambda: answers[-1][0] == "2")
    withdraw(repository, "2")
    until(lambda: served(client) == {"1"})
    until(lambda: answers[-1][0] == "1")
    stop.set()
    for caller in callers:
        caller.join()
    assert failures == []
    assert set(answers) == {("1", frozenset(OLD)), ("2", frozenset(NEW))}


def test_the_version_before_answers_when_it_is_asked_for(client, repository, new_version):
    publish(new_version, repository, "2")
    until(lambda: served(client) == {"2"})
    old = client.classify("order", model="intent", version="1", top_k=0)
    assert {label.name for label in old.labels} == set(OLD)
    withdraw(repository, "2")
    until(lambda: served(client) == {"1"})


def garbage_weights(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"no graph")
    seal(folder)


def wrong_digest(folder: Path) -> None:
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\0")


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    seal(folder)


def failing_self_check(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["self_check"][0]["expected"][0] += 5
    (folder / "manifest.json").write_text(json.dumps(manifest))


def broken_manifest(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["max_tokens"] = 0
    (folder / "manifest.json").write_text(json.dumps(manifest))


def seal(folder: Path) -> None:
    """Writes the digests of the files as they are now into the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: sha256(folder / name) for name in manifest["files"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def put_good(folder: Path, version: str) -> None:
    shutil.copytree(folder / "1", folder.parent / ".staging-good")
    (folder.parent / ".staging-good").rename(folder / version)


def put_broken(folder: Path, version: str) -> None:
    """A version whose files are whole and whose graph Triton cannot load."""
    staged = folder.parent / ".staging-broken"
    shutil.copytree(folder / "1", staged)
    garbage_weights(staged)
    staged.rename(folder / version)


def int8(client: millis.Client) -> millis.ModelVariant:
    return next(variant for variant in client.models.get("intent").variants if variant.name == "int8")


def refusals(client: millis.Client) -> set[str]:
    return {refused.version for refused in int8(client).refused_versions}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (garbage_weights, "InvalidProtobuf"),
        (wrong_digest, "SHA-256"),
        (broken_tokenizer, "tokenizer.json"),
        (failing_self_check, "self-check"),
        (broken_manifest, "max_tokens"),
    ],
)
def test_a_broken_version_never_replaces_a_good_one_and_its_reason_is_kept(client, repository, damage, reason):
    staged = repository / ".staging-broken"
    shutil.copytree(repository / "intent-int8" / "1", staged)
    damage(staged)
    broken = repository / "intent-int8" / "2"
    staged.rename(broken)

    def refused() -> list[millis.RefusedVersion]:
        (variant,) = [v for v in client.models.get("intent").variants if v.name == "int8"]
        assert (variant.state, variant.version) == ("ready", "1")
        return list(variant.refused_versions)

    until(lambda: bool(refused()))
    (version,) = refused()
    assert version.version == "2"
    assert reason in version.reason
    assert client.classify("order", model="intent", variant="int8").info.served_by.version == "1"
    with pytest.raises(millis.FailedPreconditionError) as caught:
        client.models.load("intent")
    assert caught.value.reason == "LOAD_FAILED"
    shutil.rmtree(broken)
    until(lambda: not refused())


def test_a_good_version_gets_into_service_with_a_broken_one_before_it(client, repository):
    folder = repository / "intent-int8"
    put_broken(folder, "2")
    until(lambda: refusals(client) == {"2"})
    put_good(folder, "3")
    until(lambda: int8(client).version == "3")
    assert refusals(client) == {"2"}
    assert client.classify("order", model="intent", variant="int8").info.served_by.version == "3"
    old = client.classify("order", model="intent", variant="int8", version="1")
    assert old.info.served_by.version == "1"
    for version in ("3", "2"):
        shutil.rmtree(folder / version)
    until(lambda: int8(client).version == "1")


def test_at_the_start_the_newest_good_version_serves_whatever_lies_before_and_after_it(published, tmp_path):
    repository = published.intent_alone(tmp_path / "repository")
    folder = repository / "intent-int8"
    garbage_weights(folder / "1")
    shutil.copytree(published.repository / "intent-int8" / "1", folder / "2")
    for version in ("3", "4", "5"):
        put_broken(folder, version)
    with running_gateway(repository) as gateway, millis.Client(gateway.target) as client:
        assert (int8(client).state, int8(client).version) == ("ready", "2")
        assert refusals(client) == {"3", "4", "5"}
        assert client.classify("order", model="intent", variant="int8").info.served_by.version == "2"


def test_a_model_removed_from_the_repository_is_gone_and_one_put_back_serves(client, repository):
    for variant in ("intent-fp32", "intent-int8"):
        (repository / variant).rename(repository / f".{variant}")
    until(lambda: not list(client.models.list()))
    with pytest.raises(millis.NotFoundError):
        client.classify("order", model="intent")
    for variant in ("intent-fp32", "intent-int8"):
        (repository / f".{variant}").rename(repository / variant)
    until(lambda: [model.name for model in client.models.list()] == ["intent"] and served(client) == {"1"})
    assert client.classify("order", model="intent").label in OLD
