"""The answer cache in a gateway with a real Triton."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import millis
from benchmarks.gateway import running_gateway
from tests import tiny
from tests.conftest import Published
from tests.gateway.test_metrics import free_port, scrape
from tests.gateway.test_reload import publish, served, until, withdraw
from tests.publishing import publish_all

TEXTS = tuple(f"where is my order number {number}" for number in range(8))
CALLERS = 4
CLOSE = 1e-4
"""Largest difference of a score between two computations of it, in batches of other sizes."""


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def repository(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "repository"
    shutil.copytree(published.repository, folder)
    return folder


@pytest.fixture(scope="module")
def client(repository: Path, metrics_port: int) -> Iterator[millis.Client]:
    options = ("--cache-bytes", "1000000", "--metrics-port", str(metrics_port), "--repository-poll-seconds", "0.1")
    with running_gateway(repository, *options) as gateway, millis.Client(gateway.target) as connected:
        yield connected


def test_options_that_change_only_the_answer_share_what_was_computed(client):
    best = client.classify("the fox jumps", model="intent", include_timing=True)
    every = client.classify("the fox jumps", model="intent", top_k=0, include_timing=True)
    bypassed = client.classify("the fox jumps", model="intent", top_k=0, cache="bypass")
    refreshed = client.classify("the fox jumps", model="intent", top_k=0, cache="refresh")
    assert [each.info.cache for each in (best, every, bypassed, refreshed)] == ["miss", "hit", "bypassed", "miss"]
    assert scores(best) == pytest.approx({every.labels[0].name: every.labels[0].score}, abs=CLOSE)
    assert scores(every) == pytest.approx(scores(bypassed), abs=CLOSE)
    assert scores(every) == pytest.approx(scores(refreshed), abs=CLOSE)
    assert best.info.usage == every.info.usage
    assert every.info.timing.queue_ms == 0


def test_a_variant_does_not_answer_for_another(client):
    answers = {
        variant: [client.classify("Paris on Monday", model="intent", variant=variant, top_k=0) for _ in range(2)]
        for variant in ("fp32", "int8")
    }
    for variant, (first, second) in answers.items():
        assert (first.info.served_by.variant, first.info.cache, second.info.cache) == (variant, "miss", "hit")
        assert first.labels == second.labels
    assert answers["fp32"][0].labels != answers["int8"][0].labels


def scores(classification: millis.Classification) -> dict[str, float]:
    return {label.name: label.score for label in classification.labels}


def entities(tagged: millis.TokenClassification) -> dict[str, float]:
    return {f"{entity.span} {entity.label}": entity.score for entity in tagged.entities}


def values(embedding: millis.Embedding) -> Sequence[float]:
    return embedding.values


@pytest.mark.parametrize(("call", "model", "numbers"), [("classify", "topics", scores), ("embed", "embed", values)])
def test_a_list_of_new_and_known_texts_is_answered_as_without_cache(client, call, model, numbers):
    check_mixed_list(getattr(client, call), model, numbers)


def test_a_list_of_new_and_known_texts_is_tagged_as_without_cache(client):
    check_mixed_list(client.tag, "ner", entities)


def check_mixed_list(ask: Callable[..., millis.Results], model: str, numbers: Callable[[object], object]) -> None:
    new, known = "Angela Merkel met Tim Cook", "shares of the company rose after it raised its forecast"
    texts = [new, known, "fox", new]
    ask(known, model=model)
    mixed, again, plain = ask(texts, model=model), ask(texts, model=model), ask(texts, model=model, cache="bypass")
    assert [each.info.cache for each in (mixed, again, plain)] == ["partial", "hit", "bypassed"]
    assert list(again) == list(mixed)
    assert [numbers(each) for each in mixed] == [pytest.approx(numbers(each), abs=CLOSE) for each in plain]


def test_documents_of_one_query_are_known_one_by_one(client):
    documents = ["the quick brown fox", "my order", "Paris"]
    client.rank("where is my order", documents[:2])
    ranked = client.rank("where is my order", documents)
    other = client.rank("the lazy dog", documents)
    plain = client.rank("where is my order", documents, cache="bypass")
    assert [each.info.cache for each in (ranked, other, plain)] == ["partial", "miss", "bypassed"]
    assert [each.index for each in ranked] == [each.index for each in plain]


def test_equal_calls_at_the_same_time_are_computed_once(client, metrics_port):
    before = scrape(metrics_port)
    answers: list[millis.Classification] = []
    text = "the company raised its forecast " * 8
    callers = [
        threading.Thread(target=lambda: answers.append(client.classify(text, model="topics"))) for _ in range(16)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert answers == [answers[0]] * 16
    after = scrape(metrics_port)

    def added(result: str) -> float:
        key = ("millis_cache_rows_total", "topics", result, answers[0].info.served_by.variant)
        return after.get(key, 0.0) - before.get(key, 0.0)

    assert (added("miss"), added("hit") + added("shared")) == (1, 15)


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with another `intent` of the same labels: only the scores tell the versions apart."""
    checkpoint = tiny.text_classifier(tmp_path_factory.mktemp("other") / "intent", seed=9)
    folder = checkpoint.parent / "repository"
    options = ["--name", "intent", "--repository", str(folder), "--reports", str(checkpoint.parent)]
    assert publish_all(str(checkpoint), *options) == 0
    return folder


class Traffic:
    """Callers that ask for the same few texts for the length of a `with` block."""

    def __init__(self, client: millis.Client) -> None:
        self._client = client
        self._stop = threading.Event()
        self._callers = [threading.Thread(target=self._ask) for _ in range(CALLERS)]
        self.answers: list[tuple[str, millis.Classification]] = []
        self.failures: list[Exception] = []

    def _ask(self) -> None:
        while not self._stop.is_set():
            for text in TEXTS:
                try:
                    self.answers.append((text, every_score(self._client, text)))
                except Exception as error:
                    self.failures.append(error)
                    return

    def __enter__(self) -> Traffic:
        for caller in self._callers:
            caller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for caller in self._callers:
            caller.join()

    def version(self) -> str:
        """The version that answered last."""
        return self.answers[-1][1].info.served_by.version if self.answers else ""


def every_score(client: millis.Client, text: str, **options: str) -> millis.Classification:
    return client.classify(text, model="intent", variant="fp32", top_k=0, **options)


def test_under_cached_traffic_every_answer_is_that_of_the_version_it_names(client, repository, other_weights):
    def computed() -> dict[str, dict[str, float]]:
        return {text: scores(every_score(client, text, cache="bypass")) for text in TEXTS}

    old = computed()
    with Traffic(client) as traffic:
        until(lambda: traffic.version() == "1")
        publish(other_weights, repository, "2")
        until(lambda: served(client) == {"2"} and traffic.version() == "2")
        new = computed()
        withdraw(repository, "2")
        until(lambda: served(client) == {"1"} and traffic.version() == "1")
    check(traffic, {"1": old, "2": new})
    with Traffic(client) as traffic:
        publish(repository, repository, "2")  # the number of before, with the weights of version 1
        until(lambda: served(client) == {"2"} and traffic.version() == "2")
    check(traffic, {"1": old, "2": old})
    assert all(old[text] != pytest.approx(new[text], abs=100 * CLOSE) for text in TEXTS)


def check(traffic: Traffic, expected: dict[str, dict[str, dict[str, float]]]) -> None:
    assert traffic.failures == []
    wrong = [
        (text, answer)
        for text, answer in traffic.answers
        if scores(answer) != pytest.approx(expected[answer.info.served_by.version][text], abs=CLOSE)
    ]
    assert wrong == []
    assert {answer.info.served_by.version for _, answer in traffic.answers} == set(expected)
    assert {answer.info.cache for _, answer in traffic.answers} == {"hit", "miss"}


def test_an_unloaded_model_leaves_nothing_in_the_cache(client, metrics_port):
    client.classify("fox", model="intent")
    names = [model.name for model in client.models.list()]
    for name in names:
        client.models.unload(name)
    until(lambda: scrape(metrics_port)["millis_cache_entries",] == 0)
    assert scrape(metrics_port)["millis_cache_bytes",] == 0
    client.models.load("intent")
    assert client.classify("fox", model="intent").info.cache == "miss"
