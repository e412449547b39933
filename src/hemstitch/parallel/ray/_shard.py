"""A shard of the parameter server as a process of its own.

The state machine is `hemstitch.parallel.ParameterServer`, as on the simulated clock. Around it: a ledger of every
answer and snapshots of the parameters, from which a restarted process goes on. Version numbers go on as well: what was
lost with the process counts as made, so that no worker has to be told, and its number is reported.

The first shard also hands out the batches, by number: the position in the data is part of the server's state, workers
share the data in proportion to their speed, and which batches died with a worker is known.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hemstitch.errors import RunError
from hemstitch.parallel._bounded_step import Bound, StepRule
from hemstitch.parallel._parameter_server import ParameterServer, PushReply
from hemstitch.parallel._staleness import StalenessHistogram
from hemstitch.parallel.ray._ledger import LAYOUT, Kind, Ledger, Record


class Fetched(NamedTuple):
    """What a fetch brings.

    Attributes:
        version, seconds: of the parameters, and when they were read.
        parameters: (parameter,) of this shard; ``None`` if nothing was handed out.
        batches: numbers of the batches to compute: (first, count); count 0: none now, ask again later; -1: the
            worker has a newer life.
    """

    version: int
    seconds: float
    parameters: np.ndarray | None
    batches: tuple[int, int]


class Push(NamedTuple):
    """A gradient, without the vector itself.

    Attributes:
        worker, seq, incarnation, version: see `ParameterServer.push`.
        seconds: when the parameters were fetched.
        norm: of the whole gradient; ``exact`` tells whether the shard is to measure by itself all the same.
        loss, samples: mean loss of the batch, and samples behind it.
        outer: (versions, seconds) of the parameters that decoded each frame of the batch.
    """

    worker: int
    seq: int
    incarnation: int
    version: int
    seconds: float
    norm: float
    exact: bool
    loss: float
    samples: float
    outer: tuple[np.ndarray, np.ndarray] | None = None


class ServerShard:
    """One shard, from a snapshot in a folder.

    Args:
        folder: where `write_snapshot` has put it (`first_snapshot`), seen from this process's machine.
        number: of the shard.
        snapshot_every: most updates that the death of this process may undo.

    Raises:
        RunError: there is no snapshot.
    """

    def __init__(self, folder: str, number: int, snapshot_every: int) -> None:
        torch.set_num_threads(1)
        before, state, self._path = claim_generation(Path(folder), number)
        self.ledger = Ledger(self._path.with_suffix(".ledger"), state["first_batch"])
        self._outer = StalenessHistogram()
        self._outer.add(state["outer_updates"].numpy(), state["outer_seconds"].numpy())
        self.server = ParameterServer(state["parameters"], _rule(state["rule"]))
        version = self.ledger.counts["accepted"]
        self._lost = state["lost"] + version - state["version"]
        self._first_batch, self._snapshot_every, self._writer = state["first_batch"], snapshot_every, None
        self.server.load_state_dict({**self.server.state_dict(), "version": version, "lives": self.ledger.lives,
                                     "counts": self.ledger.counts})
        self._begin_snapshot()                              # with it, what was lost is counted once
        self._end_snapshot()
        self.ledger.add(Record(Kind.STARTED))
        before.unlink()

    # -- called by workers -----------------------------------------------------------------------------------------

    def register(self, worker: int) -> int:
        """See `ParameterServer.register`."""
        incarnation = self.server.register(worker)
        self.ledger.add(Record(Kind.REGISTERED, worker, incarnation))
        return incarnation

    def fetch(self, worker: int, incarnation: int, batches: int) -> Fetched:
        """The parameters, and up to so many ``batches`` to compute with them (0: the parameters alone).

        A worker asks when it has been answered for all it had. If it has not, it has never seen what it was given, the
        reply was lost: it is given the same again.
        """
        first, count = self.ledger.next_batch, 0
        if batches:
            if incarnation < self.server.incarnation(worker):
                return Fetched(0, 0.0, None, (0, -1))
            if self.ledger.under_way[worker] > 0:
                return self._fetched(self.ledger.handed_out[worker])
            count = min(batches, self.ledger.limit - first)
            if count <= 0:
                return Fetched(0, 0.0, None, (0, 0))
            self.ledger.add(Record(Kind.HANDED_OUT, worker, incarnation, first, count))
        return self._fetched((first, count))

    def _fetched(self, batches: tuple[int, int]) -> Fetched:
        version, parameters = self.server.fetch(is_kept=False)      # the engine copies what this returns
        return Fetched(version, time.time(), parameters.numpy(), batches)

    def push(self, push: Push, gradient: np.ndarray) -> PushReply:
        """See `ParameterServer.push`."""
        before, now = self.server.version, time.time()
        reply = self.server.push(push.worker, push.seq, push.incarnation, push.version, torch.from_numpy(gradient),
                                 None if push.exact else push.norm)
        self.ledger.add(Record(Kind[reply.status.upper()], push.worker, push.incarnation, push.seq, reply.staleness,
                               now - push.seconds, push.samples, push.loss, push.norm))
        if reply.status == "accepted":
            if push.outer is not None:
                self._outer.add(before - push.outer[0], now - push.outer[1])
            self._snapshot_if_due()
        return reply

    # -- called by the supervisor ----------------------------------------------------------------------------------

    def allow(self, limit: int) -> None:
        """Hand out the batches below this number."""
        self.ledger.add(Record(Kind.LIMITED, number=limit))

    def set_rule(self, rule: StepRule) -> None:
        """Go on with another rule."""
        self.server.rule = rule

    def reset(self, parameters: np.ndarray) -> None:
        """Go on from other parameters; let nobody be under way."""
        self._end_snapshot()
        self.server.parameters = torch.from_numpy(parameters).clone()
        self._begin_snapshot()
        self._end_snapshot()

    def status(self, ages_from: int = 0, outer_from: int = 0) -> dict[str, Any]:
        """What has happened; ages only from the given ones on."""
        return {**self.ledger.summary(ages_from), "version": self.server.version, "lost": self._lost,
                "outer": self._outer.since(outer_from), "pid": os.getpid()}

    # -- snapshots -------------------------------------------------------------------------------------------------

    def _snapshot_if_due(self) -> None:
        """Begin one at half of the time allowed; wait for it before more than allowed could be lost."""
        age = self.server.version - self._saved
        if self._writer is None and age * 2 >= self._snapshot_every:
            self._begin_snapshot()
        if self._writer is not None and (age >= self._snapshot_every or not self._writer.is_alive()):
            self._end_snapshot()

    def _begin_snapshot(self) -> None:
        state = make_snapshot(self.server.parameters.clone(), self.server.rule, self._first_batch, self.server.version,
                              self._lost, self._outer)
        self._writing = self.server.version
        self._writer = Thread(target=write_snapshot, args=(self._path, state))
        self._writer.start()

    def _end_snapshot(self) -> None:
        if self._writer is not None:
            self._writer.join()
            self._writer, self._saved = None, self._writing


def first_snapshot(folder: Path, number: int) -> Path:
    """Where a shard looks for its parameters when it starts for the first time."""
    return folder / f"shard-{number}.0000.pt"


def claim_generation(folder: Path, number: int) -> tuple[Path, dict[str, Any], Path]:
    """The newest snapshot of a shard: path and content; and the path of the next, with a copy of the ledger beside it.

    Every process writes files of its own: one that was stopped, given up and comes back later disturbs nobody. One that
    is merely cut off may write while this reads, so the ledger is read last: it knows every push in the snapshot.
    """
    before = max(folder.glob(f"shard-{number}.*.pt"), default=first_snapshot(folder, number))
    generation = max((int(path.suffixes[-2][1:]) for path in folder.glob(f"shard-{number}.*.ledger")), default=0)
    path = folder / f"shard-{number}.{generation + 1:04d}.pt"
    state = read_snapshot(before)
    ledger = before.with_suffix(".ledger")
    content = ledger.read_bytes() if ledger.exists() else b""
    path.with_suffix(".ledger").write_bytes(content[: len(content) // LAYOUT.size * LAYOUT.size])
    return before, state, path


def make_snapshot(parameters: Tensor, rule: StepRule, first_batch: int, version: int = 0, lost: int = 0,
                  outer: StalenessHistogram | None = None) -> dict[str, Any]:
    """What a shard needs to begin, besides its ledger."""
    outer = outer or StalenessHistogram()
    return {"parameters": parameters, "rule": asdict(rule), "first_batch": first_batch, "version": version,
            "lost": lost, "outer_updates": torch.from_numpy(outer.updates),
            "outer_seconds": torch.from_numpy(outer.seconds)}


def write_snapshot(path: Path, state: Mapping[str, Any]) -> None:
    """Replace the snapshot in one step."""
    temporary = path.with_suffix(".tmp")
    torch.save(dict(state), temporary)
    os.replace(temporary, path)


def read_snapshot(path: Path) -> dict[str, Any]:
    """The snapshot; nothing in it can run."""
    try:
        return torch.load(path, weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path}: no snapshot of the server's shard. Is the folder seen by all machines of the cluster? "
                       "Give a folder on shared storage.") from None


def _rule(state: Mapping[str, Any]) -> StepRule:
    return StepRule(**{**state, "components": tuple(Bound(**bound) for bound in state["components"])})
