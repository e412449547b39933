"""The reducer contract: sums in the order of the ranks, and shard sums that do not depend on the number of workers."""

import pytest
import torch

from hemstitch.comm import LocalReducer, MemberLost, Reducer, run_workers, shards_of, sum_shards, tree_sum
from hemstitch.errors import MisuseError

NUM_SHARDS = 8


@pytest.fixture
def shards():
    """Sums of very different size, so that another order of additions changes the bits."""
    generator = torch.Generator().manual_seed(0)
    sums = torch.randn(NUM_SHARDS, 1000, generator=generator)
    return list(sums * 10 ** torch.linspace(-3, 4, NUM_SHARDS)[:, None])


def sharded_sum(shards, world):
    def worker(reducer):
        own = shards_of(reducer.rank, reducer.world, NUM_SHARDS)
        return sum_shards(reducer, [shards[k] for k in own], NUM_SHARDS)

    return run_workers(worker, world)


def test_local_reducer_is_a_reducer_and_adds_nothing():
    flat = torch.arange(3.0)
    assert isinstance(LocalReducer(), Reducer)
    assert LocalReducer().sum_(flat, weight=7) == 7.0
    assert flat.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5, 8])
def test_shard_sum_is_the_same_to_the_bit_for_every_number_of_workers(shards, world):
    expected = tree_sum(shards)
    for total in sharded_sum(shards, world):
        assert torch.equal(total, expected)


def test_plain_sum_over_workers_does_depend_on_their_number(shards):
    """The reason for the tree: adding in sequence gives other bits."""
    assert not torch.equal(sum(shards[1:], shards[0]), tree_sum(shards))


def test_shard_sum_leaves_its_parts_alone(shards):
    before = [shard.clone() for shard in shards]
    sharded_sum(shards, 4), sharded_sum(shards, 8), sharded_sum(shards, 3)
    assert all(torch.equal(a, b) for a, b in zip(before, shards))


def test_weights_are_added_and_tensors_are_not_multiplied_by_them():
    def worker(reducer):
        flat = torch.full((2,), float(reducer.rank + 1))
        return reducer.sum_(flat, weight=10.0 * (reducer.rank + 1)), flat

    for weight, flat in run_workers(worker, 3):
        assert weight == 60.0
        assert flat.tolist() == [6.0, 6.0]


@pytest.mark.parametrize("world", [1, 3, 4, 16])
def test_every_shard_has_one_owner(world):
    owners = [shard for rank in range(world) for shard in shards_of(rank, world, 16)]
    assert owners == list(range(16))


@pytest.mark.parametrize(("world", "num_shards"), [(1, 3), (1, 0), (5, 4)])
def test_impossible_shard_counts_are_refused(world, num_shards):
    with pytest.raises(MisuseError, match="num_shards"):
        shards_of(0, world, num_shards)


def test_a_lost_worker_is_named_and_the_cause_is_raised():
    seen = []

    def worker(reducer):
        if reducer.rank == 1:
            raise ZeroDivisionError("the worker's own fault")
        try:
            reducer.sum_(torch.ones(1))
        except MemberLost as lost:
            seen.append(lost.ranks)
            raise

    with pytest.raises(ZeroDivisionError):
        run_workers(worker, 2, timeout=10)
    assert seen == [(1,)]


def test_missing_shard_sums_are_refused():
    with pytest.raises(MisuseError, match="owns 4 logical shards but gave 1"):
        sum_shards(LocalReducer(), [torch.ones(1)], 4)


def test_threads_sum_half_precision_in_single_as_processes_do():
    def worker(reducer):
        flat = torch.tensor([256.0 if reducer.rank == 0 else 1.0], dtype=torch.bfloat16)
        reducer.sum_tensors_([flat], 1.0)
        return flat.item()

    assert run_workers(worker, 4) == [260.0] * 4  # 259, rounded once; sums in bfloat16 give 258


def test_a_lost_worker_leaves_the_tensors_of_the_others_unscaled():
    kept = torch.ones(2)

    def worker(reducer):
        if reducer.rank == 1:
            raise ValueError("gone")
        try:
            reducer.sum_tensors_([kept], 0.5)
        except MemberLost:
            return None

    with pytest.raises(ValueError, match="gone"):
        run_workers(worker, 2)
    assert kept.tolist() == [1.0, 1.0]
