"""Paper 4 with one process: what natural gradient gains per pass, and what it costs per step."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hemstitch.optim import SGD as Sgd
from hemstitch.optim import NaturalGradient, component_groups
from hemstitch.reproduce._entry import Entry, Outcome, Part, Plot, Row, Scale, choose, mean_and_interval
from hemstitch.reproduce._method_runs import (
    MOMENTUM,
    NATURAL,
    SGD,
    best_of,
    dev_line,
    frame_part,
    grid,
)
from hemstitch.train._build import Run
from hemstitch.train._strategies import SinglePass

Results = Mapping[str, dict[str, Any]]
PASSES = "forward + backward passes over the training set"


# -- objective against passes ----------------------------------------------------------------------------------------


def _budgets(scale: Scale) -> tuple[int, ...]:
    return choose(scale, smoke=(2,), laptop=(2, 3, 4, 5), paper=(8, 12, 16, 20))


def convergence_parts(scale: Scale) -> dict[str, Part]:
    """SGD with each learning rate for all epochs; natural gradient also for fewer, its schedule as short."""
    *fewer, most = _budgets(scale)
    base = {"train.epochs": most}
    parts = {f"SGD, rate {lr:g}": frame_part(scale, {**SGD, **base, "update.lr": lr})
             for lr in grid(scale, (0.5, 1.0, 2.0))}  # fmt: skip
    parts |= {f"momentum SGD, rate {lr:g}": frame_part(scale, {**MOMENTUM, **base, "update.lr": lr})
              for lr in grid(scale, (0.1, 0.2))}  # fmt: skip
    parts |= {f"simple natural gradient, rate {lr:g}": frame_part(
        scale, {**NATURAL, **base, "gradient.method": "simple", "update.lr": lr}) for lr in grid(scale, (1.0,))}
    for epochs in (*fewer, most):
        parts |= {f"natural gradient, {epochs} epochs, rate {lr:g}": frame_part(
            scale, {**NATURAL, "train.epochs": epochs, "update.lr": lr}) for lr in grid(scale, (1.0, 2.0))}
    return parts


def convergence(results: Results) -> Outcome:
    """How many of tuned SGD's passes natural gradient needs to get as far."""
    names = [name for name in results if name.startswith("natural gradient, ")]
    budgets = sorted({int(name.split(", ")[1].split()[0]) for name in names})
    natural = {epochs: best_of(results, f"natural gradient, {epochs} epochs")[1] for epochs in budgets}
    most = budgets[-1]
    rivals = {kind: best_of(results, f"{kind}, rate")[1] for kind in ("SGD", "momentum SGD", "simple natural gradient")}
    shares = {kind: next((epochs / most for epochs in budgets if natural[epochs]["best"] <= rival["best"]), None)
              for kind, rival in rivals.items()}  # fmt: skip
    rows = [Row(quantity=f"dev cross-entropy of {kind} after {most} epochs", ours=r["best"])
            for kind, r in rivals.items()]  # fmt: skip
    rows += [Row(quantity=f"dev cross-entropy of natural gradient after {epochs} epochs", ours=r["best"])
             for epochs, r in natural.items()]  # fmt: skip
    rows += [Row(quantity=f"share of the passes of {kind} that natural gradient needs to get as far", ours=share)
             for kind, share in shares.items() if share is not None]  # fmt: skip
    seconds = natural[most]["cpu_seconds"][-1] / rivals["SGD"]["cpu_seconds"][-1]
    rows.append(Row(quantity="CPU time of a run, natural gradient / SGD", paper="1.10 to 1.25 per step", ours=seconds))
    ahead = natural[most]["best"] < rivals["SGD"]["best"]
    share = shares["SGD"]
    verdict = "reproduced" if ahead and share is not None and share < 1 else "partly" if ahead else "not reproduced"
    said = "not within the passes of SGD" if share is None else f"in {share:.0%} of the passes of tuned SGD"
    lines = [(kind, r) for kind, r in rivals.items()] + [("online natural gradient", natural[most])]
    plots = [Plot(title="Dev cross-entropy", x_label=PASSES, lines=[dev_line(k, r) for k, r in lines]),
             Plot(title="Dev cross-entropy", x_label="CPU seconds", lines=[dev_line(k, r, "cpu") for k, r in lines])]
    return Outcome(verdict=verdict, rows=rows, plots=plots, summary=(
        f"Frame cross-entropy on AN4, each method with its own learning rate and schedules as long as the run: online "
        f"natural gradient gets as far as tuned SGD {said}; one seed."))  # fmt: skip


# -- rank, update period ---------------------------------------------------------------------------------------------

RANKS = ((5, 20), (20, 80), (40, 40), (80, 80))
PERIODS = (1, 4, 16)


def setting_parts(scale: Scale) -> dict[str, Part]:
    """Ranks at period 4, periods at ranks 20 and 80."""
    base = {**NATURAL, "train.epochs": choose(scale, smoke=1, laptop=3, paper=10), "update.lr": 1.0}
    parts = {f"ranks {a} and {b}": frame_part(scale, {**base, "gradient.rank_in": a, "gradient.rank_out": b})
             for a, b in grid(scale, RANKS)}  # fmt: skip
    return parts | {f"period {p}": frame_part(scale, {**base, "gradient.update_period": p})
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
    rows = [Row(quantity=f"dev cross-entropy, {name}", ours=r["best"]) for name, r in results.items()
            if r["best"] is not None]  # fmt: skip
    gains = {}
    for name, r in results.items():
        if name.endswith("bounded"):
            free = results[name.replace("bounded", "free")]["best"]
            gains[name.removesuffix(", bounded")] = None if free is None or r["best"] is None else free - r["best"]
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


# -- peers -----------------------------------------------------------------------------------------------------------


def _library() -> Any:
    try:
        import pytorch_optimizer  # the collection of optimizers that has SOAP
    except Exception:  # built for another torch it fails in many ways
        return None
    return pytorch_optimizer


def peer_parts(scale: Scale) -> dict[str, Part]:
    """Each with its own learning rates."""
    base = {"train.epochs": choose(scale, smoke=1, laptop=3, paper=10)}
    parts = {f"natural gradient, rate {lr:g}": frame_part(scale, {**NATURAL, **base, "update.lr": lr})
             for lr in grid(scale, (1.0, 2.0))}  # fmt: skip
    parts |= {f"momentum SGD, rate {lr:g}": frame_part(scale, {**MOMENTUM, **base, "update.lr": lr})
              for lr in grid(scale, (0.1, 0.2))}  # fmt: skip
    adamw = {"gradient.kind": "plain", "update.kind": "adamw"}
    parts |= {f"AdamW, rate {lr:g}": frame_part(scale, {**adamw, **base, "update.lr": lr})
              for lr in grid(scale, (1e-3, 2e-3))}  # fmt: skip
    library = _library()
    if library is None:
        return parts
    for lr in grid(scale, (2e-3, 4e-3)):
        change = partial(_with_optimizer, make=partial(library.SOAP, lr=lr, weight_decay=0.0))
        parts[f"SOAP, rate {lr:g}"] = frame_part(scale, {**adamw, **base, "update.lr": lr}, change)
    return parts


def _with_optimizer(run: Run, make: Callable[[Any], torch.optim.Optimizer]) -> Run:
    """The run with an optimizer of another library, which recipes do not know."""
    optimizer = make(run.model.parameters())
    return dataclasses.replace(run, optimizer=optimizer, strategy=SinglePass(run.strategy.gradient, optimizer))


def peers(results: Results) -> Outcome:
    """The best of each, per pass and in time."""
    kinds = list(dict.fromkeys(name.split(", ")[0] for name in results))
    best = {kind: best_of(results, kind)[1] for kind in kinds}
    rows = [Row(quantity=f"dev cross-entropy of {kind}", ours=r["best"]) for kind, r in best.items()]
    rows += [Row(quantity=f"CPU seconds of the run with {kind}", ours=r["cpu_seconds"][-1]) for kind, r in best.items()]
    order = sorted(kinds, key=lambda kind: best[kind]["best"])
    absent = ["K-FAC"] + ([] if "SOAP" in kinds else ["SOAP"])
    lines = [dev_line(kind, r) for kind, r in best.items()]
    timed = [dev_line(kind, r, "cpu") for kind, r in best.items()]
    return Outcome(
        verdict="reproduced" if order[0] == "natural gradient" else "partly",
        summary=f"Frame cross-entropy on AN4 for a few epochs, each method at the best of its learning rates: in the "
                f"order of dev loss {', '.join(order)}. Not had here: {', '.join(absent)}; one seed.",
        rows=rows,
        plots=[Plot(title="Dev cross-entropy", x_label=PASSES, lines=lines),
               Plot(title="Dev cross-entropy", x_label="CPU seconds", lines=timed)],
    )  # fmt: skip


ENTRIES = [
    Entry(name="convergence", paper=4, minutes=9, parts=convergence_parts, conclude=convergence,
          title="Objective against passes: SGD, simple and online natural gradient",
          paper_says="Natural gradient converges faster than SGD; the online estimate is preferred to the simple one."),
    Entry(name="rank-and-period", paper=4, minutes=4, parts=setting_parts, conclude=settings,
          title="Rank of the Fisher factors and how often they are updated",
          paper_says="A typical rank is 40; the factors need not be updated on every minibatch."),
    Entry(name="max-change", paper=4, minutes=3, parts=bound_parts, conclude=bounds,
          title="Steps of bounded length against free ones",
          paper_says="Bounds on the change of a layer and of the whole prevent instability."),
    Entry(name="cost-per-step", paper=4, minutes=2, parts=cost_parts, conclude=cost,
          title="What natural gradient costs per step",
          paper_says="10 to 25 % slower per step than SGD."),
    Entry(name="peers", paper=4, minutes=5, parts=peer_parts, conclude=peers,
          title="Natural gradient beside momentum, AdamW and SOAP",
          paper_says="Made no comparison with other methods of second order."),
]  # fmt: skip
