import pytest
import torch

from hemstitch.errors import ConfigError
from hemstitch.sampling import ShuffledEpochs


def drain(stream, count):
    return torch.cat([stream.next() for _ in range(count)])


def test_an_epoch_is_a_permutation_and_the_next_one_differs():
    stream = ShuffledEpochs(23, 5, seed=3)
    first, second = drain(stream, stream.batches_per_epoch), drain(stream, stream.batches_per_epoch)
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(23))
    assert not torch.equal(first, second)


def test_the_order_depends_on_seed_and_epoch_only():
    assert torch.equal(ShuffledEpochs(50, 7, seed=1).order(4), ShuffledEpochs(50, 3, seed=1).order(4))
    assert not torch.equal(ShuffledEpochs(50, 7, seed=1).order(4), ShuffledEpochs(50, 7, seed=2).order(4))


def test_workers_share_an_epoch_without_overlap():
    parts = [ShuffledEpochs(11, 2, seed=5, worker=w, num_workers=3).order(0) for w in range(3)]
    assert torch.cat(parts).sort().values.tolist() == list(range(11))


@pytest.mark.parametrize("consumed", [0, 1, 4, 5, 9])
def test_a_restored_stream_continues_with_the_same_batches(consumed):
    stream = ShuffledEpochs(23, 5, seed=3)
    drain(stream, consumed) if consumed else None
    other = ShuffledEpochs(23, 5, seed=3)
    other.load_state_dict(stream.state_dict())
    assert torch.equal(drain(stream, 7), drain(other, 7))


def test_a_position_in_other_data_is_refused():
    with pytest.raises(ConfigError, match="num_items = 23, this run has 24"):
        ShuffledEpochs(24, 5).load_state_dict(ShuffledEpochs(23, 5).state_dict())
