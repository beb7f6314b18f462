"""Pages of OpenVINO GenAI's memory: texts that are dropped give theirs back, whenever that is."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from millis_server.triton.generation_backend.decoding.generator import GeneratorOptions, Request, load_generator
from tests import tiny_generation as tiny

PLACES = 8
TEXTS = 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("pages")
    tiny.publish_language_model(repository, "chat", tiny.language_model("llama"))
    return repository / "chat-fp32" / "1"


def usage_of_a_lone_text(generator) -> float:
    """Share of the pages in use while one short text is made."""
    generator.add(TEXTS, Request([5, 6, 7], 2, 0.0, ignore_eos=True))
    generator.step()
    usage = generator._pipeline.get_metrics().cache_usage  # no other way tells it
    while generator.busy:
        generator.step()
    return usage


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_a_thousand_texts_dropped_at_random_moments_leave_no_page_behind(folder, prefix_caching):
    options = GeneratorOptions(
        max_streams=PLACES, cache_tokens=PLACES * 200, kv_cache_precision="f32", prefix_caching=prefix_caching, eos=(2,)
    )
    generator = load_generator("openvino_genai", folder, options)
    before = usage_of_a_lone_text(generator)
    choose = random.Random(1)
    steps_left: dict[int, int] = {}
    begun = dropped = 0
    while begun < TEXTS or steps_left:
        while begun < TEXTS and len(steps_left) < PLACES:
            prompt = [5 + choose.randrange(20) for _ in range(choose.randrange(1, 60))]
            generator.add(begun, Request(prompt, choose.randrange(1, 60), 0.0, ignore_eos=True))
            steps_left[begun] = choose.randrange(1, 40)
            begun += 1
        for piece in generator.step():
            if piece.finish:
                del steps_left[piece.number]
        for number in list(steps_left):
            steps_left[number] -= 1
            if not steps_left[number]:
                generator.cancel(number)
                del steps_left[number]
                dropped += 1
    assert TEXTS / 4 < dropped < TEXTS
    usage_of_a_lone_text(generator)  # the engine gives back the last ones' pages in its next step
    assert 0 < before == usage_of_a_lone_text(generator)
    assert not generator.busy
