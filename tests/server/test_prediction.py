"""Predictions from profiles of whole numbers, and how they are corrected."""

import asyncio
import random

import pytest

from millis_server import pace as pace_module
from millis_server import prediction
from millis_server.errors import BackendFault, DeadlinePassed
from millis_server.manifest import LatencyPoint, LatencyProfile
from millis_server.pace import Pace
from millis_server.prediction import Forecast, Load, Predictor
from tests.server.test_manifest import manifest


def profile(*points: tuple[int, int, float]) -> LatencyProfile:
    measured = tuple(LatencyPoint(batch=batch, tokens=tokens, p50_ms=ms, p99_ms=ms) for batch, tokens, ms in points)
    return LatencyProfile(machine="m", engine="e", threads=1, points=measured)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(prediction, "perf_counter", clock)
    monkeypatch.setattr(prediction, "PATH_SECONDS", 0.0)
    monkeypatch.setattr(prediction, "PATH_WORK_SECONDS", 0.0)
    monkeypatch.setattr(prediction, "FIRST_MARGIN", 0.0)
    return clock


def forecast(predictor: Predictor, pace: Pace, rows: int = 1) -> tuple[float, float]:
    made = predictor.forecast(pace, Load(rows, 16))
    return round(1e3 * made.ahead, 6), round(1e3 * made.expected, 6)


def test_a_lone_text_takes_one_thread_and_several_are_spread(clock):
    predictor, pace = Predictor(), Pace("intent", profile((1, 16, 4.0)))
    assert forecast(predictor, pace) == (4.0, 4.0)
    assert forecast(predictor, pace, rows=8) == (32.0, 16.0)


def test_variants_of_a_model_are_one_queue_and_other_models_take_an_equal_share(clock):
    predictor = Predictor()
    heavy, light = (Pace("intent", profile((1, 16, ms))) for ms in (4.0, 1.0))
    other = Pace("ner", profile((1, 16, 2.0)))
    with predictor.under_way(predictor.forecast(heavy, Load(20, 16))):
        assert forecast(predictor, heavy) == (4.0, 4.0 + 80.0 / 2)
        assert forecast(predictor, light) == (1.0, 1.0 + 80.0 / 2)
        # While the other model does its own 2 ms of work, intent takes a share of no more than that.
        assert forecast(predictor, other) == (2.0, 2.0 + 2.0 / 2)
        with predictor.under_way(predictor.forecast(other, Load(10, 16))):
            assert forecast(predictor, light) == (1.0, 1.0 + (80.0 + 20.0) / 2)
            assert predictor.backlog == pytest.approx({"intent": 0.08, "ner": 0.02})
    assert (predictor.backlog, predictor.idle) == ({"intent": 0.0, "ner": 0.0}, True)


def test_the_path_of_a_crowd_of_small_requests_is_work_too(clock, monkeypatch):
    monkeypatch.setattr(prediction, "PATH_WORK_SECONDS", 0.001)
    predictor, light = Predictor(), Pace("intent", profile((1, 16, 0.25)))
    assert forecast(predictor, light) == (1.25, 0.25)
    with predictor.under_way(predictor.forecast(light, Load(1, 16))):
        assert forecast(predictor, light) == (1.25, 0.25 + 1.25 / 2)


def test_what_of_a_promise_is_waiting_has_its_share_of_the_margin(clock, monkeypatch):
    monkeypatch.setattr(prediction, "FIRST_MARGIN", 0.5)
    predictor, pace = Predictor(), Pace("intent", profile((1, 16, 4.0)))
    with predictor.under_way(predictor.forecast(pace, Load(3, 16))):
        made = predictor.forecast(pace, Load(1, 16))
    assert [round(1e3 * value, 6) for value in (made.expected, made.promised, made.promised_wait)] == [10.0, 15.0, 9.0]


def test_of_a_long_call_only_what_the_lane_takes_at_once_is_before_a_later_one(clock):
    predictor, pace = Predictor(), Pace("intent", profile((1, 16, 4.0)))
    assert forecast(predictor, pace, rows=1000) == (64 * 4.0, 1000 * 4.0 / 2)


def seen(clock: Clock, predictor: Predictor, pace: Pace, seconds: float) -> None:
    with predictor.under_way(predictor.forecast(pace, Load(1, 16))):
        clock.now += seconds


def test_an_answer_from_the_cache_teaches_nothing(clock):
    predictor, pace = Predictor(), Pace("intent", profile((1, 16, 4.0)))
    with predictor.under_way(predictor.forecast(pace, Load(1, 16))) as booking:
        booking.tells = False
    assert pace.factor.at(clock.now) == 1.0


def promise(predictor: Predictor, pace: Pace) -> tuple[float, float]:
    """Expected and promised milliseconds."""
    made = predictor.forecast(pace, Load(1, 16))
    return round(1e3 * made.expected, 1), round(1e3 * made.promised, 1)


def test_predictions_follow_what_is_seen_and_forget_it_when_unused(clock):
    predictor, pace = Predictor(), Pace("intent", profile((1, 16, 4.0)))
    assert promise(predictor, pace) == (4.0, 4.0)
    for _ in range(2000):
        seen(clock, predictor, pace, 0.008)
    assert promise(predictor, pace) == (8.0, 8.0)
    clock.now += 2 * pace_module.FORGET_SECONDS
    assert promise(predictor, pace) == (6.0, 6.0)
    clock.now += 80
    assert promise(predictor, pace) == (4.0, 4.0)


def test_an_error_is_blamed_on_the_own_time_or_on_the_wait_by_what_they_were_of_the_prediction(clock):
    predictor = Predictor()
    light, heavy = (Pace("intent", profile((1, 16, ms))) for ms in (4.0, 8.0))
    for _ in range(1000):
        with predictor.under_way(predictor.forecast(heavy, Load(50, 16))):
            made = predictor.forecast(light, Load(1, 16))
            seen(clock, predictor, light, 0.004 + 2 * made.wait)
        seen(clock, predictor, light, 0.004)
    assert light.factor.at(clock.now) == pytest.approx(1.0, abs=0.05)
    assert (made.expected - made.at_rest) / made.wait == pytest.approx(2.0, abs=0.02)


def test_in_the_long_run_995_of_1000_promises_are_kept(clock):
    predictor, pace, draws = Predictor(), Pace("intent", profile((1, 16, 4.0))), random.Random(0)
    broken = 0
    for number in range(20_000):
        made = predictor.forecast(pace, Load(1, 16))
        slower = 1 if number < 10_000 else 3
        took = slower * 0.004 * draws.lognormvariate(0, 0.3)
        broken += took > made.promised
        with predictor.under_way(made):
            clock.now += took
    assert 0.004 < broken / 20_000 < 0.006


def test_the_first_promises_and_those_after_a_silence_have_a_margin_that_nothing_taught(clock, monkeypatch):
    monkeypatch.setattr(prediction, "FIRST_MARGIN", 0.25)
    predictor, pace = Predictor(), Pace("intent", profile((1, 16, 4.0)))
    assert promise(predictor, pace) == (4.0, 5.0)
    for _ in range(2000):
        seen(clock, predictor, pace, 0.004)
    assert promise(predictor, pace) == (4.0, 4.0)
    clock.now += 200
    assert promise(predictor, pace) == (4.0, 5.0)


def test_who_was_promised_nothing_does_not_widen_the_margin_of_others(clock):
    predictor, pace = Predictor(), Pace("intent", profile((1, 16, 4.0)))
    for _ in range(20):
        with predictor.under_way(predictor.forecast(pace, Load(1, 16)), promised=False):
            clock.now += 0.008
    expected, promised = promise(predictor, pace)
    assert expected == promised > 6.0


def test_one_stalled_answer_does_not_shut_a_version_out(clock):
    predictor, pace = Predictor(), Pace("intent", profile((1, 16, 4.0)))
    seen(clock, predictor, pace, 4.0)
    assert promise(predictor, pace) == (4.8, 5.2)


@pytest.mark.parametrize("cause", [asyncio.CancelledError, lambda: DeadlinePassed("late")])
def test_who_leaves_late_teaches_and_who_leaves_early_does_not(clock, cause):
    predictor, pace = Predictor(), Pace("intent", profile((1, 16, 4.0)))
    for seconds, expected in ((0.002, (4.0, 4.0)), (0.008, (4.2, 4.7))):
        with (
            pytest.raises((asyncio.CancelledError, DeadlinePassed)),
            predictor.under_way(predictor.forecast(pace, Load(1, 16))),
        ):
            clock.now += seconds
            raise cause()
        assert promise(predictor, pace) == expected
    assert predictor.idle


def test_a_failure_teaches_nothing_and_frees_its_work(clock):
    predictor, pace = Predictor(), Pace("intent", profile((1, 16, 4.0)))
    with pytest.raises(BackendFault), predictor.under_way(predictor.forecast(pace, Load(1, 16))):
        clock.now += 1
        raise BackendFault("broken")
    assert (promise(predictor, pace), predictor.idle) == ((4.0, 4.0), True)


def test_what_was_never_measured_is_not_predicted(clock):
    predictor, pace = Predictor(), Pace("intent", None)
    never = float("inf")
    assert predictor.forecast(pace, Load(1, 16)) == Forecast(pace, 0.0, 0.0, 0.0, never, never, never)
    seen(clock, predictor, pace, 1.0)
    assert predictor.forecast(pace, Load(1, 16)).promised == never


def test_tokens_are_estimated_from_what_the_characters_of_the_model_became():
    predictor, english, chinese = Predictor(), manifest(), manifest(model="zh")
    assert predictor.load(english, 2, 80) == Load(2, 2 + 40 * prediction.TOKENS_PER_CHARACTER)
    for _ in range(500):
        predictor.learn_density("zh", rows=2, tokens=84, characters=80)
    assert predictor.load(chinese, 1, 40).tokens == pytest.approx(42, rel=1e-3)
    assert predictor.load(english, 1, 40).tokens == 2 + 40 * prediction.TOKENS_PER_CHARACTER


def test_a_long_text_is_cut_to_what_the_model_reads_or_into_windows():
    predictor = Predictor()
    tagger = manifest(task="token-classification", labels=("O", "B-X"))
    assert predictor.load(manifest(), 3, 3000) == Load(3, 64)
    assert predictor.load(tagger, 3, 3000) == Load(15, (2 + 300.0) / 5)
