"""What the path of a request refuses, and what it counts. The answers themselves are tested on a real Triton."""

import asyncio
import threading

import pytest

from millis_server.cache import AnswerCache
from millis_server.catalogue import Catalogue, Variant
from millis_server.errors import DeadlineUnreachable
from millis_server.infer import INLINE_CHARACTERS, Inference
from millis_server.prediction import Load, Predictor
from millis_server.routing import Wishes
from millis_server.tasks.text_classification import TextClassification
from millis_server.tokenizer import Row
from millis_server.triton.lane import Lane
from tests.server.test_routing import variant
from tests.server.triton.test_lane import HeldTriton, lane


class Untokenizable:
    def rows(self, *_):
        raise AssertionError("the text was tokenized")


class SlowTokenizer:
    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def rows(self, *_):
        self.begun.set()
        assert self.go_on.wait(5), "tokenizing held up the event loop"
        return [Row([1])], []


def inference_of(light: Variant, lane: Lane, tokenizer: object, predictor: Predictor) -> Inference:
    object.__setattr__(light.current, "tokenizer", tokenizer)
    object.__setattr__(light.current, "lane", lane)
    catalogue = Catalogue()
    catalogue.variants["intent-light"] = light
    return Inference(catalogue, None, AnswerCache(0), predictor, max_pending_inputs=10)


async def test_overload_is_rejected_before_tokenization_and_counted():
    light, predictor = variant("light", 0.9, 1.0), Predictor()
    inference = inference_of(light, lane(HeldTriton()), Untokenizable(), predictor)
    task = TextClassification(["where is my order"])
    with predictor.under_way(predictor.forecast(light.current.pace, Load(64, 16))):
        with pytest.raises(DeadlineUnreachable) as refused:
            await inference.run(task, "intent", Wishes(time_left=0.01))
        with pytest.raises(AssertionError, match="the text was tokenized"):
            await inference.run(task, "intent", Wishes(time_left=0.5))
    assert 0.01 < refused.value.retry_after < 0.05
    assert inference.decisions == {
        ("intent", "", "deadline_unreachable"): 1,
        ("intent", "light", "best_in_time"): 1,
    }
    assert predictor.idle


async def test_a_lane_drains_only_after_the_requests_that_are_still_being_tokenized():
    triton, tokenizer = HeldTriton(), SlowTokenizer()
    road = lane(triton)
    inference = inference_of(variant("light", 0.9, 1.0), road, tokenizer, Predictor())
    task = TextClassification(["order " * INLINE_CHARACTERS])
    asking = asyncio.create_task(inference.run(task, "intent", Wishes()))
    await asyncio.to_thread(tokenizer.begun.wait, 5)
    draining = asyncio.create_task(road.drain())
    await asyncio.sleep(0.01)
    assert not draining.done()
    tokenizer.go_on.set()
    while not triton.sizes:
        await asyncio.sleep(0.001)
    assert not draining.done()
    triton.release.set()
    await asyncio.wait_for(draining, 5)
    assert len((await asking).results) == 1
