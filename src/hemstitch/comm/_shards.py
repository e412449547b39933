"""Sums over a fixed number of logical shards, so that the result does not depend on the number of workers.

Floating-point addition is not associative: 1 worker and 4 workers that each add "their" samples and then each other
get different last bits, and a Hessian-free run drifts apart from there. Here the samples are dealt to a fixed,
power-of-two number of logical shards; the shards are added as a balanced binary tree in their order, whoever owns them:

    ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))

A power-of-two number of workers owns aligned subtrees: each adds its own and one vector crosses. Any other number
sends one vector per shard (the tree is cut across): the price of a lost worker until the group is whole again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from hemstitch.comm._reducer import Reducer
from hemstitch.errors import MisuseError


def _is_power_of_two(number: int) -> bool:
    return number >= 1 and number & (number - 1) == 0


def shards_of(rank: int, world: int, num_shards: int) -> range:
    """The logical shards that worker ``rank`` of ``world`` owns: a contiguous block, sizes differ by at most one.

    Raises:
        MisuseError: ``num_shards`` is no power of two, or there are fewer shards than workers.
    """
    if not _is_power_of_two(num_shards):
        raise MisuseError(f"num_shards must be a power of two, got {num_shards}")
    if not 0 <= rank < world <= num_shards:
        raise MisuseError(f"need 0 <= rank < world <= num_shards, got rank {rank}, world {world}, "
                          f"num_shards {num_shards}: raise num_shards to at least the largest number of workers")
    return range(num_shards * rank // world, num_shards * (rank + 1) // world)


def tree_sum(parts: Iterable[Tensor]) -> Tensor:
    """Add tensors of one shape pairwise in their order; an odd one out passes to the next level.

    The order of the additions depends on the number of parts alone. The parts are left unchanged; of n parts that a
    generator makes one by one, about log2(n) are held at a time.
    """
    subtrees: list[tuple[int, Tensor]] = []                 # (leaves, their sum), as in a binary counter
    for part in parts:
        leaves, total = 1, part
        while subtrees and subtrees[-1][0] == leaves:
            leaves, total = 2 * leaves, subtrees.pop()[1] + total
        subtrees.append((leaves, total))
    _, total = subtrees.pop()
    while subtrees:
        total = subtrees.pop()[1] + total
    return total


def sum_shards(reducer: Reducer, parts: Iterable[Tensor], num_shards: int) -> Tensor:
    """The sum over all logical shards of all workers, the same to the bit for every number of workers.

    Args:
        reducer: speaks to the other workers.
        parts: this worker's shard sums, in the order of :func:`shards_of`; may be a generator.
        num_shards: logical shards in all, a power of two.

    Returns:
        A new tensor of the shape of each part; every worker gets the same one.

    Cost: one reduction of one part if the number of workers is a power of two, else of ``num_shards`` parts.
    """
    own = shards_of(reducer.rank, reducer.world, num_shards)
    parts = _exactly(len(own), parts)
    if _is_power_of_two(reducer.world):
        total = tree_sum(parts)
        total = total.clone() if len(own) == 1 else total
        reducer.sum_(total)
        return total
    own_parts = list(parts)
    rows = own_parts[0].new_zeros((num_shards, *own_parts[0].shape))
    torch.stack(own_parts, out=rows[own.start:own.stop])
    reducer.sum_(rows)                                      # adds zeros elsewhere: exact
    return tree_sum(rows)


def _exactly(expected: int, parts: Iterable[Tensor]) -> Iterator[Tensor]:
    count = 0
    for part in parts:
        count += 1
        yield part
    if count != expected:
        raise MisuseError(f"this worker owns {expected} logical shards but gave {count} sums: one per shard, see "
                          "shards_of")
