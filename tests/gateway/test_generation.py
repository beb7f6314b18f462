"""GenerateText end to end: real models, a real Triton, a real socket."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import millis
from benchmarks.gateway import running_gateway
from millis import Message, Sampling
from tests import tiny_generation as tiny

EXACT = ("llama", "qwen2", "gpt2")
PLAIN = "llama-plain"
DRAFTED, GUESSING, PYTORCH = "llama-drafted", "llama-guessing", "llama-pytorch"
PATIENCE_SECONDS = 60
SLOW_TEMPLATE = "{% for _ in range(50) %}{% for _ in range(99999) %}{% endfor %}{% endfor %}" + tiny.CHAT_TEMPLATE
"""Takes a fair part of a second."""


@dataclass(frozen=True)
class Generating:
    client: millis.Client
    models: dict[str, PreTrainedModel]
    repository: Path
    target: str


@pytest.fixture(scope="module")
def generating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generating]:
    """Some families, one of them also without prefix caching and with a slow chat template, with a draft, with prompt
    lookup and in PyTorch, and `narrow`, which has 2 places."""
    repository = tmp_path_factory.mktemp("generation") / "repository"
    models = {family: tiny.language_model(family) for family in EXACT}
    for family, model in models.items():
        tiny.publish_language_model(repository, family, model)
    tiny.publish_language_model(
        repository, PLAIN, models["llama"], chat_template=SLOW_TEMPLATE, parameters={"prefix_caching": "false"}
    )
    tiny.publish_language_model(repository, DRAFTED, models["llama"], draft=tiny.language_model("gpt2"))
    tiny.publish_language_model(repository, GUESSING, models["llama"], parameters={"prompt_lookup": "4"})
    tiny.publish_language_model(repository, PYTORCH, models["llama"], engine="transformers")
    tiny.publish_language_model(
        repository, "narrow", models["llama"], max_streams=2, cache_tokens=1200, chat_template=""
    )
    with (
        running_gateway(repository, "--max-waiting-generations", "4", "--repository-poll-seconds", "0.2") as running,
        millis.Client(running.target) as client,
    ):
        yield Generating(client, models, repository, running.target)


def answered_by(client: millis.Client, model: str) -> str:
    with client.generate("fox", model=model, max_tokens=1) as stream:
        stream.text()
    return stream.finished.info.served_by.version


def tokens_of(stream: millis.GenerationStream) -> list[int]:
    return [token for delta in stream for token in delta.token_ids]


def check_exact(client: millis.Client, name: str, model: PreTrainedModel) -> None:
    """Asks 8 prompts at different times, two with a common beginning, and compares with transformers."""
    prompts = tiny.prompts(8)
    prompts[5] = prompts[4][:20] + prompts[5]

    def ask(place: int) -> list[int]:
        time.sleep(0.02 * place)
        return tokens_of(client.generate(prompts[place], model=name, max_tokens=64, ignore_eos=True))

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(ask, range(8)))
    again = tokens_of(client.generate(prompts[4], model=name, max_tokens=64, ignore_eos=True))
    assert made == [tiny.greedy(model, prompt, 64) for prompt in prompts]
    assert again == made[4]


@pytest.mark.parametrize("name", [*EXACT, PLAIN, DRAFTED, GUESSING, PYTORCH])
def test_greedy_tokens_are_those_of_transformers_for_callers_who_come_at_different_times(generating, name):
    check_exact(generating.client, name, generating.models[name.partition("-")[0]])


def test_the_stream_tells_who_answers_then_text_then_how_it_ended(generating):
    with generating.client.generate("where is my order", model="llama", max_tokens=5, ignore_eos=True) as stream:
        deltas = list(stream)
    assert stream.started.served_by.model == "llama"
    assert stream.started.usage.tokens == len(tiny.bytes_tokenizer().encode("where is my order"))
    assert [delta.index for delta in deltas] == [0] * 5
    assert stream.finished.completions == (millis.Completion(0, "length", 5),)
    assert stream.finished.info.usage.generated_tokens == 5
    timing = stream.finished.timing
    assert 0 < timing.time_to_first_token_s <= timing.total_s
    assert 0 < timing.time_per_token_s < timing.total_s


def test_a_chat_becomes_a_prompt_by_the_models_own_template(generating):
    chat = [Message("system", "be brief"), Message("user", "where is my order")]
    prompt = "<s>system: be brief\nuser: where is my order\nassistant:"
    ids = tiny.bytes_tokenizer().encode(prompt)
    made = tokens_of(generating.client.generate(chat, model="llama", max_tokens=12, ignore_eos=True))
    assert made == tiny.greedy(generating.models["llama"], ids, 12)


def test_the_time_in_the_queue_is_that_of_waiting_for_a_place_alone(generating):
    with generating.client.generate([Message("user", "hi")], model=PLAIN, max_tokens=1, ignore_eos=True) as stream:
        stream.text()
    timing = stream.finished.timing
    assert timing.queue_s < timing.time_to_first_token_s / 10


def test_a_text_ends_before_its_stop_text_and_shows_nothing_of_it(generating):
    whole = generating.client.generate("the quick brown", model="llama", max_tokens=40, ignore_eos=True).text()
    assert len(whole) > 12, "the random model makes too little text for this test"
    stop = whole[6:11]
    with generating.client.generate(
        "the quick brown", model="llama", max_tokens=40, ignore_eos=True, stop=[stop]
    ) as stream:
        deltas = [delta.text for delta in stream]
    assert "".join(deltas) == whole[: whole.index(stop)]
    assert stream.finished.completions[0].finish_reason == "stop"


@pytest.mark.parametrize("search", [{"n": 2, "sampling": Sampling(temperature=0.01, seed=1)}, {"n": 2, "beams": 2}])
def test_texts_that_come_whole_end_with_their_stop_text_too_in_tokens_and_counts(generating, search):
    ask = partial(generating.client.generate, "the quick brown", model="llama", max_tokens=40, ignore_eos=True)
    first, _ = ask(**search, logprobs=True)
    stop = first.text[6:11]
    with ask(**search, logprobs=True, stop=[stop]) as stream:
        cut, _ = stream
    assert cut.text == first.text[: first.text.index(stop)]
    tokenizer = tiny.bytes_tokenizer().backend_tokenizer
    kept = next(count for count in range(41) if stop in tokenizer.decode(list(first.token_ids[:count])))
    assert (cut.token_ids, cut.logprobs) == (first.token_ids[:kept], pytest.approx(first.logprobs[:kept], abs=1e-4))
    assert stream.finished.completions[0] == millis.Completion(0, "stop", kept)


def test_logprobs_are_those_of_the_model_before_temperature(generating):
    prompt = tiny.prompts(1, seed=3)[0]
    sampling = Sampling(temperature=0.7, seed=1)
    stream = generating.client.generate(
        prompt, model="llama", max_tokens=6, ignore_eos=True, logprobs=True, sampling=sampling
    )
    deltas = list(stream)
    made = [token for delta in deltas for token in delta.token_ids]
    told = [value for delta in deltas for value in delta.logprobs]
    with torch.inference_mode():
        logits = generating.models["llama"](torch.tensor([prompt + made])).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(made)[:, None])[:, 0].tolist()
    assert told == pytest.approx(expected, abs=1e-3)


def test_the_same_seed_draws_the_same_tokens_and_no_seed_others(generating):
    def draw(seed: int | None) -> tuple[int, ...]:
        sampling = Sampling(temperature=3.0, seed=seed)
        return tuple(
            tokens_of(
                generating.client.generate("fox", model="llama", max_tokens=12, ignore_eos=True, sampling=sampling)
            )
        )

    assert draw(11) == draw(11)
    assert len({draw(None) for _ in range(4)} | {draw(11)}) > 1


def test_draws_follow_the_models_probabilities(generating):
    prompt = tiny.prompts(1, seed=9)[0]
    temperature, draws = 4.0, 1600
    with torch.inference_mode():
        logits = generating.models["llama"](torch.tensor([prompt])).logits[0, -1]
    expected = torch.softmax(logits / temperature, -1).tolist()

    def draw(seed: int) -> list[int]:
        sampling = Sampling(temperature=temperature, seed=seed)
        stream = generating.client.generate(
            prompt, model="llama", max_tokens=1, ignore_eos=True, n=8, sampling=sampling
        )
        return tokens_of(stream)

    with ThreadPoolExecutor(4) as pool:
        drawn = [token for part in pool.map(draw, range(draws // 8)) for token in part]
    counts = Counter(drawn)
    # The 5 most likely tokens and the rest: chi-square with 5 degrees of freedom stays below 25.7 in 9,999 of 10,000.
    likely = sorted(range(len(expected)), key=lambda token: -expected[token])[:5]
    groups = [(counts[token], expected[token]) for token in likely]
    groups.append((draws - sum(count for count, _ in groups), 1 - sum(share for _, share in groups)))
    assert len(drawn) == draws
    assert sum((count - draws * share) ** 2 / (draws * share) for count, share in groups) < 25.7


def test_several_answers_come_whole_and_beams_the_best_first(generating):
    sampling = Sampling(temperature=2.0, seed=4)
    several = list(
        generating.client.generate("fox", model="llama", max_tokens=6, ignore_eos=True, n=3, sampling=sampling)
    )
    assert [delta.index for delta in several] == [0, 1, 2]
    assert len({delta.token_ids for delta in several}) > 1
    beams = list(
        generating.client.generate("fox", model="llama", max_tokens=6, ignore_eos=True, n=2, beams=4, logprobs=True)
    )
    greedy = list(generating.client.generate("fox", model="llama", max_tokens=6, ignore_eos=True, logprobs=True))
    scores = [sum(delta.logprobs) for delta in beams]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] >= sum(value for delta in greedy for value in delta.logprobs) - 1e-4


def test_guided_text_obeys_its_guide(generating):
    def ask(**guide: object) -> str:
        # A random model that always takes the likeliest token might fill a JSON text with blanks for ever.
        sampling = Sampling(temperature=5.0, seed=1)
        return generating.client.generate("order", model="llama", max_tokens=200, sampling=sampling, **guide).text()

    assert ask(choices=["refund", "cancel"]) in ("refund", "cancel")
    number, _, letters = ask(regex="[0-9]{3}-[a-z]{2}").partition("-")
    assert (len(number), number.isdecimal(), len(letters)) == (3, True, 2)
    schema = {
        "type": "object",
        "properties": {"sure": {"type": "boolean"}, "label": {"enum": ["refund", "cancel"]}},
        "required": ["sure", "label"],
        "additionalProperties": False,
    }
    found = json.loads(ask(json_schema=schema))
    assert found["label"] in ("refund", "cancel")
    assert isinstance(found["sure"], bool)
    assert ask(json_schema={}), "a schema that allows everything is one too"


AWKWARD = (
    *("yes, please!", "a.b*c", "(no)", "[a-z]+", "x|y", "^$", "{2}", "a\\b", 'say "hi"', "it's", "what?", "1 + 1 = 2"),
    *(" both sides ", "two\nlines", "a\ttab", "#hash-tag ~ & %", "café 你好", "no", "not"),
)
"""Choices that mean something else in a regular expression, a JSON text or a template, and one that begins another."""


@pytest.mark.parametrize("choice", AWKWARD)
def test_a_choice_is_made_to_the_letter_whatever_its_characters(generating, choice):
    assert generating.client.generate("order", model="llama", max_tokens=200, choices=[choice]).text() == choice


def test_of_choices_with_awkward_characters_exactly_one_is_made(generating):
    def ask(seed: int) -> str:
        sampling = Sampling(temperature=10.0, seed=seed)
        return generating.client.generate(
            "order", model="llama", max_tokens=200, sampling=sampling, choices=AWKWARD
        ).text()

    made = {ask(seed) for seed in range(24)}
    assert made <= set(AWKWARD)
    assert len(made) > 3


def test_a_guide_that_cannot_be_compiled_is_refused_and_harms_nobody(generating):
    with generating.client.generate("fox", model="llama", max_tokens=300, ignore_eos=True) as going:
        next(going)
        for guide, field in (({"json_schema": {"type": "nonsense"}}, "json_schema"), ({"regex": "(?<=a)b"}, "regex")):
            with pytest.raises(millis.InvalidArgumentError) as caught:
                generating.client.generate("fox", model="llama", **guide).text()
            assert [violation.field for violation in caught.value.field_violations] == [field]
        assert len(tokens_of(going)) == 299


def test_who_leaves_frees_the_place_at_once(generating):
    gone = [generating.client.generate("fox", model="narrow", max_tokens=400, ignore_eos=True) for _ in range(2)]
    for stream in gone:
        next(stream)
    for stream in gone:
        stream.cancel()
    began = time.monotonic()
    with generating.client.generate("fox", model="narrow", max_tokens=3, ignore_eos=True) as stream:
        assert len(tokens_of(stream)) == 3
    assert stream.finished.timing.queue_s < 0.5
    assert time.monotonic() - began < PATIENCE_SECONDS


def test_callers_beyond_the_places_wait_in_order_and_those_beyond_the_queue_are_refused(generating):
    order: list[int] = []
    refused: list[millis.MillisError] = []

    def ask(place: int) -> None:
        try:
            stream = generating.client.generate("fox", model="narrow", max_tokens=120, ignore_eos=True)
            next(stream)
            order.append(place)
            assert len(tokens_of(stream)) == 119
        except millis.ResourceExhaustedError as error:
            refused.append(error)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(9)]
    for thread in threads:
        thread.start()
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert sorted(order[:2]) == [0, 1]
    assert order[2:] == sorted(order[2:])
    assert len(order) + len(refused) == 9
    assert all(error.retry_after is not None for error in refused)


@pytest.mark.parametrize(
    ("asked", "field", "problem"),
    [
        ({"prompt": " "}, "prompt", "is empty or blank"),
        ({"prompt": "a\0b"}, "prompt", "contains a NUL character at position 1"),
        ({"prompt": [tiny.VOCABULARY]}, "token_ids.ids[0]", "is 384; this model has ids from 0 to 383"),
        (
            {"prompt": [5] * tiny.CONTEXT},
            "token_ids.ids",
            "has 512 tokens; with at least 1 of the answer the limit is 512",
        ),
        (
            {"prompt": [5] * 12, "max_tokens": 501},
            "max_tokens",
            "is 501; with 12 tokens of the prompt the model's limit of 512 leaves 500",
        ),
        ({"max_tokens": 0}, "max_tokens", "is 0, it must be at least 1"),
        ({"stop": [""]}, "stop[0]", "is empty; it would stop everything"),
        (
            {"sampling": Sampling(temperature=11)},
            "sampling.temperature",
            "is 11, it must be 0, which is greedy, or 0.01 to 10",
        ),
        (
            {"sampling": Sampling(temperature=1e-40)},
            "sampling.temperature",
            "is 9.99995e-41, it must be 0, which is greedy, or 0.01 to 10",
        ),
        (
            {"sampling": Sampling(temperature=1), "model": DRAFTED},
            "sampling.temperature",
            "is 1; this variant guesses tokens with a draft model, so it must be 0",
        ),
        ({"sampling": Sampling(min_p=1)}, "sampling.min_p", "is 1, it must be less"),
        (
            {"sampling": Sampling(repetition_penalty=1e-40)},
            "sampling.repetition_penalty",
            "is 9.99995e-41, it must be 0.01 to 10",
        ),
        (
            {"sampling": Sampling(temperature=0.5), "logprobs": True, "model": PYTORCH},
            "logprobs",
            "is set, and sampling changes probabilities; the engine transformers tells only the changed ones",
        ),
        (
            {"beams": 2, "model": DRAFTED},
            "beams",
            "is 2; this variant guesses tokens with a draft model, so the limit is 1",
        ),
        (
            {"n": 2, "sampling": Sampling(temperature=1), "model": GUESSING},
            "n",
            "is 2; this variant guesses tokens with prompt lookup, so the limit is 1",
        ),
        (
            {"ignore_eos": True, "choices": ["yes", "no"]},
            "ignore_eos",
            "is set, and so is choices, which says where the text ends; use one of them",
        ),
        ({"sampling": Sampling(temperature=1, top_p=0)}, "sampling.top_p", "is 0, it must be more"),
        ({"n": 2}, "n", "is 2, and without sampling.temperature all texts would be the same"),
        ({"beams": 9}, "beams", "is 9; this model has places for 8"),
        (
            {"sampling": Sampling(temperature=1, top_k=2**31)},
            "sampling.top_k",
            "is 2147483648, the limit is 2147483647",
        ),
        ({"json_schema": "{"}, "json_schema", None),
        (
            {"json_schema": '{"not": ' * 65 + "{}" + "}" * 65},
            "json_schema",
            "is nested too deeply, the limit is 64 levels",
        ),
        ({"choices": [""]}, "choices.texts[0]", "is empty"),
        ({"prompt": [Message("user", "hi")], "model": "narrow"}, "chat", None),
        (
            {"prompt": [Message("user", "hi"), Message("system", "late")]},
            "chat.messages",
            "the model's chat template refuses them: system comes first",
        ),
    ],
)
def test_bad_input_is_refused_with_the_field_and_the_limit(generating, asked, field, problem):
    asked = {"prompt": "fox", "model": "llama"} | asked
    with pytest.raises(millis.InvalidArgumentError) as caught:
        generating.client.generate(asked.pop("prompt"), **asked).text()
    (violation,) = caught.value.field_violations
    assert violation.field == field
    if problem is not None:
        assert violation.description == problem


def test_another_task_and_an_unknown_model_are_told(generating):
    with pytest.raises(millis.NotFoundError):
        generating.client.generate("fox", model="nobody").text()
    with pytest.raises(millis.MillisError, match="ClassifyText needs text-classification"):
        generating.client.classify("fox", model="llama")


def test_a_deadline_ends_a_text_that_is_under_way(generating):
    began = time.monotonic()
    with pytest.raises(millis.DeadlineExceededError):
        generating.client.generate("fox", model="gpt2", max_tokens=500, ignore_eos=True, timeout=0.15).text()
    assert time.monotonic() - began < PATIENCE_SECONDS


def test_a_new_version_takes_over_while_texts_of_the_old_one_go_on(generating, tmp_path):
    name = "narrow"
    with generating.client.generate("fox", model=name, max_tokens=500, ignore_eos=True) as old:
        first = next(old)
        tiny.publish_language_model(
            generating.repository, name, generating.models["gpt2"], max_streams=2, cache_tokens=1200
        )
        ends = time.monotonic() + PATIENCE_SECONDS
        while answered_by(generating.client, name) == "1":
            assert time.monotonic() < ends
        rest = tokens_of(old)
    ids = tiny.bytes_tokenizer().encode("fox")
    assert [*first.token_ids, *rest] == tiny.greedy(generating.models["llama"], ids, 500)
    assert old.finished.info.served_by.version == "1"
