"""Hessian-free on a small autoencoder, at equal passes over the data: what sampling the curvature brings.

A pass is one forward or backward pass over all samples; a curvature product counts as four, times the share of the
samples it is taken on. Adam and SGD with momentum on minibatches stand beside it, each with the best of three rates:
on so small a network minibatches win, and the picture says so.
"""

from itertools import pairwise

import torch
from _picture import axes, save

from hemstitch.optim import HessianFree, batch_closure
from hemstitch.sampling import GrowingSample, SampleGrowth

PASSES, SAMPLES, BATCH = 500, 1024, 128


def curves():
    generator = torch.Generator().manual_seed(0)
    phase, speed = torch.rand(2, SAMPLES, 1, generator=generator)
    return 0.5 + 0.4 * torch.sin(torch.linspace(0, 6, 64) * (1 + speed) + 6 * phase)


def autoencoder():
    torch.manual_seed(1)
    widths, layers = (64, 48, 24, 3, 24, 48, 64), []
    for inputs, outputs in pairwise(widths):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers[:-1])


def error(model, x):
    with torch.no_grad():
        return float(torch.nn.functional.mse_loss(model(x), x))


def hessian_free(x, curvature_sample):
    model, spent, path = autoencoder(), 0.0, []
    samples = {"curvature": GrowingSample(SAMPLES, SampleGrowth(start=curvature_sample))}
    optimizer = HessianFree(model.parameters(), damping=0.01, samples=samples)
    closure = batch_closure(model, torch.nn.MSELoss(), x, x, sample=optimizer.sample)
    while spent < PASSES:
        optimizer.step(closure)
        report = optimizer.report()
        cost = {"gradient": 2, "curvature": 4, "evaluate": 1}
        spent += sum(cost[role] * report.passes[role] * report.weights[role] / SAMPLES for role in cost)
        path.append((spent, error(model, x)))
    return path


def minibatches(x, make):
    model, path, batches = autoencoder(), [], SAMPLES // BATCH
    optimizer = make(model.parameters())
    for step in range(PASSES // 2 * batches):
        rows = torch.randint(SAMPLES, (BATCH,))
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x[rows]), x[rows]).backward()
        optimizer.step()
        if step % (10 * batches) == 0:
            path.append((2 * step / batches, error(model, x)))
    return path


if __name__ == "__main__":
    torch.set_num_threads(1)
    x = curves()
    adam = [minibatches(x, lambda p, lr=lr: torch.optim.Adam(p, lr)) for lr in (1e-3, 3e-3, 1e-2)]
    sgd = [minibatches(x, lambda p, lr=lr: torch.optim.SGD(p, lr, momentum=0.9)) for lr in (0.1, 0.3, 1.0)]
    paths = {
        "SGD with momentum": min(sgd, key=lambda path: path[-1][1]),
        "Adam": min(adam, key=lambda path: path[-1][1]),
        "Hessian-free, curvature on all": hessian_free(x, SAMPLES),
        "Hessian-free, curvature on 1/8": hessian_free(x, SAMPLES // 8),
    }
    figure, plot = axes("Autoencoder 64-48-24-3-24-48-64", "passes over the data", "reconstruction error", yscale="log")
    for name, path in paths.items():
        plot.plot(*zip(*path), label=name)
        print(f"{name}: {path[-1][1]:.2e}")
    plot.legend(frameon=False)
    save(figure, __file__)
