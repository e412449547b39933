"""Shuffling while utterances stream by: each place in the batch walks through an utterance of its own.

A batch has N slots. Each holds one utterance and gives its frames one by one, in their order; when they are used up,
the slot loads the next utterance. So a batch consists of one frame from each of N random utterances, although only N
utterances are in memory, and an outer gradient that was computed for a whole utterance is used up frame by frame.

    batch k:    utterance a, frame 3 | utterance b, frame 17 | utterance c, frame 0 | ...
    batch k+1:  utterance a, frame 4 | utterance b, frame 18 | utterance c, frame 1 | ...

Reference: Heigold, McDermott, Vanhoucke, Senior, Bacchiani, "Asynchronous stochastic optimization for sequence training
of deep neural networks", ICASSP 2014, section 3.1 and figure 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from hemstitch.errors import ConfigError, DataError
from hemstitch.sampling._epochs import ShuffledEpochs, generator

ItemT = TypeVar("ItemT")


class UtteranceSlots(Generic[ItemT]):
    """The slots of a batch and where each stands in its utterance.

    Args:
        num_slots: N, >= 1.
        load: the next utterance and how many frames of it to use; ``None`` when there are no more: the slot closes.

    Attributes:
        items: the utterance in each open slot.

    Examples:
        >>> utterances = iter([("a", 2), ("b", 3), ("c", 1)])
        >>> slots = UtteranceSlots(2, lambda: next(utterances, None))
        >>> for items, frames in iter(slots.next, None):
        ...     print(items, frames.tolist())
        ['a', 'b'] [0, 0]
        ['a', 'b'] [1, 1]
        ['c', 'b'] [0, 2]
    """

    def __init__(self, num_slots: int, load: Callable[[], tuple[ItemT, int] | None]) -> None:
        if num_slots < 1:
            raise ConfigError(f"num_slots must be >= 1, got {num_slots}")
        self.load = load
        self.items: list[ItemT | None] = [None] * num_slots
        self._frames = np.full(num_slots, -1)
        self._lengths = np.zeros(num_slots, dtype=np.int64)

    def num_needed(self) -> int:
        """How many utterances `next` will load, if each has frames."""
        return int((self._frames + 1 >= self._lengths).sum())

    def next(self) -> tuple[list[ItemT], np.ndarray] | None:
        """The utterances of the open slots and the frame of each, (slot,); ``None`` when all are closed."""
        self._frames += 1
        for slot in np.flatnonzero(self._frames >= self._lengths).tolist():
            self._fill(slot)
        if (self._lengths == 0).any():
            is_open = self._lengths > 0
            self.items = [item for item, keep in zip(self.items, is_open, strict=True) if keep]
            self._frames, self._lengths = self._frames[is_open], self._lengths[is_open]
        return (list(self.items), self._frames.copy()) if self.items else None

    def _fill(self, slot: int) -> None:
        """Load utterances until one has frames."""
        length = 0
        while length == 0:
            loaded = self.load()
            if loaded is None:
                break
            self.items[slot], length = loaded
        self._frames[slot], self._lengths[slot] = 0, length


class OnTheFlyFrames(ShuffledEpochs):
    """An endless stream of frame minibatches, shuffled on the fly; takes the place of `ShuffledEpochs` over frames.

    Each epoch goes once through the frames of all utterances of this worker; the order of the utterances is a function
    of (seed, epoch). Near its end slots close, and the batches are smaller.

    Args:
        lengths: frames in each utterance, (utterance,).
        num_slots: N, frames in a batch.
        seed: determines the order together with the epoch.
        worker, num_workers: this worker has every n-th utterance, the same ones in every epoch.
    """

    def __init__(
        self, lengths: Sequence[int] | Tensor, num_slots: int, seed: int = 0, *, worker: int = 0, num_workers: int = 1,
    ) -> None:
        self.lengths = torch.as_tensor(lengths, dtype=torch.int64)
        if self.lengths.ndim != 1 or not len(self.lengths) or (self.lengths < 1).any():
            raise DataError("lengths must be a list of frame counts of at least 1")
        super().__init__(int(self.lengths.sum()), num_slots, seed, worker=worker, num_workers=num_workers)
        if len(self.lengths) < num_workers:
            raise ConfigError(f"{len(self.lengths)} utterances cannot be shared among {num_workers} workers")
        self._starts = torch.cumsum(self.lengths, 0) - self.lengths

    @property
    def items_per_epoch(self) -> int:
        """Frames that this worker sees in one epoch."""
        return int(self.lengths[self.worker :: self.num_workers].sum())

    @property
    def batches_per_epoch(self) -> int:
        """Batches that this worker sees in the current epoch."""
        self.order(self.epoch)
        return len(self._ends)

    def next(self) -> Tensor:
        """(batch,) int64 numbers of frames, one from each open slot; starts the next epoch when this one is used up."""
        if self.position >= self.items_per_epoch:
            self.epoch, self.position = self.epoch + 1, 0
        order = self.order(self.epoch)
        end = int(self._ends[torch.searchsorted(self._ends, self.position, right=True)])
        indices = order[self.position : end]
        self.position = end
        return indices

    def order(self, epoch: int) -> Tensor:
        """(frame,) this worker's frames in the order of ``epoch``, batch after batch."""
        if self._order is None or self._order[0] != epoch:
            batches = list(iter(self._slots(epoch).next, None))
            frames = [self._starts[torch.tensor(items)] + torch.from_numpy(frames) for items, frames in batches]
            self._ends = torch.tensor([len(batch) for batch in frames]).cumsum(0)
            self._order = (epoch, torch.cat(frames))
        return self._order[1]

    def _slots(self, epoch: int) -> UtteranceSlots[int]:
        own = torch.arange(self.worker, len(self.lengths), self.num_workers)
        shuffled = iter(own[torch.randperm(len(own), generator=generator(self.seed, epoch))].tolist())

        def load() -> tuple[int, int] | None:
            utterance = next(shuffled, None)
            return None if utterance is None else (utterance, int(self.lengths[utterance]))

        return UtteranceSlots(self.batch_size, load)
