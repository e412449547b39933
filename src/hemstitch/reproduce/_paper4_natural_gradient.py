"""Paper 4 with one process: what natural gradient gains per pass, and what it costs per step."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from hemstitch.optim import SGD as Sgd
from hemstitch.optim import NaturalGradient, component_groups
from hemstitch.reproduce._entry import Entry, Outcome, Part, Plot, Row, Scale, choose, mean_and_interval
from hemstitch.reproduce._method_runs import (
    LOST,
    MOMENTUM,
    NATURAL,
    SGD,
    Settings,
    dev_line,
    frame_part,
    grid,
    image_part,
)
from hemstitch.reproduce._tuned import (
    Contender,
    Make,
    Results,
    contender_parts,
    mean_best,
    tuned_row,
    tuned_runs,
    tuning_note,
)

PASSES = "forward + backward passes over the training set"


# -- objective against passes ----------------------------------------------------------------------------------------

SHORT = 0.6
"""Share of the passes that natural gradient is given in its short run, its schedule as short."""
SIMPLE: Settings = {**NATURAL, "gradient.method": "simple"}
ON_SPEECH = {
    "SGD": Contender(settings=SGD, rates=(0.5, 1.0, 2.0, 4.0), tuned=2.0),
    "momentum SGD": Contender(settings=MOMENTUM, rates=(0.05, 0.1, 0.2), tuned=0.1),
    "simple natural gradient": Contender(settings=SIMPLE, rates=(0.5, 1.0, 2.0), tuned=1.0),
    "natural gradient": Contender(settings=NATURAL, rates=(1.0, 2.0, 4.0), tuned=2.0),
}
ON_IMAGES = {
    "SGD": Contender(settings=SGD, rates=(0.5, 1.0, 2.0, 4.0), tuned=2.0),
    "momentum SGD": Contender(settings=MOMENTUM, rates=(0.02, 0.05, 0.1, 0.2), tuned=0.1),
    "simple natural gradient": Contender(settings=SIMPLE, rates=(0.5, 1.0, 2.0), tuned=1.0),
    "natural gradient": Contender(settings=NATURAL, rates=(0.5, 1.0, 2.0, 4.0), tuned=1.0),
}


def convergence_parts(scale: Scale, make: Make, methods: Mapping[str, Contender], num_seeds: int) -> dict[str, Part]:
    """Every method for all epochs; natural gradient also for fewer."""
    most = choose(scale, smoke=2, laptop=5, paper=20)
    full, short = {}, {}
    for kind, c in methods.items():
        full[_label(kind, most)] = dataclasses.replace(c, settings={**c.settings, "train.epochs": most})
    c, few = methods["natural gradient"], round(SHORT * most)
    short[_label("natural gradient", few)] = dataclasses.replace(c, settings={**c.settings, "train.epochs": few})
    return contender_parts(scale, make, full | short, num_seeds)


def _label(kind: str, epochs: int) -> str:
    return f"{kind}, {epochs} epochs" if kind == "natural gradient" else kind


def convergence(results: Results, data: str) -> Outcome:
    """Whether natural gradient with a part of tuned SGD's passes gets as far."""
    kinds = list(dict.fromkeys(name.split(", rate ")[0] for name in results))
    few, most = sorted(int(kind.split(", ")[1].split()[0]) for kind in kinds if kind.startswith("natural gradient, "))
    short, full = _label("natural gradient", few), _label("natural gradient", most)
    rows = [tuned_row(results, kind, "dev cross-entropy") for kind in kinds]
    rivals = [kind for kind in kinds if kind not in (short, full)]
    rows += [Row(quantity=f"dev cross-entropy of natural gradient with {few / most:.0%} of the passes, minus that of "
                          f"{kind}", ours=mean_best(results, short) - mean_best(results, kind)) for kind in rivals]
    runs = {kind: tuned_runs(results, kind)[1] for kind in kinds}
    rows += [Row(quantity=f"CPU time of a run, {kind} / SGD", paper="1.10 to 1.25 per step" if kind == full else "",
                 ours=median(r["cpu_seconds"][-1] for r in runs[kind]) / median(
                     r["cpu_seconds"][-1] for r in runs["SGD"])) for kind in (full, "simple natural gradient")]
    sooner, ahead = (mean_best(results, kind) <= mean_best(results, "SGD") for kind in (short, full))
    lines = [(kind.split(", ")[0], runs[kind][0]) for kind in (*rivals, full)]
    plots = [Plot(title="Dev cross-entropy", x_label=PASSES, lines=[dev_line(k, r) for k, r in lines]),
             Plot(title="Dev cross-entropy", x_label="CPU seconds", lines=[dev_line(k, r, "cpu") for k, r in lines])]
    return Outcome(
        verdict="reproduced" if sooner and ahead else "partly" if sooner or ahead else "not reproduced",
        rows=rows, plots=plots, summary=(
            f"{data}, {tuning_note(results, kinds)}, every schedule as long as its run: with {few / most:.0%} of the "
            f"passes of SGD online natural gradient {'gets' if sooner else 'does not get'} as far, with as many it is "
            f"{'ahead' if ahead else 'behind'}. Intervals over seeds; the curves are of seed 1."))  # fmt: skip


# -- rank, update period ---------------------------------------------------------------------------------------------

RANKS = ((5, 20), (20, 80), (40, 40), (80, 80))
PERIODS = (1, 16)


def setting_parts(scale: Scale) -> dict[str, Part]:
    """Ranks at period 4, periods at ranks 20 and 80."""
    base = {**NATURAL, "train.epochs": choose(scale, smoke=1, laptop=2, paper=10), "update.lr": 2.0}
    parts = {f"ranks {a} and {b}, period 4": frame_part(scale, {**base, "gradient.rank_in": a, "gradient.rank_out": b})
             for a, b in grid(scale, RANKS)}  # fmt: skip
    return parts | {f"ranks 20 and 80, period {p}": frame_part(scale, {**base, "gradient.update_period": p})
                    for p in grid(scale, PERIODS)}  # fmt: skip


def settings(results: Results) -> Outcome:
    """Dev loss and time of each setting."""
    rows = []
    for name, r in results.items():
        rows += [Row(quantity=f"dev cross-entropy, {name}", ours=r["best"]),
                 Row(quantity=f"CPU seconds of the run, {name}", ours=r["cpu_seconds"][-1])]  # fmt: skip
    values = [r["best"] for r in results.values()]
    spread = (max(values) - min(values)) / min(values)
    return Outcome(
        verdict="reproduced" if spread < 0.05 else "partly",
        summary=f"Frame cross-entropy on AN4 for a few epochs: the dev losses of all ranks and update periods lie "
                f"within {spread:.1%} of each other, so small ranks and rare updates do; one seed.",
        rows=rows,
        plots=[Plot(title="Dev cross-entropy", x_label=PASSES, lines=[dev_line(n, r) for n, r in results.items()])],
    )  # fmt: skip


# -- bounded steps ---------------------------------------------------------------------------------------------------

UNBOUNDED = {"update.max_change": 0.0, "update.output_max_change": 0.0, "update.global_max_change": 0.0}


def bound_parts(scale: Scale) -> dict[str, Part]:
    """Both gradients at a modest and a large learning rate, steps bounded and not."""
    base = {"train.epochs": choose(scale, smoke=1, laptop=2, paper=10), "train.non_finite": "skip",
            "train.max_non_finite": 10**9}  # fmt: skip
    return {
        f"{kind}, rate {lr:g}, {how}": frame_part(scale, {**gradient, **base, "update.lr": lr, **bounds})
        for kind, gradient in (("SGD", SGD), ("natural gradient", NATURAL))
        for lr in grid(scale, (1.0, 8.0))
        for how, bounds in (("bounded", {}), ("free", UNBOUNDED))
    }


def bounds(results: Results) -> Outcome:
    """What the bounds save."""
    losses = {name: r["best"] for name, r in results.items() if r["best"] is not None and r["best"] < LOST}
    rows = [Row(quantity=f"dev cross-entropy, {name}", ours=loss) for name, loss in losses.items()]
    gains = {}
    for name in results:
        if name.endswith("bounded"):
            bounded, free = losses.get(name), losses.get(name.replace("bounded", "free"))
            gains[name.removesuffix(", bounded")] = None if free is None or bounded is None else free - bounded
    worst = max((g for g in gains.values() if g is not None), default=0.0)
    broken = [name for name, g in gains.items() if g is None]
    return Outcome(
        verdict="reproduced" if broken or worst > 0.05 else "not reproduced",
        summary="Frame cross-entropy on AN4 for a few epochs, steps bounded as in the paper against free ones: the "
                f"largest difference of dev losses in favour of the bounds is {worst:.3f}"
                + (f"; without them {', '.join(broken)} diverged" if broken else "") + "; one seed.",
        rows=rows,
    )  # fmt: skip


# -- cost per step ---------------------------------------------------------------------------------------------------


def _step(width: int, batch: int, natural: bool) -> Callable[[], None]:
    """A whole training step of a network with four hidden layers."""
    torch.manual_seed(0)
    widths = [360, *[width] * 4, 1500]
    layers = [module for a, b in itertools.pairwise(widths) for module in (nn.Linear(a, b), nn.ReLU())]
    net = nn.Sequential(*layers[:-1])
    inputs, targets = torch.randn(batch, widths[0]), torch.randint(widths[-1], (batch,))
    if natural:
        NaturalGradient(net)
    optimizer = Sgd(component_groups(net), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), targets, reduction="sum").backward()
        optimizer.step()

    return step


def cost_parts(scale: Scale) -> dict[str, Part]:
    """Alternating blocks of steps with and without natural gradient."""
    width, rounds = choose(scale, smoke=(16, 2), laptop=(1536, 10), paper=(1536, 40))

    def part(folder: Path, batch: int) -> dict[str, Any]:
        plain, natural = _step(width, batch, False), _step(width, batch, True)
        ratios = []
        for index in range(rounds + 3):
            times = []
            for step in (plain, natural):
                begin = time.process_time()
                for _ in range(8):
                    step()
                times.append(time.process_time() - begin)
            if index >= 3:  # past the updates that every estimate begins with
                ratios.append(times[1] / times[0])
        return {"ratios": ratios}

    batches = choose(scale, smoke=(16,), laptop=(128, 512), paper=(128, 512))
    return {f"batch {batch}": lambda folder, batch=batch: part(folder, batch) for batch in batches}


def cost(results: Results) -> Outcome:
    """Mean of the blocks' ratios."""
    rows = []
    for name, r in results.items():
        mean, low, high = mean_and_interval(r["ratios"])
        rows.append(Row(quantity=f"time of a step, natural gradient / plain, {name}", paper="1.10 to 1.25", ours=mean,
                        low=low, high=high))  # fmt: skip
    fine = [row.ours <= 1.25 for row in rows]
    return Outcome(
        verdict="reproduced" if all(fine) else "partly" if any(fine) else "not reproduced",
        summary="CPU time of whole training steps of a network with four hidden layers (ten million parameters but "
                "at scale smoke), ranks 20 and 80, the estimates updated every fourth step; intervals over blocks.",
        rows=rows,
    )  # fmt: skip


ENTRIES = [
    Entry(name="convergence", paper=4, minutes=20,
          parts=partial(convergence_parts, make=frame_part, methods=ON_SPEECH, num_seeds=2),
          conclude=partial(convergence, data="Frame cross-entropy on AN4"),
          title="Objective against passes: SGD, simple and online natural gradient",
          paper_says="Natural gradient converges faster than SGD; the online estimate is preferred to the simple one."),
    Entry(name="convergence-images", paper=4, minutes=7,
          parts=partial(convergence_parts, make=image_part, methods=ON_IMAGES, num_seeds=3),
          conclude=partial(convergence, data="Fashion-MNIST, two hidden layers"),
          title="The same on images",
          paper_says="Made no experiments with images."),
    Entry(name="rank-and-period", paper=4, minutes=3, parts=setting_parts, conclude=settings,
          title="Rank of the Fisher factors and how often they are updated",
          paper_says="A typical rank is 40; the factors need not be updated on every minibatch."),
    Entry(name="max-change", paper=4, minutes=3, parts=bound_parts, conclude=bounds,
          title="Steps of bounded length against free ones",
          paper_says="Bounds on the change of a layer and of the whole prevent instability."),
    Entry(name="cost-per-step", paper=4, minutes=2, parts=cost_parts, conclude=cost,
          title="What natural gradient costs per step",
          paper_says="10 to 25 % slower per step than SGD."),
]  # fmt: skip
