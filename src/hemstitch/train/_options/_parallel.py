"""Many workers: [parallel]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hemstitch.train._options._checks import above, at_least, at_most, require

_LONGEST = 1e6
"""Seconds that one can wait for: 11 days."""
_MOST = 10_000
"""Workers, more than anybody has; a mistyped number must not be tried."""


@dataclass(frozen=True, kw_only=True)
class LocalParallel:
    """One worker, this process."""


@dataclass(frozen=True, kw_only=True)
class WorkerProcesses:
    """Workers that are processes: started on this machine, or joined where the run itself is started by torchrun.

    Attributes:
        workers: how many processes; under torchrun as many as it has started.
        timeout: seconds that a worker may keep the others waiting before they go on without it.
        backend: what carries the sums; nccl needs one GPU per worker.
        launcher: who starts the processes, unless torchrun has; ray can on a cluster, too.
        address: of this machine towards the others (torchrun), or of a running Ray cluster, such as 10.0.0.1:6379
            (launcher = ray); "": this machine alone.
    """

    workers: int = 2
    timeout: float = 600.0
    backend: Literal["gloo", "nccl"] = "gloo"
    launcher: Literal["local", "ray"] = "local"
    address: str = ""

    def __post_init__(self) -> None:
        at_least(1, self, "workers")
        at_most(_MOST, self, "workers")
        require(0 < self.timeout <= _LONGEST,
                f"timeout must be > 0 and at most {_LONGEST:g} seconds, got {self.timeout}")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DataParallel(WorkerProcesses):
    """Every batch is shared by the workers and their gradients are summed: the run of one worker, in less time."""


@dataclass(frozen=True, kw_only=True)
class AveragingRule:
    """When and how the parameters of the workers are averaged (paper 4).

    Attributes:
        workers: n, how many train.
        final_workers: how many at the end, reached linearly; 0: as many as at the beginning.
        every: samples that each worker trains on between two averages, about: an epoch has a whole number of averages.
        scale_lr: learning rate times the number of workers, which an average divides by.
        best_first: the first average takes the best worker, for random initial parameters.
        margin: workers whose loss is above the best one's by more than this are left out (outliers); 0: none is.
        state: what becomes of the workers' momentum, Adam and Fisher estimates at an average.
        combine: the final network is the best average of at most so many of the last averages of the last epoch, best
            on dev, batch-norm statistics computed anew; 0: the last average as it is.
    """

    workers: int = 2
    final_workers: int = 0
    every: int = 400_000
    scale_lr: bool = True
    best_first: bool = False
    margin: float = 0.0
    state: Literal["local", "averaged", "reset"] = "local"
    combine: int = 0

    def __post_init__(self) -> None:
        at_most(_MOST, self, "workers", "final_workers")
        require(self.workers >= 1 and self.final_workers >= 0, "workers must be >= 1 and final_workers >= 0, got "
                f"{self.workers} and {self.final_workers}")  # fmt: skip
        require(self.every >= 1 and self.margin >= 0 and self.combine >= 0,
                f"every must be >= 1, margin and combine >= 0, got {self.every}, {self.margin}, "
                f"{self.combine}")  # fmt: skip

    @property
    def last_workers(self) -> int:
        """How many train at the end."""
        return self.final_workers or self.workers

    @property
    def most_workers(self) -> int:
        """How many there must be."""
        return max(self.workers, self.last_workers)


@dataclass(frozen=True, kw_only=True)
class Averaging(AveragingRule, WorkerProcesses):
    """Every worker, a process, trains by itself; from time to time all take the average of their parameters."""

    def __post_init__(self) -> None:
        WorkerProcesses.__post_init__(self)
        AveragingRule.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class SimulatedCluster:
    """How long things take on the cluster whose clock is simulated; nothing here changes what is computed.

    Attributes:
        compute_seconds: mean duration of one gradient on one worker.
        compute_variation: of that duration (gamma distributed), standard deviation over mean.
        latency: seconds before the first byte of a message arrives.
        bandwidth: bytes per second of each worker's link; 0: unlimited.
        slow_share: share of the workers that is slow for good.
        slow_factor: by how much.
        straggle_probability: that a computation is slow on any worker.
        straggle_factor: by how much.
        cluster_seed: of all these delays.
    """

    compute_seconds: float = 1.0
    compute_variation: float = 0.3
    latency: float = 0.001
    bandwidth: float = 1e9
    slow_share: float = 0.0
    slow_factor: float = 2.0
    straggle_probability: float = 0.0
    straggle_factor: float = 10.0
    cluster_seed: int = 0

    def __post_init__(self) -> None:
        at_least(0, self, "compute_seconds", "compute_variation", "latency", "bandwidth", "cluster_seed")
        above(0, self, "slow_factor", "straggle_factor")
        for name in ("slow_share", "straggle_probability"):
            require(0 <= getattr(self, name) <= 1, f"{name} must lie in [0, 1], got {getattr(self, name):g}")


@dataclass(frozen=True, kw_only=True)
class VirtualAveraging(AveragingRule, SimulatedCluster):
    """Parameter averaging of workers that live in this process: slower, but the same to the bit on any machine."""

    def __post_init__(self) -> None:
        AveragingRule.__post_init__(self)
        SimulatedCluster.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class Asynchronous:
    """Replicas that train without waiting for each other, around a parameter server (paper 2).

    The server's steps are those of [update]: its learning rate and its bounds on the change.

    Attributes:
        replicas: how many compute gradients.
        fetch_every: batches that a replica computes with the same parameters.
        shards: of the server.
    """

    replicas: int = 10
    fetch_every: int = 1
    shards: int = 1

    def __post_init__(self) -> None:
        at_least(1, self, "replicas", "fetch_every", "shards")
        at_most(_MOST, self, "replicas", "shards")


@dataclass(frozen=True, kw_only=True)
class Decoders:
    """Decoders of asynchronous replicas, where batches are frames of utterances (criterion.unit = "frame").

    Each replica has one with parameters of its own age, which computes the outer gradients of whole utterances ahead.

    Attributes:
        decoder_fetch_seconds: a decoder keeps its parameters at least so long; 0: new ones for every utterance.
        decoder_fetch_synchronous: all decoders take new ones at the same moments.
        lookahead: utterances decoded ahead of need.
    """

    decoder_fetch_seconds: float = 0.0
    decoder_fetch_synchronous: bool = False
    lookahead: int = 1

    def __post_init__(self) -> None:
        at_least(0, self, "decoder_fetch_seconds")
        require(self.lookahead >= 1, f"lookahead must be at least 1, got {self.lookahead}")
        require(self.decoder_fetch_seconds > 0 or not self.decoder_fetch_synchronous,
                "decoder_fetch_synchronous needs decoder_fetch_seconds > 0")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Replicas(Asynchronous, Decoders):
    """Asynchronous training for real: replicas are processes, launched by Ray on this machine or on a cluster.

    With frames of utterances as batches (criterion.unit = "frame") decoders are processes as well.

    Attributes:
        decoders: processes that decode, if any do; 0: as many as processes with replicas.
        processes: in which the replicas live, several in each; 0: one per processor, on a cluster one per replica.
        address: of a running Ray cluster, such as 10.0.0.1:6379; "": none is needed, this machine alone.
        folder: for the server's snapshots, on a cluster on storage that all machines see; "": a temporary one.
        snapshot_every: most updates that the death of a server's process may undo.
        patience: seconds without a sign of life after which a process is replaced.
    """

    decoders: int = 0
    processes: int = 0
    address: str = ""
    folder: str = ""
    snapshot_every: int = 100
    patience: float = 30.0

    def __post_init__(self) -> None:
        Asynchronous.__post_init__(self)
        Decoders.__post_init__(self)
        at_least(0, self, "processes", "decoders")
        require(self.snapshot_every >= 1, f"snapshot_every must be at least 1, got {self.snapshot_every}")
        require(0 < self.patience <= _LONGEST,
                f"patience must be > 0 and at most {_LONGEST:g} seconds, got {self.patience}")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SimulatedAsynchronous(Asynchronous, Decoders, SimulatedCluster):
    """Asynchronous training on a simulated clock: gradients are computed here, the cluster decides their order.

    Attributes:
        failure_seconds: mean time until a replica dies; 0: never.
        restart_seconds: until it is back.
        decode_seconds: mean duration of decoding one utterance.
        server_bandwidth: bytes per second through a server shard's link; 0: unlimited.
    """

    failure_seconds: float = 0.0
    restart_seconds: float = 10.0
    decode_seconds: float = 0.0
    server_bandwidth: float = 0.0

    def __post_init__(self) -> None:
        Asynchronous.__post_init__(self)
        Decoders.__post_init__(self)
        SimulatedCluster.__post_init__(self)
        at_least(0, self, "failure_seconds", "restart_seconds", "decode_seconds", "server_bandwidth")
