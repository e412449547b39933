"""Decoders: they compute outer gradients for whole utterances, ahead of the replica that uses them frame by frame.

For sequence criteria the gradient is an outer one (occupancies at the network's outputs: a decoding of the utterance)
times an inner one (back-propagation of single frames). Each replica has a decoder with parameters of its own age. What
the replica applies is therefore the gradient of an auxiliary function that touches the criterion at the decoder's
parameters (section 3.3): good as long as the outer gradient changes slowly. How long, is set by `FetchPolicy`.

Reference: Heigold et al., "Asynchronous stochastic optimization for sequence training of deep neural networks", ICASSP
2014, sections 3.2 and 3.3, and 4.2 "fetch interval".
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hemstitch.errors import ConfigError, DataError
from hemstitch.parallel._clock import Event, SimulatedClock, Steps
from hemstitch.parallel._cluster import WorkerTimes
from hemstitch.parallel._server_shards import ServerShards, Snapshot
from hemstitch.sampling import UtteranceSlots

MANY_EMPTY = 1000               # utterances without frames one after the other: something is wrong


class Outer(Protocol):
    """The outer gradient of one utterance: a row per frame that is used; a (time, pdf) tensor, for instance."""

    def __len__(self) -> int: ...

    def __getitem__(self, frame: int) -> Any: ...


OuterGradient = Callable[[Tensor, Sequence[Any]], Sequence[Outer]]


@dataclass(frozen=True, kw_only=True)
class FetchPolicy:
    """When a decoder takes new parameters from the server.

    Attributes:
        seconds: at least so long after the last time; 0: before every utterance.
        synchronous: all decoders at the same moments, every ``seconds``, as in the paper's figure 5.
    """

    seconds: float = 0.0
    synchronous: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.seconds < math.inf or (self.synchronous and self.seconds == 0):
            raise ConfigError(f"need seconds >= 0, and > 0 for a synchronous fetch, got {self}")


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How outer gradients are computed and used up.

    Attributes:
        outer_gradient: (flat parameters, utterances) -> one outer gradient per utterance; its length is the number of
            frames that will be used (frames that cancel may be left out).
        utterances: worker -> an endless iterator over its utterances, of whatever kind.
        num_slots: N, frames in a replica's batch, each from another utterance.
        fetch: when decoders take new parameters.
        lookahead: utterances decoded ahead of need, >= 1; more of them hide slow decodings and add staleness.
        utterances_per_call: decoded together, with the same parameters.
    """

    outer_gradient: OuterGradient
    utterances: Callable[[int], Iterator[Any]]
    num_slots: int = 32
    fetch: FetchPolicy = field(default_factory=FetchPolicy)
    lookahead: int = 1
    utterances_per_call: int = 1

    def __post_init__(self) -> None:
        if min(self.num_slots, self.lookahead, self.utterances_per_call) < 1:
            raise ConfigError(f"num_slots, lookahead and utterances_per_call must be >= 1, got {self.num_slots}, "
                              f"{self.lookahead} and {self.utterances_per_call}")


@dataclass(frozen=True)
class Decoded:
    """An utterance with its outer gradient.

    Attributes:
        utterance: as it came from the iterator.
        outer: its outer gradient.
        version, seconds: of the parameters that decoded it, and when they were fetched.
    """

    utterance: Any
    outer: Outer
    version: int
    seconds: float


@dataclass(frozen=True)
class OuterBatch:
    """One frame from each of several utterances, with its outer gradient.

    Attributes:
        utterances: (slot,) utterances.
        frames: (slot,) int64 frame of each.
        rows: (slot,) row of the outer gradient of each.
        versions, seconds: (slot,) which parameters decoded each, and when they were fetched.
    """

    utterances: list[Any]
    frames: np.ndarray
    rows: list[Any]
    versions: np.ndarray
    seconds: np.ndarray

    @property
    def outer(self) -> Tensor:
        """(slot, ...) the rows as one tensor."""
        return torch.stack(self.rows)


class Decoder:
    """A replica's decoder on the simulated clock: keeps utterances decoded ahead of the replica's need.

    Args:
        clock, server, times: of the simulation and this worker.
        decoding: what to do.
        worker: its number.
        common: the parameters that all decoders use, if they fetch synchronously.

    Attributes:
        changed: happens when there is more to use.
    """

    def __init__(self, clock: SimulatedClock, server: ServerShards, times: WorkerTimes, decoding: Decoding, worker: int,
                 common: Callable[[], Snapshot]) -> None:
        self.clock, self.server, self.times, self.decoding = clock, server, times, decoding
        self._common, self._utterances = common, iter(decoding.utterances(worker))
        self._ready: deque[Decoded] = deque()
        self._slots: UtteranceSlots[Decoded] = UtteranceSlots(decoding.num_slots, self._load)
        self._held: Snapshot | None = None
        self._has_ended = False
        self.changed, self._wanted = clock.event(), clock.event()
        clock.start(self._decode())

    @property
    def has_batch(self) -> bool:
        """Whether `next` can be called."""
        return self._has_ended or sum(len(u.outer) > 0 for u in self._ready) >= self._slots.num_needed()

    def next(self) -> OuterBatch | None:
        """The next batch; ``None`` when there are no more utterances."""
        taken = self._slots.next()
        self._wanted, wanted = self.clock.event(), self._wanted
        wanted.happen()
        if taken is None:
            return None
        held, frames = taken
        return OuterBatch(
            utterances=[decoded.utterance for decoded in held],
            frames=frames,
            rows=[decoded.outer[frame] for decoded, frame in zip(held, frames.tolist(), strict=True)],
            versions=np.array([decoded.version for decoded in held]),
            seconds=np.array([decoded.seconds for decoded in held]),
        )

    def _decode(self) -> Steps:
        """Decode utterances as long as any is wanted."""
        num_empty = 0
        while utterances := list(islice(self._utterances, self.decoding.utterances_per_call)):
            decoded = yield from self._outer_gradients(utterances)
            self._ready.extend(decoded)
            num_empty = 0 if any(len(d.outer) for d in decoded) else num_empty + len(utterances)
            if num_empty >= MANY_EMPTY:
                raise DataError(f"the outer gradients of {num_empty} utterances in a row had no frames: look at what "
                                "outer_gradient returns, for instance for "
                                f"{utterances[-1]!r}")
            self._announce()
            while self.has_batch and len(self._ready) >= self.decoding.lookahead:
                yield self._wanted
        self._has_ended = True
        self._announce()

    def _outer_gradients(self, utterances: list[Any]) -> Generator[float | Event, Any, list[Decoded]]:
        """Decode some utterances with the same parameters."""
        held = self._held = yield from self._parameters()
        outers = self.decoding.outer_gradient(held.parameters, utterances)
        yield sum(self.times.decode() for _ in utterances)
        return [Decoded(utterance, outer, held.versions[0], held.seconds)
                for utterance, outer in zip(utterances, outers, strict=True)]

    def _parameters(self) -> Generator[float | Event, Any, Snapshot]:
        """What to decode with now."""
        policy = self.decoding.fetch
        if policy.synchronous:
            return self._common()
        if self._held is None or self.clock.now - self._held.seconds >= policy.seconds:
            return (yield from self.server.fetch(self.times))
        return self._held

    def _announce(self) -> None:
        self.changed, changed = self.clock.event(), self.changed
        changed.happen()

    def _load(self) -> tuple[Decoded, int] | None:
        if not self._ready:
            return None
        decoded = self._ready.popleft()
        return decoded, len(decoded.outer)
