"""A parameter server on the simulated clock: shards, their links, and messages on the way.

A message takes latency + bytes / bandwidth on the worker's side; on the server's side a shard's link passes one message
after the other, which is what limits how many replicas a server can feed. Parameters are read when the link begins to
send them, gradients applied when it has received them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hemstitch.errors import ConfigError
from hemstitch.parallel._bounded_step import Bound, StepRule
from hemstitch.parallel._clock import Event, SimulatedClock, Steps
from hemstitch.parallel._cluster import Network, WorkerTimes
from hemstitch.parallel._parameter_server import ParameterServer
from hemstitch.parallel._staleness import StalenessHistogram


@dataclass(frozen=True)
class Snapshot:
    """Parameters as somebody read them.

    Attributes:
        parameters: flat; with several shards, parts of slightly different age.
        versions: of each shard.
        seconds: when the first part was read.
    """

    parameters: Tensor
    versions: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Message:
    """A gradient on its way.

    Attributes:
        worker, seq, incarnations: who sends, which push it is, and in which life (one for each shard).
        versions, seconds: of the parameters from which it was computed, and when they were fetched.
        gradient: flat.
        norm: of the gradient.
        loss, weight: mean loss of its batch, and the samples behind it.
        may_be_overwritten: whether nobody else needs the gradient's memory.
    """

    worker: int
    seq: int
    incarnations: tuple[int, ...]
    versions: tuple[int, ...]
    seconds: float
    gradient: Tensor
    norm: float
    loss: float
    weight: float
    may_be_overwritten: bool


class ServerShards:
    """The parameters, cut into shards, each a `ParameterServer` with a link of its own.

    Args:
        clock: the simulated time.
        parameters: flat; copied.
        rule: for all shards; with components, shards are cut between them.
        num_shards: at most as many as there are components, if there are any.
        network: of the cluster.
        num_bytes: of all parameters on the network.

    Attributes:
        staleness: ages of what was applied, over all shards.
        refused_in_a_row: gradients that the first shard refused since the last that it applied: not finite.
    """

    def __init__(self, clock: SimulatedClock, parameters: Tensor, rule: StepRule, num_shards: int, network: Network,
                 num_bytes: float) -> None:
        self.clock, self.network = clock, network
        self._cuts = shard_cuts(parameters.numel(), num_shards, rule)
        self.shards = [ParameterServer(parameters[cut], rule) for cut in self._cuts]
        self.rule = rule
        self._bytes = num_bytes / num_shards
        self._link_free_at = [0.0] * num_shards
        self.staleness = StalenessHistogram()
        self.refused_in_a_row = 0

    @property
    def version(self) -> int:
        """Updates of the first shard."""
        return self.shards[0].version

    @property
    def counts(self) -> Counter[str]:
        """Replies by status, over all shards."""
        return sum((shard.counts for shard in self.shards), Counter())

    @property
    def rule(self) -> StepRule:
        """The rule, in terms of all parameters."""
        return self._rule

    @rule.setter
    def rule(self, rule: StepRule) -> None:
        self._rule = rule
        for shard, cut in zip(self.shards, self._cuts, strict=True):
            shard.rule = shard_rule(rule, cut)

    def register(self, worker: int) -> tuple[int, ...]:
        """Begin a new life of a worker; its incarnation at each shard."""
        return tuple(shard.register(worker) for shard in self.shards)

    def snapshot(self) -> Snapshot:
        """The parameters of this moment, without a network."""
        versions, parts = zip(*(shard.fetch() for shard in self.shards), strict=True)
        return Snapshot(parts[0] if len(parts) == 1 else torch.cat(parts), versions, self.clock.now)

    def fetch(self, times: WorkerTimes) -> Generator[float | Event, Any, Snapshot]:
        """Read the parameters over the network."""
        parts: list[tuple[int, Tensor, float]] = [None] * len(self.shards)
        yield from self._in_parallel(lambda shard: self._fetch_shard(shard, times, parts))
        versions, parameters, moments = zip(*parts, strict=True)
        return Snapshot(parameters[0] if len(parts) == 1 else torch.cat(parameters), versions, min(moments))

    def push(self, message: Message, times: WorkerTimes, on_applied: Callable[[], None]) -> Steps:
        """Carry a gradient to all shards; ``on_applied`` is called when the first shard has applied it."""
        yield from self._in_parallel(lambda shard: self._push_shard(shard, message, times, on_applied))

    def _in_parallel(self, steps: Callable[[int], Steps]) -> Steps:
        if len(self.shards) == 1:
            yield from steps(0)
            return
        yield from [self.clock.start(steps(shard)) for shard in range(len(self.shards))]

    def _fetch_shard(self, shard: int, times: WorkerTimes, parts: list[Any]) -> Steps:
        sending = self._bytes / self.network.server_bandwidth
        if sending:
            yield self._pass_link(shard) - sending          # until its turn comes
        parts[shard] = (*self.shards[shard].fetch(), self.clock.now)
        yield sending + self._travel(times)

    def _push_shard(self, shard: int, message: Message, times: WorkerTimes, on_applied: Callable[[], None]) -> Steps:
        yield self._travel(times)
        if self.network.server_bandwidth < math.inf:
            yield self._pass_link(shard)
        exact = len(self.shards) == 1 and self.rule.components      # then the server must look at the parts itself
        reply = self.shards[shard].push(
            message.worker, message.seq, message.incarnations[shard], message.versions[shard],
            message.gradient[self._cuts[shard]], None if exact else message.norm,
            may_overwrite=message.may_be_overwritten)
        if reply.status == "accepted":
            self.staleness.add(reply.staleness, self.clock.now - message.seconds)
            if shard == 0:
                self.refused_in_a_row = 0
                on_applied()
        elif reply.status == "nonfinite" and shard == 0:
            self.refused_in_a_row += 1

    def _travel(self, times: WorkerTimes) -> float:
        return (self.network.latency + self._bytes * len(self.shards) / self.network.bandwidth) * times.transfer()

    def _pass_link(self, shard: int) -> float:
        """Seconds until a message that comes now has passed the shard's link."""
        begin = max(self.clock.now, self._link_free_at[shard])
        self._link_free_at[shard] = begin + self._bytes / self.network.server_bandwidth
        return self._link_free_at[shard] - self.clock.now


def shard_rule(rule: StepRule, cut: slice) -> StepRule:
    """The rule in terms of one slice of the parameters."""
    inside = (Bound(c.start - cut.start, c.stop - cut.start, c.max_change) for c in rule.components
              if cut.start <= c.start and c.stop <= cut.stop)
    return replace(rule, components=tuple(inside))


def shard_cuts(size: int, num_shards: int, rule: StepRule) -> list[slice]:
    """Slices of about equal size; with components, between two of them."""
    if size == 0:
        return [slice(0, 0)] * num_shards
    ideal = [size * shard // num_shards for shard in range(num_shards + 1)]
    if num_shards > 1 and rule.components:
        stops = [component.stop for component in rule.components[:-1]]
        ideal[1:-1] = [min(stops, key=lambda stop: abs(stop - place), default=0) for place in ideal[1:-1]]
    if len(set(ideal)) <= num_shards:
        raise ConfigError(f"{size} parameters in {len(rule.components)} components cannot be cut into {num_shards} "
                          "shards: use fewer shards")
    return [slice(start, stop) for start, stop in pairwise(ideal)]
