"""Hessian-free optimisation end to end on MNIST at equal passes, and which pairs precondition best.

    python benchmarks/bench_hessian_free.py [--quick]

- Autoencoder: 784-250-100-30-100-250-784, sigmoid units, 4096 images, binary cross-entropy summed over pixels.
  Curvature from 256 images, 512 others accept or reject the Hessian-free steps.
- Classifier: 784-128-128-10, sigmoid units, 2048 images; curvature from 256 of them, the others' role played by the
  training set itself: optimisation alone.

A pass is one gradient over the training images (a curvature product counts 4/3, a forward pass 1/3, each times its share
of the images). Baselines take the better of two learning rates, by the training loss at the end. The Hessian-free settings
(damping, curvature sample) were found in about twenty earlier runs on these two tasks: more search than the baselines
had. The classifier runs from three seeds, the autoencoder from one.

Pairs: conjugate gradient iterations to Martens' stop on a classifier, with the pairs of a run before: at the same
parameters or after the step that run gave, and with the same, a containing or another curvature sample.
"""

import gzip
import itertools
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from _common import environment, write_result
from torch import nn

from hemstitch.curvature import (
    FlatParameters,
    LBFGSPreconditioner,
    PairStore,
    ProgressTest,
    conjugate_gradient,
    gauss_newton,
)
from hemstitch.optim import HessianFree, batch_closure
from hemstitch.sampling import GrowingSample, SampleGrowth

MNIST = Path(__file__).resolve().parents[2] / "shared/data/mnist"


def unpack(name, header):
    with gzip.open(MNIST / name) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def images(part, count, offset=0):
    raw = unpack(f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 784)
    return torch.from_numpy(raw[offset:offset + count].copy()).float() / 255


def labels(part, count):
    return torch.from_numpy(unpack(f"{part}-labels-idx1-ubyte.gz", 8)[:count].copy()).long()


def stack(widths, seed=0):
    """Sigmoid layers, Glorot's initialisation."""
    torch.manual_seed(seed)
    layers = [module for a, b in itertools.pairwise(widths) for module in (nn.Linear(a, b), nn.Sigmoid())][:-1]
    for layer in layers[::2]:
        nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


class PixelLoss(nn.BCEWithLogitsLoss):
    """Summed over pixels, mean over images."""

    def forward(self, outputs, targets):
        return super().forward(outputs, targets) * targets.shape[1]


# -- training at equal passes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What to train, on (inputs, targets), and how its outputs are judged on the test set."""

    widths: list
    loss: nn.Module
    train: tuple
    test: tuple
    error: Callable
    held_out: tuple | None = None
    num_curvature: int | None = None
    seed: int = 0

    def model(self):
        return stack(self.widths, self.seed)


def autoencoder():
    train, held_out, test = images("train", 4096), images("train", 512, 4096), images("t10k", 2000)
    squared = lambda z, x: (z.sigmoid() - x).square().sum(1).mean()
    return Task([784, 250, 100, 30, 100, 250, 784], PixelLoss(), (train, train), (test, test), squared,
                (held_out, held_out), num_curvature=256)


def classifier():
    return Task([784, 128, 128, 10], nn.CrossEntropyLoss(), (images("train", 2048), labels("train", 2048)),
                (images("t10k", 2000), labels("t10k", 2000)), lambda z, y: (z.argmax(1) != y).float().mean(),
                num_curvature=256)


class Curve:
    """Losses at given numbers of passes."""

    def __init__(self, task, model, marks):
        self.task, self.model, self.marks, self.points = task, model, list(marks), {}
        self.passes, self.start = 0.0, time.process_time()

    def add(self, passes):
        """Whether to go on."""
        self.passes += passes
        while self.marks and self.passes >= self.marks[0]:
            self.points[self.marks.pop(0)] = self.look()
        return bool(self.marks)

    @torch.no_grad()
    def look(self):
        seconds = time.process_time() - self.start
        (x, y), (test_x, test_y), loss = self.task.train, self.task.test, self.task.loss
        z = self.model(test_x)
        figures = {"train_loss": loss(self.model(x), y), "test_loss": loss(z, test_y),
                   "test_error": self.task.error(z, test_y)}
        rounded = {name: float(f"{value.item():.4g}") for name, value in figures.items()}
        return rounded | {"cpu_seconds": round(seconds, 1)}


def run_first_order(task, make, marks, batch=128):
    model, (x, y) = task.model(), task.train
    optimizer, curve = make(model.parameters()), Curve(task, model, marks)
    generator = torch.Generator().manual_seed(task.seed)
    while True:
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            optimizer.zero_grad()
            task.loss(model(x[rows]), y[rows]).backward()
            optimizer.step()
        if not curve.add(1.0):
            return curve.points


def run_lbfgs(task, marks):
    model, (x, y), calls = task.model(), task.train, []
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5, history_size=20, line_search_fn="strong_wolfe")
    curve = Curve(task, model, marks)

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        value = task.loss(model(x), y)
        value.backward()
        return value

    while curve.add(float(len(calls))):
        calls.clear()
        optimizer.step(closure)
        if not calls:                                           # converged: nothing more will happen
            curve.add(float("inf"))
    return curve.points


def run_hessian_free(task, marks, **options):
    model, num_train, reports = task.model(), len(task.train[0]), []
    samples = {}
    if task.num_curvature:
        samples["curvature"] = GrowingSample(num_train, SampleGrowth(start=task.num_curvature), task.seed)
    optimizer = HessianFree(model.parameters(), samples=samples, **options)
    closure = batch_closure(model, task.loss, *task.train, held_out=task.held_out, sample=optimizer.sample,
                            batch_size=1024)
    curve, passes = Curve(task, model, marks), 0.0
    while curve.add(passes):
        optimizer.step(closure)
        reports.append(optimizer.report())
        passes = reports[-1].cost / num_train
    return curve.points | {"steps": len(reports), "accepted": sum(report.accepted for report in reports),
                           "cg_iterations": sum(report.cg_iterations for report in reports)}


def compare(task, marks, damping):
    at_end = lambda points: points[marks[-1]]["train_loss"]
    baselines = {"adam": [lambda p, lr=lr: torch.optim.Adam(p, lr) for lr in (1e-3, 3e-3)],
                 "sgd_momentum_0.9": [lambda p, lr=lr: torch.optim.SGD(p, lr, momentum=0.9) for lr in (1e-2, 1e-1)]}
    result = {}
    for name, makes in baselines.items():
        runs = [run_first_order(task, make, marks) for make in makes]
        result[name] = min((run for run in runs if math.isfinite(at_end(run))), key=at_end)
    result["lbfgs_full_batch"] = run_lbfgs(task, marks)
    preconditioners = {"": {}, "_pc16_first": dict(preconditioner="lbfgs", keep_pairs="first"),
                       "_pc16_even": dict(preconditioner="lbfgs", keep_pairs="even"),
                       "_fisher_diagonal": dict(preconditioner="fisher")}
    for name, options in preconditioners.items():
        result[f"hessian_free{name}"] = run_hessian_free(task, marks, damping=damping, **options)
    return result


# -- pairs -------------------------------------------------------------------------------------------------------------


class Several:
    """Fills several stores from one run."""

    def __init__(self, stores):
        self.stores = stores

    def add(self, s, y, scale=1.0, curvature=None):
        for store in self.stores.values():
            store.add(s, y, scale, curvature)


def trained_classifier(x, y):
    model, loss = stack([784, 128, 128, 10]), nn.CrossEntropyLoss()
    optimizer, generator = torch.optim.Adam(model.parameters(), 1e-3), torch.Generator().manual_seed(0)
    for _ in range(400):
        rows = torch.randint(len(x), (100,), generator=generator)
        optimizer.zero_grad()
        loss(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model


def pair_study(dampings=(0.1, 0.01, 0.001)):
    """Iterations of the second run, by damping, place and sample."""
    x, y = images("train", 8000), labels("train", 8000)
    model, loss = trained_classifier(x, y), nn.CrossEntropyLoss()
    layout = FlatParameters(model.parameters())
    theta = layout.read()
    first = torch.arange(500)
    samples = {"same": first, "containing": torch.arange(650), "other": torch.arange(4000, 4650)}

    def solve(rows, damping, **options):
        slope = layout.flatten_trainable(torch.autograd.grad(loss(model(x), y), layout.params))
        A = gauss_newton(model, loss, x[rows], y[rows], engine="r_operator")
        return conjugate_gradient(A, -slope, damping=damping, progress=ProgressTest(), **options)

    result = {}
    for damping in dampings:
        stores = {f"{keep}{m}": PairStore(m, keep) for keep in ("even", "first", "last") for m in (16, 32)}
        before = solve(first, damping, pairs=Several(stores))
        for place in ("same parameters", "after the step"):
            start = None if place == "same parameters" else 0.95 * before.x
            layout.write_(theta if start is None else theta + before.x)
            for name, rows in samples.items():
                counts = {"none": solve(rows, damping, x0=start).iterations}
                for policy, store in stores.items():
                    counts[policy] = solve(rows, damping, x0=start, preconditioner=LBFGSPreconditioner(store),
                                           flexible=True).iterations
                result[f"damping {damping:g}, {place}, {name} sample"] = counts
        layout.write_(theta)
    return result


def main():
    torch.set_num_threads(1)
    marks = [5, 10] if "--quick" in sys.argv else [30, 100, 300]
    write_result("hessian_free", {
        "environment": environment(),
        "iterations_by_pair_policy": pair_study(),
        "autoencoder_by_passes": compare(autoencoder(), marks, damping=0.03),
        "classifier_by_passes": {f"seed {seed}": compare(replace(classifier(), seed=seed), marks, damping=0.1)
                                 for seed in (range(1) if "--quick" in sys.argv else range(3))},
    })


if __name__ == "__main__":
    main()
