import pytest
import torch

from hemstitch.errors import ConfigError
from hemstitch.train._outer_frames import Loaded, OuterFrames, OuterRows

LENGTHS = torch.tensor([5, 2, 7, 1, 4, 6, 3])
STARTS = LENGTHS.cumsum(0) - LENGTHS
SHUFFLINGS = ("none", "on-the-fly", "full")


class Decoder:
    """Cancels the odd frames of utterances of three frames and more; remembers what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, utterances):
        self.asked.append(utterances)
        kept = [torch.arange(0, int(LENGTHS[u]), 2 if LENGTHS[u] > 2 else 1) + STARTS[u] for u in utterances]
        step = float(len(self.asked))
        rows = [OuterRows(frames, torch.full((len(frames), 2), step), torch.zeros(len(frames), 0),
                          torch.ones(len(frames)), torch.zeros(len(frames))) for frames in kept]
        return Loaded(rows, {"decoded": float(len(utterances))})


def stream(shuffling, batch_size=3, seed=1, decoder=None):
    return OuterFrames(LENGTHS, batch_size, seed, shuffling, decoder or Decoder(), lambda *batch: batch)


def epoch(source):
    """Batches up to the end of the current epoch."""
    batches = [source.next()]
    while not source.at_epoch_end:
        batches.append(source.next())
    return batches


@pytest.mark.parametrize("shuffling", SHUFFLINGS)
def test_an_epoch_uses_every_frame_that_is_kept_once_and_counts_all(shuffling):
    source = stream(shuffling)
    for number in range(3):
        batches = epoch(source)
        frames = torch.cat([rows.frames for rows, _, _ in batches]).sort().values
        kept = torch.cat([rows.frames for rows in Decoder()(range(7)).rows]).sort().values
        assert torch.equal(frames, kept)
        assert sum(consumed for _, consumed, _ in batches) == int(LENGTHS.sum()) == source.position
        assert sum(extra.get("decoded", 0) for _, _, extra in batches) <= 7 and all(len(r) <= 3 for r, _, _ in batches)
        assert source.epoch == number


def test_on_the_fly_every_place_walks_through_one_utterance():
    decoder = Decoder()
    batches = epoch(stream("on-the-fly", decoder=decoder))
    owner = torch.repeat_interleave(torch.arange(7), LENGTHS)
    for rows, _, _ in batches[:4]:
        assert len(owner[rows.frames].unique()) == len(rows) == 3
    for rows, _, _ in batches:  # near the end fewer utterances have several places each, as many as there are for all
        assert owner[rows.frames].bincount().max() <= 3 // len(owner[rows.frames].unique())
    assert len(decoder.asked[0]) == 3 and all(len(asked) < 3 for asked in decoder.asked[1:])


def test_without_shuffling_frames_follow_each_other_and_with_all_of_it_one_call_decodes_all():
    ordered = torch.cat([rows.frames for rows, _, _ in epoch(stream("none"))])
    owner = torch.repeat_interleave(torch.arange(7), LENGTHS)[ordered]
    assert (owner.diff() != 0).sum() == 6
    decoder = Decoder()
    mixed = torch.repeat_interleave(torch.arange(7), LENGTHS)[
        torch.cat([rows.frames for rows, _, _ in epoch(stream("full", decoder=decoder))])]
    assert len(decoder.asked) == 1 and (mixed.diff() != 0).sum() > 6


@pytest.mark.parametrize("shuffling", SHUFFLINGS)
@pytest.mark.parametrize("stop", [1, 3, 9])
def test_a_restored_stream_goes_on_with_the_gradients_that_were_loaded(shuffling, stop):
    source, other = stream(shuffling), stream(shuffling)
    for _ in range(stop):
        source.next()
    other.load_state_dict(source.state_dict())
    other.load.asked = list(source.load.asked)
    for _ in range(8):
        (ours, *counts), (theirs, *other_counts) = source.next(), other.next()
        assert torch.equal(ours.frames, theirs.frames) and torch.equal(ours.derivative, theirs.derivative)
        assert counts[0] == other_counts[0] and (source.epoch, source.position) == (other.epoch, other.position)


def test_a_state_of_another_stream_is_refused():
    with pytest.raises(ConfigError, match="shuffling"):
        stream("none").load_state_dict(stream("full").state_dict())
