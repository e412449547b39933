"""How long a run would take on a described cluster, how stale its gradients would be, and what it would cost.

The simulations run with gradients that are not computed: nothing but the clock remains, a few hundred thousand updates
take seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from hemstitch.parallel._asynchronous import AsynchronousSimulation
from hemstitch.parallel._bounded_step import StepRule
from hemstitch.parallel._cluster import Cluster
from hemstitch.parallel._decoders import Decoding, FetchPolicy
from hemstitch.parallel._staleness import StalenessHistogram
from hemstitch.parallel._virtual_averaging import AveragingSimulation, LostWork

_NOTHING = torch.empty(0)


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What machines cost, per hour.

    Attributes:
        worker: one replica with its decoder.
        server: one shard of the parameter server.
    """

    worker: float = 0.0
    server: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What is to be expected.

    Attributes:
        seconds: wall time.
        updates: applied to the parameters (with averaging: averages).
        samples: trained on.
        speedup: against one worker that never waits nor fails.
        busy: mean share of their time that workers compute gradients.
        cost: in the currency of the prices.
        inner: ages of the replicas' parameters; empty with averaging.
        outer: ages of the decoders' parameters.
        failures: workers that die on the way.
    """

    seconds: float
    updates: int
    samples: float
    speedup: float
    busy: float
    cost: float
    inner: StalenessHistogram
    outer: StalenessHistogram
    failures: int


@dataclass(frozen=True, kw_only=True)
class PlannedDecoding:
    """Decoders, as far as time is concerned; the seconds of an utterance are in the cluster.

    Attributes:
        frames_per_utterance: that are used.
        fetch, lookahead: as in `Decoding`.
    """

    frames_per_utterance: int
    fetch: FetchPolicy = field(default_factory=FetchPolicy)
    lookahead: int = 1

    def decoding(self, num_slots: int) -> Decoding:
        """Decoders that take time and decode nothing."""
        frames = range(self.frames_per_utterance)
        return Decoding(outer_gradient=lambda parameters, utterances: [frames] * len(utterances),
                        utterances=_for_ever, num_slots=num_slots, fetch=self.fetch, lookahead=self.lookahead)


def plan_asynchronous(
    cluster: Cluster,
    *,
    num_replicas: int,
    samples: float,
    batch_size: int,
    num_parameters: int,
    fetch_every: int = 1,
    num_shards: int = 1,
    decoding: PlannedDecoding | None = None,
    prices: Prices | None = None,
) -> Plan:
    """Predict a run of asynchronous SGD.

    Args:
        cluster: how long things take and what goes wrong.
        num_replicas, fetch_every, num_shards: as in `AsynchronousSimulation`.
        samples: to train on.
        batch_size: samples of one gradient; with decoding, frames from as many utterances.
        num_parameters: of 4 bytes, that travel.
        decoding: decoders, for sequence criteria.
        prices: per hour.
    """
    prices = prices or Prices()
    simulation = AsynchronousSimulation(
        _NOTHING, lambda parameters, batch: (_NOTHING, 0.0, batch_size), None if decoding else _for_ever,
        num_replicas=num_replicas, rule=StepRule(0.0), cluster=cluster, fetch_every=fetch_every, num_shards=num_shards,
        decoding=decoding.decoding(batch_size) if decoding else None, num_bytes=4 * num_parameters)
    report = simulation.run(samples=samples)
    hours = report.seconds / 3600
    return Plan(
        seconds=report.seconds,
        updates=report.updates,
        samples=report.samples,
        speedup=_serial_seconds(cluster, report.samples, batch_size) / report.seconds if report.seconds else math.nan,
        busy=report.busy,
        cost=hours * (num_replicas * prices.worker + num_shards * prices.server),
        inner=report.inner,
        outer=report.outer,
        failures=report.failures,
    )


def plan_averaging(
    cluster: Cluster,
    *,
    num_replicas: int,
    samples: float,
    batch_size: int,
    every: float,
    num_parameters: int,
    lost_work: LostWork = "drop",
    prices: Prices | None = None,
) -> Plan:
    """Predict a run with parameter averaging.

    Args:
        cluster: how long things take and what goes wrong.
        num_replicas, every, lost_work: as in `AveragingSimulation`.
        samples: to train on.
        batch_size: samples of one gradient.
        num_parameters: of 4 bytes, that travel.
        prices: per hour.
    """
    simulation = AveragingSimulation(
        _NOTHING, lambda parameters, batch: (_NOTHING, 0.0, batch_size), _for_ever, num_replicas=num_replicas,
        every=every, rule=StepRule(0.0), cluster=cluster, lost_work=lost_work, num_bytes=4 * num_parameters)
    done, failures, computing = 0.0, 0, 0.0
    while done < samples:
        before = simulation.seconds
        result, = simulation.run(1)
        done, failures = done + sum(result.samples), failures + result.failures
        computing += (1 - result.waiting) * (result.seconds - before)
    seconds = simulation.seconds
    return Plan(
        seconds=seconds,
        updates=simulation.num_rounds,
        samples=done,
        speedup=_serial_seconds(cluster, done, batch_size) / seconds if seconds else math.nan,
        busy=computing / seconds if seconds else math.nan,
        cost=seconds / 3600 * num_replicas * (prices or Prices()).worker,
        inner=StalenessHistogram(),
        outer=StalenessHistogram(),
        failures=failures,
    )


def _serial_seconds(cluster: Cluster, samples: float, batch_size: int) -> float:
    return samples / batch_size * cluster.compute.mean


def _for_ever(worker: int) -> Iterator[Any]:
    while True:
        yield worker

