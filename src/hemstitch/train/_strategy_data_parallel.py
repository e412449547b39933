"""Data-parallel steps: every batch is shared by the workers, their gradients are summed, all make the same step.

The gradient is that of the mean loss over the whole batch whatever the shares are, so the run is that of one worker up
to rounding. Batch normalisation sees each worker's share (its running statistics are averaged at the end of an epoch),
natural gradient estimates the Fisher matrix from each worker's share, and dropout is drawn by each worker for itself.

A worker that dies takes its share of one batch with it: the others weigh what is there by its samples and go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hemstitch.comm import Reducer
from hemstitch.parallel import sum_tensors_
from hemstitch.sampling import BatchSource
from hemstitch.train._strategies import Batch, Gradient, StepReport
from hemstitch.train._workers import Handed, Worker, gather, insist, own_random_numbers

LEAST_SHARE = 2                 # samples: batch normalisation cannot do with one


@dataclass(frozen=True)
class Shared:
    """The objective of a batch over all workers.

    Attributes:
        loss: summed.
        weight: behind it.
        errors: wrong decisions, where they are counted.
    """

    loss: Tensor
    weight: float
    errors: float | None


class SharedGradient(Gradient):
    """The gradient of a batch of which this worker has a share, or nothing (``inputs`` is ``None``).

    Attributes:
        is_asked_to_stop: whether somebody wants the run to stop: told to the others with every gradient.
        agreed_to_stop: whether anybody did.
    """

    is_asked_to_stop: Callable[[], bool] = staticmethod(lambda: False)
    agreed_to_stop = False

    def __call__(self, batch: Batch) -> Any:
        """Forward and backward pass on the share; the same gradient and objective on every worker."""
        objective = None if batch.inputs is None else self.objective(batch)
        weight = 0.0 if objective is None else float(objective.weight)
        if weight > 0:
            (objective.loss / objective.weight).backward()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        errors = getattr(objective, "errors", None)
        told = [0.0 if objective is None else float(objective.loss.detach()), errors or 0.0, float(errors is not None),
                float(self.is_asked_to_stop())]  # fmt: skip
        flat = torch.cat([piece.reshape(-1) * weight for piece in pieces] + [pieces[0].new_tensor(told)])
        total = insist(lambda: self.reducer.sum_(flat, weight), self.reducer)
        loss, errors, counted, stop = flat[-len(told) :].tolist()
        for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters] + [len(told)])):
            parameter.grad = piece.view_as(parameter) / max(total, 1.0)
        self.agreed_to_stop = stop > 0
        return Shared(flat.new_tensor(loss), total, errors if counted else None)


class DataParallelSteps:
    """A local strategy on batches that are shared by several workers.

    Args:
        worker: this one; its strategy gets a `SharedGradient`.
        reducer: speaks to the others.
        is_asked_to_stop: whether somebody wants the run to stop.
    """

    def __init__(self, worker: Worker, reducer: Reducer, is_asked_to_stop: Callable[[], bool]) -> None:
        self.worker, self.reducer, self.is_asked_to_stop = worker, reducer, is_asked_to_stop
        local = worker.strategy.gradient
        self.gradient = SharedGradient(local.model, local.criterion, local.autocast, reducer)
        self.gradient.is_asked_to_stop = lambda: self.is_asked_to_stop()
        self._alone = reducer.world == 1
        if not self._alone:
            worker.strategy.gradient = self.gradient

    @property
    def agreed_to_stop(self) -> bool:
        """Whether all know that the run is to stop."""
        return self.is_asked_to_stop() if self._alone else self.gradient.agreed_to_stop

    def step(self, source: BatchSource[Batch]) -> StepReport:
        """This worker's share of the next batch, and the step that all make."""
        indices = source.indices.next()
        shares = min(self.reducer.world, max(1, len(indices) // LEAST_SHARE))
        rank = self.reducer.rank
        batch = source.collate(indices[rank::shares]) if rank < shares else Batch(None, None, 0)
        report = self.worker.strategy.step(Handed(replace(batch, samples=len(indices))))
        if source.indices.at_epoch_end:
            self._average_buffers()
        return report

    def _average_buffers(self) -> None:
        buffers = [buffer for buffer in self.worker.model.buffers() if buffer.is_floating_point()]
        if buffers and self.reducer.world > 1:
            insist(lambda: sum_tensors_(self.reducer, buffers, 1 / self.reducer.world), self.reducer)

    def totals(self) -> dict[str, float]:
        """How many workers there are."""
        return {"workers": self.reducer.world}

    def state_dict(self) -> dict[str, Any]:
        """What is each worker's own: Fisher estimates, statistics, random numbers. All workers call it together."""
        own = {
            "natural": self.worker.natural.state_dict() if self.worker.natural else {},
            "buffers": dict(self.worker.model.named_buffers()),
            "random": torch.get_rng_state(),
        }
        return {"workers": gather(self.reducer, own)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore this worker's; one that there was none of when it was saved keeps the first one's."""
        if self.reducer.rank >= len(state["workers"]):
            own_random_numbers(self.reducer.rank, torch.initial_seed())
            return
        own = state["workers"][self.reducer.rank]
        if self.worker.natural:
            self.worker.natural.load_state_dict(own["natural"])
        with torch.no_grad():
            for name, buffer in self.worker.model.named_buffers():
                buffer.copy_(own["buffers"][name])
        torch.set_rng_state(own["random"])
