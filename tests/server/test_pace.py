"""What a version's first answers on this machine say of its profile."""

import pytest

from millis_server import pace as pace_module
from millis_server.pace import FORGET_SECONDS, Pace
from tests.server.test_prediction import Clock, profile


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace_module, "perf_counter", clock)
    monkeypatch.setattr(pace_module, "PATH_SECONDS", 0.0)
    return clock


def shares(pace: Pace, clock: Clock) -> tuple[float, float]:
    """Of the profile's time that it takes now, and long after without an answer."""
    moments = (clock.now, clock.now + 50 * FORGET_SECONDS)
    now, later = (round(pace.scale * pace.factor.at(moment), 3) for moment in moments)
    return now, later


def test_a_version_that_is_faster_here_than_its_profile_stays_so_without_being_asked(clock):
    pace = Pace("intent", profile((1, 16, 40.0), (1, 64, 80.0)))
    pace.calibrate([(16, 0.020), (16, 0.019), (64, 0.040), (64, 0.090)])
    assert shares(pace, clock) == (0.5, 0.5)


def test_a_version_that_is_slower_here_begins_slower_and_is_given_another_chance(clock):
    pace = Pace("intent", profile((1, 16, 4.0)))
    pace.calibrate([(16, 0.008), (16, 0.010), (16, 0.012)])
    assert shares(pace, clock) == (2.0, 1.0)


def test_a_measurement_beside_other_work_does_not_make_a_version_slow(clock):
    pace = Pace("intent", profile((1, 16, 4.0)))
    pace.calibrate([(16, 0.004), (16, 0.012), (16, 0.016)])
    assert shares(pace, clock) == (1.0, 1.0)


def test_a_measurement_counts_for_no_more_than_a_factor_of_four(clock):
    slow, fast = Pace("intent", profile((1, 16, 4.0))), Pace("intent", profile((1, 16, 4.0)))
    slow.calibrate([(16, 1.0)])
    fast.calibrate([(16, 0.0001)])
    assert (shares(slow, clock), shares(fast, clock)) == ((4.0, 1.0), (0.25, 0.25))


def test_a_version_that_was_never_measured_is_not_calibrated(clock):
    pace = Pace("intent", None)
    pace.calibrate([(16, 0.004)])
    assert shares(pace, clock) == (1.0, 1.0)
