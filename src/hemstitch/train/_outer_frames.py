"""Frames that carry the outer gradient of their utterance: a sequence criterion in frame batches.

An utterance is decoded when it is loaded, with the parameters of that moment; its frames are then used up, those
that cancel left out. Three ways to shuffle them (paper 2, section 3.1):

    none         one utterance after the other, its frames in order
    on-the-fly   each of the N places in the batch walks through an utterance of its own; the last utterances of an
                 epoch have several places each
    full         all utterances of an epoch are loaded at its beginning, their frames mixed

The rows that are loaded and not yet used belong to the state, so that a resumed run goes on to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hemstitch.errors import ConfigError
from hemstitch.sampling import generator


@dataclass
class OuterRows:
    """Frames with their outer gradients.

    Attributes:
        frames: (row,) numbers of the frames in their part.
        derivative: (row, pdf) of the loss by the outputs.
        at: (row, pdf) the outputs where it was computed; (row, 0) where that is not needed.
        loss: (row,) share of the loss of the utterance.
        strength: (row,) see :class:`hemstitch.criteria.AuxiliaryFunction`; 0 for the tangent. Without a denominator the
            weight of the softmax.
    """

    frames: Tensor
    derivative: Tensor
    at: Tensor
    loss: Tensor
    strength: Tensor

    NAMES = ("frames", "derivative", "at", "loss", "strength")

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, row: int) -> OuterRows:
        """One of the rows."""
        return self.take(slice(row, row + 1))

    def take(self, index: Any) -> OuterRows:
        """Some of the rows."""
        return OuterRows(*(getattr(self, name)[index] for name in self.NAMES))

    @classmethod
    def joined(cls, pieces: list[OuterRows]) -> OuterRows:
        """One after the other."""
        return cls(*(torch.cat([getattr(piece, name) for piece in pieces]) for name in cls.NAMES))

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of its tensors."""
        return {name: getattr(self, name).clone() for name in self.NAMES}


@dataclass(frozen=True)
class Loaded:
    """What loading utterances gives.

    Attributes:
        rows: those of each utterance, at least one each.
        extra: values to log.
    """

    rows: list[OuterRows]
    extra: dict[str, float]


class OuterFrames:
    """An endless stream of batches of such frames; also the index stream that the loop reads.

    Args:
        lengths: (utterance,) frames of each.
        batch_size: N, frames of a batch.
        seed: with the epoch, decides the order of utterances.
        shuffling: "none", "on-the-fly" or "full".
        load: numbers of utterances -> their rows, with the current parameters.
        collate: rows, frames consumed (those left out too) and values to log -> batch.
    """

    def __init__(
        self, lengths: Tensor, batch_size: int, seed: int, shuffling: str, load: Callable[[list[int]], Loaded],
        collate: Callable[[OuterRows, int, dict[str, float]], Any],
    ) -> None:  # fmt: skip
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.shuffling, self.load, self.collate = shuffling, load, collate
        self.num_items = self.items_per_epoch = int(lengths.sum())
        self.epoch, self.position = 0, 0
        self._drawn, self._cursor, self._mixed = -1, 0, True
        self._slots: list[OuterRows] = []
        self._used: list[int] = []  # rows of each slot
        self._extra: dict[str, float] = {}

    @property
    def indices(self) -> OuterFrames:
        """Itself."""
        return self

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch in which nothing cancels: more than there will be."""
        return -(-self.num_items // self.batch_size)

    @property
    def at_epoch_end(self) -> bool:
        """Whether all utterances are loaded and used up."""
        return self._drawn == self.epoch and self._cursor >= len(self.lengths) and not self._slots

    def next(self) -> Any:
        """The next batch; starts the next epoch when this one is used up."""
        if self.at_epoch_end:
            self.epoch, self.position = self.epoch + 1, 0
        if self._drawn != self.epoch:
            self._drawn, self._cursor, self._slots, self._used = self.epoch, 0, [], []
        before = self.position
        rows = self._walk() if self.shuffling == "on-the-fly" else self._queue()
        self.position += len(rows)
        extra, self._extra = self._extra, {}
        return self.collate(rows, self.position - before, extra)

    def skip_epoch(self) -> None:
        """Have all utterances of the epoch loaded and used up."""
        self._drawn, self._cursor, self._slots, self._used = self.epoch, len(self.lengths), [], []

    def select(self, utterances: Tensor) -> Any:
        """All frames of some utterances, outside the stream."""
        loaded = self.load([int(i) for i in utterances[: len(self.lengths)] % len(self.lengths)])
        rows = OuterRows.joined(loaded.rows)
        return self.collate(rows, len(rows), loaded.extra)

    def _walk(self) -> OuterRows:
        """A frame from each open slot; several when an epoch ends and slots are fewer, so that batches stay large."""
        self._open(self.batch_size)
        count = self.batch_size // len(self._slots)
        ends = [min(i + count, len(slot)) for slot, i in zip(self._slots, self._used)]
        heads = OuterRows.joined([slot.take(slice(i, end)) for slot, i, end in zip(self._slots, self._used, ends)])
        left = [(slot, end) for slot, end in zip(self._slots, ends) if end < len(slot)]
        self._slots, self._used = [slot for slot, _ in left], [end for _, end in left]
        return heads

    def _queue(self) -> OuterRows:
        """The next frames of one queue."""
        everything, size = self.shuffling == "full", self.batch_size
        while self._cursor < len(self.lengths) and (everything or self._num_left() < size):
            self._open(len(self.lengths) if everything else len(self._slots) + 1)
        if everything and not self._mixed:
            rows = OuterRows.joined(self._slots)
            order = torch.randperm(len(rows), generator=generator(self.seed, self.epoch, 1))
            self._slots, self._used, self._mixed = [rows.take(order)], [0], True
        pieces: list[OuterRows] = []
        while size > 0 and self._slots:
            first, last = self._used[0], min(self._used[0] + size, len(self._slots[0]))
            pieces.append(self._slots[0].take(slice(first, last)))
            size -= last - first
            self._used[0] = last
            if last == len(self._slots[0]):
                del self._slots[0], self._used[0]
        return OuterRows.joined(pieces)

    def _num_left(self) -> int:
        return sum(map(len, self._slots)) - sum(self._used)

    def _open(self, num_slots: int) -> None:
        """Load utterances until so many slots are open, or there are no more."""
        order = torch.randperm(len(self.lengths), generator=generator(self.seed, self.epoch)).tolist()
        wanted = order[self._cursor : self._cursor + max(num_slots - len(self._slots), 0)]
        if not wanted:
            return
        loaded = self.load(wanted)
        self._cursor += len(wanted)
        self._slots += loaded.rows
        self._used += [0] * len(loaded.rows)
        self._mixed = False
        self._extra = loaded.extra
        self.position += int(self.lengths[wanted].sum()) - sum(map(len, loaded.rows))

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, with the rows that are loaded and not yet used."""
        return {
            "epoch": self.epoch, "position": self.position, "drawn": self._drawn, "cursor": self._cursor,
            "num_items": self.num_items, "seed": self.seed, "shuffling": self.shuffling,
            "slots": [slot.take(slice(i, None)).state_dict() for slot, i in zip(self._slots, self._used)],
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken; refuses a state of other data, seed or shuffling."""
        for key in ("num_items", "seed", "shuffling"):
            if state[key] != getattr(self, key):
                raise ConfigError(f"the saved data position is for {key} = {state[key]}, this run has "
                                  f"{getattr(self, key)}")  # fmt: skip
        self.epoch, self.position = state["epoch"], state["position"]
        self._drawn, self._cursor = state["drawn"], state["cursor"]
        self._slots = [OuterRows(**{name: slot[name].clone() for name in OuterRows.NAMES}) for slot in state["slots"]]
        self._used, self._mixed = [0] * len(self._slots), True
