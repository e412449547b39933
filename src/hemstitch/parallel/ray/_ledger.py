"""What a shard of the server has answered, in memory and in a file that survives the process.

The file is a list of records of fixed size, each written with one call of the system before the answer leaves: a record
is there if the answer can have been seen. A shard that is restarted reads them back and knows every life of a worker,
every push it has answered and every batch it has handed out; what it may have lost is only the effect on the parameters
of the pushes since its last snapshot, and of those the ledger knows the number.

The file outlives the process, not the machine: nothing waits for the disk.

Cost: 57 bytes and about ten microseconds per answer.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from hemstitch.parallel._parameter_server import PushStatus
from hemstitch.parallel._staleness import StalenessHistogram

LAYOUT = struct.Struct("<Biiqqdddd")


class Kind(IntEnum):
    """What a record tells; the first four are a `PushStatus` each."""

    ACCEPTED = 0
    DUPLICATE = 1
    STALE_INCARNATION = 2
    NONFINITE = 3
    REGISTERED = 4
    HANDED_OUT = 5
    LIMITED = 6
    STARTED = 7

    @property
    def status(self) -> PushStatus:
        """The reply it stands for."""
        return self.name.lower()  # type: ignore[return-value]


class Record(NamedTuple):
    """One answer.

    Attributes:
        kind: which.
        worker, incarnation: to whom.
        number: of the push in this life; of the first batch handed out; the limit.
        count: updates between fetch and push; batches handed out.
        age: seconds between fetch and push.
        samples, loss, norm: behind the push: samples, their mean loss, length of the gradient.
    """

    kind: Kind
    worker: int = 0
    incarnation: int = 0
    number: int = 0
    count: int = 0
    age: float = 0.0
    samples: float = 0.0
    loss: float = 0.0
    norm: float = 0.0


class Ledger:
    """The sums over all records.

    Args:
        path: the file; what it holds already counts.
        first_batch: number of the first batch to hand out.

    Attributes:
        lives: worker -> (incarnation, last answered push).
        counts: replies by status.
        inner: ages of the gradients applied.
        samples, loss, norm: sums over the applied gradients; the loss is weighted by samples.
        next_batch, limit: the batch to hand out next, and where to stop.
        under_way: worker -> batches handed out and not answered.
        handed_out: worker -> the latest batches handed out: (first, count).
        abandoned: batches of workers that died with them.
        starts: how often the process was started.
    """

    def __init__(self, path: Path, first_batch: int = 0) -> None:
        self.lives: dict[int, tuple[int, int]] = {}
        self.counts: Counter[str] = Counter()
        self.inner = StalenessHistogram()
        self.samples = self.loss = self.norm = 0.0
        self.next_batch = self.limit = first_batch
        self.under_way: Counter[int] = Counter()
        self.handed_out: dict[int, tuple[int, int]] = {}
        self.abandoned = self.starts = 0
        for record in read_records(path):
            self._count(record)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.ftruncate(self._file, os.fstat(self._file).st_size // LAYOUT.size * LAYOUT.size)     # a record cut short

    @property
    def answered(self) -> int:
        """Pushes applied or refused for good."""
        return self.counts["accepted"] + self.counts["nonfinite"]

    def add(self, record: Record) -> None:
        """Write a record, then count it."""
        os.write(self._file, LAYOUT.pack(*record))
        self._count(record)

    def _count(self, record: Record) -> None:
        kind, worker = record.kind, record.worker
        if kind <= Kind.NONFINITE:
            self.counts[kind.status] += 1
        if kind in (Kind.ACCEPTED, Kind.NONFINITE):
            self.lives[worker] = (record.incarnation, record.number)
            self.under_way[worker] -= 1
        if kind == Kind.ACCEPTED:
            self.inner.add(record.count, record.age)
            self.samples += record.samples
            self.loss += record.samples * record.loss
            self.norm += record.norm
        elif kind == Kind.REGISTERED:
            self.lives[worker] = (record.incarnation, -1)
            self.abandoned += self.under_way.pop(worker, 0)
        elif kind == Kind.HANDED_OUT:
            self.next_batch = record.number + record.count
            self.under_way[worker] += record.count
            self.handed_out[worker] = record.number, record.count
        elif kind == Kind.LIMITED:
            self.limit = record.number
        elif kind == Kind.STARTED:
            self.starts += 1

    def summary(self, ages_from: int = 0) -> dict[str, Any]:
        """Everything that a supervisor wants to know; ages only from a given one on."""
        return {
            "counts": Counter(self.counts), "answered": self.answered, "samples": self.samples, "loss": self.loss,
            "norm": self.norm, "next_batch": self.next_batch, "limit": self.limit,
            "under_way": sum(self.under_way.values()), "abandoned": self.abandoned, "starts": self.starts,
            "last_pushes": {worker: last for worker, (_, last) in self.lives.items()},
            "ages": self.inner.since(ages_from),
        }


def read_records(path: Path) -> list[Record]:
    """All complete records of a ledger's file, none if there is no file."""
    content = path.read_bytes() if path.exists() else b""
    usable = len(content) // LAYOUT.size * LAYOUT.size
    return [Record(Kind(kind), *rest) for kind, *rest in LAYOUT.iter_unpack(content[:usable])]
