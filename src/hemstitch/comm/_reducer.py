"""The reducer: the one way in which an algorithm speaks to other workers.

Every worker runs the same algorithm on its own samples and calls the reducer at the same places. What crosses is a sum
over samples and the number of samples (frames, utterances) behind it, so that a mean over all workers is exact
whatever the share of each. Scalars on which a decision hangs are computed from reduced values only: then all workers
decide alike, and no worker has to be told what another one decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from hemstitch.errors import HemstitchError


class MemberLost(HemstitchError):
    """A worker died or left during a reduction. The state of the survivors is that of before the call.

    Attributes:
        ranks: the workers that did not answer.
    """

    def __init__(self, ranks: Sequence[int], generation: int = 0) -> None:
        self.ranks, self.generation = tuple(ranks), generation
        super().__init__(f"worker(s) {', '.join(map(str, self.ranks))} of generation {generation} did not answer: "
                         "regroup the survivors, then repeat the step")


@runtime_checkable
class Reducer(Protocol):
    """Sums over workers.

    Attributes:
        rank: this worker, 0 <= rank < world.
        world: number of workers.
        generation: how often the group was formed anew after a loss.
    """

    rank: int
    world: int
    generation: int

    def sum_(self, flat: Tensor, weight: float = 0.0) -> float:
        """Replace ``flat``, in place, by its sum over the workers; return the sum of their ``weight``.

        ``flat`` is already a sum over this worker's samples and is *not* multiplied by ``weight`` (multiply a mean by
        its weight first). The workers are added pairwise in the order of their ranks, as a balanced tree
        ((0 + 1) + (2 + 3)) + ..., an odd one out passing to the next level (:func:`tree_sum`): so all workers hold
        the same bits, and the sum of aligned sub-sums is the sum of the parts.

        Raises:
            MemberLost: a worker did not answer; ``flat`` is unchanged then.
        """
        ...


class LocalReducer:
    """The reducer of a single worker: there is nothing to add.

    Examples:
        >>> import torch
        >>> LocalReducer().sum_(torch.ones(3), weight=5.0)
        5.0
    """

    rank: int = 0
    world: int = 1
    generation: int = 0

    def sum_(self, flat: Tensor, weight: float = 0.0) -> float:
        """Leave ``flat`` as it is and return ``weight``."""
        return float(weight)
