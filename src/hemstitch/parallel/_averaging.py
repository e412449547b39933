"""Parameter averaging: every worker trains by itself, and from time to time all take the average of their parameters.

    every worker w:   theta_w := theta_w - n lr g_w(theta_w)      on its own data, for `every` samples
    then:             theta_w := sum_v s_v theta_v                s_v = samples of v / samples of all

The averaged parameters move like those of one worker whose learning rate is that of each divided by n; hence n times
the learning rate for n workers, which is what limits n. One average per few minutes costs next to nothing, so the
workers may be far apart. With natural gradient this works although the problem is not convex: it keeps the parameters
from moving fast in the directions in which averages are bad.

**State.** The state of optimizer and natural gradient stays with its worker unless told otherwise.

**Deaths.** A worker that dies takes at most one period of its own work with it; the others go on, and the weights are
the samples of those who are there. A new worker takes part from the next average on.

Reference: Povey, Zhang, Khudanpur, "Parallel training of DNNs with natural gradient and parameter averaging", ICLR
workshop 2015, section 2.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hemstitch.comm import LocalReducer, MemberLost, Reducer
from hemstitch.errors import ConfigError, MisuseError
from hemstitch.parallel._shares import Contribution, shares
from hemstitch.parallel._worker_state import Stateful, StatePolicy, WorkerState


@dataclass(frozen=True)
class AveragingReport:
    """What one average did; the same on every worker.

    Attributes:
        round: number of this average among those after training, from 1; 0 for the first synchronisation.
        shares: of each worker, in the order of the ranks.
        samples: of each worker since the last average.
        losses: mean loss of each on them, NaN where it was not told.
        left_out: ranks that had trained but were not averaged.
        state_averaged: whether optimizer state was, if that was asked for.
        generation: of the group; grows with losses and admissions.
        seconds: this worker spent, waiting for the others included.
    """

    round: int
    shares: tuple[float, ...]
    samples: tuple[float, ...]
    losses: tuple[float, ...]
    left_out: tuple[int, ...]
    state_averaged: bool
    generation: int
    seconds: float


class ParameterAveraging:
    """Average the parameters and buffers of a model over the workers, every so many samples.

    ::

        with ParameterAveraging(model, reducer, every=400_000) as averaging:        # all begin with the same parameters
            for inputs, targets in batches:
                ...
                optimizer.step()
                averaging.update(len(inputs), loss)                                 # averages when it is time
                                                                                    # on leaving: the last average

    or, around a loop that cannot be changed, ``ParameterAveraging(...).follow(optimizer, samples=256)``.

    Floating-point parameters and buffers are averaged by samples (`hemstitch.parallel.shares`); of other buffers
    (counters) the values of the worker with the largest share are taken. With one worker nothing changes, to the bit.

    Args:
        model: the network of this worker; written in place.
        reducer: speaks to the other workers.
        every: samples that each worker trains on between two averages.
        best_first: the first average after training takes the best worker; for training from random parameters.
        margin: leave out workers whose mean loss is above the best one's by more than this; the reference uses 1.
        state: what becomes of ``stateful`` at an average: ``"local"``: it stays with its worker; ``"averaged"``: its
            floating-point tensors are averaged like the parameters, once all workers have as many; ``"reset"``: it
            starts anew (as if each period were a new process).
        stateful: optimizers and natural gradients that ``state`` is about.

    Attributes:
        num_averages: averages after training so far.
        last: report of the latest average.

    Raises:
        ConfigError: an option out of range.

    Cost: per average one reduction of the parameters, a pass over them, and a small message.

    Reference: Povey et al. 2015, section 2; dropping and first iteration as in the reference recipes.
    """

    def __init__(
        self,
        model: nn.Module,
        reducer: Reducer | None = None,
        *,
        every: int = 400_000,
        best_first: bool = False,
        margin: float = math.inf,
        state: StatePolicy = "local",
        stateful: Sequence[Stateful] = (),
    ) -> None:
        if every < 1 or margin <= 0:
            raise ConfigError(f"need every >= 1 sample and margin > 0, got {every} and {margin}")
        self.model, self.reducer = model, LocalReducer() if reducer is None else reducer
        self.every, self.best_first, self.margin = every, best_first, margin
        self.state = WorkerState(stateful, state)
        self.num_averages = 0
        self.last: AveragingReport | None = None
        self._samples, self._loss = 0, None
        self._finished = False
        self._hook: Any = None

    # -- driving ---------------------------------------------------------------------------------------------------

    def update(self, samples: int, loss: Tensor | float | None = None) -> AveragingReport | None:
        """Count a step; averages if this worker has trained on ``every`` samples since the last time.

        Args:
            samples: in the step's batch.
            loss: mean over them; needed for ``best_first`` and ``margin``, and from every step or none.
        """
        self._samples += samples
        if loss is not None:
            loss = loss.detach() if isinstance(loss, Tensor) else loss
            self._loss = samples * loss + (0.0 if self._loss is None else self._loss)
        return self.average() if self._samples >= self.every else None

    def follow(self, optimizer: Optimizer, samples: int) -> ParameterAveraging:
        """Count ``samples`` at each ``optimizer.step()``, without a change to the loop; returns itself.

        Raises:
            MisuseError: the optimizer passes twice over a batch: only the loop knows when the step is complete.
        """
        if getattr(optimizer, "passes_per_step", 1) > 1 or self.best_first or self.margin < math.inf:
            raise MisuseError("counting optimizer steps works for one pass per step and without losses: call "
                              "update(samples, loss) at the end of each step instead")
        self._hook = optimizer.register_step_post_hook(lambda *_: self.update(samples) and None)
        return self

    def average(self) -> AveragingReport:
        """Average now; all workers call it together. A death on the way costs a repetition.

        Raises:
            MemberLost: a worker was lost and the reducer cannot regroup, or it was this one (`Expelled`).
            NonFiniteError: no worker has finite parameters.
        """
        start = time.perf_counter()
        while True:
            try:
                report = self._average(start)
                break
            except MemberLost as lost:
                if self.reducer.generation == lost.generation:
                    raise
        self._samples, self._loss = 0, None
        self.num_averages, self.last = report.round, report
        return report

    def finish(self) -> AveragingReport:
        """The last average: takes part in those of the others until all have finished."""
        self._finished = True
        report = self.average()
        while not self._all_finished:
            report = self.average()
        return report

    def resume(self, num_averages: int) -> None:
        """Go on from a saved state that was taken right after the average of this number."""
        self._samples, self._loss = 0, None
        self.num_averages = num_averages

    def __enter__(self) -> ParameterAveraging:
        self.average()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._hook is not None:
            self._hook.remove()
        if kind is None:
            self.finish()

    # -- one average -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _average(self, start: float) -> AveragingReport:
        state = self.state.tensors()
        workers = self._exchange(state)
        if any(worker.waiting for worker in workers):
            self.reducer.regroup()
            workers = self._exchange(state)
        rounds = max(worker.rounds for worker in workers) + any(worker.samples > 0 for worker in workers)
        parts = shares(workers, take_best=self.best_first and rounds == 1, margin=self.margin)
        with_state = bool(state) and len({worker.state_size for worker in workers}) == 1
        self._replace(parts, state if with_state else [])
        self.state.commit(with_state)
        self._all_finished = all(worker.finished for worker in workers)
        return AveragingReport(
            round=rounds,
            shares=tuple(parts),
            samples=tuple(worker.samples for worker in workers),
            losses=tuple(math.nan if worker.loss is None else worker.loss for worker in workers),
            left_out=tuple(r for r, worker in enumerate(workers) if worker.samples > 0 and parts[r] == 0),
            state_averaged=with_state,
            generation=self.reducer.generation,
            seconds=time.perf_counter() - start,
        )

    def _exchange(self, state: list[Tensor]) -> list[Contribution]:
        """What every worker brings, in the order of the ranks."""
        reducer = self.reducer
        own = Contribution(
            samples=self._samples,
            loss=None if self._loss is None or not self._samples else float(self._loss) / self._samples,
            finite=_all_finite(_floating(self.model)),
            rounds=self.num_averages,
            finished=self._finished,
            state_size=sum(t.numel() for t in state),
            waiting=reducer.num_waiting() if reducer.rank == 0 and hasattr(reducer, "num_waiting") else 0,
        )
        line = torch.tensor(own.encode(), dtype=torch.float64)
        table = line.new_zeros(reducer.world, len(line))
        table[reducer.rank] = line
        reducer.sum_(table)
        return [Contribution.decode(values) for values in table.tolist()]

    def _replace(self, parts: Sequence[float], state: list[Tensor]) -> None:
        """Write the average; all tensors in one sum, so that a death leaves all as they were."""
        rank, own = self.reducer.rank, parts[self.reducer.rank]
        chosen = rank == parts.index(max(parts))
        counters = [buffer for buffer in self.model.buffers() if not buffer.is_floating_point()]
        values = [counter.double() / own if chosen else torch.zeros_like(counter, dtype=torch.float64)
                  for counter in counters]                  # the sum takes them times the share
        sum_tensors_(self.reducer, [*_floating(self.model), *state, *values], own)
        for counter, value in zip(counters, values, strict=True):
            counter.copy_(value.round())


def sum_tensors_(reducer: Reducer, tensors: Sequence[Tensor], scale: float) -> None:
    """Replace the tensors by their sums over the workers, each worker's times its ``scale``.

    Through one flat copy, unless the reducer can do without.
    """
    if hasattr(reducer, "sum_tensors_"):
        reducer.sum_tensors_(tensors, scale)
        return
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    flat = torch.cat([t.detach().reshape(-1).to(dtype) for t in tensors])
    flat = flat.mul_(scale) if scale else flat.zero_()
    reducer.sum_(flat)
    for tensor, piece in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.detach().copy_(piece.view(tensor.shape))


def _floating(model: nn.Module) -> list[Tensor]:
    return [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    norms = torch._foreach_norm([t.detach() for t in tensors if t.numel()])
    return all(math.isfinite(norm) for norm in torch.stack([n.double().cpu() for n in norms]).tolist())
