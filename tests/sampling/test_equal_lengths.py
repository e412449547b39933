import pytest
import torch

from hemstitch.sampling import EqualLengthEpochs

LENGTHS = torch.tensor([3, 5, 3, 3, 9, 5, 3, 3, 5])


def test_batches_hold_one_length_and_an_epoch_holds_every_item_once():
    stream = EqualLengthEpochs(LENGTHS, 2, seed=1)
    for _ in range(3):
        batches = [stream.next() for _ in range(stream.batches_per_epoch)]
        assert stream.at_epoch_end
        assert all(len(LENGTHS[b].unique()) == 1 and len(b) <= 2 for b in batches)
        assert torch.cat(batches).sort().values.tolist() == list(range(9))


@pytest.mark.parametrize("consumed", [0, 1, 3, 6, 8])
def test_a_restored_stream_continues_with_the_same_batches(consumed):
    stream, other = (EqualLengthEpochs(LENGTHS, 2, seed=4) for _ in range(2))
    for _ in range(consumed):
        stream.next()
    other.load_state_dict(stream.state_dict())
    assert [stream.next().tolist() for _ in range(8)] == [other.next().tolist() for _ in range(8)]


def test_epochs_and_seeds_differ_and_workers_share():
    stream = EqualLengthEpochs(LENGTHS, 2, seed=1)
    assert stream.order(0).tolist() != stream.order(1).tolist()
    parts = [EqualLengthEpochs(LENGTHS, 2, seed=1, worker=w, num_workers=2).order(0) for w in range(2)]
    assert torch.cat(parts).sort().values.tolist() == list(range(9))
