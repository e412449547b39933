"""A replica on the simulated clock: it fetches, computes and pushes, and may die and come back."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from hemstitch.parallel._clock import Event, SimulatedClock, Steps
from hemstitch.parallel._cluster import Cluster, WorkerTimes
from hemstitch.parallel._server_shards import Message, ServerShards, Snapshot

Gradient = Callable[[Tensor, Any], tuple[Tensor, float, float]]


class BatchQueue(Protocol):
    """Where a replica takes its batches."""

    changed: Event

    @property
    def has_batch(self) -> bool:
        """Whether there is one; else wait for ``changed``."""

    def next(self) -> Any:
        """The next one; ``None`` when there are no more."""


class Given:
    """Batches that are always there: those of an iterator."""

    has_batch = True

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches

    def next(self) -> Any:
        """The next one, if any."""
        return next(self._batches, None)


class Replica:
    """One of many workers.

    Args:
        worker: its number.
        clock, server, times: of the simulation and this worker.
        source: its batches.
        gradient: see `AsynchronousSimulation`.
        cluster: what goes wrong.
        fetch_every: batches per fetch.
        on_applied: called with batch, loss and weight when the server has applied a gradient.

    Attributes:
        num_gradients: computed.
        busy_seconds: spent computing them.
        num_failures: deaths.
        has_ended: whether it has used up its data.
    """

    def __init__(self, worker: int, clock: SimulatedClock, server: ServerShards, times: WorkerTimes, source: BatchQueue,
                 gradient: Gradient, cluster: Cluster, fetch_every: int,
                 on_applied: Callable[[Any, float, float], None]) -> None:
        self.worker, self.clock, self.server, self.times = worker, clock, server, times
        self.source, self.gradient, self.cluster = source, gradient, cluster
        self.fetch_every, self.on_applied = fetch_every, on_applied
        self.num_gradients = self.num_failures = self._seq = 0
        self.busy_seconds, self.has_ended = 0.0, False
        self._life = clock.start(self._train())
        if cluster.failures.mean_seconds_between < math.inf:
            clock.start(self._die_and_return())

    def _train(self) -> Steps:
        """Fetch, compute, push, as long as there is data."""
        incarnations = self.server.register(self.worker)
        has_data = True
        while has_data:
            has_data = yield from self._fetch_and_train(incarnations)
        self.has_ended = True

    def _fetch_and_train(self, incarnations: tuple[int, ...]) -> Generator[float | Event, Any, bool]:
        """Train on some batches with the same parameters; whether there was data.

        A generator of its own, so that nothing of the size of the parameters is held longer than it is needed.
        """
        snapshot = yield from self.server.fetch(self.times)
        for _ in range(self.fetch_every):
            while not self.source.has_batch:
                yield self.source.changed
            batch = self.source.next()
            if batch is None:
                return False
            seconds = self.times.compute()
            yield seconds
            self.busy_seconds += seconds
            self.num_gradients += 1
            self._seq += 1
            yield from self._compute_and_push(snapshot, incarnations, batch)
        return True

    def _compute_and_push(self, snapshot: Snapshot, incarnations: tuple[int, ...], batch: Any) -> Steps:
        """Send the gradient until a reply comes. What is under way arrives even if this replica dies."""
        gradient, loss, weight = self.gradient(snapshot.parameters, batch)
        message = Message(self.worker, self._seq, incarnations, snapshot.versions, snapshot.seconds, gradient,
                          norm=float(torch.linalg.vector_norm(gradient)), loss=float(loss), weight=float(weight),
                          may_be_overwritten=getattr(self.gradient, "returns_new_tensors", False))
        del gradient, snapshot
        while True:
            yield self.clock.start(self.server.push(
                message, self.times, lambda: self.on_applied(batch, loss, weight)))
            if not self.times.loses_reply():
                return
            yield self.cluster.network.retry_seconds

    def _die_and_return(self) -> Steps:
        """Deaths, each followed by a new life."""
        while not self._life.has_happened:
            yield self.times.until_failure()
            self.num_failures += not self._life.has_happened
            self._life.interrupt()
            yield self.cluster.failures.restart_seconds
            self._life = self.clock.start(self._train())
