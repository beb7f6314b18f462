"""The backend's batching, with an engine whose answer for a row depends on its own tokens only."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from millis_server.triton.backend.cascade import Stage
from millis_server.triton.backend.microbatch import MAX_PADDING, plan, run_unpadded


class SumEngine:
    """Answers with the sum of a row's real tokens, and counts what it ran."""

    inputs = ("input_ids", "attention_mask")
    outputs = ("logits",)

    def __init__(self, by_token: bool = False) -> None:
        self.by_token = by_token
        self.real = self.padded = 0

    def run(self, feeds):
        ids, mask = feeds["input_ids"], feeds["attention_mask"]
        self.real += int(mask.sum())
        self.padded += mask.size
        sums = (ids * mask).sum(1, keepdims=True)
        if self.by_token:
            return [np.stack([ids * mask, np.broadcast_to(sums, ids.shape)], axis=-1).astype(np.float32)]
        return [np.concatenate([sums, mask.sum(1, keepdims=True)], axis=1).astype(np.float32)]


def request(*lengths: int, width: int = 0) -> dict[str, np.ndarray]:
    width = width or max(lengths)
    ids = np.zeros((len(lengths), width), np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = np.arange(1, length + 1) + row
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("shares", [1, 2, 3])
def test_every_row_is_in_one_group_and_padding_stays_small(shares):
    lengths = np.random.default_rng(0).integers(5, 200, 300).tolist()
    groups = [group for share in plan(lengths, shares) for group in share]
    assert sorted(row for group in groups for row in group) == list(range(300))
    for group in groups:
        real = sum(lengths[row] for row in group)
        assert len(group) * lengths[group[-1]] <= (1 + MAX_PADDING) * real


def test_a_uniform_batch_is_spread_evenly():
    assert [sum(map(len, share)) for share in plan([16] * 8, 2)] == [4, 4]


@pytest.mark.parametrize("by_token", [False, True])
def test_mixed_requests_are_answered_as_each_row_alone(by_token):
    requests = [request(3), request(7, 2, 5), request(4, 4, width=9), request(60, 1)]
    engine = SumEngine(by_token)
    with ThreadPoolExecutor(1) as pool:
        answers = run_unpadded([Stage(engine)], requests, 2, pool)
    for feeds, (output, _, _) in zip(requests, answers, strict=True):
        mask = feeds["attention_mask"]
        assert output.shape == ((*mask.shape, 2) if by_token else (len(mask), 2))
        for row, length in enumerate(mask.sum(1)):
            alone = SumEngine(by_token).run({name: feed[row : row + 1, :length] for name, feed in feeds.items()})[0][0]
            answer = output[row, :length] if by_token else output[row]
            assert answer.tolist() == alone.tolist()
    assert engine.padded <= (1 + MAX_PADDING) * engine.real


def test_padding_is_told_text_by_text_and_adds_up_to_what_the_engine_computed():
    requests = [request(20, 20), request(19), request(3)]
    engine = SumEngine()
    paddings = [answer.padding for answer in run_unpadded([Stage(engine)], requests, max_padding=0.05)]
    assert [padding if padding is None else padding.tolist() for padding in paddings] == [None, [[1]], None]
    assert engine.padded - engine.real == 1


def test_a_lone_text_is_told_no_padding():
    (answer,) = run_unpadded([Stage(SumEngine())], [request(7)])
    assert answer.padding is None


def test_unlimited_padding_gives_each_worker_one_group_in_the_order_of_arrival():
    assert plan([5, 200, 7, 9, 11], 2, max_padding=None) == [[[0, 1, 2]], [[3, 4]]]
    requests = [request(5, 200), request(7)]
    engine = SumEngine()
    answers = run_unpadded([Stage(engine)], requests, max_padding=None)
    assert engine.padded == 600
    assert [answer.padding.tolist() for answer in answers if answer.padding is not None] == [[[195], [0]], [[193]]]


def test_a_failure_of_a_worker_reaches_the_caller():
    class Broken(SumEngine):
        def run(self, feeds):
            raise RuntimeError("no memory")

    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="no memory"):
        run_unpadded([Stage(Broken())], [request(3, 9)], 2, pool)
