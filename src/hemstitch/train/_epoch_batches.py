"""Batches by number, for workers that are told which ones to take."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from hemstitch.sampling import BatchSource
from hemstitch.train._strategies import Batch


class EpochBatches:
    """The batches of a stream by number: a function of the number alone.

    Args:
        source: the stream; its own position is left alone.
    """

    def __init__(self, source: BatchSource[Batch]) -> None:
        self._indices, self._collate = source.indices, source.collate
        self._starts = [0]                                  # number of the first batch of each epoch known
        self._epoch: tuple[int, list[Tensor]] = (-1, [])

    def __call__(self, number: int) -> Batch:
        """The batch."""
        epoch = self.epoch_of(number)
        return self._collate(self.of_epoch(epoch)[number - self._starts[epoch]])

    def epoch_of(self, number: int) -> int:
        """The epoch that a batch belongs to."""
        while self._starts[-1] <= number:
            self._starts.append(self._starts[-1] + len(self.of_epoch(len(self._starts) - 1)))
        return int(np.searchsorted(self._starts, number, side="right")) - 1

    def start_of(self, epoch: int) -> int:
        """Number of the first batch of an epoch."""
        while len(self._starts) <= epoch:
            self._starts.append(self._starts[-1] + len(self.of_epoch(len(self._starts) - 1)))
        return self._starts[epoch]

    def of_epoch(self, epoch: int) -> list[Tensor]:
        """Items of each batch of an epoch."""
        if self._epoch[0] != epoch:
            indices = self._indices
            before = indices.epoch, indices.position
            indices.epoch, indices.position, batches = epoch, 0, []
            while not indices.at_epoch_end:
                batches.append(indices.next())
            indices.epoch, indices.position = before
            self._epoch = (epoch, batches)
        return self._epoch[1]

    def number_at(self, epoch: int, position: int) -> int:
        """Number of the batch that begins with the item at ``position``, or is the first one after it."""
        ends = np.cumsum([0, *map(len, self.of_epoch(epoch))])
        return self.start_of(epoch) + int(np.searchsorted(ends, position))

    def items_before(self, number: int, epoch: int) -> int:
        """Items in the batches of an epoch before a number; all of them if it belongs to a later epoch."""
        return sum(map(len, self.of_epoch(epoch)[: max(0, number - self.start_of(epoch))]))
