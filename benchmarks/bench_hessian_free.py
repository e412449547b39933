"""Hessian-free optimisation end to end: an autoencoder of MNIST at equal passes, and which pairs precondition best.

    python benchmarks/bench_hessian_free.py [--quick]

Autoencoder: 784-250-100-30-100-250-784, sigmoid units, 4096 images, binary cross-entropy summed over pixels; 1024 other
images accept or reject Hessian-free steps, 2000 of the test set are looked at. A pass is one gradient over the 4096
images (a curvature product counts 4/3, a forward pass 1/3). Baselines take the better of their learning rates, by the
training loss at the end.

Pairs: conjugate gradient iterations to Martens' stop on a digit classifier, with the pairs of a run before: at the same
parameters or after the step that run gave, and with the same, a containing or another curvature sample.
"""

import gzip
import itertools
import sys
import time
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
NUM_TRAIN, NUM_HELD_OUT = 4096, 1024


def unpack(name, header):
    with gzip.open(MNIST / name) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def images(part, count, offset=0):
    raw = unpack(f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 784)
    return torch.from_numpy(raw[offset:offset + count].copy()).float() / 255


def labels(count):
    return torch.from_numpy(unpack("train-labels-idx1-ubyte.gz", 8)[:count].copy()).long()


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


# -- autoencoder -------------------------------------------------------------------------------------------------------


def autoencoder():
    return stack([784, 250, 100, 30, 100, 250, 784])


class Curve:
    """Training and test loss (and squared error) at given numbers of passes."""

    def __init__(self, model, train, test, marks):
        self.model, self.train, self.test, self.marks, self.points = model, train, test, list(marks), {}
        self.passes, self.start = 0.0, time.process_time()

    def add(self, passes):
        self.passes += passes
        while self.marks and self.passes >= self.marks[0]:
            self.points[self.marks.pop(0)] = self.look()
        return bool(self.marks)

    @torch.no_grad()
    def look(self):
        loss = PixelLoss()
        z = self.model(self.test)
        return {"train_loss": round(loss(self.model(self.train), self.train).item(), 3),
                "test_loss": round(loss(z, self.test).item(), 3),
                "test_squared_error": round((z.sigmoid() - self.test).square().sum(1).mean().item(), 4),
                "cpu_seconds": round(time.process_time() - self.start, 1)}


def run_first_order(make, train, test, marks, batch=128):
    model = autoencoder()
    optimizer, curve = make(model.parameters()), Curve(model, train, test, marks)
    generator, loss = torch.Generator().manual_seed(0), PixelLoss()
    while True:
        for rows in torch.randperm(len(train), generator=generator).split(batch):
            optimizer.zero_grad()
            loss(model(train[rows]), train[rows]).backward()
            optimizer.step()
        if not curve.add(1.0):
            return curve.points


def run_lbfgs(train, test, marks):
    model, loss = autoencoder(), PixelLoss()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5, history_size=20, line_search_fn="strong_wolfe")
    curve, calls = Curve(model, train, test, marks), []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        value = loss(model(train), train)
        value.backward()
        return value

    while curve.add(float(len(calls))):
        calls.clear()
        optimizer.step(closure)
    return curve.points


def run_hessian_free(train, held_out, test, marks, **options):
    model = autoencoder()
    samples = {"curvature": GrowingSample(len(train), SampleGrowth(start=512, factor=1.1))}
    optimizer = HessianFree(model.parameters(), samples=samples, **options)
    closure = batch_closure(model, PixelLoss(), train, train, held_out=(held_out, held_out), sample=optimizer.sample,
                            batch_size=1024)
    curve, passes, iterations, accepted, steps = Curve(model, train, test, marks), 0.0, 0, 0, 0
    while curve.add(passes):
        optimizer.step(closure)
        report = optimizer.report()
        passes = report.cost / len(train)
        iterations, accepted, steps = iterations + report.cg_iterations, accepted + report.accepted, steps + 1
    return curve.points | {"steps": steps, "accepted": accepted, "cg_iterations": iterations,
                           "damping_at_end": report.next_damping}


def compare(marks):
    train, held_out = images("train", NUM_TRAIN), images("train", NUM_HELD_OUT, NUM_TRAIN)
    test = images("t10k", 2000)
    at_end = lambda points: points[marks[-1]]["train_loss"]
    first_order = {
        "adam": [lambda p, lr=lr: torch.optim.Adam(p, lr) for lr in (1e-3, 3e-3)],
        "sgd_momentum_0.9": [lambda p, lr=lr: torch.optim.SGD(p, lr, momentum=0.9) for lr in (3e-3, 1e-2)],
    }
    result = {name: min((run_first_order(make, train, test, marks) for make in makes), key=at_end)
              for name, makes in first_order.items()}
    result["lbfgs_full_batch"] = run_lbfgs(train, test, marks)
    for damping in (1.0, 30.0):
        result[f"hessian_free_damping_{damping:g}"] = run_hessian_free(train, held_out, test, marks, damping=damping)
    for name, options in {"pc16_first": dict(preconditioner="lbfgs", keep_pairs="first"),
                          "fisher_diagonal": dict(preconditioner="fisher")}.items():
        result[f"hessian_free_{name}"] = run_hessian_free(train, held_out, test, marks, **options)
    return result


# -- pairs -------------------------------------------------------------------------------------------------------------


class Several:
    """Fills several stores from one run."""

    def __init__(self, stores):
        self.stores = stores

    def add(self, s, y, scale=1.0):
        for store in self.stores.values():
            store.add(s, y, scale)


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
    x, y = images("train", 8000), labels(8000)
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
    write_result("hessian_free", {"environment": environment(), "iterations_by_pair_policy": pair_study(),
                                  "autoencoder_by_passes": compare(marks)})


if __name__ == "__main__":
    main()
