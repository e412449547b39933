"""Simulating 500 replicas against their gradient computations alone.

Ours is ``AsynchronousSimulation.run`` and ``AveragingSimulation.run`` (10 steps between averages, far fewer than in use);
base is a plain loop that calls the same gradient function as often, on the same batches, round and round over 500
parameter vectors, one per replica. Both in steady state: the memory of 500 replicas has been touched before. Ratio ours /
base in seconds per gradient, target 1.1. "serial SGD" is the same for a loop that also takes the steps (norm and
addition), one replica: what no simulation can be below. The network is 440 - 512 - 512 - 183 (0.6 million parameters),
cross-entropy; batch sizes of the paper (32 for sequence training, 200 for frames). Also: updates per second when nothing
is computed (planning).
"""

import argparse
import statistics
import time
from itertools import count

import torch
from _common import environment, write_result
from torch import nn

from hemstitch.parallel import (
    AsynchronousSimulation,
    AveragingSimulation,
    Cluster,
    Delay,
    FlatGradient,
    Network,
    StepRule,
    plan_asynchronous,
)

TARGET, REPLICAS, STEPS = 1.1, 500, 10
CLUSTER = Cluster(compute=Delay(1.0, "gamma", 0.3), network=Network(latency=0.01))
RULE = StepRule(lr=1e-4, max_change=2.0)


def problem(batch_size):
    """Gradient function, start and an endless stream of batches for each worker."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(440, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 183))
    frames, labels = torch.randn(20_000, 440), torch.randint(183, (20_000,))

    def loss(net, indices):
        return nn.functional.cross_entropy(net(frames[indices]), labels[indices]), len(indices)

    def batches(worker):
        for step in count():
            yield (torch.arange(batch_size) + batch_size * (step + 37 * worker)) % len(frames)

    gradient = FlatGradient(model, loss)
    return gradient, gradient.parameters, batches


def seconds_of(run):
    """Of one gradient; the function returns how many it computed."""
    start = time.perf_counter()
    number = run()
    return (time.perf_counter() - start) / number


def measure(batch_size, num_gradients, rounds):
    gradient, start, batches = problem(batch_size)
    own = [start.clone() for _ in range(REPLICAS)]
    streams = [batches(worker) for worker in range(REPLICAS)]
    simulation = AsynchronousSimulation(start, gradient, batches, num_replicas=REPLICAS, rule=RULE, cluster=CLUSTER)
    averages = AveragingSimulation(start, gradient, batches, num_replicas=REPLICAS, rule=RULE, cluster=CLUSTER,
                                   every=batch_size * STEPS)

    def base():
        for step in range(num_gradients):
            gradient(own[step % REPLICAS], next(streams[step % REPLICAS]))
        return num_gradients

    def asynchronous():
        before = simulation.report().gradients
        return simulation.run(updates=simulation.report().updates + num_gradients).gradients - before

    def averaging():
        averages.run(1)
        return STEPS * REPLICAS

    def serial():
        theta = start.clone()
        for step in range(num_gradients):
            step_by = gradient(theta, next(streams[step % REPLICAS]))[0]
            theta.add_(step_by, alpha=-1e-4 * min(1.0, 2.0 / float(torch.linalg.vector_norm(step_by))))
        return num_gradients

    ways = {"asynchronous": asynchronous, "serial SGD": serial}
    if batch_size == 32:
        ways["averaging"] = averaging
    ratios = {name: [] for name in ways}
    for run in (base, asynchronous, *ways.values()):        # touch the memory
        run()
    for _ in range(rounds):
        for name, way in ways.items():
            before, ours, after = map(seconds_of, (base, way, base))
            ratios[name].append(2 * ours / (before + after))
    return {name: {"ratio": round(statistics.median(values), 3), "lowest": round(min(values), 3),
                   "highest": round(max(values), 3)} for name, values in ratios.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--gradients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = {f"batch {size}": measure(size, options.gradients, options.rounds) for size in (32, 200)}
    planning = seconds_of(lambda: plan_asynchronous(CLUSTER, num_replicas=REPLICAS, samples=20_000, batch_size=1,
                                                    num_parameters=10**7).updates)
    write_result("simulation", {
        "what": __doc__.splitlines()[0], "target": TARGET, "replicas": REPLICAS, "gradients": options.gradients,
        "cases": cases, "planned updates per second": round(1 / planning), "rounds": options.rounds,
        **environment()})


if __name__ == "__main__":
    main()
