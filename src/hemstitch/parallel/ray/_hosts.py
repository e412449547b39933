"""Processes that compute: several virtual replicas each, decoders, and one that looks at the parameters."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hemstitch.errors import RunError
from hemstitch.parallel._clock import Event
from hemstitch.parallel._cluster import Cluster
from hemstitch.parallel._decoders import Decoded, Decoder, Decoding
from hemstitch.parallel._replica import Gradient, Replica
from hemstitch.parallel._server_shards import Snapshot
from hemstitch.parallel.ray._link import Layout, Link, Numbered, RealTimes, fetch_all
from hemstitch.parallel.ray._real_clock import RealClock

PROGRAM = "program.pickle"


@dataclass(frozen=True)
class Program:
    """What the processes are to do; written to a file once and read by each.

    Attributes:
        gradient_of: replica -> its gradient function.
        batch: number -> batch, if there are no decoders.
        decoding: what decoders do, if there are.
        evaluate: parameters -> values.
        renew: called in each process but the server's with what `AsynchronousTraining.renew` was given.
    """

    gradient_of: Callable[[int], Gradient]
    batch: Callable[[int], Any] | None
    decoding: Decoding | None
    evaluate: Callable[[Tensor], dict[str, float]] | None
    renew: Callable[[Any], None] | None


def load_program(folder: str, threads: int) -> Program:
    """Read the program in a process that is to run it.

    Raises:
        RunError: this machine does not see the folder.
    """
    from ray import cloudpickle

    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", message="The given (NumPy array|buffer) is not writable")   # nobody writes to it
    try:
        return cloudpickle.loads((Path(folder) / PROGRAM).read_bytes())
    except FileNotFoundError:
        raise RunError(f"{folder}: there is no program. Is the folder seen by all machines of the cluster? Give a "
                       "folder on shared storage.") from None


class ReplicaHost:
    """A process with several virtual replicas: each has parameters and a pace of its own.

    Args:
        folder: with the program.
        shards: names of the server's.
        layout: of the parameters.
        workers: numbers of the replicas.
        fetch_every: batches per fetch.
        decoders: one handle per replica, or none.
        threads: of torch.
    """

    def __init__(self, folder: str, shards: Sequence[str], layout: Layout, workers: Sequence[int], fetch_every: int,
                 decoders: Sequence[Any], threads: int) -> None:
        import ray

        self._program = load_program(folder, threads)
        self._stops = False
        self._renewal: tuple[Any] | None = None
        self._busy_seconds, self._start = 0.0, time.monotonic()
        self._clock = RealClock(ray.wait)
        handles = [ray.get_actor(name) for name in shards]
        self._links: list[Link] = []
        self._replicas: list[Replica] = []
        for place, worker in enumerate(workers):
            link = Link(ray, self._clock, handles, layout, worker, fetch_every)
            source = RemoteDecoder(self._clock, self._program.decoding, worker, decoders[place], link) if (
                decoders) else Numbered(link, self._program.batch)
            self._links.append(link)
            self._replicas.append(Replica(
                worker, self._clock, link, RealTimes(), source, self._timed(self._program.gradient_of(worker)),
                Cluster(), fetch_every, lambda *_: None))

    def train(self) -> str:
        """Work until told to stop, or until the server knows newer lives of these replicas; says which."""
        self._clock.run(stop=lambda: self._stops or any(link.is_fenced for link in self._links))
        return "stopped" if self._stops else "fenced" if any(link.is_fenced for link in self._links) else "ended"

    def stop(self) -> None:
        """End `train` soon."""
        self._stops = True

    def renew(self, news: Any) -> None:
        """Call the program's ``renew`` before the next gradient."""
        self._renewal = (news,)

    def ping(self) -> dict[str, Any]:
        """A sign of life."""
        return {"pid": os.getpid(), "busy": self._busy_seconds / (time.monotonic() - self._start),
                "retries": sum(link.num_retries for link in self._links)}

    def _timed(self, gradient: Gradient) -> Gradient:
        def compute(parameters: Tensor, batch: Any) -> tuple[Tensor, float, float]:
            begin = time.monotonic()
            if self._renewal is not None:
                (news,), self._renewal = self._renewal, None
                self._program.renew(news)
            result = gradient(parameters, batch)
            self._busy_seconds += time.monotonic() - begin
            return result

        return compute


class DecoderHost:
    """A process that computes outer gradients, with parameters of an age of its own."""

    def __init__(self, folder: str, shards: Sequence[str], threads: int) -> None:
        import ray

        self._program = load_program(folder, threads)
        self._shards = [ray.get_actor(name) for name in shards]
        self._held: Snapshot | None = None

    def decode(self, utterances: Sequence[Any]) -> tuple[Sequence[Any], int, float]:
        """Outer gradients, and version and time of the parameters behind them."""
        import ray

        if self._is_due(time.time()):
            self._held = fetch_all(ray, self._shards)
        outers = self._program.decoding.outer_gradient(self._held.parameters, utterances)
        return outers, self._held.versions[0], self._held.seconds

    def ping(self) -> dict[str, Any]:
        """A sign of life."""
        return {"pid": os.getpid()}

    def renew(self, news: Any) -> None:
        """Call the program's ``renew``."""
        self._program.renew(news)

    def _is_due(self, now: float) -> bool:
        """Whether to fetch; synchronous decoders do at the same multiples of the interval."""
        policy = self._program.decoding.fetch
        if self._held is None or policy.seconds == 0:
            return True
        if policy.synchronous:
            return now // policy.seconds > self._held.seconds // policy.seconds
        return now - self._held.seconds >= policy.seconds


class RemoteDecoder(Decoder):
    """The replica's side of a decoder: the same queue, but decoding happens in another process.

    Args:
        clock: of this process.
        decoding: what is decoded.
        worker: the replica.
        host: handle of the `DecoderHost`.
        link: of the replica.
    """

    def __init__(self, clock: RealClock, decoding: Decoding, worker: int, host: Any, link: Link) -> None:
        self._host, self._link = host, link
        super().__init__(clock, None, RealTimes(), decoding, worker, common=lambda: None)

    def next(self) -> Any:
        """The next batch."""
        self._link.in_use = super().next()
        return self._link.in_use

    def _outer_gradients(self, utterances: list[Any]) -> Generator[float | Event, Any, list[Decoded]]:
        call = lambda: self._host.decode.remote(utterances)
        outers, version, seconds = yield from self._link.reply(call, call())
        return [Decoded(utterance, outer, version, seconds)
                for utterance, outer in zip(utterances, outers, strict=True)]


class EvaluationHost:
    """A process that looks at the parameters while the others go on."""

    def __init__(self, folder: str, shards: Sequence[str], threads: int) -> None:
        import ray

        self._program = load_program(folder, threads)
        self._shards = [ray.get_actor(name) for name in shards]

    def ping(self) -> dict[str, Any]:
        """A sign of life."""
        return {"pid": os.getpid()}

    def evaluate(self) -> tuple[float, int, dict[str, float]]:
        """Time and version of the parameters, and what the user's function returns for them."""
        import ray

        snapshot = fetch_all(ray, self._shards)
        return snapshot.seconds, snapshot.versions[0], self._program.evaluate(snapshot.parameters)

    def renew(self, news: Any) -> None:
        """Call the program's ``renew``."""
        self._program.renew(news)
