"""Parameter averaging as a step strategy: over processes, and over virtual workers of one process.

A step of the loop is one batch for each worker. When every worker has had its samples, all take the average of their
parameters; the run is at rest then: it can be saved, looked at, and continued to the same bits. Both strategies run the
same algorithm (`hemstitch.parallel.ParameterAveraging`) on the same batches in the same order of additions, so that two
processes and two virtual workers end with the same parameters, to the bit, and one worker with those of a local run
(dropout aside, for which processes draw their own random numbers).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from hemstitch.comm import Reducer, run_workers
from hemstitch.parallel import (
    AveragingReport,
    Cluster,
    LastModels,
    ParameterAveraging,
    WorkerTimes,
    combine_models,
    num_workers_at,
)
from hemstitch.sampling import BatchSource, ShuffledEpochs
from hemstitch.train._options import AveragingRule, VirtualAveraging
from hemstitch.train._strategies import Batch, StepReport
from hemstitch.train._workers import Handed, Worker, deal, gather, own_random_numbers, scaled_rates, sum_values

NEVER = 2**62                   # samples after which a worker would average by itself
REFRESH_BATCHES = 100           # from which batch-norm statistics of an average are computed
CURVE = ("best", "mean", "worst")


@dataclass
class Rounds:
    """What has been dealt since the last average, and what became of the rounds before.

    Attributes:
        options: the rule.
        epochs: of the run.
        active: workers that train in this round.
        drawn: samples dealt in it.
        losses: (best, mean, worst) loss of a worker in each round.
        left_out: workers left out so far.
    """

    options: AveragingRule
    epochs: int
    active: int = 0
    drawn: int = 0
    losses: list[tuple[float, float, float]] = field(default_factory=list)
    left_out: int = 0

    def deal(self, source: BatchSource[Batch], present: int) -> list[Tensor]:
        """A batch for each active worker."""
        if self.drawn == 0:
            indices, options = source.indices, self.options
            progress = min(1.0, (indices.epoch + indices.position / indices.num_items) / self.epochs)
            self.active = min(present, num_workers_at(progress, options.workers, options.last_workers))
        hands = deal(source, self.active)
        self.drawn += sum(map(len, hands))
        return hands

    def is_over(self, indices: ShuffledEpochs) -> bool:
        """Whether to average now; a rest of an epoch that is shorter than half a round joins the round before."""
        wanted = self.options.every * self.active
        rest = indices.num_items - indices.position
        return indices.at_epoch_end or (self.drawn >= wanted and rest >= wanted / 2)

    def finish(self, report: AveragingReport) -> dict[str, float]:
        """Note an average and begin the next round; what is to be logged."""
        self.drawn = 0
        known = [loss for loss in report.losses if math.isfinite(loss)]
        if known:
            self.losses.append((min(known), sum(known) / len(known), max(known)))
        self.left_out += len(report.left_out)
        return {"workers": self.active, "workers_left_out": len(report.left_out)}

    def diagrams(self) -> dict[str, Any]:
        """The losses of the workers, round by round."""
        rounds = list(range(1, len(self.losses) + 1))
        lines = [{"label": name, "x": rounds, "y": list(values)} for name, values in zip(CURVE, zip(*self.losses))]
        return {"averaging": {"title": "Loss of the workers between two averages", "x_label": "averages",
                              "lines": lines}} if rounds else {}  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """The past."""
        return {"losses": [list(row) for row in self.losses], "left_out": self.left_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it; whatever was dealt since is forgotten."""
        self.drawn, self.left_out = 0, state["left_out"]
        self.losses = [tuple(row) for row in state["losses"]]


@dataclass(frozen=True)
class Ending:
    """How the final network is made of the last averages.

    Attributes:
        num_models: at most so many; 0: the last one is taken as it is.
        evaluate: network -> loss on the dev part.
        last_epoch: in which averages are kept for it.
    """

    num_models: int
    evaluate: Callable[[nn.Module], float]
    last_epoch: int


class Combiner:
    """Keeps the averages of the last epoch and makes the final network of them.

    Args:
        ending: how.
        model: is written at the end.
    """

    def __init__(self, ending: Ending, model: nn.Module) -> None:
        self.ending, self.model = ending, model
        self.models = LastModels(max(1, ending.num_models))

    def after_average(self, source: BatchSource[Batch]) -> dict[str, float]:
        """Keep the average; at the very end, combine. Tells how many were combined."""
        indices = source.indices
        if not self.ending.num_models or indices.epoch < self.ending.last_epoch:
            return {}
        self.models.add(self.model)
        if not indices.at_epoch_end:
            return {}
        choice = combine_models(self.model, self.models.newest_first, self.ending.evaluate,
                                refresh=lambda model: renew_batch_norm(model, source))  # fmt: skip
        self.models = LastModels(self.ending.num_models)
        return {"combined_models": choice.num_models}

    def state_dict(self) -> dict[str, Any]:
        """The averages kept."""
        return {"models": self.models.newest_first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.models = LastModels(max(1, self.ending.num_models))
        for weights in reversed(state["models"]):
            self.models.add_weights(weights)


def renew_batch_norm(model: nn.Module, source: BatchSource[Batch]) -> None:
    """Compute the statistics of batch normalisation anew, on the first batches of the epoch; nothing without them."""
    order = source.indices.order(source.indices.epoch).split(source.indices.batch_size)
    torch.optim.swa_utils.update_bn((source.select(batch).inputs for batch in order[:REFRESH_BATCHES]), model)


def follow(worker: Worker, options: AveragingRule, reducer: Reducer | None = None) -> ParameterAveraging:
    """The averaging of a worker that is told when."""
    return ParameterAveraging(
        worker.model,
        reducer,
        every=NEVER,
        best_first=options.best_first,
        margin=options.margin or math.inf,
        state=options.state,
        stateful=worker.stateful,
    )


def train_on(worker: Worker, averaging: ParameterAveraging, batch: Batch) -> StepReport:
    """One step of a worker; a step that was refused does not count."""
    report = worker.strategy.step(Handed(batch))
    if report.applied:
        averaging.update(report.samples, report.loss / report.weight if report.weight else 0.0)
    return report


class VirtualAveragingSteps:
    """Parameter averaging of workers that take turns in this process.

    Args:
        options: the rule and the cluster whose clock is simulated.
        workers: all of them; the first one's model and optimizer are those of the loop.
        epochs: of the run.
        ending: how the final network is made.
        cluster: how long things would take.
    """

    def __init__(self, options: VirtualAveraging, workers: Sequence[Worker], epochs: int, ending: Ending,
                 cluster: Cluster) -> None:  # fmt: skip
        self.options, self.workers, self.cluster = options, list(workers), cluster
        self.averaging = [follow(worker, options) for worker in workers]
        self.rounds, self.combiner = Rounds(options, epochs), Combiner(ending, workers[0].model)
        self.seconds, self.waiting = 0.0, 0.0
        self._passes = [0.0] * len(self.workers)

    @property
    def at_rest(self) -> bool:
        """Whether all workers have the same parameters."""
        return self.rounds.drawn == 0

    def step(self, source: BatchSource[Batch]) -> StepReport:
        """A batch for each worker, and the average when it is due."""
        if self.at_rest and not self.averaging[0].num_averages:
            self._copy_first()                              # it may have been trained before
        hands = self.rounds.deal(source, len(self.workers))
        factor = self.rounds.active if self.options.scale_lr else 1
        reports = []
        with scaled_rates([worker.optimizer for worker in self.workers], factor):
            for k, indices in enumerate(hands):
                batch = source.collate(indices)
                reports.append(train_on(self.workers[k], self.averaging[k], batch))
                self._passes[k] += reports[-1].backward / max(1, batch.samples)
        extra = self._average(source) if self.rounds.is_over(source.indices) else {}
        return merged(reports, extra)

    def _average(self, source: BatchSource[Batch]) -> dict[str, float]:
        self._tick()

        def average(reducer: Reducer) -> AveragingReport:
            averaging = self.averaging[reducer.rank]
            averaging.reducer = reducer
            return averaging.average()

        report = run_workers(average, len(self.workers))[0]
        extra = self.rounds.finish(report) | self.combiner.after_average(source)
        if "combined_models" in extra:
            self._copy_first()
        return extra | {"share_of_time_waiting": self.waiting}

    def _tick(self) -> None:
        """What the round would have taken on the cluster: all wait for the slowest, then for the reduction."""
        active, seed = self.rounds.active, self.cluster.seed + 7919 * self.averaging[0].num_averages
        cluster = replace(self.cluster, seed=seed)
        busy = [sum(WorkerTimes(cluster, k).take(round(self._passes[k]))) for k in range(active)]
        size = 4 * sum(p.numel() for p in self.workers[0].model.parameters())
        elapsed = max(busy) + self.cluster.network.reduction_seconds(active, size)
        self.seconds += elapsed
        self.waiting = 1 - sum(busy) / (active * elapsed) if elapsed else 0.0
        self._passes = [0.0] * len(self.workers)

    def totals(self) -> dict[str, float]:
        """Averages and simulated seconds so far."""
        return {"averages": self.averaging[0].num_averages, "simulated_seconds": self.seconds}

    def diagrams(self) -> dict[str, Any]:
        """The losses of the workers."""
        return self.rounds.diagrams()

    def state_dict(self) -> dict[str, Any]:
        """The state of all workers but the first, whose state the loop saves; the parameters are common."""
        return {
            "workers": [worker.state_dict() for worker in self.workers[1:]],
            "averages": self.averaging[0].num_averages,
            "rounds": self.rounds.state_dict(),
            "models": self.combiner.state_dict(),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it; all workers begin with the first one's parameters."""
        for worker, saved in zip(self.workers[1:], state["workers"], strict=True):
            worker.load_state_dict(saved)
        for averaging in self.averaging:
            averaging.resume(state["averages"])
        self.rounds.load_state_dict(state["rounds"])
        self.combiner.load_state_dict(state["models"])
        self.seconds = state["seconds"]
        self._passes = [0.0] * len(self.workers)
        self._copy_first()

    def _copy_first(self) -> None:
        for worker in self.workers[1:]:
            worker.model.load_state_dict(self.workers[0].model.state_dict())


class ProcessAveragingSteps:
    """Parameter averaging over processes; this is one of them.

    What steps did is told when they are averaged, and the same to all workers, so that all decide alike.

    Args:
        options: the rule.
        worker: this one.
        reducer: speaks to the others.
        epochs: of the run.
        ending: how the final network is made.
        is_asked_to_stop: whether somebody wants the run to stop.
    """

    def __init__(self, options: AveragingRule, worker: Worker, reducer: Reducer, epochs: int, ending: Ending,
                 is_asked_to_stop: Callable[[], bool]) -> None:  # fmt: skip
        self.options, self.worker, self.reducer = options, worker, reducer
        self.averaging = follow(worker, options, reducer)
        self.rounds, self.combiner = Rounds(options, epochs), Combiner(ending, worker.model)
        self.is_asked_to_stop, self.agreed_to_stop = is_asked_to_stop, False
        self._reports: list[StepReport] = []

    @property
    def at_rest(self) -> bool:
        """Whether all workers have the same parameters."""
        return self.rounds.drawn == 0

    def step(self, source: BatchSource[Batch]) -> StepReport:
        """This worker's batch, and the average when it is due."""
        hands, rank = self.rounds.deal(source, self.reducer.world), self.reducer.rank
        factor = self.rounds.active if self.options.scale_lr else 1
        with scaled_rates([self.worker.optimizer], factor):
            if rank < len(hands):
                self._reports.append(train_on(self.worker, self.averaging, source.collate(hands[rank])))
        done = self._average(source) if self.rounds.is_over(source.indices) else merged([])
        return replace(done, samples=sum(map(len, hands)))

    def _average(self, source: BatchSource[Batch]) -> StepReport:
        report = self.averaging.average()
        extra = self.rounds.finish(report) | self.combiner.after_average(source)
        own, self._reports = merged(self._reports, extra), []
        refused = 0.0 if own.applied else 1.0
        values = [own.loss if own.applied else 0.0, own.weight, own.errors or 0.0, own.forward, own.backward,
                  own.gradient_norm if own.gradient_norm and own.applied else 0.0]  # fmt: skip
        told = [refused, float(own.errors is not None), float(self.is_asked_to_stop())]
        *sums, refused, counted, stop = sum_values(self.reducer, [*values, *told])
        self.agreed_to_stop = stop > 0
        loss, weight, errors, forward, backward, norm = sums
        extra |= {"averaging_seconds": report.seconds}
        return StepReport(math.nan if refused else loss, weight, errors if counted else None, 0,
                          forward, backward, norm / self.rounds.active, refused == 0, extra)  # fmt: skip

    def totals(self) -> dict[str, float]:
        """Averages and losses of members so far."""
        return {"averages": self.averaging.num_averages, "members_lost": self.reducer.generation}

    def diagrams(self) -> dict[str, Any]:
        """The losses of the workers."""
        return self.rounds.diagrams()

    def state_dict(self) -> dict[str, Any]:
        """The state of all workers: all call it together."""
        own = {"worker": self.worker.state_dict(), "random": torch.get_rng_state()}
        return {
            "workers": gather(self.reducer, own),
            "averages": self.averaging.num_averages,
            "rounds": self.rounds.state_dict(),
            "models": self.combiner.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore this worker's; one that there was none of when it was saved keeps the first one's."""
        if self.reducer.rank < len(state["workers"]):
            own = state["workers"][self.reducer.rank]
            self.worker.load_state_dict(own["worker"])
            torch.set_rng_state(own["random"])
        else:
            own_random_numbers(self.reducer.rank, torch.initial_seed())
        self.averaging.resume(state["averages"])
        self.rounds.load_state_dict(state["rounds"])
        self.combiner.load_state_dict(state["models"])
        self._reports = []


def merged(reports: Sequence[StepReport], extra: dict[str, float] | None = None) -> StepReport:
    """Several steps as one."""
    errors = [report.errors for report in reports if report.errors is not None]
    norms = [report.gradient_norm for report in reports if report.gradient_norm is not None]
    return StepReport(
        loss=math.fsum(report.loss for report in reports),
        weight=sum(report.weight for report in reports),
        errors=sum(errors) if errors else None,
        samples=sum(report.samples for report in reports),
        forward=sum(report.forward for report in reports),
        backward=sum(report.backward for report in reports),
        gradient_norm=sum(norms) / len(norms) if norms else None,
        applied=all(report.applied for report in reports),
        extra=extra or {},
    )
