"""Beyond paper 5: cheaper ways to a steady iterate, and what one would use instead of the backward order.

Each method ends with one network for the same number of gradients, one a step (the tails train m steps less). Its curve
over the last steps shows how steady it is; there the exact order pays for every look, and the gradients are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from hemstitch.order._head import HeadAverage
from hemstitch.order._iterates import fixed_tail_points, forward_points
from hemstitch.order._maps import Point, Update
from hemstitch.reproduce._entry import Entry, Line, Outcome, Part, Plot, Row, Scale, choose
from hemstitch.reproduce._paper5_orders import FASHION, regression
from hemstitch.reproduce._paper5_runs import Experiment, Run, begin, columns

PROBLEMS: Mapping[str, Experiment] = {
    "regression of x^2": regression("x^2", 0.05),
    "MLP on Fashion-MNIST": replace(FASHION, lr=0.01),
}
"""Fashion-MNIST at ten times the paper's rate, where the end of a run is rough."""

FORWARD, EXACT, WINDOWS = "forward", "exact", "windows, held"
TAIL, HEADED = "fixed tail", "fixed tail after an average"
EMA, SWA, DECAY = "moving average (EMA)", "mean of the second half (SWA)", "decayed learning rate"
METHODS = (FORWARD, EXACT, WINDOWS, TAIL, HEADED, EMA, SWA, DECAY)
Points = Iterator[tuple[int, Point]]


def parts_of(scale: Scale) -> dict[str, Part]:
    """A part for each problem and seed."""
    return {f"{name}, seed {seed}": partial(compare, experiment, scale, seed)
            for name, experiment in PROBLEMS.items() for seed in range(experiment.sizes[scale].seeds)}  # fmt: skip


def compare(experiment: Experiment, scale: Scale, seed: int, folder: Path) -> dict[str, Any]:
    """Curves of all methods over the last steps of one run, and the gradients each took."""
    run = begin(experiment, scale, seed, folder)
    count, look_every = choose(scale, smoke=(4, 2), laptop=(200, 5), paper=(200, 1))
    num_steps = len(run.updates)
    looks = range(num_steps - count + look_every, num_steps + 1, look_every)
    tail, horizon = choose(scale, smoke=(2, 2), laptop=(50, 100), paper=(50, 100))
    found: dict[str, Any] = {"steps": list(looks)}
    for method, points in methods(run, looks, tail, horizon, experiment.lr).items():
        before = run.maps.passes.backward
        curve = columns({k: run.measure(point, k) for k, point in points})
        found[method] = {"curve": curve, "gradients": run.maps.passes.backward - before}
    return found


def methods(run: Run, looks: Sequence[int], tail: int, horizon: int, lr: float) -> dict[str, Points]:
    """The network that each method shows at each look."""
    maps, updates, origin = run.maps, run.updates, run.origin
    half = len(updates) // 2
    decayed = [with_rate(update, lr * min(1.0, (len(updates) - k) / half)) for k, update in enumerate(updates, 1)]
    return {
        FORWARD: forward_points(maps, updates, origin, looks),
        EXACT: ((looks[i], end) for i, end in maps.descend(updates, [(origin, k) for k in looks])),
        WINDOWS: held_windows(run, looks, tail),
        TAIL: fixed_tail_points(maps, updates, origin, looks, tail),
        HEADED: fixed_tail_points(maps, updates, origin, looks, tail, horizon),
        EMA: averages(run, looks, horizon, 0),
        SWA: averages(run, looks, len(updates), half),
        DECAY: forward_points(maps, decayed, origin, looks),
    }


def with_rate(update: Update, lr: float) -> Update:
    """The map at another learning rate."""
    return replace(update, settings=tuple({**group, "lr": lr} for group in update.settings))


def averages(run: Run, looks: Sequence[int], horizon: int, after: int) -> Points:
    """A moving average of the forward iterates after a step."""
    average = HeadAverage(horizon)
    for k, here in forward_points(run.maps, run.updates, run.origin, range(1, looks[-1] + 1)):
        if k > after:
            average.add(here.parameters)
        if k in looks:
            yield k, average.point(here)


def held_windows(run: Run, looks: Sequence[int], window: int) -> Points:
    """The end of the last window; each starts from the one before."""
    here, done = run.origin, 0
    for k in looks:
        while done + window <= k:
            ((_, here),) = run.maps.descend(run.updates[done : done + window], [(here, window)])
            done += window
        yield k, here


def conclude(results: Mapping[str, dict[str, Any]]) -> Outcome:
    """Is the tail after an average as steady as the exact order, and what ends lowest?"""
    ratios = [spread(r, HEADED) / max(spread(r, EXACT), 1e-30) for r in results.values()]
    shares = [r[HEADED]["gradients"] / r[EXACT]["gradients"] for r in results.values()]
    within = sum(ratio <= 2 for ratio in ratios)
    plain = sum(spread(r, TAIL) <= 2 * spread(r, EXACT) for r in results.values())
    lowest = [min(METHODS, key=lambda m: r[m]["curve"]["test loss"][-1]) for r in results.values()]
    counts = ", ".join(f"{lowest.count(m)} {m}" for m in METHODS if m in lowest)
    return Outcome(
        verdict="reproduced" if within == len(ratios) else "partly" if within > len(ratios) / 2 else "not reproduced",
        summary="Asked: is a fixed tail after an average of forward iterates as steady as the exact order (deviation "
                "of the training loss over the last looks within twice the exact one)? Yes on "
                f"{within} of {len(ratios)} runs (the plain tail: {plain}) for at most {max(shares):.1%} of the exact "
                f"order's gradients. The lowest test loss at the end, at equal gradients: {counts}. Ranges are the "
                "extremes over seeds.",
        rows=[row for problem in PROBLEMS for row in rows_of(problem, results)],
        plots=[Plot(title=f"Train loss, {name}", x_label="step",
                    lines=[Line(label=m, x=r["steps"], y=r[m]["curve"]["train loss"]) for m in METHODS])
               for name, r in results.items()],
    )  # fmt: skip


def spread(result: Mapping[str, Any], method: str) -> float:
    """Standard deviation of the training loss over the looks."""
    return stdev(result[method]["curve"]["train loss"])


def rows_of(problem: str, results: Mapping[str, dict[str, Any]]) -> Iterator[Row]:
    """Of each method the last test loss, the deviation and the gradients."""
    runs = [r for name, r in results.items() if name.startswith(problem)]
    for method in METHODS:
        ends = [r[method]["curve"]["test loss"][-1] for r in runs]
        spreads = [spread(r, method) for r in runs]
        yield Row(quantity=f"{problem}, {method}: test loss at the end", ours=mean(ends), low=min(ends),
                  high=max(ends), seeds=len(runs))  # fmt: skip
        yield Row(quantity=f"{problem}, {method}: deviation of the train loss", ours=median(spreads),
                  low=min(spreads), high=max(spreads), seeds=len(runs))  # fmt: skip
        yield Row(quantity=f"{problem}, {method}: gradients, all looks",
                  ours=mean(r[method]["gradients"] for r in runs), seeds=len(runs))  # fmt: skip


ENTRIES = [
    Entry(name="beyond", paper=5, minutes=3.5, parts=parts_of, conclude=conclude,
          title="Beyond the paper: cheap backward iterates, and averages or decay instead",
          paper_says="Nothing: it leaves efficient backward iterates to future work."),
]  # fmt: skip
