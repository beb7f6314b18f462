"""What the path of a request refuses, and what it counts. The answers themselves are tested on a real Triton."""

import pytest

from millis_server.cache import AnswerCache
from millis_server.catalogue import Catalogue
from millis_server.errors import DeadlineUnreachable
from millis_server.infer import Inference
from millis_server.prediction import Load, Predictor
from millis_server.routing import Wishes
from millis_server.tasks.text_classification import TextClassification
from tests.server.test_routing import variant


class Untokenizable:
    def rows(self, *_):
        raise AssertionError("the text was tokenized")


async def test_overload_is_rejected_before_tokenization_and_counted():
    light = variant("light", 0.9, 1.0)
    object.__setattr__(light.current, "tokenizer", Untokenizable())
    catalogue, predictor = Catalogue(), Predictor(workers=2, rows_at_once=64)
    catalogue.variants["intent-light"] = light
    inference = Inference(catalogue, None, AnswerCache(0), predictor, max_pending_inputs=10)
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
