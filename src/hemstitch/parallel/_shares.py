"""How much each worker counts in an average: by its samples, unless it failed or fell behind.

With n_w samples and mean loss L_w of worker w since the last average, the parameters become

    theta = sum_w s_w theta_w          s_w = n_w / sum n    over the workers that are kept

Kept are those whose parameters and loss are finite and whose loss is at most ``margin`` above the best one. Shares are
computed by every worker from the same table, so that all compute the same ones. A worker alone has share 1 exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hemstitch.errors import MisuseError, NonFiniteError


@dataclass(frozen=True)
class Contribution:
    """What one worker brings to an average: a line of the table that all see before they decide.

    Attributes:
        samples: it has trained on since the last one, >= 0.
        loss: mean loss on them; ``None`` if it was not told.
        finite: whether its parameters are.
        rounds: averages that it has taken part in.
        finished: whether it has no more data.
        state_size: numbers in the state that it would have averaged.
        waiting: workers that it saw waiting to join.
    """

    samples: float
    loss: float | None = None
    finite: bool = True
    rounds: int = 0
    finished: bool = False
    state_size: int = 0
    waiting: int = 0

    def encode(self) -> list[float]:
        """As finite numbers, so that lines of zeros can be added: the loss takes three."""
        finite = self.loss is not None and math.isfinite(self.loss)
        return [self.loss is not None, finite, self.loss if finite else 0.0, self.samples, self.finite, self.rounds,
                self.finished, self.state_size, self.waiting]

    @classmethod
    def decode(cls, line: Sequence[float]) -> Contribution:
        """The inverse of `encode`; an infinite or undefined loss becomes inf."""
        known, finite, loss, samples, parameters_finite, rounds, finished, state_size, waiting = line
        loss = (loss if finite else math.inf) if known else None
        return cls(samples, loss, bool(parameters_finite), int(rounds), bool(finished), int(state_size), int(waiting))


def shares(workers: Sequence[Contribution], *, take_best: bool = False, margin: float = math.inf) -> list[float]:
    """The share of each worker in the average; they add up to 1.

    Where nobody has trained (the beginning), the first worker's parameters are taken.

    Args:
        workers: in the order of their ranks.
        take_best: the whole share to the worker with the least loss: the first average of a run from random parameters,
            which no other can be averaged with.
        margin: a worker whose mean loss is larger than the best one by more than this is left out.

    Raises:
        NonFiniteError: no worker has finite parameters and loss.
        MisuseError: the losses are needed and a worker did not give its own.

    Reference: the reference recipes take margin 1 (nats per frame) and the best worker in iteration 0.
    """
    trained = [worker for worker in workers if worker.samples > 0]
    if (take_best or margin < math.inf) and any(worker.loss is None for worker in trained):
        raise MisuseError("to take the best worker or leave out the worst, each must say how it fares: call "
                          "update(samples, loss)")
    usable = [worker.finite and (worker.loss is None or math.isfinite(worker.loss)) for worker in workers]
    if not any(usable):
        raise NonFiniteError(f"none of the {len(workers)} workers has finite parameters and a finite loss: lower the "
                             "learning rate, or average more often")
    counted = [rank for rank, worker in enumerate(workers) if usable[rank] and worker.samples > 0]
    if not counted:
        return _only(usable.index(True), len(workers))
    if any(workers[rank].loss is not None for rank in counted):
        losses = {rank: workers[rank].loss for rank in counted if workers[rank].loss is not None}
        best = min(losses, key=losses.__getitem__)
        if take_best:
            return _only(best, len(workers))
        counted = [rank for rank in counted if losses.get(rank, -math.inf) <= losses[best] + margin]
    total = sum(workers[rank].samples for rank in counted)
    return [workers[rank].samples / total if rank in counted else 0.0 for rank in range(len(workers))]


def _only(chosen: int, world: int) -> list[float]:
    return [float(rank == chosen) for rank in range(world)]
