"""Shuffled epochs of sequences whose batches hold sequences of one length only, so that nothing is ever masked."""

from __future__ import annotations

import torch
from torch import Tensor

from hemstitch.sampling._epochs import ShuffledEpochs, generator


class EqualLengthEpochs(ShuffledEpochs):
    """Like :class:`ShuffledEpochs`, but all items of a batch have the same length.

    In each epoch the items are shuffled, dealt out to batches by length, and the batches shuffled. A batch is smaller
    than ``batch_size`` where a length has no more items.

    Items may come in variants that take turns: epoch e shows variant v = (e + item) mod ``variants`` of each, as the
    index v * (number of items) + item.

    Args:
        lengths: (item,) length of each item.
        batch_size: most items per batch.
        seed, worker, num_workers: see :class:`ShuffledEpochs`.
        variants: of each item, all of the same length.
    """

    def __init__(
        self, lengths: Tensor, batch_size: int, seed: int = 0, *, worker: int = 0, num_workers: int = 1,
        variants: int = 1,
    ) -> None:
        super().__init__(len(lengths), batch_size, seed, worker=worker, num_workers=num_workers)
        self.lengths, self.variants = torch.as_tensor(lengths), variants
        self._ends: tuple[int, Tensor] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Batches of the current epoch."""
        return len(self._batch_ends(self.epoch))

    def next(self) -> Tensor:
        """(batch,) int64 indices of items or variants of one length; starts the next epoch when this one is used up."""
        if self.at_epoch_end:
            self.epoch, self.position = self.epoch + 1, 0
        ends = self._batch_ends(self.epoch)
        end = int(ends[torch.searchsorted(ends, self.position, right=True)])
        indices = self.order(self.epoch)[self.position : end]
        self.position = end
        return indices + (self.epoch + indices) % self.variants * self.num_items

    def order(self, epoch: int) -> Tensor:
        """(item,) this worker's items in the order of ``epoch``."""
        self._batch_ends(epoch)
        assert self._order is not None
        return self._order[1]

    def _batch_ends(self, epoch: int) -> Tensor:
        """(batch,) position after each batch of an epoch; also draws its order."""
        if self._ends is None or self._ends[0] != epoch:
            everyone = torch.randperm(self.num_items, generator=generator(self.seed, epoch))
            mine = everyone[self.worker :: self.num_workers]
            batches = []
            for length in self.lengths[mine].unique():
                batches += mine[self.lengths[mine] == length].split(self.batch_size)
            shuffled = torch.randperm(len(batches), generator=generator(self.seed, epoch, 1)).tolist()
            batches = [batches[i] for i in shuffled]
            self._order = (epoch, torch.cat(batches))
            self._ends = (epoch, torch.tensor([len(b) for b in batches]).cumsum(0))
        return self._ends[1]
