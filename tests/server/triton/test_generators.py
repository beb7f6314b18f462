"""The engines of the generating backend, in this process and without Triton."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from millis_server.triton.generation_backend.decoding.generator import (
    GenerationFailed,
    GeneratorOptions,
    Guide,
    InvalidRequest,
    Request,
    load_generator,
)
from tests import tiny_generation as tiny

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def model():
    return tiny.language_model("llama")


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory) -> dict[str, Path]:
    """What each engine loads, with a draft model inside."""
    from millis_pipeline.decoders.convert import convert

    folder = tmp_path_factory.mktemp("generators")
    for name in ("openvino", "drafted", "drafted/draft", "transformers"):
        (folder / name).mkdir()
    convert(model, folder / "openvino")
    for drafted in (folder / "drafted", folder / "drafted" / "draft"):
        convert(model, drafted)
        tiny.write_engine_tokenizer(drafted)
    model.save_pretrained(folder / "transformers")
    return {
        "openvino_genai": folder / "openvino",
        "drafted": folder / "drafted",
        "transformers": folder / "transformers",
    }


@pytest.fixture
def load(folders):
    """Loads engines and closes them at the end: a manager of transformers would keep the process alive."""
    loaded = []

    def load(name: str, folder: Path | None = None, **wanted):
        generator = load_generator(name, folder or folders[name], options(**wanted))
        loaded.append(generator)
        return generator

    yield load
    for generator in loaded:
        generator.close()


def options(**wanted):
    standard = {"threads": 2, "eos": (tiny.EOS,), "kv_cache_precision": "f32"}
    return GeneratorOptions(**(standard | wanted))


def run(generator, requests) -> dict[int, list[int]]:
    made: dict[int, list[int]] = {}
    waiting = list(enumerate(requests))
    while waiting or generator.busy:
        if waiting:
            generator.add(*waiting.pop(0))
        for piece in generator.step():
            made.setdefault(piece.number, []).extend(piece.tokens)
    return made


@pytest.mark.parametrize(
    ("engine", "wanted"),
    [
        ("openvino_genai", {}),
        ("openvino_genai", {"prompt_lookup": 4}),
        ("openvino_genai", {"draft": "draft"}),
        ("transformers", {}),
    ],
)
def test_greedy_tokens_are_those_of_transformers(load, folders, model, engine, wanted):
    prompts = tiny.prompts(4, seed=2)
    folder = folders["drafted" if "draft" in wanted else engine]
    generator = load(engine, folder, **wanted)
    made = run(generator, [Request(prompt, 24, 0.0, ignore_eos=True) for prompt in prompts])
    assert made == {number: tiny.greedy(model, prompt, 24) for number, prompt in enumerate(prompts)}


@pytest.mark.parametrize("engine", ["openvino_genai", "transformers"])
def test_a_cancelled_request_is_forgotten_and_the_others_go_on(load, model, engine):
    prompts = tiny.prompts(2, seed=4)
    generator = load(engine)
    for number, prompt in enumerate(prompts):
        generator.add(number, Request(prompt, 40, 0.0, ignore_eos=True))
    made: list[int] = []
    cancelled = False
    while generator.busy:
        for piece in generator.step():
            if piece.number == 1:
                made += piece.tokens
            assert piece.number == 1 or not cancelled
        if not cancelled:
            generator.cancel(0)
            generator.cancel(7)
            cancelled = True
    assert made == tiny.greedy(model, prompts[1], 40)


def test_the_memory_of_a_dropped_text_is_free_after_the_next_step(load):
    # There is room for one of these prompts, which is read in two steps.
    generator = load("openvino_genai", cache_tokens=512, max_streams=1, prefix_caching=False)
    prompt = tiny.prompts(1, seed=9)[0] * 30
    generator.add(0, Request(prompt[:400], 30, 0.0, ignore_eos=True))
    for _ in range(4):
        generator.step()
    assert (generator.cancel(0), generator.cancel(0)) == (True, False)
    generator.step()
    generator.add(1, Request(prompt[5:405], 3, 0.0, ignore_eos=True))
    assert [sum(piece.made for piece in generator.step()) for _ in range(4)] == [0, 1, 1, 1]


def test_a_text_without_memory_fails_and_takes_no_piece_of_another_with_it(load, model):
    generator = load("openvino_genai", cache_tokens=64, max_streams=2)
    prompt = tiny.prompts(1, seed=6)[0]
    generator.add(1, Request(prompt, 3, 0.0, ignore_eos=True))
    generator.add(0, Request(list(prompt) * 20, 4, 0.0, ignore_eos=True))
    made: list[int] = []
    failed: list[int] = []
    while generator.busy:
        try:
            made += [token for piece in generator.step() for token in piece.tokens]
        except GenerationFailed as error:
            failed.append(error.number)
    assert (failed, made) == ([0], tiny.greedy(model, prompt, 3))


def test_what_an_engine_has_not_is_refused_by_name(load):
    generator = load("transformers")
    with pytest.raises(InvalidRequest, match=r"^n: is set, and the engine transformers has no such rule"):
        generator.add(0, Request([5], n=2))
    generator = load("openvino_genai")
    guide = Guide("regex", "a+")
    with pytest.raises(InvalidRequest, match="this version was published without a tokenizer for guided output"):
        generator.add(0, Request([5], guide=guide))


@pytest.mark.parametrize(
    ("wanted", "asked", "message"),
    [
        (
            {"draft": "draft"},
            {"temperature": 0.5},
            "sampling.temperature: is 0.5; this variant guesses tokens with a draft model, so it must be 0",
        ),
        (
            {"draft": "draft"},
            {"n": 2},
            "n: is 2; this variant guesses tokens with a draft model, so the limit is 1",
        ),
        (
            {"prompt_lookup": 4},
            {"temperature": 0.0, "n": 2, "beams": 3},
            "beams: is 3; this variant guesses tokens with prompt lookup, so the limit is 1",
        ),
        (
            {"prompt_lookup": 4},
            {"n": 2},
            "n: is 2; this variant guesses tokens with prompt lookup, so the limit is 1",
        ),
        ({}, {"min_p": 1.0}, "sampling.min_p: is 1, it must be less than 1"),
        (
            {},
            {"guide": Guide("regex", "a+"), "ignore_eos": True},
            "ignore_eos: is set, and so is a guide, which says where the text ends; use one of them",
        ),
    ],
)
def test_what_openvino_cannot_is_refused_by_the_fields_name_and_harms_no_other_text(
    load, folders, model, wanted, asked, message
):
    generator = load("openvino_genai", folders["drafted" if "draft" in wanted else "openvino_genai"], **wanted)
    prompt = tiny.prompts(1, seed=9)[0]
    generator.add(0, Request(prompt, 8, 0.0, ignore_eos=True))
    with pytest.raises(InvalidRequest) as caught:
        generator.add(1, Request(prompt, 8, **asked))
    assert str(caught.value) == message
    assert run(generator, []) == {0: tiny.greedy(model, prompt, 8)}


def test_one_beam_is_greedy_also_where_tokens_are_guessed(load, model):
    prompt = tiny.prompts(1, seed=9)[0]
    made = run(load("openvino_genai", prompt_lookup=4), [Request(prompt, 8, 0.0, beams=1, ignore_eos=True)])
    assert made == {0: tiny.greedy(model, prompt, 8)}


def test_a_closed_engine_leaves_no_thread(folders):
    before = set(threading.enumerate())
    generator = load_generator("transformers", folders["transformers"], options())
    run(generator, [Request([5, 6], 3, 0.0), Request([5, 6], 3, 1.0)])
    generator.close()
    left = [thread.name for thread in set(threading.enumerate()) - before if not thread.daemon]
    assert left == []


@pytest.mark.parametrize(
    ("name", "wanted", "problem"),
    [
        ("torch", {}, "parameter engine must be one of openvino_genai, transformers, not 'torch'"),
        ("openvino_genai", {"device": "cuda"}, "parameter device: openvino_genai runs on cpu here, not 'cuda'"),
        ("transformers", {"device": "cuda"}, "parameter device is 'cuda', and PyTorch finds no CUDA device here"),
    ],
)
def test_an_engine_that_cannot_be_had_is_told_in_one_line(folders, name, wanted, problem):
    with pytest.raises(ValueError, match=f"^{problem}$"):
        load_generator(name, folders.get(name, Path()), options(**wanted))
