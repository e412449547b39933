"""A real asynchronous system under faults: every so often a process is killed or stopped, and training goes on.

Told are the acknowledged samples (those undone by the death of a shard taken off) per second of each worker that is
alive and ready, with faults against without, and whether the final loss is one that clean runs with other seeds could
have: as many updates on the simulated clock, from other initial parameters, with another order of the data, and the
interval in which 95 % of further seeds are expected. Computing a gradient takes at least ``PACE`` seconds, asleep, so
that the workers do not take each other's processor.

    python benchmarks/chaos_async.py --minutes 10 --every 30

Targets: 85 % of the samples; the loss within the spread of the seeds.
"""

import argparse
import contextlib
import math
import os
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path

import torch
from _common import environment, write_result

from hemstitch.parallel import AsynchronousSimulation, Cluster, Delay, FlatGradient, StepRule
from hemstitch.parallel.ray import AsynchronousTraining
from hemstitch.testing import tiny_mlp

PACE = 0.2
REPLICAS, NUM_BATCHES, RULE = 4, 64, StepRule(lr=0.02)
PATIENCE = 10.0
SEEDS = range(1, 6)
STUDENT = 2.776             # 97.5 % quantile of the t distribution with 4 degrees of freedom
FAULTS = ("kill worker", "kill shard", "stop worker 3 s", "kill worker", "kill evaluation", "stop worker for good",
          "stop shard 3 s", "kill shard")


def problem():
    """A network, the gradient on its batches, and the batches."""
    tiny = tiny_mlp(num_inputs=10, width=16, num_classes=5, num_batches=NUM_BATCHES)
    loss = tiny.loss
    return FlatGradient(tiny.model, lambda net, batch: (loss(net(batch[0]), batch[1]), len(batch[1]))), tiny.batches


def start_parameters(seed):
    """Initial parameters of another seed."""
    return FlatGradient(tiny_mlp(num_inputs=10, width=16, num_classes=5, seed=seed).model, None).parameters


def order_of(seed):
    """Number -> batch: each epoch another permutation."""
    known = {}

    def number_of(k):
        epoch, place = divmod(k, NUM_BATCHES)
        if epoch not in known:
            known.clear()
            known[epoch] = torch.randperm(
                NUM_BATCHES, generator=torch.Generator().manual_seed(1000 * seed + epoch)).tolist()
        return known[epoch][place]

    return number_of


def total_loss(parameters):
    """Mean over all batches."""
    gradient, batches = problem()
    return statistics.mean(gradient(parameters, batch)[1] for batch in batches)


def clean_loss(seed, updates):
    """The final loss of a clean run of one seed on the simulated clock."""
    gradient, batches = problem()
    number_of = order_of(seed)
    stream = (batches[number_of(k)] for k in range(10 * updates))
    simulation = AsynchronousSimulation(start_parameters(seed), gradient, lambda worker: stream, num_replicas=REPLICAS,
                                        rule=RULE, cluster=Cluster(compute=Delay(PACE, "gamma", 0.1)))
    simulation.run(updates=updates)
    return total_loss(simulation.parameters)


class Chaos:
    """Kills and stops processes of a training, by their ids."""

    def __init__(self, training, every):
        self.training, self.every, self.random = training, every, random.Random(0)
        self.due, self.stopped, self.done = time.monotonic() + every, [], []

    def act(self):
        """The next fault, if it is due; those that were stopped for a while are let go on."""
        now = time.monotonic()
        for moment, pid in [entry for entry in self.stopped if entry[0] <= now]:
            self.stopped.remove((moment, pid))
            send(pid, signal.SIGCONT)
        if now >= self.due:
            self.due += self.every
            self.strike(FAULTS[len(self.done) % len(FAULTS)])

    def strike(self, fault):
        """One fault."""
        what = {"worker": "replicas", "shard": "shards", "evaluation": "others"}[fault.split()[1]]
        pids = self.training.pids[what]
        if not pids:
            return
        pid = self.random.choice(pids)
        send(pid, signal.SIGKILL if fault.startswith("kill") else signal.SIGSTOP)
        if fault.endswith("3 s"):
            self.stopped.append((time.monotonic() + 3.0, pid))
        self.done.append(fault)
        print(f"{fault}: pid {pid}", flush=True)


def send(pid, number):
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def is_running(pid):
    """Whether a process is there and not stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "TZ"
    except OSError:
        return False


def phase(training, seconds, act=lambda: None):
    """Train for so long; acknowledged samples that stay, and seconds of workers alive and ready, summed."""
    before, worker_seconds = training.report(), 0.0
    begin = last = time.monotonic()
    while time.monotonic() - begin < seconds:
        training.watch(evaluate_every=100)
        act()
        now = time.monotonic()
        worker_seconds += (now - last) * sum(map(is_running, training.pids["replicas"]))
        last = now
    after = training.report()
    kept = 1 - (after.lost_updates - before.lost_updates) / (2 * max(1, after.updates - before.updates))
    return (after.samples - before.samples) * kept, worker_seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between faults")
    parser.add_argument("--clean", type=float, default=60.0, help="seconds without faults, before and after")
    options = parser.parse_args()
    torch.set_num_threads(1)
    gradient, batches = problem()
    number_of = order_of(0)

    def paced(parameters, batch):
        time.sleep(PACE)
        return gradient(parameters, batch)

    with tempfile.TemporaryDirectory() as folder, AsynchronousTraining(
        start_parameters(0), lambda worker: paced, lambda k: batches[number_of(k)], num_replicas=REPLICAS,
        num_processes=REPLICAS, num_shards=2, rule=RULE, snapshot_every=20, patience=PATIENCE, folder=folder,
        evaluate=lambda parameters: {"loss": total_loss(parameters)},
    ) as training:
        training.wait_until_ready()
        training.proceed()
        chaos = Chaos(training, options.every)
        first = phase(training, options.clean)
        chaos.due = time.monotonic() + options.every
        disturbed = phase(training, 60 * options.minutes, chaos.act)
        for _, pid in chaos.stopped:
            send(pid, signal.SIGCONT)
        last = phase(training, options.clean)
        training.pause()
        report, loss = training.report(), total_loss(training.parameters)
    clean = (first[0] + last[0]) / (first[1] + last[1])
    losses = [clean_loss(seed, report.updates) for seed in SEEDS]
    middle, width = statistics.mean(losses), STUDENT * statistics.stdev(losses) * math.sqrt(1 + 1 / len(losses))
    write_result("chaos_async", {
        "what": __doc__.splitlines()[0], "minutes": options.minutes, "seconds_between_faults": options.every,
        "faults": chaos.done, "workers": REPLICAS, "shards": 2,
        "samples_per_worker_second": {"clean": round(clean, 2), "with faults": round(disturbed[0] / disturbed[1], 2)},
        "worker_seconds": round(disturbed[1], 1), "ratio": round(disturbed[0] / disturbed[1] / clean, 4),
        "target": 0.85, "updates": report.updates, "abandoned_batches": report.abandoned,
        "undone_updates": report.lost_updates, "replica_failures": report.failures,
        "shard_restarts": report.shard_restarts, "replies": dict(report.counts),
        "final_loss": round(loss, 5), "clean_losses": [round(value, 5) for value in losses],
        "interval": [round(middle - width, 5), round(middle + width, 5)],
        "loss_within_interval": abs(loss - middle) <= width,
        "messages": [f"{seconds:.0f} s: {text}" for seconds, text in report.messages], **environment()})


if __name__ == "__main__":
    main()
