"""Beside paper 3: a deep autoencoder, where Hessian-free optimisation was first shown (Martens 2010), against others.

Each method trains for the same number of passes over the images, with the best of a few rates by the error on the
training images at the end. No rate of Hessian-free steps is tuned: the line search sets it; the initial damping is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hemstitch.reproduce._autoencoder_runs import (
    Make,
    Task,
    full_batch,
    hessian_free,
    kronecker_factored,
    library,
    small_batches,
)
from hemstitch.reproduce._entry import Entry, Line, Outcome, Part, Plot, Row, Scale, choose
from hemstitch.sampling import SampleGrowth
from hemstitch.testing import write_tiny_images

MNIST = Path("../shared/data/mnist")
SIZES: Mapping[str, Mapping[str, Any]] = {
    "smoke": {"hidden": (6, 2), "num_train": 200, "num_held_out": 50, "num_test": 40, "passes": 3, "looks": 3},
    "laptop": {"hidden": (250, 100, 30), "num_train": 4096, "num_held_out": 512, "num_test": 2000, "passes": 40},
    "paper": {"hidden": (1000, 500, 250, 30), "num_train": 50_000, "num_held_out": 5000, "num_test": 10_000,
              "passes": 2000, "looks": 200},
}  # fmt: skip
"""At scale "paper" the network of Martens 2010."""

Train = Callable[[Task], dict[str, Any]]


def autoencoder_parts(scale: Scale) -> dict[str, Part]:
    """Method and rate -> a run; at scale "smoke" one rate of each method."""
    runs = methods(choose(scale, smoke=200, laptop=4096, paper=50_000))
    if scale == "smoke":
        first: dict[str, str] = {}
        for name in runs:
            first.setdefault(name.partition(", ")[0], name)
        runs = {name: runs[name] for name in first.values()}
    return {name: _part(scale, train) for name, train in runs.items()}


def _part(scale: Scale, train: Train) -> Part:
    def part(folder: Path) -> dict[str, Any]:
        images = MNIST
        if scale == "smoke":
            images = folder.parent / "images"
            write_tiny_images(images)
        return train(Task(images=images, **SIZES[scale]))

    return part


def methods(num_train: int) -> dict[str, Train]:
    """All that is compared, by "METHOD, setting"."""
    optimizers: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
        "Adam": (torch.optim.Adam, (3e-3, 1e-2)),
        "momentum SGD": (partial(torch.optim.SGD, momentum=0.9), (1e-2, 3e-2)),
    }
    if collection := library("pytorch_optimizer"):
        shampoo = partial(collection.ScalableShampoo, preconditioning_compute_steps=20)
        optimizers["SOAP"] = partial(collection.SOAP, weight_decay=0.0), (3e-3, 1e-2)
        optimizers["Shampoo"] = shampoo, (1e-2, 1e-1)
    runs: dict[str, Train] = {}
    for name, (kind, rates) in optimizers.items():
        for rate in rates:
            runs[f"{name}, rate {rate:g}"] = partial(small_batches, make=_made(kind, rate))
    if library("curvlinops"):
        for damping, rate in ((1.0, 0.1), (10.0, 0.1)):
            runs[f"K-FAC, damping {damping:g}, rate {rate:g}"] = partial(
                small_batches, make=_made(partial(torch.optim.SGD, momentum=0.9), rate),
                correct=partial(kronecker_factored, damping=damping))  # fmt: skip
    for history in (20,):
        runs[f"L-BFGS (full batch), history {history}"] = partial(full_batch, history=history)
    return runs | hessian_free_methods(num_train)


def _made(kind: Callable[..., Any], rate: float) -> Make:
    return lambda parameters: kind(parameters, lr=rate)


def hessian_free_methods(num_train: int) -> dict[str, Train]:
    """Fixed samples, and samples that grow, without and with the preconditioner."""
    sixteenth = num_train // 16
    fixed = {"gradient": SampleGrowth(start=num_train), "curvature": SampleGrowth(start=sixteenth)}
    growing = {"gradient": SampleGrowth(start=num_train // 4, cap=num_train, factor=1.03),
               "curvature": SampleGrowth(start=sixteenth, cap=2 * sixteenth, factor=1.02)}  # fmt: skip
    pairs = {"preconditioner": "lbfgs", "num_pairs": 16}
    variants = {"Hessian-free (fixed samples)": (fixed, {}),
                "Hessian-free (growing samples)": (growing, {"max_cg": 20}),
                "Hessian-free (growing samples, PC-16)": (growing, {"max_cg": 20, **pairs})}  # fmt: skip
    return {f"{name}, damping {damping:g}": partial(hessian_free, growth=growth, damping=damping, **options)
            for name, (growth, options) in variants.items() for damping in (0.01, 0.03)}  # fmt: skip


Results = Mapping[str, dict[str, Any]]


def best_by_method(results: Results) -> dict[str, tuple[str, dict[str, Any]]]:
    """Method -> the name and the result of its best run."""
    best: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, run in results.items():
        method = name.partition(", ")[0] if "PC-16" not in name else name.rpartition(", ")[0]
        if run.get("diverged"):
            continue
        if method not in best or run["train_error"][-1] < best[method][1]["train_error"][-1]:
            best[method] = name, run
    return best


def error_at(run: dict[str, Any], seconds: float) -> float:
    """The training error after so many seconds, linear between looks."""
    times, errors = run["seconds"], run["train_error"]
    for (t0, e0), (t1, e1) in zip(zip(times, errors), zip(times[1:], errors[1:])):
        if t1 >= seconds:
            return e0 + (e1 - e0) * (seconds - t0) / (t1 - t0) if t1 > t0 else e1
    return errors[-1]


def autoencoder(results: Results) -> Outcome:
    """The best run of each method, at equal passes and at equal time."""
    best = best_by_method(results)
    passes = results[next(iter(results))]["passes"][-1]
    seconds = min(run["seconds"][-1] for _, run in best.values())
    at_end = {method: run["train_error"][-1] for method, (_, run) in best.items()}
    timed = {method: error_at(run, seconds) for method, (_, run) in best.items()}
    rows = []
    for method, (name, run) in best.items():
        rows += [Row(quantity=f"{name}: training error", ours=at_end[method]),
                 Row(quantity=f"{name}: test error", ours=run["test_error"][-1]),
                 Row(quantity=f"{name}: training error after {seconds:.0f} s", ours=timed[method]),
                 Row(quantity=f"{name}: processor seconds", ours=run["seconds"][-1])]  # fmt: skip
    ours = min((m for m in best if m.startswith("Hessian")), key=at_end.__getitem__)
    others = {m: e for m, e in at_end.items() if not m.startswith("Hessian")}
    lost = [m for m in sorted(others, key=others.__getitem__) if others[m] <= at_end[ours]]
    won = [m for m in others if m not in lost]
    absent = [name for name in ("SOAP", "Shampoo", "K-FAC") if name not in best]
    diverged = [name for name, run in results.items() if run.get("diverged")]
    return Outcome(
        verdict="reproduced" if not lost else "partly" if won else "not reproduced",
        summary=f"Squared reconstruction error of an image after {passes:.0f} passes, each method at the best of its "
                f"settings: {ours} reaches {at_end[ours]:.1f}; lower are {_listed(lost, others)}; higher "
                f"{_listed(won, others)}. In equal time ({seconds:.0f} s) the order is "
                f"{', '.join(sorted(timed, key=timed.__getitem__))}. Small batches take many steps in a pass, "
                "Hessian-free steps a pass or more each: they are made for large batches that many machines share. "
                f"Diverged: {', '.join(diverged) or 'none'}; not installed here: {', '.join(absent) or 'none'}. "
                "One seed.",
        rows=rows,
        plots=[Plot(title="Squared error of the training images", x_label=axis, log_y=True,
                    lines=[Line(label=method, x=run[column][1:], y=run["train_error"][1:])
                           for method, (_, run) in best.items()])
               for axis, column in (("passes", "passes"), ("processor seconds", "seconds"))],
    )  # fmt: skip


def _listed(names: list[str], values: Mapping[str, float]) -> str:
    listed = (f"{name} ({values[name]:.1f})" for name in names if math.isfinite(values[name]))
    return ", ".join(listed) or "none"


ENTRIES = [
    Entry(
        name="autoencoder", paper=3, minutes=5, parts=autoencoder_parts, conclude=autoencoder,
        title="A deep autoencoder of MNIST against Adam, momentum, L-BFGS, SOAP, Shampoo, K-FAC",
        paper_says="names image tasks of others as the origin of the method, measures none",
    ),
]  # fmt: skip
