"""Asynchronous training on real processes as a step strategy: replicas around a parameter server, launched by Ray.

A step of the loop is whatever the replicas have done since the last one: the strategy waits a moment, takes the
server's parameters into the network, and reports losses, ages of gradients and failures. Nobody waits for the loop:
replicas go on while it saves, and a few batches into the next epoch while it looks at the dev part. The position in the
data is the number of batches that are done, in the order in which they are handed out; a batch that died with its
replica counts as done, and is reported.

Whatever the loop does to the network between two steps (roll-back, a network drawn anew) is given to the server, and
what it does to the supervision (realignment) to the replicas. A resumed run begins with the parameters and the position
of its checkpoint; it is not the same to the bit, no asynchronous run is. Natural gradient is the replica's own, and
begins anew with each process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from hemstitch.parallel import FlatGradient, StepRule
from hemstitch.sampling import BatchSource
from hemstitch.train._ages import Ages
from hemstitch.train._decoded_frames import DecodedFrames, FrameGradient, FrameNumbers, SharedUtterances
from hemstitch.train._epoch_batches import EpochBatches
from hemstitch.train._options import Replicas
from hemstitch.train._outer_frames import OuterFrames
from hemstitch.train._replica_gradient import ReplicaGradient, check_server_can, server_rule
from hemstitch.train._strategies import Batch, StepReport

STEP_SECONDS = 0.5          # least time between two looks at the server


@dataclass
class Past:
    """What has happened in the sessions of a run so far.

    Attributes:
        inner: ages of the parameters behind the gradients applied.
        outer: of those with which decoders computed the outer gradients of frames.
        refused, abandoned, undone, failures: gradients that were not finite, batches that died with a replica, updates
            that died with a shard, replicas that died.
    """

    inner: Ages = field(default_factory=Ages)
    outer: Ages = field(default_factory=Ages)
    refused: int = 0
    abandoned: int = 0
    undone: int = 0
    failures: int = 0

    def plus(self, report: Any) -> Past:
        """Together with what a session reports, if it has begun."""
        if report is None:
            return self
        return Past(self.inner.plus(report.inner), self.outer.plus(report.outer),
                    self.refused + report.counts["nonfinite"], self.abandoned + report.abandoned,
                    self.undone + report.lost_updates, self.failures + report.failures)

    def totals(self) -> dict[str, float]:
        """Means and counts for the log."""
        values = {"staleness": self.inner.mean, "staleness_seconds": self.inner.mean_seconds}
        if self.outer.number:
            values |= {"outer_staleness": self.outer.mean, "outer_staleness_seconds": self.outer.mean_seconds}
        return {**values, "refused_gradients": self.refused, "abandoned_batches": self.abandoned,
                "undone_updates": self.undone, "failures": self.failures}

    def state_dict(self) -> dict[str, Any]:
        """Everything."""
        return {"inner": self.inner.state_dict(), "outer": self.outer.state_dict(), "refused": self.refused,
                "abandoned": self.abandoned, "undone": self.undone, "failures": self.failures}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Past:
        """From a state."""
        return cls(**{**state, **{name: Ages.restored(state[name]) for name in ("inner", "outer")}})


class ReplicaSteps:
    """Asynchronous training behind the loop's interface.

    Args:
        options: the recipe's [parallel] section.
        task: its criterion is followed; goes to every process.
        model: takes the server's parameters after every step.
        optimizer: tells learning rate and bounds.
        make: replica -> its gradient function (`ReplicaGradient`), called in the replica's process.
        source: the stream of batches; of frames with outer gradients: decoders load them, in processes of their own.
        epochs: of the run.
        threads: of torch in each process.

    Raises:
        ConfigError: what a server and its replicas cannot do, with the reason.
    """

    def __init__(self, options: Replicas, task: Any, model: nn.Module, optimizer: torch.optim.Optimizer,
                 make: Callable[[int], ReplicaGradient], source: BatchSource[Batch] | OuterFrames, epochs: int,
                 threads: int = 1) -> None:
        self._frames = source if isinstance(source, OuterFrames) else None
        check_server_can("async", model, None if self._frames else source)
        self.options, self.task, self.model, self.optimizer = options, task, model, optimizer
        self._flat = FlatGradient(model, lambda *_: None)
        self.rule = server_rule(optimizer, model)
        self._make, self._epochs = make, epochs
        self._threads, self._source = threads or 1, source
        self._batches = FrameNumbers(self._frames) if self._frames else EpochBatches(source)
        self._training: Any = None
        self._report: Any = None
        self._first = 0
        self._past = Past()
        self._news: list[str] = []

    def step(self, source: BatchSource[Batch]) -> StepReport:
        """Wait for the replicas to do something, and take the server's parameters."""
        if self._training is None:
            self._begin()
        self._give()
        before, begin = self._report, time.monotonic()
        while True:
            self._training.watch()
            now = self._training.report()
            has_news = now.answered + now.abandoned > before.answered + before.abandoned
            if self._is_over(now) or (has_news and time.monotonic() - begin >= STEP_SECONDS):
                break
        self._report = now
        self._news += [text for _, text in now.messages[len(before.messages) :]]
        self._take()
        return self._advance(before, now)

    def close(self) -> None:
        """End all processes."""
        if self._training is not None:
            self._training.close()
            self._training = None

    def totals(self) -> dict[str, float]:
        """What is logged with the training loss."""
        return self._past.plus(self._report).totals()

    def diagrams(self) -> dict[str, Any]:
        """How old the parameters were when gradients were applied."""
        past = self._past.plus(self._report)
        lines = [past.inner.line(f"{self.options.replicas} replicas")] if past.inner.number else []
        lines += [past.outer.line("their decoders, per frame")] if past.outer.number else []
        title = {"title": "Share of gradients by age", "x_label": "updates between fetch and push"}
        return {"staleness": {**title, "lines": lines}} if lines else {}

    def take_news(self) -> list[str]:
        """What went wrong since the last time."""
        news, self._news = self._news, []
        return news

    def state_dict(self) -> dict[str, Any]:
        """Ages and failures so far; parameters and position are the loop's."""
        return self._past.plus(self._report).state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Count on from there; a run in motion that is rolled back does not forget."""
        if self._training is None:
            self._past = Past.restored(state)

    # -- the parts of a step ---------------------------------------------------------------------------------------

    def _begin(self) -> None:
        from hemstitch.parallel.ray import AsynchronousTraining

        options, indices = self.options, self._source.indices
        self._first = self._batches.number_at(indices.epoch, indices.position)
        make, work = self._work()
        self._training = AsynchronousTraining(
            self._flat.parameters.cpu(),
            make,
            **work,
            num_replicas=options.replicas,
            rule=self.rule,
            fetch_every=options.fetch_every,
            num_processes=options.processes,
            num_shards=options.shards,
            renew=self.task.load_state_dict,
            address=options.address,
            folder=options.folder,
            snapshot_every=options.snapshot_every,
            patience=options.patience,
            first_batch=self._first,
            threads=self._threads,
        )
        self._report = self._training.report()
        self._given = self._flat.parameters
        self._supervision, self._limit = self.task.state_dict(), -1

    def _work(self) -> tuple[Callable[[int], Any], dict[str, Any]]:
        """Gradients of replicas, and where their batches come from."""
        if self._frames is None:
            return self._make, {"batch": EpochBatches(self._source)}
        source, make, options = self._frames, self._make, self.options
        done = source.epoch * len(source.lengths) + source.position * len(source.lengths) // source.num_items
        decoded = DecodedFrames(source, self.model, options, order=iter(()))
        decoding = replace(decoded.simulation_options()["decoding"],
                           utterances=SharedUtterances(source, options.replicas, done))
        return lambda replica: FrameGradient(make(replica), source), {
            "decoding": decoding, "num_decoders": options.decoders}

    def _give(self) -> None:
        """Learning rate, network and supervision, as far as the loop has changed them."""
        lr = self.optimizer.param_groups[0]["lr"]
        if lr != self.rule.lr:
            self.rule = StepRule(lr, self.rule.max_change, self.rule.components)
            self._training.rule = self.rule
        parameters = self._flat.parameters
        if not torch.equal(parameters, self._given):
            self._training.reset(parameters)
            self._limit = -1
        supervision = self.task.state_dict()
        if any(not torch.equal(new, self._supervision[name]) for name, new in supervision.items()
               if isinstance(new, Tensor)):
            self._training.renew(supervision)
            self._supervision = supervision
        self._hand_out()

    def _hand_out(self) -> None:
        """Let the replicas work to the end of the epoch and, so that none waits for the look, a little further."""
        ahead = 2 * self.options.replicas * self.options.fetch_every
        end = self._batches.start_of(self._source.indices.epoch + 1)
        limit = min(end + ahead, self._batches.start_of(self._epochs))
        if limit != self._limit:
            self._training.proceed(limit - self._first)
            self._limit = limit

    def _take(self) -> None:
        self._flat.load(self._training.parameters)
        self._given = self._flat.parameters

    def _is_over(self, now: Any) -> bool:
        """Whether the epoch is done."""
        return self._done(now) >= self._batches.start_of(self._source.indices.epoch + 1)

    def _done(self, report: Any) -> int:
        return self._first + report.answered + report.abandoned

    def _advance(self, before: Any, now: Any) -> StepReport:
        """Move the position in the data; what happened between two reports."""
        indices = self._source.indices
        position = min(self._batches.items_before(self._done(now), indices.epoch), indices.items_per_epoch)
        items = max(0, position - indices.position)
        indices.position += items
        if self._frames is not None and indices.position == indices.items_per_epoch:
            self._frames.skip_epoch()
        refused = now.counts["nonfinite"] > before.counts["nonfinite"]
        updates = now.updates - before.updates
        ages = now.inner.updates[len(before.inner) :]
        return StepReport(
            loss=math.nan if refused else _sum(now.loss, now.samples) - _sum(before.loss, before.samples),
            weight=now.samples - before.samples,
            errors=None,
            samples=items,
            forward=items,
            backward=items,
            gradient_norm=(_sum(now.gradient_norm, now.updates) - _sum(before.gradient_norm, before.updates))
            / max(1, updates),
            applied=not refused,
            extra={"age": float(ages.mean())} if len(ages) else {},
            updates=updates,
        )


def _sum(mean: float, number: float) -> float:
    return mean * number if number else 0.0
