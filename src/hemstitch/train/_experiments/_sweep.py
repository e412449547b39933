"""A small, honest tuner: a grid, ordinary runs, the choice made on dev, the whole cost told.

Every combination of the grid, with every seed, is a run of its own folder, so that a killed sweep continues where it
was and a wider grid repeats nothing. The test part has no say: of the losers it is not even looked up. What the
search cost stands beside what it found, and comparisons of methods add it up.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hemstitch.errors import RunError
from hemstitch.report import read_run
from hemstitch.train._console import Console
from hemstitch.train._experiments._grid import Settings, beyond, combinations, label, still_at_the_end
from hemstitch.train._experiments._runs import Cost, HopelessRunError, complete, folder_name, outcome, vary
from hemstitch.train._loop import Watch
from hemstitch.train._recipe import Recipe, load_recipe, restore_recipe
from hemstitch.train._run_folder import RESULT, environment, read_json, write_json

SWEEP = "sweep.json"
Criterion = Literal["loss", "error", "wer"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One combination of settings.

    Attributes:
        settings: ``section.field`` -> value.
        scores: seed -> what it reached on dev, lower is better; inf where it diverged or was stopped.
        status: finished, diverged or stopped early (of the first seed that did not finish; later ones are not run).
        cost: of its runs.
        refinement: whether it lies beyond the grid that was asked for.
        folders: seed -> its run folder.
    """

    settings: Settings
    scores: dict[int, float]
    status: str
    cost: Cost
    refinement: bool
    folders: dict[int, str]

    @property
    def score(self) -> float:
        """Mean over seeds."""
        return sum(self.scores.values()) / len(self.scores)


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        recipe: the recipe with the best settings.
        by: what was compared on dev.
        best: the best trial.
        rows: all trials, in the order of the grid, refinements last.
        cost: of everything in the folder, runs of earlier grids and stopped runs included.
        test: results of the best trial on the test part, mean over seeds; they had no say in the choice.
        remarks: what one has to know to trust the choice.
    """

    recipe: Recipe
    by: Criterion
    best: Trial
    rows: tuple[Trial, ...]
    cost: Cost
    test: dict[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """What sweep.json holds; a score that is not finite is null."""
        return {
            "kind": "sweep",
            "name": self.recipe.name,
            "by": self.by,
            "best": {"settings": self.best.settings, "score": self.best.score, "test": self.test},
            "rows": [_row(trial) for trial in self.rows],
            "cost": asdict(self.cost),
            "remarks": list(self.remarks),
            "config": self.recipe.with_origins(),
            "environment": environment(),
        }


def sweep(
    recipe: Recipe | Path,
    grid: Mapping[str, Sequence[Any]],
    *,
    seeds: Sequence[int] = (),
    out: Path | None = None,
    by: Criterion = "loss",
    refine: bool = True,
    stop_hopeless: bool = False,
    console: Console | None = None,
) -> SweepResult:
    """Try every combination of a grid and choose the best on dev; writes sweep.json.

    Where the best lies at the end of a grid of positive numbers in big steps, one more step of three is tried beyond
    (once). A run that diverges is a result like another, and its cost counts.

    Args:
        recipe: what to tune, or its file.
        grid: ``section.field`` -> values to try.
        seeds: run each combination with each of them; the recipe's own where none is given.
        out: folder of the runs and of sweep.json (default: ``runs/sweep-NAME``); one that has runs is continued.
        by: what to compare on dev: the best loss, the error at that point, or the word error rate. Losses compare
            only between runs with one criterion and, in speech, alignments of like quality: when in doubt, ``wer``.
        refine: step beyond the end of the grid.
        stop_hopeless: stop a run that in its second half is still behind what the best run so far had reached after
            a quarter of its epochs.
        console: where messages go; ``None``: standard error.

    Raises:
        ConfigError: a key or value of the grid does not fit.
        RunError: no combination finished, or the folder holds other runs.
        Interrupted: stopped by a signal; call again to continue.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    tuner = _Tuner(recipe, seeds or (recipe.seed,), out or Path("runs") / f"sweep-{folder_name(recipe.name)}",
                   by, stop_hopeless, console or Console())  # fmt: skip
    rows = [tuner.trial(settings) for settings in combinations(recipe, grid)]
    remarks: list[str] = []
    if refine:
        more, remarks = beyond(recipe, tuner.best(rows).settings, [trial.settings for trial in rows])
        rows += [tuner.trial(settings, refinement=True) for settings in more]
    best = tuner.best(rows)
    remarks += still_at_the_end(best.settings, [trial.settings for trial in rows])
    result = SweepResult(
        recipe=vary(recipe, best.settings, "sweep"), by=by, best=best, rows=tuple(rows), cost=tuner.total_cost(),
        test=tuner.test(best), remarks=(*remarks, *_unfinished(rows)),
    )  # fmt: skip
    write_json(tuner.out / SWEEP, result.as_json())
    return result


class _Tuner:
    """Runs combinations and remembers the best run so far."""

    def __init__(
        self, recipe: Recipe, seeds: Sequence[int], out: Path, by: Criterion, stop_hopeless: bool, console: Console
    ) -> None:
        self.recipe, self.seeds, self.out, self.by = recipe, tuple(seeds), out, by
        self.stop_hopeless, self.console = stop_hopeless, console
        self.leader = (math.inf, math.inf)  # its score, and its dev loss after a quarter of its epochs

    def trial(self, settings: Settings, refinement: bool = False) -> Trial:
        """One combination with every seed, up to the first that does not finish."""
        scores, folders, cost, status = {}, {}, Cost(), "finished"
        for seed in self.seeds:
            recipe = vary(self.recipe, {**settings, "seed": seed}, "sweep")
            name = label({**settings, "seed": seed})
            path = self.out / folder_name(name)
            result = complete(recipe, path, Console(quiet=True), self.watch(path) if self.stop_hopeless else None)
            status, cost, folders[seed] = outcome(result), cost + Cost.of(result), str(path)
            scores[seed] = dev_score(result, path, self.by) if status == "finished" else math.inf
            self.console.say(f"{name}: " + (f"dev {self.by} {scores[seed]:.4g}" if status == "finished" else status))
            if status != "finished":
                break
            self.leader = min(self.leader, (scores[seed], early_loss(path, recipe.train.epochs)))
        return Trial(settings=settings, scores=scores, status=status, cost=cost, refinement=refinement, folders=folders)

    def watch(self, path: Path) -> Watch:
        """Stops a run that in its second half is behind where the best run was after a quarter."""
        to_beat = self.leader[1]

        def look(done: float, values: dict[str, float]) -> None:
            best = read_run(path).curves["dev", "loss"].value.min()
            if 0.5 <= done < 1 and best > to_beat:
                behind = f"dev loss {best:.4g}, while the best run had {to_beat:.4g} after a quarter"
                raise HopelessRunError(f"stopped after {done:.0%} of its epochs: {behind}")

        return look

    def best(self, rows: Sequence[Trial]) -> Trial:
        """The lowest score; the first of equals."""
        best = min(rows, key=lambda trial: trial.score)
        if math.isinf(best.score):
            raise RunError(
                f"{self.out}: none of {len(rows)} combinations finished ({rows[0].status}). Try smaller learning "
                "rates, or set train.clip."
            )
        return best

    def test(self, best: Trial) -> dict[str, float]:
        """Test results of the best trial, mean over seeds."""
        found = [test_rates(read_json(Path(folder) / RESULT)) for folder in best.folders.values()]
        return {name: sum(rates[name] for rates in found) / len(found) for name in found[0]}

    def total_cost(self) -> Cost:
        """Of every run in the folder."""
        return sum((Cost.of(read_json(path)) for path in sorted(self.out.glob(f"*/{RESULT}"))), Cost())


def tuned_recipe(folder: Path) -> tuple[Recipe, Cost]:
    """The winner of a finished sweep, and what finding it cost.

    Raises:
        RunError: there is no sweep.json.
    """
    content = read_json(folder / SWEEP)
    return restore_recipe(content["config"]), Cost(**content["cost"])


def dev_score(result: Mapping[str, Any], path: Path, by: Criterion) -> float:
    """What a finished run reached on dev; lower is better."""
    curve = read_run(path).curves.get(("dev", "error"))
    known = {"loss": result["summary"]["best_dev_loss"], "wer": result.get("wer", {}).get("dev", {}).get("rate")}
    if curve is not None:
        known["error"] = dict(zip(curve.step, curve.value)).get(result["summary"]["best_step"])
    if (score := known.get(by)) is None:
        available = ", ".join(name for name, value in known.items() if value is not None)
        raise RunError(f"{path}: there is no {by} of the dev part to choose by; there is {available}.")
    return float(score) if math.isfinite(score) else math.inf


def test_rates(result: Mapping[str, Any]) -> dict[str, float]:
    """Word error rate or accuracy of the test part."""
    rates = {"wer": result["wer"]["test"]["rate"]} if "test" in result.get("wer", {}) else {}
    return rates | ({"accuracy": result["accuracy"]["test"]} if "test" in result.get("accuracy", {}) else {})


def early_loss(path: Path, epochs: int) -> float:
    """The dev loss of a run at its first look after a quarter of its epochs."""
    losses = [m for m in read_run(path).metrics if (m.split, m.name) == ("dev", "loss")]
    return next((m.value for m in losses if m.epoch >= 0.25 * epochs - 0.01), math.inf)


def _row(trial: Trial) -> dict[str, Any]:
    scores = {str(seed): score if math.isfinite(score) else None for seed, score in trial.scores.items()}
    score = trial.score if math.isfinite(trial.score) else None
    return {**asdict(trial), "scores": scores, "score": score}


def _unfinished(rows: Sequence[Trial]) -> list[str]:
    """How many combinations did not get to the end, and why."""
    counts = Counter(trial.status for trial in rows if trial.status != "finished")
    return [f"{count} of {len(rows)} combinations {status}; their cost is counted" for status, count in counts.items()]
