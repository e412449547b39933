"""Asynchronous training on a simulated clock as a step strategy: many replicas around a server, in this process.

A step of the loop is as many updates of the server as there are replicas. The replicas begin an epoch together and end
it together; in between nobody waits. So between two epochs there is nothing under way, and a run that is saved there
goes on to the same bits. Everything else is as in `hemstitch.parallel.AsynchronousSimulation`: each replica fetches,
computes and pushes at its own pace, and with frames of utterances as batches has a decoder whose parameters have an age
of their own.

Natural gradient is each replica's own; without it all replicas share the memory of one network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hemstitch.errors import NonFiniteError
from hemstitch.parallel import AsynchronousReport, AsynchronousSimulation, Cluster, FlatGradient, StepRule
from hemstitch.sampling import BatchSource
from hemstitch.train._ages import Ages
from hemstitch.train._decoded_frames import DecodedFrames, FrameGradient
from hemstitch.train._epoch_batches import EpochBatches
from hemstitch.train._options import SimulatedAsynchronous
from hemstitch.train._outer_frames import OuterFrames
from hemstitch.train._replica_gradient import ReplicaGradient, check_server_can, server_rule
from hemstitch.train._strategies import Batch, StepReport

SEED_STEP = 7919


class NumberedBatches:
    """The batches of an epoch, one after the other to whichever replica asks.

    Attributes:
        handed: samples handed out since the begin of the epoch.
    """

    def __init__(self, source: BatchSource[Batch]) -> None:
        indices = source.indices
        self._batches, self.handed = EpochBatches(source), indices.position
        first = self._batches.number_at(indices.epoch, indices.position)
        self._numbers = iter(range(first, self._batches.start_of(indices.epoch + 1)))

    def __iter__(self) -> Iterator[Batch]:
        for number in self._numbers:
            batch = self._batches(number)
            self.handed += batch.samples
            yield batch

    def simulation_options(self) -> dict[str, Any]:
        """What `AsynchronousSimulation` is to train on."""
        shared = iter(self)
        return {"batches": lambda worker: shared}

    @staticmethod
    def end_epoch(source: BatchSource[Batch]) -> None:
        """Put the stream where this one is."""
        source.indices.position = source.indices.items_per_epoch


class SimulatedReplicaSteps:
    """Asynchronous training of virtual replicas behind the loop's interface.

    Args:
        options: the recipe's [parallel] section.
        model: takes the server's parameters after every step.
        optimizer: tells learning rate and bounds.
        gradients: of each replica; those with natural gradient on networks of their own.
        source: the stream of batches.
        cluster: how long things take.

    Raises:
        ConfigError: what a server and its replicas cannot do, with the reason.
    """

    def __init__(self, options: SimulatedAsynchronous, model: nn.Module, optimizer: torch.optim.Optimizer,
                 gradients: Sequence[ReplicaGradient], source: Any, cluster: Cluster) -> None:
        frames = isinstance(source, OuterFrames)
        check_server_can("simulated-async", model, None if frames else source)
        self.options, self.model, self.optimizer, self.cluster = options, model, optimizer, cluster
        self.rule = server_rule(optimizer, model)
        self._gradients = list(gradients)
        self._functions = [FrameGradient(g, source) for g in gradients] if frames else self._gradients
        self._flat = FlatGradient(model, lambda *_: None)
        self._simulation: AsynchronousSimulation | None = None
        self._report: AsynchronousReport | None = None
        self._feed: NumberedBatches | DecodedFrames | None = None
        self._inner, self._outer = Ages(), Ages()
        self.seconds, self.failures, self.sessions = 0.0, 0, 0

    @property
    def at_rest(self) -> bool:
        """Whether nothing is under way."""
        return self._simulation is None

    def step(self, source: Any) -> StepReport:
        """Let the clock run until every replica has pushed about once more."""
        if self._feed is None:
            frames = isinstance(source, OuterFrames)
            self._feed = DecodedFrames(source, self.model, self.options) if frames else NumberedBatches(source)
        if self._simulation is not None and not torch.equal(self._flat.parameters, self._given):
            self._finish()                                  # the loop has rolled back: what was under way is lost
        if self._simulation is None:
            self._begin()
        rate = self.optimizer.param_groups[0]["lr"] * self.optimizer.param_groups[0].get("lr_factor", 1.0)
        if rate != self.rule.lr:
            self.rule = self._simulation.rule = StepRule(rate, self.rule.max_change, self.rule.components)
        handed = self._feed.handed
        before = self._report
        with suppress(NonFiniteError):                      # the loop decides what to do then
            self._simulation.run(updates=before.updates + self.options.replicas)
        now = self._simulation.report()
        self._report = now
        self._flat.load(self._simulation.parameters)
        self._given = self._flat.parameters
        report = self._step_report(before, now, self._feed.handed - handed)
        indices = source.indices
        indices.position = min(self._feed.handed, indices.items_per_epoch - 1)
        if now.has_ended:
            self._feed.end_epoch(source)
            self._finish()
            self._feed = None
        return report

    def totals(self) -> dict[str, float]:
        """What is logged with the training loss."""
        inner, outer, seconds = self._so_far()
        values = {"staleness": inner.mean, "staleness_seconds": inner.mean_seconds, "simulated_seconds": seconds}
        if outer.number:
            values |= {"outer_staleness": outer.mean, "outer_staleness_seconds": outer.mean_seconds}
        if math.isfinite(self.cluster.failures.mean_seconds_between):
            values["failures"] = self.failures + (self._report.failures if self._report else 0)
        return values

    def diagrams(self) -> dict[str, Any]:
        """How old the parameters were, of replicas and of decoders."""
        inner, outer, _ = self._so_far()
        lines = [inner.line(f"{self.options.replicas} replicas")] if inner.number else []
        lines += [outer.line("their decoders, per frame")] if outer.number else []
        title = {"title": "Share of gradients by age", "x_label": "updates between fetch and push"}
        return {"staleness": {**title, "lines": lines}} if lines else {}

    def state_dict(self) -> dict[str, Any]:
        """Ages, the clock, and the natural gradients of all replicas but the first, which the loop saves."""
        inner, outer, seconds = self._so_far()
        own = [g.natural.state_dict() for g in self._gradients[1:] if g.natural is not None]
        return {"inner": inner.state_dict(), "outer": outer.state_dict(), "seconds": seconds,
                "failures": self.failures, "sessions": self.sessions, "natural": own}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them; a run in motion that is rolled back does not forget its ages."""
        for gradient, saved in zip(self._gradients[1:], state["natural"], strict=False):
            gradient.natural.load_state_dict(saved)
        if self._simulation is None:
            self._inner, self._outer = Ages.restored(state["inner"]), Ages.restored(state["outer"])
            self.seconds, self.failures, self.sessions = state["seconds"], state["failures"], state["sessions"]

    # -- the parts of a step ---------------------------------------------------------------------------------------

    def _begin(self) -> None:
        assert self._feed is not None
        options, cluster = self.options, replace(self.cluster, seed=self.cluster.seed + SEED_STEP * self.sessions)
        self._given = self._flat.parameters
        self._simulation = AsynchronousSimulation(
            self._given, self._functions, num_replicas=options.replicas, rule=self.rule, cluster=cluster,
            fetch_every=options.fetch_every, num_shards=options.shards, **self._feed.simulation_options())
        self._report = self._simulation.report()
        self.sessions += 1

    def _finish(self) -> None:
        """Add the simulation to the past."""
        self._inner, self._outer, self.seconds = self._so_far()
        self.failures += self._report.failures if self._report else 0
        self._simulation = self._report = None

    def _so_far(self) -> tuple[Ages, Ages, float]:
        if self._report is None:
            return self._inner, self._outer, self.seconds
        return (self._inner.plus(self._report.inner), self._outer.plus(self._report.outer),
                self.seconds + self._report.seconds)

    def _step_report(self, before: AsynchronousReport, now: AsynchronousReport, samples: int) -> StepReport:
        refused = now.counts["nonfinite"] > before.counts["nonfinite"]
        ages = now.inner.updates[len(before.inner) :]
        extra = dict(getattr(self._feed, "extra", {})) | ({"age": float(ages.mean())} if len(ages) else {})
        return StepReport(
            loss=math.nan if refused else _sum(now) - _sum(before),
            weight=now.samples - before.samples,
            errors=None,
            samples=samples,
            forward=samples,
            backward=samples,
            gradient_norm=None,
            applied=not refused,
            extra=extra,
            updates=now.updates - before.updates,
        )


def _sum(report: AsynchronousReport) -> float:
    return report.loss * report.samples if report.samples else 0.0
