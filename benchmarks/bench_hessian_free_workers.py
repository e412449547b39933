"""Time of Hessian-free steps by the number of workers, and whether they end with the same bits.

A classifier 784-500-500-10 on random images (what they show does not matter for the time), curvature from half of them,
8 logical shards, 10 conjugate gradient iterations. Workers are processes that sum over the reducer, one thread each, on
one machine: with more workers than processors nothing can be won. ``two alone``: two processes that each do the work of
one worker and do not speak with each other; what two workers can win on this machine at most. All take turns,
``--rounds 3``.

    python benchmarks/bench_hessian_free_workers.py [--launcher ray] [--images 2048]
"""

import argparse
import hashlib
import os
import statistics
import sys
import time

import torch
from _common import environment, write_result
from torch import nn

from hemstitch.comm import LocalReducer
from hemstitch.curvature import ProgressTest
from hemstitch.optim import HessianFree, batch_closure
from hemstitch.parallel import LocalWorkers

WORKERS, IMAGES, SHARDS, STEPS, ITERATIONS = (1, 2, 4, "two alone"), 8192, 8, 2, 10


def work(reducer, images, steps):
    """Take steps; seconds of each but the first, and a digest of the parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 500), nn.Sigmoid(), nn.Linear(500, 500), nn.Sigmoid(), nn.Linear(500, 10))
    x, y = torch.randn(images, 784), torch.randint(10, (images,))
    optimizer = HessianFree(model.parameters(), max_cg=ITERATIONS, progress=ProgressTest(tolerance=0.0),
                            reducer=reducer, num_shards=SHARDS)
    whole = batch_closure(model, nn.CrossEntropyLoss(), x, y, sample=optimizer.sample)
    half = batch_closure(model, nn.CrossEntropyLoss(), x[::2], y[::2], sample=optimizer.sample)
    seconds = []
    for _ in range(1 + steps):
        start = time.perf_counter()
        optimizer.step(lambda role: (half if role == "curvature" else whole)(role))
        seconds.append(time.perf_counter() - start)
    parameters = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    return seconds[1:], hashlib.sha256(parameters.numpy().tobytes()).hexdigest()


def work_alone(reducer, images, steps):
    """As if there were no others."""
    return work(LocalReducer(), images, steps)


def launched(launcher, number, args):
    """What each of the workers returns."""
    program, number = (work_alone, 2) if number == "two alone" else (work, number)
    if launcher == "ray":
        from ray import cloudpickle

        from hemstitch.parallel.ray import RayWorkers

        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        workers = RayWorkers(program, number, args=args)
    else:
        workers = LocalWorkers(program, number, args=args, threads=1)
    with workers:
        return workers.results(timeout=600)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--launcher", choices=["local", "ray"], default="local")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=IMAGES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds, digests = {number: [] for number in WORKERS}, set()
    for _ in range(options.rounds):
        for number in WORKERS:
            results = launched(options.launcher, number, (options.images, STEPS))
            seconds[number] += [max(each) for each in zip(*(times for times, _ in results))]    # the slowest one counts
            digests |= {digest for _, digest in results}
    alone = statistics.median(seconds[1])
    halves = {"two alone": 2}                               # they do twice the work
    write_result("hessian_free_workers" + (f"_{options.images}" if options.images != IMAGES else ""), {
        "what": __doc__.splitlines()[0], "launcher": options.launcher, "processors": os.cpu_count(),
        "images": options.images, "shards": SHARDS, "conjugate_gradient_iterations": ITERATIONS,
        "rounds": options.rounds, "equal_bits": len(digests) == 1, "seconds_per_step": {
            number: {"median": round(statistics.median(values), 3), "lowest": round(min(values), 3),
                     "highest": round(max(values), 3), "speed-up": round(halves.get(number, 1) * alone / statistics.median(values), 2)}
            for number, values in seconds.items()}, **environment()})


if __name__ == "__main__":
    main()
