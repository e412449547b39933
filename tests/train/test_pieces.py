import numpy as np
import torch

from hemstitch.train._pieces import Stretches, chunks, whole_utterances

LENGTHS = torch.tensor([50, 7, 31, 30])


def test_whole_utterances_are_prolonged_to_a_multiple_of_the_step():
    assert whole_utterances(LENGTHS, 10).frames.tolist() == [50, 10, 40, 30]


def test_chunks_have_one_size_begin_at_outputs_and_cover_each_output_once_in_weight():
    pieces = chunks(LENGTHS, 30, subsampling=3)
    assert pieces.utterance.tolist() == [0, 0, 1, 2, 2, 3] and set(pieces.frames.tolist()) == {30}
    assert not (pieces.first % 3).any()
    for number, length in enumerate(LENGTHS.tolist()):
        total = np.zeros(40)
        for item in (pieces.utterance == number).nonzero()[:, 0].tolist():
            first = int(pieces.first[item]) // 3
            total[first : first + 10] += pieces.weights[item].numpy()
        outputs = -(-length // 3)
        np.testing.assert_allclose(total, np.arange(40) < outputs)


def test_stretches_repeat_the_first_and_last_frame_of_their_utterance():
    features = torch.arange(10.0)[:, None]
    stretches = Stretches(features, torch.tensor([0, 4, 10]), left=2, right=1)
    rows = stretches.select(torch.tensor([0, 1]), torch.tensor([0, 3]), 5)
    assert rows[..., 0].tolist() == [[0, 0, 0, 1, 2, 3, 3, 3], [5, 6, 7, 8, 9, 9, 9, 9]]
