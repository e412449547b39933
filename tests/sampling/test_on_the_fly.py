"""Shuffling on the fly: every frame once an epoch, each slot in the order of its utterance."""

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hemstitch.errors import ConfigError, DataError
from hemstitch.sampling import BatchSource, OnTheFlyFrames, UtteranceSlots, _on_the_fly

LENGTHS = [5, 1, 7, 3, 9, 2, 4]


def epoch(frames):
    """The batches of the current epoch."""
    batches = [frames.next()]
    while not frames.at_epoch_end:
        batches.append(frames.next())
    return batches


def utterance_and_frame(batch, lengths=LENGTHS):
    starts = torch.cumsum(torch.tensor(lengths), 0) - torch.tensor(lengths)
    utterances = torch.searchsorted(starts, batch, right=True) - 1
    return list(zip(utterances.tolist(), (batch - starts[utterances]).tolist()))


def test_the_example():
    assert doctest.testmod(_on_the_fly).failed == 0


@given(st.lists(st.integers(1, 12), min_size=1, max_size=20), st.integers(1, 8), st.integers(0, 3))
def test_every_frame_once_an_epoch_and_no_utterance_twice_in_a_batch(lengths, num_slots, seed):
    frames = OnTheFlyFrames(lengths, num_slots, seed)
    batches = epoch(frames)
    assert len(batches) == frames.batches_per_epoch
    assert sorted(torch.cat(batches).tolist()) == list(range(sum(lengths)))
    sizes = [len(batch) for batch in batches]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == min(num_slots, len(lengths))
    for batch in batches:
        utterances = [utterance for utterance, _ in utterance_and_frame(batch, lengths)]
        assert len(set(utterances)) == len(utterances)


def test_each_utterance_is_walked_through_frame_by_frame_without_a_pause():
    seen = {}
    for step, batch in enumerate(epoch(OnTheFlyFrames(LENGTHS, num_slots=3))):
        for utterance, frame in utterance_and_frame(batch):
            seen.setdefault(utterance, []).append((step, frame))
    for utterance, visits in seen.items():
        first = visits[0][0]
        assert visits == [(first + frame, frame) for frame in range(LENGTHS[utterance])]


def test_workers_share_the_utterances():
    workers = [torch.cat(epoch(OnTheFlyFrames(LENGTHS, 2, worker=worker, num_workers=3))) for worker in range(3)]
    assert sorted(torch.cat(workers).tolist()) == list(range(sum(LENGTHS)))
    assert {utterance for utterance, _ in utterance_and_frame(workers[1])} == {1, 4}


def test_epochs_differ_and_a_resumed_stream_goes_on_in_place():
    frames = OnTheFlyFrames(LENGTHS, 2, seed=1)
    first, second = epoch(frames), epoch(frames)
    assert not torch.equal(torch.cat(first), torch.cat(second))
    frames = OnTheFlyFrames(LENGTHS, 2, seed=1)
    for _ in range(len(first) + 3):
        frames.next()
    resumed = OnTheFlyFrames(LENGTHS, 2, seed=1)
    resumed.load_state_dict(frames.state_dict())
    assert all(torch.equal(resumed.next(), batch) for batch in second[3:])


def test_it_serves_a_batch_source():
    source = BatchSource(OnTheFlyFrames([2, 2], 2, seed=0), collate=lambda frames: frames.tolist())
    assert sorted(source.next()) == [0, 2]
    assert sorted(source.next()) == [1, 3]
    assert source.indices.at_epoch_end


def test_utterances_without_frames_are_passed_over():
    loaded = iter([("empty", 0), ("a", 1), ("empty", 0)])
    slots = UtteranceSlots(1, lambda: next(loaded, None))
    items, frames = slots.next()
    assert items == ["a"] and frames.tolist() == [0]
    assert slots.next() is None and slots.next() is None


def test_slots_tell_how_many_utterances_they_need():
    slots = UtteranceSlots(3, lambda: ("u", 2))
    assert slots.num_needed() == 3
    slots.next()
    assert slots.num_needed() == 0
    slots.next()
    assert slots.num_needed() == 3


@pytest.mark.parametrize("lengths", [[], [3, 0], [[1, 2]]])
def test_wrong_lengths_are_refused(lengths):
    with pytest.raises(DataError, match="lengths"):
        OnTheFlyFrames(lengths, 2)


def test_more_workers_than_utterances_are_refused():
    with pytest.raises(ConfigError, match="2 utterances"):
        OnTheFlyFrames([4, 4], 1, worker=0, num_workers=3)
    with pytest.raises(ConfigError, match="num_slots"):
        UtteranceSlots(0, lambda: None)
