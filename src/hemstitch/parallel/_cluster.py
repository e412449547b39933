"""A cluster as the simulated clock sees it: how long things take, what goes wrong, and what it costs.

Everything is drawn from generators that are functions of the seed, the worker and the purpose, so that the delays of
one worker do not change when another one is added, and two runs are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hemstitch.errors import ConfigError

Shape = Literal["constant", "uniform", "exponential", "gamma", "lognormal"]
BLOCK = 256                     # numbers drawn at once


@dataclass(frozen=True)
class Delay:
    """A random duration.

    Attributes:
        mean: seconds.
        shape: of the distribution.
        variation: standard deviation over mean (constant: 0, exponential: 1, both whatever is said here).
    """

    mean: float
    shape: Shape = "constant"
    variation: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.mean < math.inf and 0 <= self.variation < math.inf):
            raise ConfigError(f"a delay needs mean and variation >= 0, got {self}")
        if self.shape not in ("constant", "uniform", "exponential", "gamma", "lognormal"):
            raise ConfigError(f"unknown shape of a delay: {self.shape!r}")
        if self.shape == "uniform" and self.variation > 1 / math.sqrt(3):
            raise ConfigError(f"a uniform delay has a variation of at most 0.577, got {self.variation}")

    def sampler(self, random: np.random.Generator) -> Callable[[], float]:
        """A function that draws the next one."""
        if self.mean == 0 or self._is_constant:
            return lambda: self.mean
        return _blockwise(lambda: self.mean * self._unit(random))

    @property
    def _is_constant(self) -> bool:
        return self.shape == "constant" or (self.shape != "exponential" and self.variation == 0)

    def _unit(self, random: np.random.Generator) -> np.ndarray:
        """A block with mean 1."""
        if self.shape == "exponential":
            return random.exponential(size=BLOCK)
        if self.shape == "gamma":
            return random.gamma(self.variation**-2, self.variation**2, size=BLOCK)
        if self.shape == "lognormal":
            spread = math.log1p(self.variation**2)
            return random.lognormal(-spread / 2, math.sqrt(spread), size=BLOCK)
        half = math.sqrt(3) * self.variation
        return random.uniform(1 - half, 1 + half, size=BLOCK)


@dataclass(frozen=True, kw_only=True)
class Network:
    """What moves parameters and gradients.

    Attributes:
        latency: seconds before the first byte arrives.
        bandwidth: bytes per second of each worker's link.
        server_bandwidth: bytes per second through a server shard's link, one message after the other.
        variation: of a transfer's duration (gamma distributed), standard deviation over mean.
        reply_loss: probability that the reply to a push is lost; the worker then sends the push again.
        retry_seconds: after how long.
    """

    latency: float = 0.0
    bandwidth: float = math.inf
    server_bandwidth: float = math.inf
    variation: float = 0.0
    reply_loss: float = 0.0
    retry_seconds: float = 1.0

    def __post_init__(self) -> None:
        if min(self.latency, self.variation, self.retry_seconds) < 0 or not 0 <= self.reply_loss < 1:
            raise ConfigError(f"need latency, variation, retry_seconds >= 0 and reply_loss in [0, 1), got {self}")
        if min(self.bandwidth, self.server_bandwidth) <= 0:
            raise ConfigError(f"bandwidths must be > 0 bytes per second, got {self}")

    def reduction_seconds(self, world: int, num_bytes: float) -> float:
        """Of an average over ``world`` workers: 2 latencies and 2 (n - 1) / n of the parameters over each link."""
        return 0.0 if world == 1 else 2 * self.latency + 2 * (world - 1) / world * num_bytes / self.bandwidth


@dataclass(frozen=True, kw_only=True)
class Stragglers:
    """Workers and moments that are slow.

    Attributes:
        slow_share: share of the workers that is slow for good.
        slow_factor: by how much.
        probability: that a computation is slow on any worker.
        factor: by how much.
    """

    slow_share: float = 0.0
    slow_factor: float = 2.0
    probability: float = 0.0
    factor: float = 10.0

    def __post_init__(self) -> None:
        if not (0 <= self.slow_share <= 1 and 0 <= self.probability <= 1 and min(self.slow_factor, self.factor) > 0):
            raise ConfigError(f"need shares and probabilities in [0, 1] and factors > 0, got {self}")


@dataclass(frozen=True, kw_only=True)
class Failures:
    """Workers that die and come back.

    Attributes:
        mean_seconds_between: of one worker, exponentially distributed.
        restart_seconds: until it is back.
    """

    mean_seconds_between: float = math.inf
    restart_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.mean_seconds_between <= 0 or self.restart_seconds < 0:
            raise ConfigError(f"need mean_seconds_between > 0 and restart_seconds >= 0, got {self}")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """How long things take on a cluster, and what goes wrong.

    Attributes:
        compute: one gradient on one worker.
        decode: one utterance on one decoder.
        network: transfers.
        stragglers: slow workers and moments.
        failures: deaths.
        seed: of all randomness.
    """

    compute: Delay = field(default_factory=lambda: Delay(1.0))
    decode: Delay = field(default_factory=lambda: Delay(0.0))
    network: Network = field(default_factory=Network)
    stragglers: Stragglers = field(default_factory=Stragglers)
    failures: Failures = field(default_factory=Failures)
    seed: int = 0

    def is_slow(self, worker: int) -> bool:
        """Whether a worker is among the slow ones: every k-th, so that a share of any number of them is."""
        share = self.stragglers.slow_share
        return math.floor((worker + 1) * share) > math.floor(worker * share)


class WorkerTimes:
    """The durations of one worker, drawn one after the other.

    Attributes:
        compute, decode: seconds of the next one.
        transfer: factor on the duration of the next transfer, mean 1.
        until_failure: seconds until the worker dies.
        loses_reply: whether the next reply is lost.
    """

    def __init__(self, cluster: Cluster, worker: int) -> None:
        compute, decode, transfer, straggle, failure, reply = (
            np.random.default_rng([cluster.seed, worker, purpose]) for purpose in range(6))
        stragglers, network = cluster.stragglers, cluster.network
        pace = stragglers.slow_factor if cluster.is_slow(worker) else 1.0
        self.compute = self._straggling(cluster.compute.sampler(compute), pace, stragglers, straggle)
        self.decode = cluster.decode.sampler(decode)
        self.transfer = Delay(1.0, "gamma", network.variation).sampler(transfer)
        self.until_failure = Delay(1.0, "exponential").sampler(failure)
        mean = cluster.failures.mean_seconds_between
        self.until_failure = _scaled(self.until_failure, mean) if mean < math.inf else lambda: math.inf
        uniform = _blockwise(lambda: reply.random(BLOCK))
        self.loses_reply = (lambda: uniform() < network.reply_loss) if network.reply_loss else lambda: False

    def take(self, count: int) -> list[float]:
        """The durations of so many computations."""
        return [self.compute() for _ in range(count)]

    @staticmethod
    def _straggling(
        compute: Callable[[], float], pace: float, stragglers: Stragglers, random: np.random.Generator,
    ) -> Callable[[], float]:
        if not stragglers.probability:
            return compute if pace == 1.0 else _scaled(compute, pace)
        uniform = _blockwise(lambda: random.random(BLOCK))
        return lambda: compute() * pace * (stragglers.factor if uniform() < stragglers.probability else 1.0)


def _scaled(draw: Callable[[], float], factor: float) -> Callable[[], float]:
    return lambda: factor * draw()


def _blockwise(draw: Callable[[], np.ndarray]) -> Callable[[], float]:
    """One number at a time of blocks that are drawn when needed."""

    def numbers() -> Iterator[float]:
        while True:
            yield from draw().tolist()

    return numbers().__next__
