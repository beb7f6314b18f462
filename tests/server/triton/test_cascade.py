"""Cascades in the backend: who leaves after which graph, with graphs whose answers say which one gave them."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from millis_server.triton.backend.cascade import Stage, load_stages
from millis_server.triton.backend.microbatch import run_unpadded


class FirstGraph:
    """Answers its number and the text's length; confidence falls with the length."""

    inputs = ("input_ids", "attention_mask")
    outputs = ("logits", "confidence", "hidden_states")

    def __init__(self):
        self.calls = []

    def run(self, feeds):
        ids, mask = feeds["input_ids"], feeds["attention_mask"]
        self.calls.append(ids.shape)
        lengths = mask.sum(1).astype(np.float32)
        hidden = np.repeat((ids * mask)[..., None], 4, axis=2).astype(np.float32)
        return [np.stack([np.ones_like(lengths), lengths], 1), 1 / lengths, hidden]


class LastGraph:
    """Answers its number and the sum of what the first graph handed on."""

    inputs = ("hidden_states", "attention_mask")
    outputs = ("logits",)

    def __init__(self):
        self.calls = []

    def run(self, feeds):
        hidden, mask = feeds["hidden_states"], feeds["attention_mask"]
        self.calls.append(hidden.shape)
        sums = (hidden[..., 0] * mask).sum(1)
        return [np.stack([np.full_like(sums, 2), sums], 1).astype(np.float32)]


@pytest.fixture
def stages():
    return [Stage(FirstGraph(), 2, 0.25), Stage(LastGraph(), 6)]


def request(*lengths):
    width = max(lengths)
    ids = np.zeros((len(lengths), width), np.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = np.arange(1, length + 1)
    return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}


@pytest.mark.parametrize(("length", "answer", "layers"), [(4, [1, 4], 2), (5, [2, 15], 6)])
def test_a_lone_text_leaves_when_it_is_as_confident_as_the_threshold(stages, length, answer, layers):
    (answered,) = run_unpadded(stages, [request(length)])
    assert answered.output.tolist() == [answer]
    assert answered.layers.tolist() == [[layers]]
    assert answered.padding is None
    assert len(stages[1].engine.calls) == (layers == 6)


@pytest.mark.parametrize("workers", [1, 2])
def test_of_a_batch_only_the_texts_that_are_not_confident_go_on(stages, workers):
    requests = [request(3, 9), request(4), request(9, 2, 5)]
    with ThreadPoolExecutor(1) as pool:
        answers = run_unpadded(stages, requests, workers, pool if workers > 1 else None)
    assert [answer.output.tolist() for answer in answers] == [[[1, 3], [2, 45]], [[1, 4]], [[2, 45], [1, 2], [2, 15]]]
    assert [answer.layers.tolist() for answer in answers] == [[[2], [6]], [[2]], [[6], [2], [6]]]
    assert sum(rows for rows, _, _ in stages[1].engine.calls) == 3


def test_those_that_go_on_are_batched_anew(stages):
    run_unpadded(stages, [request(9, 9), request(2, 2), request(9)], max_padding=0.05)
    assert stages[0].engine.calls == [(3, 9), (2, 2)]
    assert stages[1].engine.calls == [(3, 9, 4)]


def test_a_cascade_whose_texts_are_all_confident_runs_one_graph(stages):
    run_unpadded(stages, [request(2, 3)])
    assert stages[1].engine.calls == []


def test_a_version_without_exits_is_one_graph(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    assert load_stages(tmp_path, lambda path: path.name) == [Stage("model.onnx")]


def test_a_version_with_exits_is_what_its_manifest_says(tmp_path):
    exits = [
        {"file": "model.onnx", "layers": 2, "threshold": 0.9, "share": 0.7},
        {"file": "stage-2.onnx", "layers": 6, "threshold": None, "share": 0.3},
    ]
    (tmp_path / "manifest.json").write_text(json.dumps({"exits": exits}))
    expected = [Stage("model.onnx", 2, 0.9), Stage("stage-2.onnx", 6, None)]
    assert load_stages(tmp_path, lambda path: path.name) == expected
