import numpy as np
import pytest

from hemstitch.errors import MisuseError
from hemstitch.speech import Segment
from hemstitch.speech._long_audio import cut_frames, join_pieces, level

RATE, SHIFT = 8000, 0.01


def test_level_is_the_mean_over_a_pause():
    samples = np.full(2 * RATE, 0.1)
    samples[RATE : RATE + 4000] = 0.0
    levels = level(samples, RATE, SHIFT, 198)
    assert levels[20] == pytest.approx(-20) and levels[125] == -100
    slow = [10 * np.log10(max(1e-10, np.mean(samples[max(0, (t - 15)) * 80 : (t + 16) * 80] ** 2)))
            for t in range(98)]
    np.testing.assert_allclose(levels[:98], slow, atol=1e-9)


@pytest.mark.parametrize(("longest", "quiet", "expected"), [
    (100, (), [0, 50]),
    (49, (30,), [0, 30, 50]),
    (20, (15, 25, 39), [0, 15, 25, 39, 50]),
    (20, (5,), [0, 10, 20, 30, 50]),  # nothing quiet in reach: as early as allowed
])
def test_cuts_are_where_it_is_quiet(longest, quiet, expected):
    levels = np.full(50, -20.0)
    levels[list(quiet)] = -60.0
    edges = cut_frames(levels, longest)
    assert edges == expected
    assert max(np.diff(edges)) <= longest


def test_pieces_of_one_frame_are_refused():
    with pytest.raises(MisuseError, match="2 frames or more, got 1"):
        cut_frames(np.zeros(10), 1)


@pytest.mark.parametrize(("before", "after", "expected"), [
    ("a 0 40, b 50 90", "b 51 90, c 110 150", "a 0 40, b 50 90, c 110 150"),
    ("a 0 40, b 95 104", "b 96 104, c 110 150", "a 0 40, b 95 104, c 110 150"),  # across the cut, both saw it
    ("a 0 40, b 80 99", "b 84 101, c 130 150", "a 0 40, b 80 99, c 130 150"),
    ("a 0 40", "c 115 150", "a 0 40, c 115 150"),
    ("a 60 140", "a 62 139", "a 62 139"),  # longer than the margins on both sides: the middle decides
])
def test_a_word_at_a_cut_appears_once(before, after, expected):
    def words(text):
        return tuple(Segment(w, int(s), int(e)) for w, s, e in (entry.split() for entry in text.split(", ")))

    assert join_pieces([words(before), words(after)], [100], 20) == words(expected)
