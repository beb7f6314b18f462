"""What is particular to the engine transformers: its managers, their threads, and what they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch
from transformers import ContinuousBatchingConfig, PreTrainedModel

from millis_server.triton.generation_backend.decoding import generator_transformers as engine
from millis_server.triton.generation_backend.decoding.generator import (
    GenerationFailed,
    GeneratorOptions,
    InvalidRequest,
    Request,
)
from millis_server.triton.generation_backend.decoding.generator_transformers import TransformersGenerator
from tests import tiny_generation as tiny

pytestmark = pytest.mark.filterwarnings("ignore")

OPTIONS = GeneratorOptions(threads=1, eos=(tiny.EOS,))
PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny.language_model("llama")


@pytest.fixture
def generator(model: PreTrainedModel, tmp_path: Path) -> Iterator[TransformersGenerator]:
    model.save_pretrained(tmp_path)
    generator = engine.load(tmp_path, OPTIONS)
    yield generator
    generator.close()


def told(generator: TransformersGenerator, request: Request) -> tuple[list[int], list[float]]:
    """Tokens of a request and their log-probabilities."""
    generator.add(0, request)
    tokens: list[int] = []
    logprobs: list[float] = []
    while generator.busy:
        for piece in generator.step():
            tokens += piece.tokens
            logprobs += piece.logprobs
    return tokens, logprobs


def break_the_model(generator: TransformersGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every step of every manager fails, as when a GPU has no memory left."""

    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(generator._model, "forward", fail)


def steps_until_it_fails(generator: TransformersGenerator) -> str:
    """What the engine says when it fails as a whole, and not for one text."""
    began = monotonic()
    with pytest.raises(RuntimeError) as caught:
        while monotonic() - began < PATIENCE_SECONDS:
            generator.step()
    assert not isinstance(caught.value, GenerationFailed)
    return str(caught.value)


def test_a_manager_that_fails_fails_the_engine_and_not_one_text_after_the_other(generator, monkeypatch):
    for number in range(2):
        generator.add(number, Request([5, 6], 400, 0.0, ignore_eos=True))
    generator.step()
    break_the_model(generator, monkeypatch)
    assert steps_until_it_fails(generator).startswith("transformers' manager stopped: ")


def test_a_request_that_comes_after_a_manager_has_failed_finds_the_engine_failed(generator, monkeypatch):
    told(generator, Request([5, 6], 2, 0.0))
    break_the_model(generator, monkeypatch)
    generator.add(1, Request([5, 6], 2, 0.0))
    (manager,) = generator._managers.values()
    manager._generation_thread.join(PATIENCE_SECONDS)
    generator.cancel(1)
    assert not generator.busy
    generator.add(2, Request([5, 6], 2, 0.0))
    assert generator.busy
    assert steps_until_it_fails(generator) == "transformers' manager stopped: no memory"


def test_tokens_do_not_wait_for_a_manager_that_has_nothing_to_do(generator, model, monkeypatch):
    told(generator, Request([5, 6], 2, 1.0))
    told(generator, Request([5, 6], 2, 0.0))
    monkeypatch.setattr(engine, "WAIT_SECONDS", 2 * PATIENCE_SECONDS)
    began = monotonic()
    tokens, _ = told(generator, Request([5, 6, 7], 12, 0.0, ignore_eos=True))
    assert tokens == tiny.greedy(model, [5, 6, 7], 12)
    assert monotonic() - began < PATIENCE_SECONDS


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_are_those_of_the_model(generator, model, temperature):
    prompt = tiny.prompts(1, seed=3)[0]
    tokens, values = told(generator, Request(prompt, 6, temperature, logprobs=True, ignore_eos=True))
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    assert values == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("changes", [{"temperature": 0.5}, {"top_p": 0.9}, {"top_k": 5}])
def test_logprobs_that_would_not_be_those_of_the_model_are_refused(generator, changes):
    with pytest.raises(InvalidRequest) as caught:
        generator.add(0, Request([5, 6], 2, logprobs=True, **changes))
    assert str(caught.value) == (
        "logprobs: is set, and sampling changes probabilities; the engine transformers tells only the changed ones"
    )


def test_managers_warm_up_before_their_threads_start(generator, monkeypatch):
    seen: list[tuple[bool, bool]] = []
    kind = type(generator._manager(draws=False))
    warmup = kind.warmup

    def watched(manager: Any) -> None:
        warmup(manager)
        seen.append((manager.warmed_up, manager.is_running()))

    monkeypatch.setattr(kind, "warmup", watched)
    manager = generator._manager(draws=True)
    assert (seen, manager.is_running()) == ([(True, False)], True)


@pytest.mark.parametrize(
    ("device", "cuda_graphs", "pages"),
    [("cpu", None, {"page_size": 32, "num_blocks": 32 + 3}), ("cuda", True, {"page_size": 256, "num_blocks": 4 + 3})],
)
def test_what_a_manager_is_asked_for(device, cuda_graphs, pages):
    options = GeneratorOptions(
        device=device, max_streams=3, cache_tokens=1000, prefix_caching=False, cuda_graphs=cuda_graphs
    )
    assert engine._batching(options, draws=True) == ContinuousBatchingConfig(
        max_batch_tokens=256,
        max_requests_per_batch=3,
        allow_block_sharing=False,
        use_cuda_graph=cuda_graphs,
        return_logprobs=True,
        per_request_processors=True,
        **pages,
    )
