"""What is measured of variants: exactness, agreement, perplexity, speed, and the checks that go with a version."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from millis_pipeline.data import DataError
from millis_pipeline.decoders.checkpoint import Decoder, load_decoder
from millis_pipeline.decoders.convert import convert
from millis_pipeline.decoders.engine import EXACT, Engine, EngineSetup
from millis_pipeline.decoders.measure import (
    Agreement,
    agreement,
    check_exact,
    ended,
    equal_tokens,
    greedy_checks,
    own_greedy,
    speeds,
    token_ms,
    variant_perplexity,
)
from millis_pipeline.decoders.reference import Evaluation, Greedy, evaluation_of, perplexity_of
from millis_pipeline.decoders.samples import Sample
from millis_pipeline.decoders.shrink import with_layers
from millis_pipeline.verify import VerificationError
from millis_server.manifest import GreedyCheck
from tests.pipeline.decoders.tiny_decoders import SENTENCES, checkpoint

TEXT = " ".join(SENTENCES * 6)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load_decoder("tiny", checkpoint(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture(scope="module")
def graph(loaded: Decoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    convert(loaded.model, folder)
    return folder


@pytest.fixture(scope="module")
def evaluation(loaded: Decoder, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text(TEXT)
    return evaluation_of(loaded, path, "a text")


def test_a_text_becomes_windows_and_prompts(loaded: Decoder, evaluation: Evaluation) -> None:
    ids = [number for window in evaluation.windows for number in window.ids]
    assert loaded.tokenizer.decode(ids) == f"<|bos|>{TEXT}<|eos|>"
    assert {len(one.prompt) for one in evaluation.greedy} == {24}
    assert evaluation.greedy[0].prompt == ids[:24]


def test_perplexity_is_that_of_the_tokens_to_be_written() -> None:
    # All tokens as likely: perplexity is their number.
    even = perplexity_of(
        lambda ids: torch.zeros(ids.shape[1], 50).numpy(), [Sample([1, 2, 3], [False, True, True])], ""
    )
    assert even == pytest.approx(50)
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0], [0.0, 0.0]])
    one = perplexity_of(lambda ids: logits.numpy(), [Sample([0, 1, 1], [False, True, False])], "")
    assert one == pytest.approx(4 / 3)


def test_the_graph_has_the_perplexity_of_pytorch(loaded: Decoder, evaluation: Evaluation, graph: Path) -> None:
    assert evaluation.perplexity is not None
    assert variant_perplexity(graph, loaded.model, evaluation, "fp32") == pytest.approx(evaluation.perplexity, rel=1e-4)
    assert variant_perplexity(graph, loaded.model, Evaluation("", [], evaluation.greedy, None), "fp32") is None


def test_an_exact_graph_passes_and_another_one_does_not(loaded: Decoder, evaluation: Evaluation, graph: Path) -> None:
    check_exact(
        agreement(Engine(graph, EXACT, 512), evaluation.greedy, loaded.eos_ids), loaded.model, evaluation.greedy, "fp32"
    )
    other = with_layers(loaded.model, [0])
    expected = own_greedy(other, evaluation.greedy, loaded.eos_ids)
    with pytest.raises(VerificationError, match=r"^fp32: the engine answers prompt \d of \d+ with token \d+ at"):
        check_exact(agreement(Engine(graph, EXACT, 512), expected, loaded.eos_ids), other, expected, "fp32")


def test_two_tokens_as_likely_as_each_other_both_pass(loaded: Decoder, graph: Path) -> None:
    ids = torch.tensor([[1, 9, 31]])
    with torch.inference_mode():
        first, second = loaded.model(input_ids=ids).logits[0, -1].topk(2).indices.tolist()
    wrong = [Greedy([1, 9, 31], [second], [0.0])]
    # The graph gives `first`; taken for PyTorch's answer, `second` is less likely by a negative gap.
    check_exact(agreement(Engine(graph, EXACT, 512), wrong, ()), loaded.model, wrong, "fp32")
    assert agreement(Engine(graph, EXACT, 512), wrong, ()).texts == [[first]]


def test_agreement_ends_at_the_first_difference(loaded: Decoder, graph: Path, evaluation: Evaluation) -> None:
    engine = Engine(graph, EXACT, 1024)
    assert agreement(engine, evaluation.greedy, loaded.eos_ids).value == 1
    one = evaluation.greedy[0]
    broken = Greedy(one.prompt, [*one.tokens[:3], (one.tokens[3] + 1) % 300, *one.tokens[4:]], one.margins)
    assert agreement(engine, [broken], loaded.eos_ids).shares == [3 / len(one.tokens)]
    assert (equal_tokens([1, 2, 3], [1, 2]), equal_tokens([1], [2]), equal_tokens([], [])) == (2, 0, 0)
    assert (ended([5, 2, 7], (2, 9)), ended([5, 7], (2,))) == ([5, 2], [5, 7])
    quality = Agreement([1.0, 0.5, 1.0, 1.0], []).quality("a text")
    assert (quality.metric, quality.value, quality.examples) == ("greedy_agreement", 0.875, 4)
    assert 0.5 <= quality.low < quality.value < quality.high <= 1


def test_a_version_is_checked_with_its_own_surest_tokens(loaded: Decoder, graph: Path) -> None:
    engine = Engine(graph, EXACT, 512)
    asked = [[1, 9, 31], [7, 8], [1, 5, 6, 7]]
    greedy = own_greedy(loaded.model, [Greedy(prompt, [0] * 12, []) for prompt in asked], (999,))
    greedy[0].margins[:] = [0.1] * 12
    greedy[1].margins[:] = [5.0] * 12
    greedy[2].margins[:] = [3.0] * 12
    checks = greedy_checks(engine, greedy, (999,))
    assert checks == tuple(
        GreedyCheck(prompt=tuple(one.prompt), expected=tuple(one.tokens[:8])) for one in (greedy[1], greedy[2])
    )
    # An end of text within a check would end it too early: such a prompt is taken last, and cut before it.
    eos = greedy[1].tokens[5]
    cut = greedy_checks(engine, greedy[1:2], (eos,))
    assert cut[0].expected == tuple(greedy[1].tokens[: greedy[1].tokens.index(eos)])


def test_speeds_are_measured_for_every_variant(graph: Path) -> None:
    engines = {"one": Engine(graph, EXACT, 512), "two": Engine(graph, EngineSetup(), 512)}
    found = speeds(engines, [[1, 9, 31]], 64)
    for profile in found.values():
        later, first = profile.points
        assert (later.tokens, first.tokens, profile.threads) == (1, 32, 2)
        assert 0 < later.p50_ms <= later.p99_ms
        assert token_ms(profile) == later.p50_ms
    assert list(found) == ["one", "two"]


def test_dialogues_that_leave_no_room_are_named(loaded: Decoder, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    question = "Where is my order? " * 30
    path.write_text(
        f'{{"messages": [{{"role": "user", "content": "{question}"}}, {{"role": "assistant", "content": "x"}}]}}\n'
    )
    with pytest.raises(DataError, match=r"^no dialogue has an answer within the first 128 tokens$"):
        evaluation_of(loaded, path, "talk")
    built_in = evaluation_of(loaded, None, "")
    assert (built_in.name, built_in.perplexity, built_in.windows) == ("", None, [])
    assert loaded.tokenizer.decode(built_in.greedy[0].prompt).startswith("<|bos|><|user|>Where is my order? It should")
