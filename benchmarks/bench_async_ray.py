"""One fetch and one acknowledged push through the real asynchronous system, against shared memory between two processes.

Ours is what a replica does: parameters from every shard of the server, the gradient to every shard, each push answered
after it has been applied and entered in the ledger. Shared memory is the least that could be: a process that copies its
parameters into a buffer, and applies the gradient that the other one has copied into another, each told through a pipe.
Both compute the norm of the gradient, which decides whether it is finite. Ratio ours / shared memory in seconds,
interleaved round by round; targets 3 for 10 million parameters, 2 for 30 million on 4 shards. ``--rounds 20``.

Then whether ages are those of the simulation: replicas that take random times (asleep, so that they do not need the
same processor) for a gradient, as real processes and on the simulated clock with the same configuration.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _common import environment, write_result
from torch import multiprocessing

from hemstitch.parallel import AsynchronousSimulation, Cluster, Delay, StepRule
from hemstitch.parallel._server_shards import Message
from hemstitch.parallel.ray import AsynchronousTraining, connected
from hemstitch.parallel.ray._link import Layout, Link, RealTimes
from hemstitch.parallel.ray._real_clock import RealClock
from hemstitch.parallel.ray._server import RemoteServer
from hemstitch.parallel.ray._shard import ServerShard

CASES = {"10M, 1 shard": (10_000_000, 1, 3.0), "30M, 4 shards": (30_000_000, 4, 2.0)}
LR = 1e-3
REPLICAS, PACE, VARIATION = 6, 0.4, 0.3


def serve(parameters, outbox, inbox, pipe):
    """The server of the shared-memory way: answers until told to end."""
    torch.set_num_threads(1)
    while (wish := pipe.recv()) != "end":
        if wish == "fetch":
            outbox.copy_(parameters)
        else:
            parameters.add_(inbox, alpha=-LR)
        pipe.send("done")


class SharedMemory:
    """A worker's view of it."""

    def __init__(self, size):
        context = multiprocessing.get_context("spawn")
        self.outbox, self.inbox = torch.zeros(size).share_memory_(), torch.zeros(size).share_memory_()
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(torch.zeros(size), self.outbox, self.inbox, theirs))
        self.process.start()

    def round(self, gradient):
        """Fetch and push once."""
        self._ask("fetch")
        float(torch.linalg.vector_norm(gradient))
        self.inbox.copy_(gradient)
        self._ask("push")

    def _ask(self, wish):
        self.pipe.send(wish)
        self.pipe.recv()

    def close(self):
        """End the process."""
        self.pipe.send("end")
        self.process.join()


class Worker:
    """A replica's link to real shards, without the replica."""

    def __init__(self, ray, size, num_shards, folder):
        self.clock = RealClock(ray.wait)
        self.server = RemoteServer(ray, ServerShard, Path(folder), torch.zeros(size), StepRule(LR), num_shards,
                                   snapshot_every=100, first_batch=0, patience=60.0, tell=print)
        self.server.allow(10**9)
        self.link = Link(ray, self.clock, self.server.shards, Layout(self.server.cuts, False), 0, 1)
        self.incarnations, self.seq = self.link.register(0), 0

    def round(self, gradient):
        """Fetch and push once."""
        done = []
        self.clock.start(self._fetch_and_push(gradient, done))
        self.clock.run(stop=lambda: bool(done))

    def _fetch_and_push(self, gradient, done):
        snapshot = yield from self.link.fetch(RealTimes())
        self.seq += 1
        message = Message(0, self.seq, self.incarnations, snapshot.versions, snapshot.seconds, gradient,
                          norm=float(torch.linalg.vector_norm(gradient)), loss=0.0, weight=1.0,
                          may_be_overwritten=False)
        yield from self.link.push(message, RealTimes(), lambda: None)
        done.append(True)


def measure(ray, size, num_shards, rounds):
    """Seconds of both ways, in turn."""
    gradient, shared = torch.full((size,), 1e-3), SharedMemory(size)
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(ray, size, num_shards, folder)
        ways, seconds = {"ours": worker, "shared memory": shared}, {"ours": [], "shared memory": []}
        for _ in range(rounds + 2):
            for name, way in ways.items():
                start = time.perf_counter()
                way.round(gradient)
                seconds[name].append(time.perf_counter() - start)
        assert sum(shard["counts"]["accepted"] for shard in map(ray.get, (
            handle.status.remote() for handle in worker.server.shards))) == num_shards * (rounds + 2)
        for handle in worker.server.shards:
            ray.kill(handle)
    shared.close()
    return {name: values[2:] for name, values in seconds.items()}


def measure_ages(updates):
    """Ages in updates of real and of simulated gradients; how far apart the distributions are."""
    def gradient_of(worker):
        draw = np.random.default_rng(worker)

        def gradient(parameters, batch):
            time.sleep(draw.gamma(1 / VARIATION**2, PACE * VARIATION**2))
            return torch.zeros_like(parameters), 0.0, 1.0

        return gradient

    def simulated(seed):
        simulation = AsynchronousSimulation(
            torch.zeros(10), lambda parameters, batch: (torch.zeros(10), 0.0, 1.0), lambda worker: itertools.repeat(0),
            num_replicas=REPLICAS, rule=StepRule(LR), cluster=Cluster(compute=Delay(PACE, "gamma", VARIATION), seed=seed))
        return simulation.run(updates=updates).inner

    with AsynchronousTraining(torch.zeros(10), gradient_of, lambda number: number, num_replicas=REPLICAS,
                              num_processes=REPLICAS, rule=StepRule(LR)) as training:
        training.wait_until_ready()
        real = training.run(updates=updates).inner
    others = [simulated(seed) for seed in range(2)]
    return {"replicas": REPLICAS, "updates": updates, "seconds_per_gradient": PACE, "variation": VARIATION,
            "real": shares(real), "simulated": shares(others[0]),
            "mean": {"real": round(real.mean, 3), "simulated": round(others[0].mean, 3)},
            "distance": {"real to simulated": distance(real, others[0]), "between two seeds": distance(*others)}}


def shares(ages):
    """Share of the gradients by age."""
    return (ages.counts / ages.counts.sum()).round(4).tolist()


def distance(one, other):
    """Total variation: the share of gradients that would have to be of another age."""
    return round(0.5 * sum(abs(a - b) for a, b in itertools.zip_longest(shares(one), shares(other), fillvalue=0.0)), 4)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    cases = {}
    with connected(num_cpus=8, store_bytes=2**30) as ray:
        for name, (size, num_shards, target) in CASES.items():
            seconds = measure(ray, size, num_shards, rounds)
            ratios = sorted(a / b for a, b in zip(seconds["ours"], seconds["shared memory"]))
            cases[name] = {"ratio": round(statistics.median(ratios), 3), "lowest": round(ratios[0], 3),
                           "highest": round(ratios[-1], 3), "target": target,
                           **{f"{way} seconds": round(statistics.median(values), 4) for way, values in seconds.items()}}
    write_result("async_ray", {"what": __doc__.splitlines()[0], "cases": cases, "rounds": rounds,
                               "ages": measure_ages(updates=600),
                               "ray": ray.__version__, **environment()})


if __name__ == "__main__":
    main()
