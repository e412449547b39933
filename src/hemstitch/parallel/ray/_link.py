"""A worker's way to the shards of the server: the same three calls that replicas make on the simulated clock.

A call that got no reply because a process died is sent again, the push with the same number, so that it is applied at
most once; the engine's own repetition is switched off, it would apply twice what died between effect and reply.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hemstitch.parallel._clock import Event, Steps
from hemstitch.parallel._parameter_server import PushReply
from hemstitch.parallel._server_shards import Message, Snapshot
from hemstitch.parallel.ray._real_clock import RealClock
from hemstitch.parallel.ray._shard import Fetched, Push

RETRY_SECONDS = 0.2         # after a call that got no reply
ASK_AGAIN_SECONDS = 0.02    # while no batches are handed out


@dataclass(frozen=True)
class Layout:
    """How the parameters are cut.

    Attributes:
        cuts: (shard,) slices.
        has_components: whether the rule bounds parts of the parameters.
    """

    cuts: tuple[slice, ...]
    has_components: bool


class Link:
    """One replica's connection.

    Args:
        ray: the engine.
        clock: of this process.
        shards: handles of the server's shards.
        layout: of the parameters.
        worker: who connects.
        num_batches: how many to ask for with each fetch.

    Attributes:
        batches: numbers handed out and not yet used.
        in_use: the batch whose gradient is under way, for the ages of its outer gradients.
        is_fenced: whether the server knows a newer life of this worker.
        num_retries: calls repeated.
    """

    def __init__(self, ray: Any, clock: RealClock, shards: Sequence[Any], layout: Layout, worker: int,
                 num_batches: int) -> None:
        self.ray, self.clock, self.shards, self.layout = ray, clock, shards, layout
        self.worker, self.num_batches = worker, num_batches
        self.batches: deque[int] = deque()
        self.in_use: Any = None
        self.is_fenced = False
        self.num_retries = 0
        self._moments: tuple[float, ...] = ()
        self._incarnation = 0

    def register(self, worker: int) -> tuple[int, ...]:
        """Begin a new life; its incarnation at each shard."""
        incarnations = tuple(repeated(self.ray, lambda shard=shard: shard.register.remote(worker), self._count_retry)
                             for shard in self.shards)
        self._incarnation = incarnations[0]
        return incarnations

    def fetch(self, times: Any) -> Generator[float | Event, Any, Snapshot]:
        """Parameters of all shards, and the numbers of the batches to compute with them; waits until there are any."""
        calls = [self._fetch_call(shard) for shard in range(len(self.shards))]
        futures = [call() for call in calls]
        first: Fetched = yield from self.reply(calls[0], futures[0])
        while first.parameters is None:                     # the first shard alone knows whether there is work
            self.is_fenced |= first.batches[1] < 0
            yield ASK_AGAIN_SECONDS
            first = yield from self.reply(calls[0], calls[0]())
            futures = []
        futures = futures or [None, *(call() for call in calls[1:])]
        fetched = [first]
        for call, future in zip(calls[1:], futures[1:], strict=True):
            fetched.append((yield from self.reply(call, future)))
        start, count = first.batches
        self.batches = deque(range(start, start + count))
        return self._snapshot(fetched)

    def push(self, message: Message, times: Any, on_applied: Callable[[], None]) -> Steps:
        """Carry a gradient to all shards and wait until each has answered."""
        calls = [self._push_call(shard, message) for shard in range(len(self.shards))]
        futures = [call() for call in calls]
        for number, (call, future) in enumerate(zip(calls, futures, strict=True)):
            reply: PushReply = yield from self.reply(call, future)
            self.is_fenced |= reply.status == "stale_incarnation"
            if number == 0 and reply.status == "accepted":
                on_applied()

    def _snapshot(self, fetched: Sequence[Fetched]) -> Snapshot:
        parts = [torch.from_numpy(part.parameters) for part in fetched]
        self._moments = tuple(part.seconds for part in fetched)
        return Snapshot(parts[0] if len(parts) == 1 else torch.cat(parts), tuple(part.version for part in fetched),
                        self._moments[0])

    def _fetch_call(self, shard: int) -> Callable[[], Any]:
        batches = self.num_batches if shard == 0 else 0
        return lambda: self.shards[shard].fetch.remote(self.worker, self._incarnation, batches)

    def _push_call(self, shard: int, message: Message) -> Callable[[], Any]:
        finite = math.isfinite(message.loss)
        outer = None
        if shard == 0 and self.in_use is not None and hasattr(self.in_use, "versions"):
            outer = (self.in_use.versions, self.in_use.seconds)
        header = Push(
            message.worker, message.seq, message.incarnations[shard], message.versions[shard], self._moments[shard],
            norm=message.norm if finite else math.nan,
            exact=finite and len(self.shards) == 1 and self.layout.has_components,
            loss=message.loss, samples=message.weight, outer=outer)
        part = message.gradient[self.layout.cuts[shard]].detach().cpu().numpy()
        return lambda: self.shards[shard].push.remote(header, part)

    def _count_retry(self) -> None:
        self.num_retries += 1

    def reply(self, call: Callable[[], Any], future: Any) -> Generator[float | Event, Any, Any]:
        """The result of a call, repeated until there is one."""
        while True:
            yield self.clock.done(future)
            try:
                return self.ray.get(future)
            except lost_errors(self.ray):
                self._count_retry()
                yield RETRY_SECONDS
                future = call()


class Numbered:
    """A replica's source of batches: those whose numbers its link was given."""

    has_batch = True

    def __init__(self, link: Link, batch: Callable[[int], Any]) -> None:
        self._link, self._batch = link, batch

    def next(self) -> Any:
        """The next one; never called without one: each fetch asks for as many as are used until the next."""
        self._link.in_use = self._batch(self._link.batches.popleft())
        return self._link.in_use


class RealTimes:
    """Instead of a simulated worker's: things take as long as they take, and replies are lost by themselves."""

    compute = decode = staticmethod(lambda: 0.0)
    loses_reply = staticmethod(lambda: False)


def lost_errors(ray: Any) -> tuple[type[Exception], ...]:
    """What a call raises whose process, or the owner of whose data, died or cannot be reached."""
    return (ray.exceptions.RayActorError, ray.exceptions.OwnerDiedError, ray.exceptions.ObjectLostError)


def fetch_all(ray: Any, shards: Sequence[Any]) -> Snapshot:
    """The current parameters, for those who compute no gradients: a copy."""
    fetched = [repeated(ray, lambda shard=shard: shard.fetch.remote(-1, 0, 0)) for shard in shards]
    parts = [torch.from_numpy(part.parameters.copy()) for part in fetched]
    return Snapshot(torch.cat(parts), tuple(part.version for part in fetched), fetched[0].seconds)


def repeated(ray: Any, call: Callable[[], Any], on_retry: Callable[[], None] = lambda: None) -> Any:
    """The result of a call, sent again until there is one."""
    while True:
        try:
            return ray.get(call())
        except lost_errors(ray):
            on_retry()
            time.sleep(RETRY_SECONDS)
