"""Paper 4 with many workers: parameter averaging, by virtual replicas on a simulated clock.

The rate of n workers is n times that of one, which the average divides by n. So all curves would fall together against
epochs if the workers did not drift apart between averages, and the time would be 1 / n.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hemstitch.reproduce._entry import Entry, Line, Outcome, Part, Plot, Row, Scale, choose
from hemstitch.reproduce._method_runs import AN4, AN4_SIZES, LOST, NATURAL, SGD
from hemstitch.reproduce._training import recipe, trained

Results = Mapping[str, dict[str, Any]]
KINDS: Mapping[str, Mapping[str, Any]] = {"natural gradient": {**NATURAL, "update.lr": 0.5},
                                          "SGD": {**SGD, "update.lr": 0.5}}  # fmt: skip
AVERAGED = {"parallel.kind": "virtual-averaging", "train.non_finite": "skip", "train.max_non_finite": 10**9}
NO_WORSE = 0.03
"""Relative distance to one worker's dev loss up to which n workers count as equal."""


def _every(scale: Scale) -> int:
    """Samples of each worker between averages: some of them in an epoch, for the largest number of workers too."""
    return choose(scale, smoke=64, laptop=2560, paper=400_000)


def _run(scale: Scale, settings: Mapping[str, Any]) -> Part:
    """A run and the simulated time of each of its looks at dev."""

    def part(folder: Path) -> dict[str, Any]:
        sizes = {**AN4, **AN4_SIZES[scale], **AVERAGED, "parallel.every": _every(scale),
                 "train.epochs": choose(scale, smoke=1, laptop=3, paper=12)}  # fmt: skip
        done = trained(recipe(scale, "an4-small", folder, {**sizes, **settings}), folder)
        dev = done.curve("dev", "loss", "step")
        clock = done.curve("train", "simulated_seconds", "step")
        at = dict(zip(clock["x"], clock["y"]))
        return {"epochs": done.curve("dev", "loss")["x"], "loss": dev["y"], "seconds": [at.get(x) for x in dev["x"]],
                "final": dev["y"][-1] if dev["y"] else None}  # fmt: skip

    return part


def workers(scale: Scale) -> tuple[int, ...]:
    """Numbers of workers."""
    return choose(scale, smoke=(1, 2), laptop=(1, 2, 4, 8, 16), paper=(1, 2, 4, 8, 16))


def scaling_parts(scale: Scale) -> dict[str, Part]:
    """Each gradient with each number of workers, n times the learning rate."""
    return {f"{kind}, {n} workers": _run(scale, {**settings, "parallel.workers": n})
            for kind, settings in KINDS.items() for n in workers(scale)}  # fmt: skip


def scaling(results: Results) -> Outcome:
    """How far each gradient follows one worker's curve, and what is gained in time."""
    numbers = sorted({int(name.split(", ")[1].split()[0]) for name in results})
    rows, plots, most, losses = [], [], {}, {}
    for kind in KINDS:
        runs = {n: results[f"{kind}, {n} workers"] for n in numbers}
        alone = runs[1]["final"]
        losses[kind] = {n: r["final"] for n, r in runs.items()}
        most[kind] = _most(losses[kind])
        rows += [Row(quantity=f"dev cross-entropy, {kind}, {n} workers", ours=r["final"])
                 for n, r in runs.items() if r["final"] is not None]  # fmt: skip
        rows += [Row(quantity=f"simulated time of one worker / of {n}, {kind}",
                     ours=runs[1]["seconds"][-1] / runs[n]["seconds"][-1]) for n in numbers[1:]]  # fmt: skip
        rows.append(Row(quantity=f"most workers within {NO_WORSE:.0%} of one, {kind}", ours=most[kind]))
        plots += [_plot(kind, runs, "epochs", "epochs"), _plot(kind, runs, "seconds", "simulated seconds")]
        assert alone is not None
    natural, plain = most["natural gradient"], most["SGD"]
    verdict = "reproduced" if natural > plain else "partly" if natural == plain else "not reproduced"
    return Outcome(
        verdict=verdict,
        summary="Frame cross-entropy on AN4, parameters averaged every few thousand samples of each worker, learning "
                f"rate times the number of workers: within {NO_WORSE:.0%} of one worker's dev loss at the same number "
                f"of epochs are up to {natural} workers with natural gradient, up to {plain} with plain SGD; steps "
                "bounded with both; a gradient takes a second on the simulated clock; one seed.",
        rows=rows,
        plots=plots,
    )  # fmt: skip


def _most(losses: Mapping[int, float | None]) -> int:
    """The largest number of workers up to which all are as good as one."""
    best = 0
    for n in sorted(losses):
        loss, alone = losses[n], losses[1]
        if loss is None or alone is None or loss > alone * (1 + NO_WORSE):
            break
        best = n
    return best


def _plot(kind: str, runs: Mapping[int, Mapping[str, Any]], axis: str, label: str) -> Plot:
    lines = [Line(label=f"{n} workers", x=r[axis], y=r["loss"]) for n, r in runs.items()]
    return Plot(title=f"Dev cross-entropy, {kind}", x_label=label, lines=lines)


def rate_parts(scale: Scale) -> dict[str, Part]:
    """Natural gradient with steps as they come: rates up to and beyond n times that of one worker."""
    free = {**KINDS["natural gradient"], "update.max_change": 0.0, "update.output_max_change": 0.0,
            "update.global_max_change": 0.0, "train.epochs": choose(scale, smoke=1, laptop=1, paper=6)}  # fmt: skip
    rates = choose(scale, smoke=(0.5,), laptop=(0.5, 2.0, 8.0), paper=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0))
    return {f"{n} workers, rate {n} x {rate:g}": _run(scale, {**free, "parallel.workers": n, "update.lr": rate})
            for n in choose(scale, smoke=(1, 2), laptop=(1, 4, 16), paper=(1, 2, 4, 8, 16)) for rate in rates}


def rates(results: Results) -> Outcome:
    """At which rate each number of workers breaks."""
    found: dict[int, dict[float, float | None]] = {}
    for name, r in results.items():
        n, rate = int(name.split()[0]), float(name.rpartition(" ")[2])
        found.setdefault(n, {})[rate] = r["final"]
    reference = min(loss for loss in found[1].values() if loss is not None)
    limit = {n: max((rate for rate, loss in losses.items() if loss is not None and loss < 1.5 * reference), default=0.0)
             for n, losses in found.items()}  # fmt: skip
    rows = [Row(quantity=f"dev cross-entropy, {n} workers, rate {n} x {rate:g}", ours=loss)
            for n, losses in found.items() for rate, loss in losses.items() if loss is not None and loss < LOST]
    broken = [f"{n} workers at {n} x {rate:g}" for n, losses in found.items() for rate, loss in losses.items()
              if loss is None or loss >= 1.5 * reference]  # fmt: skip
    fewer, more = limit[min(limit)], limit[max(limit)]
    said = f"unstable (a dev loss not finite or 1.5 times the best of one worker) are {', '.join(broken) or 'none'}"
    return Outcome(
        verdict="reproduced" if more < fewer else "partly" if broken else "not reproduced",
        summary="Frame cross-entropy on AN4, natural gradient without bounds on the steps, so that nothing but the "
                f"rate decides: of the rates tried {said}; one seed.",
        rows=rows,
    )  # fmt: skip


ENTRIES = [
    Entry(name="averaging", paper=4, minutes=7, parts=scaling_parts, conclude=scaling,
          title="Objective against epochs and time for 1 to 16 workers, with and without natural gradient",
          paper_says="Periodic averaging works well although the problem is not convex, but only with natural "
                     "gradient."),
    Entry(name="averaging-rate", paper=4, minutes=4, parts=rate_parts, conclude=rates,
          title="Learning rate times the number of workers, and where it becomes unstable",
          paper_says="n machines need n times the learning rate, which limits n: eventually training is unstable."),
]  # fmt: skip
