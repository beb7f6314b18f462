"""The choice of a variant, with predictions from profiles of whole numbers."""

from contextlib import ExitStack

import pytest

from millis_server import prediction
from millis_server.catalogue import Served, State, Variant
from millis_server.errors import DeadlineUnreachable, ModelNotFound, ModelUnavailable, QualityUnavailable
from millis_server.manifest import LatencyPoint, LatencyProfile, Quality
from millis_server.prediction import Predictor
from millis_server.routing import Cause, Choice, Demand, Wishes, choose
from tests.server.test_manifest import manifest

ONE = Demand(inputs=1, characters=40)


@pytest.fixture(autouse=True)
def a_plain_predictor(monkeypatch):
    """Predictions of engine time and backlog alone."""
    monkeypatch.setattr(prediction, "PATH_SECONDS", 0.0)
    monkeypatch.setattr(prediction, "PATH_WORK_SECONDS", 0.0)
    monkeypatch.setattr(prediction, "FIRST_MARGIN", 0.0)


def variant(
    name: str, quality: float | None, milliseconds: float | None, *, default: bool = False, versions: str = "1"
) -> Variant:
    profile = None
    if milliseconds is not None:
        points = [
            LatencyPoint(batch=1, tokens=tokens, p50_ms=tokens / 16 * milliseconds, p99_ms=tokens / 16 * milliseconds)
            for tokens in (16, 32)
        ]
        profile = LatencyProfile(machine="m", engine="e", threads=1, points=tuple(points))
    measured = quality and Quality(metric="accuracy", value=quality, low=0, high=1, examples=10, dataset="d")
    described = manifest(variant=name, default_variant=default, quality=measured, latency=profile)
    current, *before = [Served(described, version, None, None) for version in versions.split()]
    return Variant(described, State.READY, current=current, standby=before[0] if before else None)


def family() -> list[Variant]:
    return [
        variant("distilled", 0.90, 1.0),
        variant("fp32", 0.95, 6.0),
        variant("int8", 0.93, 3.0, default=True, versions="2 1"),
        variant("pruned", 0.93, 2.0),
    ]


def outcome(variants: list[Variant], wishes: Wishes, predictor: Predictor | None = None, demand: Demand = ONE):
    choice = choose(variants, predictor or Predictor(), demand, wishes)
    return choice.served.manifest.variant, choice.degraded, choice.cause, choice.reason


@pytest.fixture
def begin():
    """Books the work of a forecast, or of a number of texts of 16 tokens, until the end of the test."""
    with ExitStack() as under_way:

        def book(predictor: Predictor, what: prediction.Forecast | Variant, rows: int = 0) -> None:
            if isinstance(what, Variant):
                what = predictor.forecast(what.current.pace, prediction.Load(rows, 16))
            under_way.enter_context(predictor.under_way(what))

        yield book


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        (Wishes(), ("int8", False, Cause.DEFAULT, "default variant")),
        (Wishes(time_left=30.0), ("int8", False, Cause.DEFAULT, "default variant")),
        (
            Wishes(pin_variant="fp32", min_quality=0.99, latency_target=0.001),
            ("fp32", False, Cause.PINNED, "pinned by the caller"),
        ),
        (Wishes(min_quality=0.94), ("fp32", False, Cause.QUALITY_FLOOR, "best variant that meets min_quality")),
        (
            Wishes(latency_target=0.01),
            ("fp32", False, Cause.BEST_IN_TIME, "best variant predicted within 10.0 ms"),
        ),
        (Wishes(time_left=0.05), ("fp32", False, Cause.BEST_IN_TIME, "best variant predicted within 50.0 ms")),
        (
            Wishes(time_left=0.05, latency_target=0.004),
            ("int8", False, Cause.BEST_IN_TIME, "best variant predicted within 4.0 ms"),
        ),
        (
            Wishes(latency_target=0.0025),
            ("pruned", False, Cause.BEST_IN_TIME, "best variant predicted within 2.5 ms"),
        ),
        (
            Wishes(latency_target=0.0015),
            ("distilled", True, Cause.BEST_IN_TIME, "best variant predicted within 1.5 ms"),
        ),
        (
            Wishes(latency_target=0.0005, min_quality=0.93),
            ("pruned", False, Cause.FASTEST, "fastest variant; none is predicted within 0.5 ms"),
        ),
    ],
)
def test_the_best_variant_that_is_in_time_answers(wishes, expected):
    assert outcome(family(), wishes) == expected


def test_who_asks_for_just_the_quality_that_is_told_is_answered():
    told = 2877 / 3080  # 0.934090909…, and 0.934091 by the time a request has been read
    variants = [variant("int8", told, 3.0, default=True)]
    assert outcome(variants, Wishes(min_quality=round(told, 6)))[0] == "int8"


def test_a_variant_passed_over_for_what_it_would_wait_says_so(begin):
    variants, predictor = [variant("fp32", 0.95, 6.0, default=True), variant("int8", 0.93, 3.0)], Predictor()
    begin(predictor, variants[0], rows=2)
    assert outcome(variants, Wishes(time_left=0.0125), predictor) == (
        "int8",
        True,
        Cause.LOAD,
        "lighter under load: fp32 would wait 6.0 ms of 12.5 ms",
    )


def test_long_texts_are_answered_by_a_faster_variant():
    long = Demand(inputs=1, characters=100)  # 32 tokens
    assert outcome(family(), Wishes(latency_target=0.01), demand=long)[0] == "int8"


def test_under_load_lighter_variants_answer_down_to_the_floor_and_then_the_call_is_refused(begin):
    variants, predictor = family(), Predictor()
    wishes = Wishes(time_left=0.0208, min_quality=0.93)
    seen = []
    for _ in range(100):
        try:
            choice = choose(variants, predictor, ONE, wishes)
        except DeadlineUnreachable as error:
            refusal = error
            break
        seen.append(choice.served.manifest.variant)
        begin(predictor, choice.forecast)
    assert seen == ["fp32"] * 3 + ["int8"] * 3 + ["pruned"] * 6
    assert refusal.retry_after == 0.01
    assert str(refusal).startswith(
        "'intent' cannot answer before the deadline in 20.8 ms: variant 'pruned' is predicted"
    )


def test_a_choice_made_by_load_says_so(begin):
    variants, predictor = family(), Predictor()
    begin(predictor, variants[1], rows=1)
    assert outcome(variants, Wishes(time_left=0.008), predictor) == (
        "int8",
        True,
        Cause.LOAD,
        "lighter under load: fp32 would take 9.0 ms of 8.0 ms",
    )


def test_a_caller_without_target_or_deadline_gets_the_default_variant_under_any_load(begin):
    variants, predictor = family(), Predictor()
    begin(predictor, variants[2], rows=10_000)
    assert outcome(variants, Wishes(), predictor)[0] == "int8"
    assert outcome(variants, Wishes(time_left=10.0), predictor)[0] == "int8"


def test_a_pinned_variant_answers_in_time_or_the_call_is_refused(begin):
    variants, predictor = family(), Predictor()
    pinned = Wishes(pin_variant="fp32", time_left=0.05)
    assert outcome(variants, pinned, predictor)[0] == "fp32"
    begin(predictor, variants[1], rows=20)
    with pytest.raises(DeadlineUnreachable) as refused:
        choose(variants, predictor, ONE, pinned)
    assert refused.value.retry_after == pytest.approx(0.016)
    assert outcome(variants, Wishes(pin_variant="fp32", latency_target=0.001), predictor)[0] == "fp32"


def test_an_idle_machine_tries_what_it_may_just_miss_and_refuses_what_it_cannot_do():
    variants = family()
    assert outcome(variants, Wishes(time_left=0.0005))[::2] == ("distilled", Cause.FASTEST)
    with pytest.raises(DeadlineUnreachable) as refused:
        choose(variants, Predictor(), ONE, Wishes(time_left=0.0001))
    assert refused.value.retry_after == 0.01


@pytest.mark.parametrize(
    ("variants", "wishes", "expected"),
    [
        ([("a", None, None), ("b", None, None, "default")], Wishes(time_left=0.05), "b"),
        ([("a", None, 1.0), ("b", None, 2.0, "default")], Wishes(time_left=0.05), "b"),
        ([("a", 0.9, None), ("b", 0.8, 2.0, "default")], Wishes(time_left=0.05), "b"),
        ([("a", 0.9, None, "default"), ("b", 0.8, 2.0)], Wishes(time_left=5.0), "a"),
        ([("a", 0.9, 3.0), ("b", 0.9, 2.0), ("c", 0.8, 1.0, "default")], Wishes(time_left=0.05), "b"),
        ([("a", 0.9, 3.0), ("b", None, 2.0, "default")], Wishes(min_quality=0.1), "a"),
    ],
)
def test_what_was_not_measured_or_measured_equal_has_its_place(variants, wishes, expected):
    built = [variant(name, quality, ms, default=bool(default)) for name, quality, ms, *default in variants]
    assert outcome(built, wishes)[0] == expected


def test_a_version_that_was_asked_for_answers():
    variants = family()
    choice = choose(variants, Predictor(), ONE, Wishes(version="1", pin_variant="int8"))
    assert choice == Choice(variants[2].standby, False, "pinned by the caller", Cause.PINNED, choice.forecast)


def test_another_variant_answers_while_the_default_recovers_and_says_so():
    best, light = variant("fp32", 0.95, 6.0, default=True), variant("int8", 0.93, 2.0)
    best.state = State.RECOVERING
    expected = ("int8", True, Cause.DEFAULT_UNAVAILABLE, "default variant 'fp32' is recovering")
    assert outcome([best, light], Wishes()) == expected


def test_what_cannot_be_met_is_refused_with_the_reason():
    def refused(variants, wishes):
        return choose(variants, Predictor(), ONE, wishes)

    with pytest.raises(QualityUnavailable, match=r"measured at 0\.99 or better; the best has 0\.95"):
        refused(family(), Wishes(min_quality=0.99))
    with pytest.raises(ModelNotFound, match="has no variant 'int4'; variants are: distilled, fp32, int8, pruned"):
        refused(family(), Wishes(pin_variant="int4"))
    with pytest.raises(ModelNotFound, match="version '9' of 'intent' is not loaded; loaded are: 1, 2"):
        refused(family(), Wishes(version="9"))
    failed = Variant(manifest(), State.FAILED, reason="broken")
    with pytest.raises(ModelUnavailable, match="cannot answer now: int8 is failed: broken"):
        refused([failed], Wishes())
