import numpy as np
import pytest

from millis_server.tasks.windows import cut, join


@pytest.mark.parametrize(
    ("tokens", "capacity", "overlap", "places"),
    [
        (5, 10, 2, [(0, 5)]),
        (10, 10, 2, [(0, 10)]),
        (11, 10, 2, [(0, 10), (1, 11)]),
        (26, 10, 2, [(0, 10), (8, 18), (16, 26)]),
        (25, 10, 5, [(0, 10), (5, 15), (10, 20), (15, 25)]),
    ],
)
def test_windows_cover_the_text_and_overlap(tokens, capacity, overlap, places):
    assert cut(tokens, capacity, overlap) == places


def test_each_token_comes_from_the_window_in_which_it_is_farthest_from_an_edge():
    windows = cut(16, 10, 4)
    outputs = [np.full((end - start, 1), number, np.float32) for number, (start, end) in enumerate(windows)]
    assert windows == [(0, 10), (6, 16)]
    # Tokens 6 to 9 stand in both: 6 and 7 are farther from the end of the first than from the start of the second.
    assert join(windows, outputs)[:, 0].tolist() == [0] * 8 + [1] * 8
