"""What the tests of the simulations share."""

from itertools import cycle, islice

import torch

from hemstitch.parallel import FlatGradient
from hemstitch.testing import quadratic, tiny_mlp

NOTHING = torch.empty(0)


def no_gradient(parameters, batch):
    """For tests of the clock alone."""
    return NOTHING, 0.0, 1.0


def for_ever(worker):
    """Endless batches that hold nothing."""
    return cycle([worker])


def mlp(num_batches=12, dtype=torch.float64):
    """A network as a flat gradient, and an endless stream of its batches for each worker, each from another start."""
    problem = tiny_mlp(num_batches=num_batches, dtype=dtype)
    gradient = FlatGradient(problem.model, lambda net, batch: (problem.loss(net(batch[0]), batch[1]), len(batch[1])))

    def batches(worker):
        return islice(cycle(problem.batches), worker % num_batches, None)

    return gradient, batches


def bowl(noise=0.0):
    """A quadratic in closed form: gradient H (theta - x) for a row x; much faster than through a network."""
    problem = quadratic(noise=noise, num_batches=40)
    curvature = torch.logspace(0, 1, 4, base=0.1, dtype=torch.float64)
    rows = [batch.mean(0) for batch, _ in problem.batches]

    def gradient(parameters, row):
        offset = parameters - row
        return curvature * offset, float(0.5 * (offset.square() * curvature).sum()), 8.0

    return problem.model.theta.detach().clone(), gradient, lambda worker: islice(cycle(rows), worker % len(rows), None)
