"""Parameter averaging of many virtual replicas in one process, on a simulated clock.

The same rule as `hemstitch.parallel.ParameterAveraging` with plain gradient steps: each replica moves its own flat
parameters until it has used its samples, then all take the average, weighted by samples. The clock tells when each
would have been ready and how long all wait for the slowest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hemstitch.errors import ConfigError, DataError
from hemstitch.parallel._bounded_step import StepRule, apply_step
from hemstitch.parallel._cluster import Cluster, WorkerTimes
from hemstitch.parallel._replica import Gradient
from hemstitch.parallel._shares import Contribution, shares

LostWork = Literal["drop", "rerun"]


@dataclass(frozen=True)
class Round:
    """One average.

    Attributes:
        seconds: simulated time when all had it.
        shares: of each replica; 0 for those left out or dead.
        samples: of each since the last average.
        losses: mean loss of each on them; NaN without samples.
        failures: replicas that died in it.
        waiting: mean share of the round that replicas spent waiting for others and for the reduction.
        values: what the user's function returned for the average.
    """

    seconds: float
    shares: tuple[float, ...]
    samples: tuple[float, ...]
    losses: tuple[float, ...]
    failures: int
    waiting: float
    values: dict[str, float]


class AveragingSimulation:
    """Parameter averaging of many replicas, in one process.

    ::

        simulation = AveragingSimulation(theta, gradient, batches, num_replicas=16, every=400_000,
                                         rule=StepRule(lr=16 * lr, max_change=2.0))
        rounds = simulation.run(10)
        simulation.resize(8)                                    # from the next round on
        simulation.rule = StepRule(lr=8 * lr, max_change=2.0)

    Args:
        parameters: flat; copied.
        gradient: (flat parameters, batch) -> (flat gradient, mean loss, samples); or one function per replica, for
            gradients with a state of their own (natural gradient). The parameters must be left as they are.
        batches: replica -> an endless iterator over its batches.
        num_replicas: n, >= 1.
        every: samples of each replica between averages.
        rule: each replica's learning rate and bounds on its change.
        cluster: how long things take.
        best_first: the first average takes the best replica.
        margin: replicas whose loss is above the best one's by more than this are left out.
        lost_work: of a replica that dies: ``"drop"``: the others go on without it, and it is back for the next round
            after its restart; ``"rerun"``: they wait until it has done its work again.
        evaluate: parameters -> values, after each average.
        num_bytes: of the parameters on the network; by default what they take in memory.

    Attributes:
        parameters: (parameter,) the average.
        seconds: simulated time.

    Memory: n copies of the parameters.

    Reference: Povey, Zhang, Khudanpur, ICLR workshop 2015, section 2.
    """

    def __init__(
        self,
        parameters: Tensor,
        gradient: Gradient | Sequence[Gradient],
        batches: Callable[[int], Iterator[Any]],
        *,
        num_replicas: int,
        every: float,
        rule: StepRule,
        cluster: Cluster | None = None,
        best_first: bool = False,
        margin: float = math.inf,
        lost_work: LostWork = "drop",
        evaluate: Callable[[Tensor], dict[str, float]] | None = None,
        num_bytes: float | None = None,
    ) -> None:
        if every <= 0 or margin <= 0 or lost_work not in ("drop", "rerun"):
            raise ConfigError(f"need every > 0, margin > 0 and lost_work drop or rerun, got {every}, {margin}, "
                              f"{lost_work!r}")
        self.parameters, self.rule, self.cluster = parameters.detach().clone(), rule, cluster or Cluster()
        self.every, self.best_first, self.margin = every, best_first, margin
        self.lost_work, self.evaluate = lost_work, evaluate
        self._gradient, self._batches = gradient, batches
        self._bytes = parameters.numel() * parameters.element_size() if num_bytes is None else num_bytes
        self._replicas: list[_LocalReplica] = []
        self.seconds, self.num_rounds = 0.0, 0
        self.resize(num_replicas)

    @property
    def num_refused(self) -> int:
        """Steps left out so far because the gradient was not finite."""
        return sum(replica.num_refused for replica in self._replicas)

    def resize(self, num_replicas: int) -> None:
        """Train with another number of replicas from now on; those that come back continue their data."""
        if num_replicas < 1:
            raise ConfigError(f"num_replicas must be >= 1, got {num_replicas}")
        if isinstance(self._gradient, Sequence) and num_replicas > len(self._gradient):
            raise ConfigError(f"{len(self._gradient)} gradient functions for {num_replicas} replicas")
        self._active = num_replicas
        while len(self._replicas) < num_replicas:
            worker = len(self._replicas)
            gradient = self._gradient[worker] if isinstance(self._gradient, Sequence) else self._gradient
            self._replicas.append(_LocalReplica(gradient, iter(self._batches(worker)), self.cluster, worker))

    def run(self, num_rounds: int) -> list[Round]:
        """Go on for so many averages."""
        return [self._round() for _ in range(num_rounds)]

    def _round(self) -> Round:
        self.num_rounds += 1
        active, begin = self._replicas[:self._active], self.seconds
        for replica in active:
            replica.train(self.parameters, self.every, self.rule, begin, rerun=self.lost_work == "rerun")
        workers = [replica.contribution for replica in active]
        parts = shares(workers, take_best=self.best_first and self.num_rounds == 1, margin=self.margin)
        ready = [replica.ready_at for replica in active if replica.contribution.samples > 0]
        if ready:
            for share, replica in zip(parts, active, strict=True):
                replica.parameters.mul_(share) if share else replica.parameters.zero_()
            self.parameters = _tree_sum([replica.parameters for replica in active])
            self.seconds = max(ready) + self.cluster.network.reduction_seconds(len(ready), self._bytes)
        else:                                               # all have died: wait for the first to be back
            self.seconds = max(begin, min(replica.ready_at for replica in active))
        busy = sum(replica.busy_seconds for replica in active)
        elapsed = (self.seconds - begin) * len(active)
        return Round(
            seconds=self.seconds,
            shares=tuple(parts),
            samples=tuple(worker.samples for worker in workers),
            losses=tuple(math.nan if worker.loss is None else worker.loss for worker in workers),
            failures=sum(replica.num_failures for replica in active),
            waiting=1 - busy / elapsed if elapsed else 0.0,
            values=self.evaluate(self.parameters) if self.evaluate else {},
        )


class _LocalReplica:
    """A replica, its data and its clock; the attributes tell of the last round."""

    def __init__(self, gradient: Gradient, batches: Iterator[Any], cluster: Cluster, worker: int) -> None:
        self.gradient, self.batches, self.cluster = gradient, batches, cluster
        self.times = WorkerTimes(cluster, worker)
        self.parameters: Tensor | None = None
        self.contribution = Contribution(0)
        self.ready_at = self.busy_seconds = 0.0
        self.num_refused = self.num_failures = 0
        self._dies_at = self.times.until_failure()

    def train(self, start: Tensor, every: float, rule: StepRule, now: float, rerun: bool) -> None:
        """Its part of a round that begins ``now``."""
        self.num_failures, self.busy_seconds = 0, 0.0
        if self.ready_at > now:                             # dead since an earlier round
            self.contribution = Contribution(0)
            return
        samples, loss, seconds = self._descend(start, every, rule, now, stop_at=math.inf if rerun else self._dies_at)
        self.busy_seconds, self.ready_at = seconds, now + seconds
        finite = bool(torch.linalg.vector_norm(self.parameters).isfinite())
        self.contribution = Contribution(samples, loss / samples if samples else None, finite)
        while self.ready_at > self._dies_at:
            self.num_failures += 1
            self.ready_at = self._dies_at + self.cluster.failures.restart_seconds
            self._dies_at = self.ready_at + self.times.until_failure()
            if rerun:
                self.ready_at += seconds
            else:
                self.contribution = Contribution(0)

    def _descend(self, start: Tensor, every: float, rule: StepRule, now: float, stop_at: float,
                 ) -> tuple[float, float, float]:
        """Train on ``every`` samples, or until ``stop_at``; samples followed, their summed loss, and seconds."""
        self.parameters = start.clone() if self.parameters is None else self.parameters.copy_(start)
        drawn = samples = loss = seconds = 0.0
        while drawn < every and now + seconds < stop_at:
            batch = next(self.batches, None)
            if batch is None:
                raise DataError("a replica has no more batches: give endless iterators")
            gradient, mean, weight = self.gradient(self.parameters, batch)
            drawn, seconds = drawn + weight, seconds + self.times.compute()
            factors = rule.factors(gradient)
            if factors is None:
                self.num_refused += 1
                continue
            apply_step(self.parameters, gradient, factors, out=self.parameters)
            samples, loss = samples + weight, loss + weight * float(mean)
        return samples, loss, seconds


def _tree_sum(tensors: list[Tensor]) -> Tensor:
    """The sum, added as in `hemstitch.comm.tree_sum`, but in the memory of the tensors; the result is new."""
    while len(tensors) > 1:
        for left, right in zip(tensors[::2], tensors[1::2], strict=False):
            left.add_(right)
        tensors = tensors[::2]
    return tensors[0].clone()
