"""A training on real processes that can be counted, and ways to end processes at a given moment.

Every gradient is a vector of ones and every step takes it times 2**-10, so the parameters tell, to the bit, how many
gradients have been applied to them.
"""

import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from ray import cloudpickle

from hemstitch.parallel import StepRule
from hemstitch.parallel.ray import AsynchronousTraining
from hemstitch.parallel.ray._ledger import Kind, read_records
from hemstitch.parallel.ray._shard import ServerShard

cloudpickle.register_pickle_by_value(sys.modules[__name__])     # worker processes cannot import this module

STEP = 2.0**-10
SAMPLES = 4.0
BUSY_SECONDS = 0.02
MOST_SECONDS = 240          # for a condition to come true; the machine may be busy


def strike(folder, moment, pid=None):
    """Send a process (this one) the signal that a file orders for this moment; once."""
    path = Path(folder, moment)
    try:
        number = int(path.read_text())
        path.unlink()
    except FileNotFoundError:
        return
    os.kill(pid or os.getpid(), number)


def order(folder, moment, number=signal.SIGKILL):
    """Let the next process that comes to this moment die, or stop."""
    temporary = Path(folder, "order")
    temporary.write_text(str(int(number)))
    temporary.rename(Path(folder, moment))


class MortalShard(ServerShard):
    """A shard of the server that dies, or kills the worker it speaks with, at a given moment."""

    def register(self, worker):
        strike(self._path.parent, "registration before")
        reply = super().register(worker)
        strike(self._path.parent, "registration after")
        return reply

    def fetch(self, worker, incarnation, batches):
        reply = super().fetch(worker, incarnation, batches)
        if reply.batches[1] > 0:
            strike(self._path.parent, "fetch after")
            strike(self._path.parent, "worker fetches", self._pid_of(worker))
        return reply

    def push(self, push, gradient):
        strike(self._path.parent, "push before")
        reply = super().push(push, gradient)
        strike(self._path.parent, "push after")
        strike(self._path.parent, "worker pushes", self._pid_of(push.worker))
        return reply

    def _pid_of(self, worker):
        path = self._path.parent / f"worker-{worker}.pid"
        return int(path.read_text()) if path.exists() else None


class MortalTraining(AsynchronousTraining):
    """With shards that die when ordered."""

    shard_class = MortalShard


def ones(folder):
    """Replica -> a gradient function that takes a moment, and may be its process's last."""

    def gradient_of(worker):
        strike(folder, "worker starts")
        Path(folder, f"worker-{worker}.pid").write_text(str(os.getpid()))

        def gradient(parameters, batch):
            time.sleep(BUSY_SECONDS)
            strike(folder, "worker computes")
            return torch.ones_like(parameters), 0.0, SAMPLES

        return gradient

    return gradient_of


def counted_training(folder, parameters=6, **options):
    """The training; ``options`` as for `AsynchronousTraining`."""
    if "decoding" not in options:
        options["batch"] = lambda number: number
    return MortalTraining(torch.zeros(parameters), ones(folder), rule=StepRule(STEP), folder=folder, **options)


def watch_until(training, condition, what):
    """Look after the processes until something is so."""
    deadline = time.monotonic() + MOST_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not after {MOST_SECONDS} s; {training.report()}"
        training.watch()


def go_on(training, batches):
    """Let so many more batches be computed, to the end."""
    training.proceed(training.report().batches + batches)
    watch_until(training, lambda: training.is_idle, "all batches answered")
    training.pause()


def newest_records(folder, shard):
    """The ledger of a shard's latest process."""
    return read_records(max(Path(folder).glob(f"shard-{shard}.*.ledger")))


def check_counts(training, folder):
    """Every promise about numbers, exactly; the training must rest."""
    training._server.refresh()
    report, status = training.report(), training._server.status
    assert report.under_way == 0 and report.answered + report.abandoned == report.batches
    assert report.samples == SAMPLES * report.updates
    parameters = training.parameters
    for number, (shard, cut) in enumerate(zip(status, training._server.cuts)):
        applied = Counter((record.worker, record.incarnation, record.number)
                          for record in newest_records(folder, number) if record.kind == Kind.ACCEPTED)
        assert set(applied.values()) == {1}                             # never twice
        assert len(applied) == shard["version"] == shard["counts"]["accepted"]
        assert (parameters[cut] / -STEP).tolist() == [shard["version"] - shard["lost"]] * (cut.stop - cut.start)
    return report


def refused_after_a_newer_life(folder, shard):
    """Pushes of workers' older lives that came after newer ones had begun, by how they were answered."""
    lives, found = Counter(), Counter()
    for record in newest_records(folder, shard):
        if record.kind == Kind.REGISTERED:
            lives[record.worker] = record.incarnation
        elif record.kind <= Kind.NONFINITE and record.incarnation < lives[record.worker]:
            found[record.kind.status] += 1
    return found
