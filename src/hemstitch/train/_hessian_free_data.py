"""Which data a Hessian-free step sees: the training part cut in two, and samples of the larger piece that grow.

The smaller piece is held out whole (utterances, not frames) and only judges steps. Of the other, the gradient and the
curvature take random samples of units (utterances, frames, images), nested in each other from step to step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hemstitch.errors import ConfigError
from hemstitch.optim import HessianFree
from hemstitch.sampling import BatchSource, EqualLengthEpochs, GrowingSample, SampleGrowth, generator
from hemstitch.train import _options as o
from hemstitch.train._speech import SpeechTask

HELD_OUT = 1
"""Key of the random cut, beside the seed."""

MIN_BATCHES = 8
"""Micro-batches of the gradient sample at least, where the variance over them sets its size."""


class StepCount:
    """Stands in for the stream of batches: an epoch is one step.

    Args:
        num_items: items that are trained on; what passes over the data are counted in.
    """

    items_per_epoch = batches_per_epoch = 1

    def __init__(self, num_items: int) -> None:
        self.num_items, self.epoch, self.position = num_items, 0, 0

    @property
    def at_epoch_end(self) -> bool:
        """Whether the step of this epoch is done."""
        return self.position >= 1

    def next(self) -> Tensor:
        """All items; the step itself draws its samples."""
        self.position = 1
        return torch.arange(self.num_items)

    def state_dict(self) -> dict[str, int]:
        """Epoch and position."""
        return {"epoch": self.epoch, "position": self.position, "num_items": self.num_items}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where ``state`` was taken; refuses a state of other data."""
        if state["num_items"] != self.num_items:
            raise ConfigError(f"the saved state is for {state['num_items']} training items, this run has "
                              f"{self.num_items}")  # fmt: skip
        self.epoch, self.position = state["epoch"], state["position"]


class HessianFreeData:
    """The training part for Hessian-free steps.

    Args:
        task: what is learned; tells which items belong to one utterance.
        source: makes batches of its items.
        options: of the update.
        batch_size: most items per micro-batch.
        seed: of the cut and of the samples.

    Attributes:
        samples: growing samples of units for the roles gradient and curvature.
        units: for each role, the unit -> items map as (item,) items and (unit + 1,) offsets.
        source: as the loop wants it, an epoch being one step.
    """

    def __init__(
        self, task: Any, source: BatchSource[Any], options: o.HessianFree, batch_size: int, seed: int
    ) -> None:
        indices = source.indices
        self.lengths = indices.lengths if isinstance(indices, EqualLengthEpochs) else None
        self.batch_size, self.by_variance = batch_size, "variance" in options.sampling
        is_speech = isinstance(task, SpeechTask)
        by_frame = self._by_frame(options.sample_by, is_speech)
        if is_speech and self.lengths is None:
            offsets = torch.as_tensor(task.parts["train"].offsets).to(torch.int64)
        else:
            offsets = torch.arange(indices.num_items + 1)
        sizes = offsets.diff() if self.lengths is None else self.lengths
        held_out, kept = cut(sizes, options.held_out, seed)
        trained = self._single(kept, offsets) if by_frame else self._grouped(kept, offsets)
        self.units = {"gradient": trained, "curvature": trained, "evaluate": self._grouped(held_out, offsets)}
        self.samples = {
            "gradient": self._sample(options, options.gradient_start, options.gradient_cap, options.gradient_factor,
                                     by_frame, seed),
            "curvature": self._sample(options, options.curvature_start, options.curvature_cap,
                                      options.curvature_factor, by_frame, seed),
        }  # fmt: skip
        self.source: BatchSource[Any] = BatchSource(StepCount(len(trained[0])), source.collate)  # type: ignore[arg-type]

    def _by_frame(self, wanted: str, has_utterances: bool) -> bool:
        if wanted == "frame" and self.lengths is not None:
            raise ConfigError("update.sample_by = 'frame': this criterion is one of whole utterances, a frame of them "
                              "alone has no loss; take 'utterance' or 'auto'")  # fmt: skip
        if wanted == "utterance" and not has_utterances:
            raise ConfigError("update.sample_by = 'utterance': these data have no utterances; take 'frame' or 'auto'")
        return wanted == "frame" or (wanted == "auto" and self.lengths is None)

    @staticmethod
    def _single(units: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Every item of the units as a unit of its own."""
        items = HessianFreeData._grouped(units, offsets)[0]
        return items, torch.arange(len(items) + 1)

    @staticmethod
    def _grouped(units: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        pieces = [torch.arange(int(offsets[u]), int(offsets[u + 1])) for u in units.tolist()]
        return torch.cat(pieces), torch.tensor([0, *(len(piece) for piece in pieces)]).cumsum(0)

    def _sample(
        self, options: o.HessianFree, start: float, cap: float, factor: float, by_frame: bool, seed: int
    ) -> GrowingSample:
        items, offsets = self.units["gradient"]
        frames = self.lengths[items] if self.lengths is not None else offsets.diff()
        total = len(items) if by_frame else int(frames.sum())
        most = max(1, round(cap * total))
        growth = SampleGrowth(
            start=most if options.sampling == "fixed" else max(1, round(start * most)),
            cap=most,
            factor=factor if "geometric" in options.sampling else None,
            theta=options.theta if "variance" in options.sampling else None,
            switch_share=options.switch_share,
        )
        return GrowingSample(len(items) if by_frame else frames, growth, seed, nested=options.nested)

    def num_items(self, role: str) -> int:
        """Items of a role in the present step, those of all workers."""
        items, offsets = self.units[role]
        if role not in self.samples:
            return len(items)
        return int(offsets.diff()[self.samples[role].indices()].sum())

    def batches(self, role: str, optimizer: HessianFree) -> Iterator[Tensor]:
        """Items of each micro-batch of a role, for the shard that the optimizer runs; of one length for sequences."""
        items, offsets = self.units[role]
        units = optimizer.sample(role, len(offsets) - 1)
        spans = [items[int(offsets[u]) : int(offsets[u + 1])] for u in units.tolist()]
        if not spans:
            return
        drawn, size = torch.cat(spans), self.batch_size
        if role == "gradient" and self.by_variance:
            size = max(1, min(size, -(-self.num_items(role) // MIN_BATCHES)))
        if self.lengths is None:
            yield from drawn.split(size)
            return
        for length in self.lengths[drawn].unique():
            yield from drawn[self.lengths[drawn] == length].split(size)


def cut(sizes: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Random units of ``share`` of the total size, and the others; both in ascending order.

    Args:
        sizes: (unit,) size of each.
        share: in (0, 1).
        seed: chooses.

    Raises:
        ConfigError: there are not two units.
    """
    if len(sizes) < 2:
        raise ConfigError(f"update.held_out: {len(sizes)} training utterance(s) cannot be cut in two")
    order = torch.randperm(len(sizes), generator=generator(seed, HELD_OUT))
    reached = int(torch.searchsorted(sizes[order].cumsum(0), share * float(sizes.sum()))) + 1
    count = min(reached, len(sizes) - 1)
    return order[:count].sort().values, order[count:].sort().values
