"""Asynchronous stochastic gradient descent with a parameter server, on a simulated clock.

Each replica repeats, without waiting for the others:

    fetch theta from the server             the version it has at that moment
    compute g(theta) on the next batch      meanwhile others change theta
    push g                                  theta := theta - lr g, `staleness` updates later

Decoders (see `hemstitch.parallel.Decoding`) work the same way at a pace of their own, and evaluation replicas look at
the parameters at given moments. Gradients are really computed, by the user's function, in one process; the clock only
decides their order. So 500 replicas run on a laptop, each run is the same to the bit, every age is known exactly, and
what a cluster would do to the convergence is seen before there is a cluster.

Memory: one copy of the parameters for each version that some replica still works with, at most one per replica.

References: Heigold et al., ICASSP 2014, section 3; Dean et al., NIPS 2012, section 4.1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hemstitch.errors import ConfigError, NonFiniteError
from hemstitch.parallel._bounded_step import StepRule
from hemstitch.parallel._clock import SimulatedClock, Steps
from hemstitch.parallel._cluster import Cluster, WorkerTimes
from hemstitch.parallel._decoders import Decoder, Decoding
from hemstitch.parallel._replica import Given, Gradient, Replica
from hemstitch.parallel._server_shards import ServerShards
from hemstitch.parallel._staleness import StalenessHistogram

Batches = Callable[[int], Iterator[Any]]
MOST_REFUSED = 100          # gradients in a row that are not finite, besides one of each replica


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation replica saw.

    Attributes:
        seconds: simulated time.
        updates, samples: applied by then.
        values: what the user's function returned.
        training_loss: mean over the samples applied since the evaluation before; NaN if none.
    """

    seconds: float
    updates: int
    samples: float
    values: dict[str, float]
    training_loss: float


@dataclass(frozen=True)
class AsynchronousReport:
    """What has happened since the beginning.

    Attributes:
        seconds: simulated time.
        updates: gradients applied (to the first shard of the server).
        samples: behind them.
        gradients: computed.
        inner: ages of the replicas' parameters when their gradients were applied, over all shards.
        outer: ages of the decoders' parameters, one per frame applied; empty without decoders.
        counts: replies of the server by status, over all shards.
        failures: replicas that died.
        busy: mean share of their time that replicas spent computing.
        evaluations: in the order of time.
        loss: mean over the samples applied.
        has_ended: whether all replicas have used up their data.
    """

    seconds: float
    updates: int
    samples: float
    gradients: int
    inner: StalenessHistogram
    outer: StalenessHistogram
    counts: Counter[str]
    failures: int
    busy: float
    evaluations: tuple[Evaluation, ...]
    loss: float = math.nan
    has_ended: bool = False


class AsynchronousSimulation:
    """Asynchronous SGD of many replicas, complete, in one process.

        simulation = AsynchronousSimulation(theta, gradient, batches, num_replicas=50, rule=StepRule(lr=0.001))
        report = simulation.run(updates=10_000)
        simulation.rule = replace(simulation.rule, lr=0.0001)
        report = simulation.run(updates=20_000)                 # goes on

    Args:
        parameters: flat; copied.
        gradient: (flat parameters, batch) -> (flat gradient, loss, weight): of the batch as the step rule is to take it
            (mean or sum), its mean loss, its samples; must leave the parameters as they are. For gradients with a
            state of their own (natural gradient per replica) a list with one function per replica. If it has an
            attribute ``returns_new_tensors`` that is true (`FlatGradient`), memory of its gradients is used on.
        batches: worker -> an iterator over its batches, endless or not; with ``decoding`` batches are `OuterBatch`
            instead. One iterator given to all workers shares its batches among them as they ask.
        num_replicas: n, >= 1.
        rule: learning rate and bounds on the change, applied by the server.
        cluster: how long things take.
        fetch_every: batches that a replica computes with the same parameters.
        decoding: decoders that compute outer gradients, for sequence criteria.
        num_shards: the server's; shards are updated, and read, at slightly different times.
        evaluate: parameters -> values, called at the times given to `run`.
        num_bytes: of the parameters on the network; by default what they take in memory.

    Attributes:
        clock: the simulated time.
        parameters: the current ones.

    Raises:
        ConfigError: an option out of range; neither or both of ``batches`` and ``decoding``.

    Cost: the gradients, and per update two or three passes over the parameters and about 0.1 ms.
    """

    def __init__(
        self,
        parameters: Tensor,
        gradient: Gradient | Sequence[Gradient],
        batches: Batches | None = None,
        *,
        num_replicas: int = 1,
        rule: StepRule,
        cluster: Cluster | None = None,
        fetch_every: int = 1,
        decoding: Decoding | None = None,
        num_shards: int = 1,
        evaluate: Callable[[Tensor], dict[str, float]] | None = None,
        num_bytes: float | None = None,
    ) -> None:
        if num_replicas < 1 or fetch_every < 1 or num_shards < 1:
            raise ConfigError(f"num_replicas, fetch_every and num_shards must be >= 1, got {num_replicas}, "
                              f"{fetch_every} and {num_shards}")
        if (batches is None) == (decoding is None):
            raise ConfigError("give either batches, or decoding, whose utterances become the batches")
        self._gradients = list(gradient) if isinstance(gradient, Sequence) else [gradient] * num_replicas
        if len(self._gradients) != num_replicas:
            raise ConfigError(f"{len(self._gradients)} gradient functions for {num_replicas} replicas")
        self.clock, self.cluster = SimulatedClock(), cluster or Cluster()
        self.fetch_every, self.decoding, self.evaluate = fetch_every, decoding, evaluate
        size = parameters.numel() * parameters.element_size() if num_bytes is None else num_bytes
        self._server = ServerShards(self.clock, parameters, rule, num_shards, self.cluster.network, size)
        self._outer, self._samples, self._loss = StalenessHistogram(), 0.0, (0.0, 0.0)
        self._total_loss = 0.0
        self._evaluations: list[Evaluation] = []
        self._evaluate_every = 0
        if decoding is not None and decoding.fetch.synchronous:
            self._common = self._server.snapshot()
            self.clock.start(self._fetch_for_all(decoding.fetch.seconds))
        self._replicas = [self._replica(worker, batches) for worker in range(num_replicas)]

    @property
    def parameters(self) -> Tensor:
        """(parameter,) the current parameters: a snapshot."""
        return self._server.snapshot().parameters

    @property
    def rule(self) -> StepRule:
        """The server's step rule; may be replaced between runs or by ``evaluate``."""
        return self._server.rule

    @rule.setter
    def rule(self, rule: StepRule) -> None:
        self._server.rule = rule

    @property
    def has_ended(self) -> bool:
        """Whether all replicas have used up their data."""
        return all(replica.has_ended for replica in self._replicas)

    def run(
        self,
        *,
        updates: int | None = None,
        seconds: float = math.inf,
        samples: float = math.inf,
        evaluate_at: Sequence[float] = (),
        evaluate_every: int = 0,
    ) -> AsynchronousReport:
        """Go on until one of the limits, counted from the beginning, is reached or all replicas are out of data.

        Args:
            updates, seconds, samples: limits.
            evaluate_at: simulated times at which to evaluate.
            evaluate_every: updates between evaluations, the first one before any; 0: none.

        Raises:
            ConfigError: no limit, or nothing to evaluate with.
            NonFiniteError: so many gradients in a row were refused that no other is to be expected.
        """
        most = math.inf if updates is None else updates
        if min(most, seconds, samples) == math.inf:
            raise ConfigError("give a limit: updates, seconds or samples")
        if (evaluate_at or evaluate_every) and self.evaluate is None:
            raise ConfigError("there is nothing to evaluate with: give evaluate=...")
        for moment in sorted(evaluate_at):
            self.clock.start(self._evaluate_at(moment))
        self._evaluate_every = evaluate_every
        if evaluate_every and not self._evaluations:
            self._look()
        def is_over() -> bool:
            return self._server.version >= most or self._samples >= samples or self._is_stuck or self.has_ended

        self._server.refused_in_a_row = 0
        self.clock.run(seconds, stop=is_over)
        if self._is_stuck:
            raise NonFiniteError(f"the last {self._server.refused_in_a_row} gradients were not finite; the parameters "
                                 f"are those after {self._server.version} updates. Lower the learning rate.")
        if seconds < math.inf and not is_over():
            self.clock.now = seconds
        return self.report()

    def report(self) -> AsynchronousReport:
        """What has happened so far."""
        elapsed = self.clock.now * len(self._replicas)
        return AsynchronousReport(
            seconds=self.clock.now,
            updates=self._server.version,
            samples=self._samples,
            gradients=sum(replica.num_gradients for replica in self._replicas),
            inner=self._server.staleness.merged(),
            outer=self._outer.merged(),
            counts=self._server.counts,
            failures=sum(replica.num_failures for replica in self._replicas),
            busy=sum(replica.busy_seconds for replica in self._replicas) / elapsed if elapsed else math.nan,
            evaluations=tuple(self._evaluations),
            loss=self._total_loss / self._samples if self._samples else math.nan,
            has_ended=self.has_ended,
        )

    @property
    def _is_stuck(self) -> bool:
        return self._server.refused_in_a_row >= MOST_REFUSED + len(self._replicas)

    # -- on the way ------------------------------------------------------------------------------------------------

    def _applied(self, batch: Any, loss: float, weight: float) -> None:
        """The server has taken a gradient."""
        self._samples += weight
        self._total_loss += weight * float(loss)
        self._loss = (self._loss[0] + weight * float(loss), self._loss[1] + weight)
        if self.decoding is not None:
            self._outer.add(self._server.version - 1 - batch.versions, self.clock.now - batch.seconds)
        if self._evaluate_every and self._server.version % self._evaluate_every == 0:
            self._look()

    def _look(self) -> None:
        total, weight = self._loss
        values = self.evaluate(self.parameters)
        self._evaluations.append(Evaluation(self.clock.now, self._server.version, self._samples, values,
                                            total / weight if weight else math.nan))
        self._loss = (0.0, 0.0)

    def _evaluate_at(self, moment: float) -> Steps:
        yield max(0.0, moment - self.clock.now)
        self._look()

    def _fetch_for_all(self, interval: float) -> Steps:
        while not self.has_ended:
            yield interval
            self._common = self._server.snapshot()

    def _replica(self, worker: int, batches: Batches | None) -> Replica:
        times = WorkerTimes(self.cluster, worker)
        source = Given(iter(batches(worker))) if batches is not None else Decoder(
            self.clock, self._server, times, self.decoding, worker, common=lambda: self._common)
        return Replica(worker, self.clock, self._server, times, source, self._gradients[worker], self.cluster,
                       self.fetch_every, self._applied)
