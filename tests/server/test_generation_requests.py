"""What the gateway reads of a GenerateTextRequest, before any model is known."""

from __future__ import annotations

import tracemalloc

import pytest

from millis.v1 import inference_pb2 as inference
from millis_server.errors import InvalidField
from millis_server.generation_requests import read_generation
from millis_server.tasks.generation import Sampling, TextGeneration

MEGABYTE = 1 << 20


def read(**fields: object) -> TextGeneration:
    request = inference.GenerateTextRequest(**({"prompt": "fox"} | fields))
    return read_generation(request, check=lambda name, text: None, max_messages=10)


def test_millions_of_token_ids_are_not_copied():
    request = inference.GenerateTextRequest(token_ids=inference.TokenIds(ids=[300] * 1_000_000))
    tracemalloc.start()
    task = read_generation(request, check=lambda name, text: None, max_messages=10)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(task.ids), most < MEGABYTE) == (1_000_000, True)


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.0},
        {"temperature": 0.01, "min_p": 0.99, "repetition_penalty": 0.01},
        {"temperature": 10.0, "top_p": 1.0, "repetition_penalty": 10.0},
    ],
)
def test_the_ends_of_each_range_are_taken(given):
    assert read(sampling=given).sampling == Sampling(**{name: pytest.approx(value) for name, value in given.items()})


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"sampling": {"temperature": 0.0099}},
            "sampling.temperature: is 0.0099, it must be 0, which is greedy, or 0.01 to 10",
        ),
        (
            {"sampling": {"temperature": float("nan")}},
            "sampling.temperature: is nan, it must be 0, which is greedy, or 0.01 to 10",
        ),
        ({"sampling": {"min_p": 1.0}}, "sampling.min_p: is 1, it must be less"),
        ({"sampling": {"repetition_penalty": 0.0}}, "sampling.repetition_penalty: is 0, it must be 0.01 to 10"),
        (
            {"ignore_eos": True, "json_schema": "{}"},
            "ignore_eos: is set, and so is json_schema, which says where the text ends; use one of them",
        ),
        (
            {"ignore_eos": True, "regex": "a"},
            "ignore_eos: is set, and so is regex, which says where the text ends; use one of them",
        ),
    ],
)
def test_what_no_engine_can_do_is_refused_by_name(fields, problem):
    with pytest.raises(InvalidField) as caught:
        read(**fields)
    assert str(caught.value) == problem
