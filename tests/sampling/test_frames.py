import numpy as np
import pytest
import torch

from hemstitch.errors import DataError
from hemstitch.sampling import FrameWindows

FEATURES = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
OFFSETS = [0, 4, 5, 9]


def slow_window(frame, left, right):
    utterance = next(u for u in range(3) if OFFSETS[u] <= frame < OFFSETS[u + 1])
    low, high = OFFSETS[utterance], OFFSETS[utterance + 1] - 1
    return np.stack([FEATURES[min(max(t, low), high)] for t in range(frame - left, frame + right + 1)])


@pytest.mark.parametrize(("left", "right"), [(0, 0), (2, 1), (6, 5)])
def test_windows_repeat_the_edge_frames_of_their_own_utterance(left, right):
    windows = FrameWindows(FEATURES, OFFSETS, left, right)
    frames = torch.tensor([8, 0, 4, 3, 5])
    expected = np.stack([slow_window(int(f), left, right) for f in frames])
    np.testing.assert_array_equal(windows.select(frames), expected)


def test_a_padded_utterance_holds_the_windows_of_its_frames():
    windows = FrameWindows(FEATURES, OFFSETS, 2, 1)
    whole = windows.utterance(2).unfold(0, 4, 1).transpose(1, 2)
    assert torch.equal(whole, windows.select(torch.arange(5, 9)))


def test_offsets_that_do_not_cover_the_features_are_refused():
    with pytest.raises(DataError, match="non-empty utterances"):
        FrameWindows(FEATURES, [0, 4, 4, 9], 1, 1)
