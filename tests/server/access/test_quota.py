"""Allowances, on a clock that the tests move."""

import pytest

from millis_server.access.quota import Allowance


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_minutes_worth_may_be_used_at_once_and_comes_back_evenly(clock):
    allowance = Allowance(60, clock)
    allowance.spend(60)
    assert (allowance.left, allowance.wait(1)) == (0.0, 1.0)
    clock.now += 15
    assert (allowance.left, allowance.wait(1)) == (15.0, 0.0)


def test_it_never_holds_more_than_a_minutes_worth(clock):
    allowance = Allowance(60, clock)
    clock.now += 3600
    assert allowance.left == 60.0


def test_a_debt_is_waited_for_until_it_is_paid_off(clock):
    allowance = Allowance(600, clock)
    allowance.spend(900)
    assert (allowance.left, allowance.wait(0)) == (-300.0, 30.0)
    clock.now += 30
    assert allowance.wait(0) == 0.0


def test_over_a_long_time_the_use_is_the_limit_and_what_was_there_to_begin_with(clock):
    allowance, used = Allowance(600, clock), 0
    for _ in range(3600):
        clock.now += 1
        if allowance.wait(0) == 0:
            allowance.spend(70)
            used += 70
    assert 600 * 60 <= used <= 600 * 61 + 70


def test_a_new_allowance_goes_on_from_the_use_of_the_one_before(clock):
    before, after = Allowance(600, clock), Allowance(1200, clock)
    before.spend(700)
    after.go_on_from(before)
    assert after.left == 500.0
