"""Averaging 10 million parameters over 2 worker processes, as a whole, against a bare all_reduce of as many numbers.

Ours is ``ParameterAveraging.average()``: the table of samples and losses, the check that all is finite, the weighted
sum, and writing the average into the parameters; in shared memory and, for workers of several machines, over sockets.
Bare is one gloo all_reduce of a flat tensor in place (a sum: no weights, no mean, no survivor). Ratio ours / bare in
seconds, target 1.2. Run with ``--rounds 15``.
"""

import argparse
import itertools
import statistics
import time

import torch
from _common import environment, write_result
from torch import nn

from hemstitch.parallel import LocalWorkers, ParameterAveraging

TARGET = 1.2


def network():
    """About 10 million parameters."""
    sizes = [440, 1600, 1600, 1600, 1600, 900]
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))


def measure(reducer, rounds):
    """Seconds of each way, interleaved, as the slowest worker sees them: all start together."""
    model = network()
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    averaging = ParameterAveraging(model, reducer, every=10**9)
    gloo = reducer._groups["cpu"]

    def average(shared_memory):
        reducer._may_share = shared_memory
        averaging.update(1000, 2.5)
        averaging.average()

    ways = {"bare": lambda: gloo.allreduce([flat]).wait(), "shared memory": lambda: average(True),
            "sockets": lambda: average(False)}
    seconds = {name: [] for name in ways}
    for _ in range(rounds + 1):
        flat.fill_(1.0)
        for name, run in ways.items():
            gloo.barrier().wait()
            start = time.perf_counter()
            run()
            gloo.barrier().wait()
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}, flat.numel()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with LocalWorkers(measure, 2, args=(rounds,), threads=1) as workers:
        (seconds, num_parameters), _ = workers.results()
    bare = seconds.pop("bare")
    cases = {}
    for name, ours in seconds.items():
        ratios = sorted(a / b for a, b in zip(ours, bare))
        cases[name] = {"ratio": round(statistics.median(ratios), 3), "lowest": round(ratios[0], 3),
                       "highest": round(ratios[-1], 3), "seconds": round(statistics.median(ours), 4)}
    write_result("averaging", {
        "what": __doc__.splitlines()[0], "target": TARGET, "num_parameters": num_parameters, "workers": 2,
        "cases": cases, "bare_seconds": round(statistics.median(bare), 4), "rounds": rounds, **environment()})


if __name__ == "__main__":
    main()
