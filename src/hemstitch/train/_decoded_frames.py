"""Frames for asynchronous replicas: decoders compute outer gradients of utterances, replicas use up their frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hemstitch.parallel import Decoding, FetchPolicy, FlatGradient, OuterBatch
from hemstitch.sampling import generator
from hemstitch.train._options import Decoders
from hemstitch.train._outer_frames import Loaded, OuterFrames, OuterRows
from hemstitch.train._replica_gradient import ReplicaGradient


class DecodedFrames:
    """The utterances of an epoch for decoders, and the frames that replicas are to use.

    Args:
        source: the stream of frames.
        model: memory for the decoders' parameters.
        options: when they take new ones.
        order: numbers of utterances; ``None``: those of the stream's epoch.
        fetch: in the place of what the options say.

    Attributes:
        handed: frames of the utterances decoded since the begin of the epoch.
        extra: what the last decoding had to tell.
    """

    def __init__(self, source: OuterFrames, model: nn.Module, options: Decoders,
                 order: Iterator[int] | None = None, fetch: FetchPolicy | None = None) -> None:
        self._source, self._lookahead = source, options.lookahead
        self._flat = FlatGradient(model, lambda *_: None)
        self._fetch = fetch or FetchPolicy(seconds=options.decoder_fetch_seconds,
                                           synchronous=options.decoder_fetch_synchronous)
        self.handed, self.extra = source.position, {}
        self._order = order or iter(epoch_order(source, source.epoch))

    def decode(self, parameters: Tensor, utterances: Sequence[int]) -> list[OuterRows]:
        """Outer gradients at the decoder's parameters."""
        self._flat.load(parameters)
        loaded: Loaded = self._source.load(list(utterances))
        self.handed += int(self._source.lengths[list(utterances)].sum())
        self.extra = loaded.extra
        return loaded.rows

    def simulation_options(self) -> dict[str, Any]:
        """What `AsynchronousSimulation` is to train on."""
        return {"decoding": Decoding(outer_gradient=self.decode, utterances=lambda worker: self._order,
                                     num_slots=self._source.batch_size, fetch=self._fetch, lookahead=self._lookahead)}

    @staticmethod
    def end_epoch(source: OuterFrames) -> None:
        """Put the stream where this one is: all utterances loaded and used up."""
        source.position = source.num_items
        source.skip_epoch()


@dataclass(frozen=True)
class SharedUtterances:
    """Worker -> its utterances, without end: of all epochs one after the other each takes the n-th ones.

    A worker that comes back begins where it did at first.

    Attributes:
        source: the stream of frames.
        num_workers: n.
        first: how many utterances are done already, over all epochs.
    """

    source: OuterFrames
    num_workers: int
    first: int = 0

    def __call__(self, worker: int) -> Iterator[int]:
        """Numbers of utterances."""
        known = (-1, [])
        for number in count(self.first + worker, self.num_workers):
            epoch, place = divmod(number, len(self.source.lengths))
            if known[0] != epoch:
                known = (epoch, epoch_order(self.source, epoch))
            yield known[1][place]


class FrameNumbers:
    """Batches of frames by number, as `EpochBatches` counts others: so many to an epoch as if no frame cancelled.

    What cancels is made up for with frames of the next epoch.
    """

    def __init__(self, source: OuterFrames) -> None:
        self._size, self._items, self._batches = source.batch_size, source.num_items, source.batches_per_epoch

    def start_of(self, epoch: int) -> int:
        """Number of the first batch of an epoch."""
        return epoch * self._batches

    def number_at(self, epoch: int, position: int) -> int:
        """Number of the first batch that begins at ``position`` or after it."""
        return self.start_of(epoch) + -(-position // self._size)

    def items_before(self, number: int, epoch: int) -> int:
        """Frames in the batches of an epoch before a number; all of them if it belongs to a later epoch."""
        return min(self._items, max(0, number - self.start_of(epoch)) * self._size)


def epoch_order(source: OuterFrames, epoch: int) -> list[int]:
    """Numbers of the utterances of an epoch of the stream."""
    return torch.randperm(len(source.lengths), generator=generator(source.seed, epoch)).tolist()


class FrameGradient:
    """A replica's gradient of frames with their outer gradients.

    Args:
        gradient: of batches as the task makes them.
        source: makes them.
    """

    returns_new_tensors: ClassVar[bool] = True

    def __init__(self, gradient: ReplicaGradient, source: OuterFrames) -> None:
        self._gradient, self._source = gradient, source

    def __call__(self, parameters: Tensor, batch: OuterBatch) -> tuple[Tensor, float, float]:
        """Gradient, mean loss, and frames behind it."""
        rows = OuterRows.joined(batch.rows)
        return self._gradient(parameters, self._source.collate(rows, len(rows), {}))
