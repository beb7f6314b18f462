"""Predictions from profiles of whole numbers, and how they are corrected."""

import asyncio

import pytest

from millis_server import prediction
from millis_server.errors import BackendFault, DeadlinePassed
from millis_server.manifest import LatencyPoint, LatencyProfile
from millis_server.prediction import EngineTime, Forecast, Load, Pace, Predictor
from tests.server.test_manifest import manifest

PROFILE = [(1, 8, 2.0), (1, 16, 4.0), (1, 32, 10.0), (8, 16, 24.0)]


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
    return clock


@pytest.mark.parametrize(
    ("texts", "tokens", "milliseconds"),
    [
        (1, 4, 2.0),
        (1, 8, 2.0),
        (1, 12, 3.0),
        (1, 24, 7.0),
        (1, 48, 16.0),
        (8, 16, 24.0),
        (4, 16, 4.0 + 20.0 * 3 / 7),
        (16, 16, 48.0),
        (8, 8, 16.0),
        (2, 32, 10.0 + (48.0 - 10.0) / 7),
    ],
)
def test_engine_time_lies_on_the_measured_points_and_on_lines_between_them(texts, tokens, milliseconds):
    assert 1e3 * EngineTime(profile(*PROFILE)).seconds(texts, tokens) == pytest.approx(milliseconds)


@pytest.mark.parametrize(
    ("points", "texts", "tokens", "milliseconds"),
    [([(1, 16, 4.0)], 3, 32, 24.0), ([(8, 16, 24.0)], 2, 16, 6.0), ([(8, 16, 24.0)], 16, 16, 48.0)],
)
def test_one_point_alone_is_scaled(points, texts, tokens, milliseconds):
    assert 1e3 * EngineTime(profile(*points)).seconds(texts, tokens) == pytest.approx(milliseconds)


def forecast(predictor: Predictor, pace: Pace, rows: int = 1) -> tuple[float, float]:
    made = predictor.forecast(pace, Load(rows, 16))
    return round(1e3 * made.ahead, 6), round(1e3 * made.uncorrected, 6)


def test_a_lone_text_takes_one_thread_and_several_are_spread(clock):
    predictor, pace = Predictor(2, 64), Pace("intent", profile((1, 16, 4.0)))
    assert forecast(predictor, pace) == (4.0, 4.0)
    assert forecast(predictor, pace, rows=8) == (32.0, 16.0)


def test_variants_of_a_model_are_one_queue_and_other_models_take_an_equal_share(clock):
    predictor = Predictor(2, 64)
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
    assert (predictor.backlog, predictor.idle) == ({}, True)


def test_of_a_long_call_only_what_the_lane_takes_at_once_is_before_a_later_one(clock):
    predictor, pace = Predictor(2, 64), Pace("intent", profile((1, 16, 4.0)))
    assert forecast(predictor, pace, rows=1000) == (64 * 4.0, 1000 * 4.0 / 2)


def seen(clock: Clock, predictor: Predictor, pace: Pace, seconds: float) -> None:
    with predictor.under_way(predictor.forecast(pace, Load(1, 16))):
        clock.now += seconds


def correction(clock: Clock, pace: Pace) -> tuple[float, float]:
    mean, deviation = pace.correction(clock.now)
    return round(mean, 2), round(deviation, 2)


def test_predictions_follow_what_is_seen_and_forget_it_when_unused(clock):
    predictor, pace = Predictor(2, 64), Pace("intent", profile((1, 16, 4.0)))
    assert correction(clock, pace) == (1.0, 0.05)
    for _ in range(200):
        seen(clock, predictor, pace, 0.008)
    assert correction(clock, pace) == (1.99, 0.01)
    made = predictor.forecast(pace, Load(1, 16))
    assert (round(made.seconds, 3), round(made.alone, 3)) == (0.008, 0.008)
    clock.now += prediction.FORGET_SECONDS
    assert correction(clock, pace) == (1.5, 0.03)
    clock.now += 60
    assert correction(clock, pace) == (1.01, 0.05)


def test_one_stalled_answer_does_not_shut_a_version_out(clock):
    predictor, pace = Predictor(2, 64), Pace("intent", profile((1, 16, 4.0)))
    for _ in range(200):
        seen(clock, predictor, pace, 0.004)
    seen(clock, predictor, pace, 4.0)
    mean, _ = pace.correction(clock.now)
    assert mean < 1.5


@pytest.mark.parametrize("cause", [asyncio.CancelledError, lambda: DeadlinePassed("late")])
def test_who_leaves_late_teaches_and_who_leaves_early_does_not(clock, cause):
    predictor, pace = Predictor(2, 64), Pace("intent", profile((1, 16, 4.0)))
    for seconds, expected in ((0.002, 1.0), (0.008, 1 + prediction.MEAN_GAIN)):
        with (
            pytest.raises((asyncio.CancelledError, DeadlinePassed)),
            predictor.under_way(predictor.forecast(pace, Load(1, 16))),
        ):
            clock.now += seconds
            raise cause()
        assert pace.correction(clock.now)[0] == pytest.approx(expected, rel=1e-3)
    assert predictor.idle


def test_a_failure_teaches_nothing_and_frees_its_work(clock):
    predictor, pace = Predictor(2, 64), Pace("intent", profile((1, 16, 4.0)))
    with pytest.raises(BackendFault), predictor.under_way(predictor.forecast(pace, Load(1, 16))):
        clock.now += 1
        raise BackendFault("broken")
    assert (correction(clock, pace), predictor.idle) == ((1.0, 0.05), True)


def test_what_was_never_measured_is_not_predicted(clock):
    pace = Pace("intent", None)
    made = Predictor(2, 64).forecast(pace, Load(1, 16))
    assert made == Forecast(pace, 0.0, 0.0, float("inf"), float("inf"))
    seen(clock, Predictor(2, 64), pace, 1.0)
    assert correction(clock, pace) == (1.0, 0.05)


def test_tokens_are_estimated_from_what_the_characters_of_the_model_became():
    predictor, english, chinese = Predictor(2, 64), manifest(), manifest(model="zh")
    assert predictor.load(english, 2, 80) == Load(2, 2 + 40 * prediction.TOKENS_PER_CHARACTER)
    for _ in range(500):
        predictor.learn_density(chinese, rows=2, tokens=84, characters=80)
    assert predictor.load(chinese, 1, 40).tokens == pytest.approx(42, rel=1e-3)
    assert predictor.load(english, 1, 40).tokens == 2 + 40 * prediction.TOKENS_PER_CHARACTER


def test_a_long_text_is_cut_to_what_the_model_reads_or_into_windows():
    predictor = Predictor(2, 64)
    tagger = manifest(task="token-classification", labels=("O", "B-X"))
    assert predictor.load(manifest(), 3, 3000) == Load(3, 64)
    assert predictor.load(tagger, 3, 3000) == Load(15, (2 + 300.0) / 5)
