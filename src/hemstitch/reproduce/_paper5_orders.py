"""Paper 5, figures 2 to 13: curves of the forward and of the backward order, seed by seed.

What is called roughness is the deviation of a curve around its own trend, from the differences of neighbouring looks,
over the last half of the steps that the backward trajectory has run; the paper shows pictures only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import mean, median
from typing import Any

from hemstitch.models import resnet18, resnet50, vgg19
from hemstitch.reproduce._entry import Entry, Line, Outcome, Plot, Row, Scale
from hemstitch.reproduce._paper5_data import image_network, regression_network
from hemstitch.reproduce._paper5_runs import Experiment, Size, joined, parts_of, roughness

SMOKE = Size(width=8, num_steps=8, look_every=1, slice=5, seeds=2, num_looked=20)
SMOKE_CONVOLUTIONS = replace(SMOKE, width=1 / 64, num_steps=2, slice=2, seeds=1, num_looked=4)


def sizes(smoke: Size, laptop: Size, paper: Size) -> dict[Scale, Size]:
    """By scale."""
    return {"smoke": smoke, "laptop": laptop, "paper": paper}


REGRESSION = sizes(
    SMOKE,
    Size(width=300, num_steps=1400, look_every=25, slice=1400, seeds=3),
    Size(width=300, num_steps=1400, look_every=1, slice=350, seeds=5),
)
MLP = sizes(
    SMOKE,
    Size(width=100, num_steps=2000, look_every=25, slice=2000, seeds=3, num_images=10_000),
    Size(width=500, num_steps=2000, look_every=1, slice=200, seeds=5, num_looked=10_000),
)


def convolutions(laptop: Size) -> dict[Scale, Size]:
    """Sizes of the runs on CIFAR images."""
    paper = Size(width=1, num_steps=2000, look_every=1, slice=50, seeds=5, num_looked=10_000)
    return sizes(SMOKE_CONVOLUTIONS, laptop, paper)


CIFAR = Size(width=1 / 16, num_steps=300, look_every=25, slice=300, seeds=3, num_images=5_000, num_looked=200)
LONG = {
    **convolutions(replace(CIFAR, num_steps=600, look_every=50, slice=600, seeds=1)),
    "paper": Size(width=1, num_steps=25_000, look_every=100, slice=500, seeds=1, num_looked=10_000),
}


def on_cifar(network: Any) -> Any:
    """A published network of some width; for one channel at the smallest scale."""
    return lambda width, num_outputs: network(num_outputs, width=width, num_channels=1 if width == 1 / 64 else 3)


RESIDUAL = Experiment(data="cifar10-resnet18", network=on_cifar(resnet18), lr=0.025, batch_size=8,
                      sizes=convolutions(CIFAR))  # fmt: skip
FASHION = Experiment(data="fashion-mnist", network=image_network, lr=0.001, batch_size=8, sizes=MLP)


def regression(function: str, lr: float) -> Experiment:
    """Section A.1."""
    return Experiment(data=function, network=regression_network, lr=lr, batch_size=1, sizes=REGRESSION)


def settled(run: Mapping[str, Any], order: str, metric: str, window: int = -1) -> list[float]:
    """A curve over the last half of one backward trajectory."""
    edges = [*run["starts"], run["steps"][-1]]
    first, last = list(pairwise(edges))[window]
    middle = (first + last) / 2
    return [v for k, v in zip(run["steps"], run[order][metric]) if middle <= k <= last]


def ratio(run: Mapping[str, Any], metric: str, window: int = -1) -> float:
    """Roughness, forward over backward."""
    forward, backward = (roughness(settled(run, order, metric, window)) for order in ("forward", "backward"))
    return forward / backward if backward > 0 else math.inf if forward > 0 else math.nan


def rough_row(runs: Sequence[Mapping[str, Any]], metric: str, paper: str = "> 1") -> Row:
    """Ratios of roughness: median, lowest and highest seed."""
    ratios = [ratio(run, metric) for run in runs]
    return Row(quantity=f"roughness of the {metric}, forward / backward", ours=median(ratios), low=min(ratios),
               high=max(ratios), paper=paper, seeds=len(ratios))  # fmt: skip


def rows_of(runs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Ratios of every curve, and the levels of the training loss."""
    rows = [rough_row(runs, metric) for metric in runs[0]["forward"]]
    for order in ("forward", "backward"):
        levels = [mean(settled(run, order, "train loss")) for run in runs]
        rows.append(Row(quantity=f"train loss, {order}, mean of the last half", ours=mean(levels), low=min(levels),
                        high=max(levels), seeds=len(levels)))  # fmt: skip
    return rows


def plots_of(runs: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """One picture a curve and seed."""
    return [Plot(title=f"{metric.capitalize()}, seed {seed}", x_label="step",
                 lines=[Line(label=order, x=run["steps"], y=run[order][metric]) for order in ("forward", "backward")])
            for seed, run in enumerate(runs) for metric in run["forward"]]  # fmt: skip


def verdict(ratios: Sequence[float]) -> str:
    """Steadier on every seed; on most; or not."""
    return "reproduced" if min(ratios) > 1 else "partly" if median(ratios) > 1 else "not reproduced"


def size_of(runs: Sequence[Mapping[str, Any]]) -> str:
    """How much was run."""
    many = f"{len(runs)} seeds" if len(runs) > 1 else "One seed"
    gradients = sum(run["gradients"] for run in runs)
    return f"{many}, {runs[0]['steps'][-1]} steps, {gradients:,} gradients; ranges are the extremes over seeds."


def progress_of(runs: Sequence[Mapping[str, Any]]) -> str:
    """A word of warning where training has hardly begun: the theory is about its end."""
    curves = [run["forward"]["train loss"] for run in runs]
    first, last = mean(curve[0] for curve in curves), mean(curve[-1] for curve in curves)
    if last < first / 2:
        return ""
    return (f" The forward order's training loss has only fallen from {first:.3g} to {last:.3g}: so early the theory, "
            "which is of maps that contract, promises nothing.")


def steadier(results: Mapping[str, dict[str, Any]]) -> Outcome:
    """Is the backward curve smoother?"""
    runs = joined(results)
    ratios = [ratio(run, "train loss") for run in runs]
    lower = sum(mean(settled(run, "backward", "train loss")) < mean(settled(run, "forward", "train loss"))
                for run in runs)  # fmt: skip
    return Outcome(
        verdict=verdict(ratios),
        summary=f"The training loss of the forward order is {min(ratios):.2g} to {max(ratios):.2g} times as rough as "
                f"that of the backward order; the backward order's is the lower one on {lower} of {len(runs)} seeds. "
                f"{size_of(runs)}{'' if min(ratios) > 1 else progress_of(runs)}",
        rows=rows_of(runs),
        plots=plots_of(runs),
    )  # fmt: skip


def reset(results: Mapping[str, dict[str, Any]]) -> Outcome:
    """Does the trajectory settle again after its reset, somewhere else?"""
    runs = joined(results)
    ratios = [ratio(run, "test accuracy", window) for run in runs for window in (0, 1)]
    moves = [move_over_roughness(run) for run in runs]
    moved = sum(move > 2 for move in moves)
    is_seen = moved == len(runs) and min(ratios) > 1
    return Outcome(
        verdict="reproduced" if is_seen else "partly" if median(ratios) > 1 else "not reproduced",
        summary=f"In the last half of either window the test accuracy of the forward order is {min(ratios):.2g} to "
                f"{max(ratios):.2g} times as rough as that of the backward one. After the reset the backward order "
                f"settles at another accuracy, by more than twice its own roughness, on {moved} of {len(runs)} seeds. "
                f"{size_of(runs)}",
        rows=[Row(quantity="roughness of the test accuracy, forward / backward, both windows", ours=median(ratios),
                  low=min(ratios), high=max(ratios), paper="> 1", seeds=len(runs)),
              Row(quantity="change of the settled test accuracy at the reset, in roughnesses", ours=median(moves),
                  low=min(moves), high=max(moves), seeds=len(runs)),
              *rows_of(runs)],
        plots=plots_of(runs),
    )  # fmt: skip


def move_over_roughness(run: Mapping[str, Any]) -> float:
    """How far apart the two windows' settled test accuracies lie, over their roughness."""
    before, after = (settled(run, "backward", "test accuracy", window) for window in (0, 1))
    rough = max(roughness(before), roughness(after))
    apart = abs(mean(before) - mean(after))
    return apart / rough if rough else math.inf if apart else 0.0


STEADY = "curves of the backward order vary less and settle faster"


def entry(name: str, title: str, experiment: Experiment, minutes: float, conclude: Any = steadier,
          paper_says: str = f"On every seed, {STEADY} than those of the forward order.") -> Entry:  # fmt: skip
    """An entry about curves in both orders."""
    return Entry(name=name, paper=5, title=title, paper_says=paper_says, minutes=minutes,
                 parts=partial(parts_of, experiment), conclude=conclude)  # fmt: skip


ENTRIES = [
    entry("figure-2-12", "Figures 2 and 12: ResNet-18 on CIFAR-10 in both orders", RESIDUAL, 2.5),
    entry("figure-3-13", "Figures 3 and 13: backward order with a reset at half time, MLP on Fashion-MNIST",
          replace(FASHION, starts=(0.0, 0.5)), 0.7, reset,
          "After the reset the backward order converges again, to a point of another test accuracy, while the forward "
          "order oscillates between the two."),
    entry("figure-4", "Figure 4: regression of x^2 in both orders", regression("x^2", 0.05), 1),
    entry("figure-5", "Figure 5: regression of cos 10x in both orders", regression("cos 10x", 0.02), 1),
    entry("figure-6", "Figure 6: regression of x^3 in both orders", regression("x^3", 0.02), 1),
    entry("figure-7", "Figure 7: MLP on Fashion-MNIST in both orders", FASHION, 1),
    entry("figure-8", "Figure 8: VGG-19 on CIFAR-10 in both orders",
          Experiment(data="cifar10-vgg19", network=on_cifar(vgg19), lr=0.001, batch_size=8,
                     sizes=convolutions(CIFAR)), 1.5),
    entry("figure-9", "Figure 9: ResNet-50 on CIFAR-100 in both orders",
          Experiment(data="cifar100-resnet50", network=on_cifar(resnet50), lr=0.001, batch_size=16,
                     sizes=convolutions(replace(CIFAR, num_steps=200, slice=200, seeds=2))), 2.5),
    entry("figure-10", "Figure 10: backward order from half time on, MLP on Fashion-MNIST",
          replace(FASHION, starts=(0.5,)), 0.5,
          paper_says=f"Once the backward order is switched on, {STEADY} on every seed."),
    entry("figure-11", "Figure 11: ResNet-18 on CIFAR-10 for a long time",
          replace(RESIDUAL, sizes=LONG), 1.5, paper_says="The backward order stays the steadier one throughout."),
]  # fmt: skip
