"""The gate: what is refused, with which reason, and what becomes the default."""

from __future__ import annotations

import pytest

from millis_pipeline.gate import Decision, Measured, decide, decide_unmeasured

FP32 = Measured("fp32", 0.95, 0.0, 6.0, reference=True)
INT8 = Measured("int8", 0.948, 0.002, 3.0)


def test_a_faster_and_slightly_worse_variant_is_published_and_the_default() -> None:
    assert decide([FP32, INT8], 0.01) == Decision({}, "int8", "it is 2.00 times as fast as fp32 and loses 0.0020")


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (Measured("bad", 0.92, 0.03, 1.0), "it loses 0.0300, more than max_quality_loss 0.01"),
        (
            Measured("slow", 0.947, 0.003, 3.2),
            "it is not faster (3.20 ms) than int8 (3.00 ms), which is at least as good",
        ),
        (
            Measured("equal", 0.948, 0.002, 2.95),
            "it is not faster (3.00 ms) than equal (2.95 ms), which is at least as good",
        ),
        (
            Measured("better", 0.96, -0.01, 2.0),
            "it is not faster (3.00 ms) than better (2.00 ms), which is at least as good",
        ),
    ],
)
def test_a_variant_that_is_worse_or_not_faster_is_refused_with_the_reason(candidate: Measured, reason: str) -> None:
    decision = decide([FP32, INT8, candidate], 0.01)
    assert list(decision.refused.values()) == [reason]
    # Of two that are alike the faster one stays, and a better and faster one makes the other superfluous.
    assert list(decision.refused) == ["int8" if candidate.name in ("equal", "better") else candidate.name]


def test_what_was_found_unfit_before_is_refused_for_that_reason() -> None:
    unfit = Measured("exits", 0.96, -0.01, 1.0, unfit="its exits do not pay")
    assert decide([FP32, unfit], 0.01).refused == {"exits": "its exits do not pay"}


def test_what_is_unfit_or_superfluous_is_refused_also_where_quality_was_not_measured() -> None:
    unfit = Measured("exits", 1.0, 0.0, 1.0, unfit="its exits do not pay")
    slow = Measured("slow", 0.5, 0.5, 3.2)
    # A few texts do not prove what it loses: it is published, and only not the default.
    far = Measured("far", 0.4, 0.6, 1.5)
    assert decide_unmeasured([FP32, unfit, INT8, slow, far], 0.01) == Decision(
        {
            "exits": "its exits do not pay",
            "slow": "it is not faster (3.20 ms) than int8 (3.00 ms), which agrees with PyTorch at least as much",
        },
        "int8",
        "it is 2.00 times as fast as fp32 and loses 0.0020",
    )


def test_the_reference_is_published_also_where_another_one_agrees_as_much_and_is_faster() -> None:
    same = Measured("compiled", 0.95, 0.0, 3.0)
    assert decide_unmeasured([FP32, same], 0.01) == Decision(
        {}, "compiled", "it is 2.00 times as fast as fp32 and loses 0.0000"
    )


def test_what_is_better_by_a_rounding_of_cosines_only_must_be_faster() -> None:
    for gate, how in ((decide, "is at least as good"), (decide_unmeasured, "agrees with PyTorch at least as much")):
        assert gate([FP32, Measured("compiled", 0.9500001, -1e-7, 7.0)], 0.01) == Decision(
            {"compiled": f"it is not faster (7.00 ms) than fp32 (6.00 ms), which {how}"},
            "fp32",
            "no other variant is faster and good enough",
        )


def test_the_reference_is_published_even_when_a_better_variant_is_faster() -> None:
    better = Measured("student", 0.96, -0.01, 1.0)
    decision = decide([FP32, better], 0.01)
    assert decision == Decision({}, "student", "it is 6.00 times as fast as fp32 and loses 0.0000")


def test_a_gain_within_the_noise_is_no_gain() -> None:
    decision = decide([FP32, Measured("same", 0.95, 0.0, 5.9)], 0.01)
    assert decision == Decision(
        {"same": "it is not faster (5.90 ms) than fp32 (6.00 ms), which is at least as good"},
        "fp32",
        "no other variant is faster and good enough",
    )
