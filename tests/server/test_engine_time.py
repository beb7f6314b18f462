import pytest

from millis_server.engine_time import EngineTime
from tests.server.test_prediction import profile

PROFILE = [(1, 8, 2.0), (1, 16, 4.0), (1, 32, 10.0), (8, 16, 24.0)]


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
