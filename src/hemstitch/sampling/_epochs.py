"""Shuffled epochs whose order is a function of (seed, epoch, worker) and whose position can be saved.

The permutation of an epoch is drawn from a generator seeded with (seed, epoch) alone, and each worker takes every
n-th entry of it, so that no state but two integers has to be kept, a resumed run sees exactly the batches that an
unbroken one would have seen, and the workers of one epoch see disjoint parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from hemstitch.errors import ConfigError

BatchT = TypeVar("BatchT")


def generator(*key: int) -> torch.Generator:
    """A CPU generator that is a function of the integers ``key``, well mixed (numpy's SeedSequence)."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) & (2**63 - 1)
    return torch.Generator().manual_seed(seed)


class ShuffledEpochs:
    """An endless stream of index minibatches: one permutation of the items per epoch.

    The last batch of an epoch may be smaller. The position counts what was handed out and therefore consumed.

    Args:
        num_items: items in one epoch.
        batch_size: items per batch.
        seed: determines the order together with the epoch.
        worker, num_workers: this worker's number and how many share the epoch.
        shuffle: ``False`` keeps the order of the items.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        seed: int = 0,
        *,
        worker: int = 0,
        num_workers: int = 1,
        shuffle: bool = True,
    ) -> None:
        if batch_size < 1 or not 0 <= worker < num_workers:
            raise ConfigError(
                f"need batch_size >= 1 and 0 <= worker < num_workers, got {batch_size}, {worker}, {num_workers}"
            )
        if num_items < num_workers:
            raise ConfigError(f"{num_items} training items cannot be shared among {num_workers} workers")
        self.num_items, self.batch_size, self.seed, self.shuffle = num_items, batch_size, seed, shuffle
        self.worker, self.num_workers = worker, num_workers
        self.epoch, self.position = 0, 0
        self._order: tuple[int, Tensor] | None = None

    @property
    def items_per_epoch(self) -> int:
        """Items that this worker sees in one epoch."""
        return len(range(self.worker, self.num_items, self.num_workers))

    @property
    def batches_per_epoch(self) -> int:
        """Batches that this worker sees in one epoch."""
        return -(-self.items_per_epoch // self.batch_size)

    def next(self) -> Tensor:
        """(batch,) int64 indices; starts the next epoch when this one is used up."""
        if self.position >= self.items_per_epoch:
            self.epoch, self.position = self.epoch + 1, 0
        indices = self.order(self.epoch)[self.position : self.position + self.batch_size]
        self.position += indices.numel()
        return indices

    @property
    def at_epoch_end(self) -> bool:
        """Whether the current epoch is used up."""
        return self.position >= self.items_per_epoch

    def order(self, epoch: int) -> Tensor:
        """(item,) this worker's items in the order of ``epoch``."""
        if self._order is None or self._order[0] != epoch:
            if self.shuffle:
                order = torch.randperm(self.num_items, generator=generator(self.seed, epoch))
            else:
                order = torch.arange(self.num_items)
            self._order = (epoch, order[self.worker :: self.num_workers].contiguous())
        return self._order[1]

    def state_dict(self) -> dict[str, int]:
        """Epoch and position, with what they are relative to."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "num_items": self.num_items,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "worker": self.worker,
            "num_workers": self.num_workers,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where ``state`` was taken; refuses a state of other data or another seed."""
        for key in ("num_items", "seed", "worker", "num_workers"):
            if state[key] != getattr(self, key):
                raise ConfigError(
                    f"the saved data position is for {key} = {state[key]}, this run has {getattr(self, key)}"
                )
        self.epoch, self.position = state["epoch"], state["position"]


class BatchSource(Generic[BatchT]):
    """Index batches turned into batches of data.

    Args:
        indices: the stream of index batches.
        collate: makes a batch of the data with the given (batch,) indices.
    """

    def __init__(self, indices: ShuffledEpochs, collate: Callable[[Tensor], BatchT]) -> None:
        self.indices, self.collate = indices, collate

    def next(self) -> BatchT:
        """The next batch of the stream."""
        return self.collate(self.indices.next())

    def select(self, indices: Tensor) -> BatchT:
        """The batch of the items ``indices``, outside the stream (methods that draw their own samples)."""
        return self.collate(indices)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands."""
        return self.indices.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the stream from a saved position."""
        self.indices.load_state_dict(state)
