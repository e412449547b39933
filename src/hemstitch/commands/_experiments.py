"""Commands of many runs: sweep and cross-validate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.table

from hemstitch.commands._show import _print
from hemstitch.errors import ConfigError, RunError
from hemstitch.report import verdict, write_method_comparison, write_sweep_page
from hemstitch.report._method_comparison import ONE_SEED
from hemstitch.report._sweep_page import score
from hemstitch.report._text import duration, interval, literal, number, percent
from hemstitch.train import Console, Interrupted
from hemstitch.train._config import _literal, read_overrides
from hemstitch.train._experiments import (
    Cost,
    CrossValidation,
    Method,
    SweepResult,
    cross_validate,
    sweep,
    tuned_recipe,
    vary,
)
from hemstitch.train._experiments._runs import folder_name
from hemstitch.train._recipe_files import read
from hemstitch.train._run_folder import CONFIG

STOPPED = "stopped; everything is saved. Give the same command again to continue."


def run_sweep(name: str, settings: Sequence[str], over: Sequence[str], *, seeds: str, out: Path | None, by: str,
              refine: bool, stop_hopeless: bool, quiet: bool) -> int:  # fmt: skip
    """Tune a recipe on dev."""
    recipe = read(name, settings)
    out = out or Path("runs") / f"sweep-{folder_name(recipe.name)}"
    if (out / CONFIG).is_file():
        raise RunError(f"{out} is a run, not the folder of a sweep: give another with --out")
    try:
        found = sweep(
            recipe, dict(map(_values, over)), seeds=_seeds(seeds), out=out, by=by, refine=refine,
            stop_hopeless=stop_hopeless, console=Console(quiet=quiet),
        )  # fmt: skip
    except Interrupted:
        print(STOPPED)
        return 130
    _show_sweep(found)
    print(f"page: {write_sweep_page(out)}")
    print("next:")
    print(f"  hemstitch cross-validate {out} OTHER   is it better than another recipe or tuned sweep?")
    return 0


def run_cross_validation(
    names: Sequence[str], settings: Sequence[str], *, folds: int, seeds: str, fold_seed: int, out: Path | None,
    official: bool, quiet: bool,
) -> int:  # fmt: skip
    """Compare methods on the same folds."""
    methods = [_method(name, settings) for name in names]
    out = out or Path("runs") / folder_name("-".join(["compare", *(method.name for method in methods)]))
    try:
        found = cross_validate(methods, folds=folds, seeds=_seeds(seeds), fold_seed=fold_seed, out=out,
                               official=official, console=Console(quiet=quiet))  # fmt: skip
    except Interrupted:
        print(STOPPED)
        return 130
    _show_comparison(found)
    print(f"page: {write_method_comparison(out)}")
    return 0


def _method(name: str, settings: Sequence[str]) -> Method:
    """A recipe, or the winner of a sweep with what it cost."""
    if not (Path(name) / "sweep.json").is_file():
        recipe = read(name, settings)
        return Method(name=recipe.name, recipe=recipe)
    recipe, tuning = tuned_recipe(Path(name))
    overrides = {key: value for key, (value, _) in read_overrides(settings).items()}
    return Method(name=recipe.name, recipe=vary(recipe, overrides, "command line"), tuning=tuning)


def _values(over: str) -> tuple[str, list[Any]]:
    """``update.lr=0.01,0.1`` -> key and values."""
    key, equals, text = over.partition("=")
    if not equals or not text:
        raise ConfigError(f"--over {over}: expected section.field=VALUE,VALUE,... such as update.lr=0.01,0.03,0.1")
    return key.replace("-", "_"), _list(text)


def _list(text: str) -> list[Any]:
    """Values between commas; in TOML notation (lists, quoted strings), or bare words."""
    whole = _literal(f"[{text}]")
    return whole if isinstance(whole, list) else [_literal(item) for item in text.split(",")]


def _seeds(text: str) -> list[int]:
    seeds = _list(text) if text else []
    if not all(isinstance(seed, int) for seed in seeds):
        raise ConfigError(f"--seeds {text}: expected whole numbers, such as 1,2")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text}: a seed twice is the same run twice; give each once")
    return seeds


def _show_sweep(found: SweepResult) -> None:
    keys = list(found.best.settings)
    grid = rich.table.Table(*keys, f"dev {found.by}", "seeds", "outcome", "passes", "wall", "CPU", box=None)
    for row in found.rows:
        grid.add_row(
            *(literal(row.settings[key]) for key in keys), score(row.score, found.by),
            ", ".join(score(value, found.by) for value in row.scores.values()),
            row.status + (", beyond the grid" if row.refinement else ""), *_cost(row.cost),
        )  # fmt: skip
    _print(grid)
    best = ", ".join(f"{key} = {literal(value)}" for key, value in found.best.settings.items())
    test = "".join(f", test {name} {percent(value)}" for name, value in found.test.items())
    print(f"best on dev: {best}  (dev {found.by} {score(found.best.score, found.by)}{test})")
    passes, wall, cpu = _cost(found.cost)
    print(f"the search cost {found.cost.runs} runs: {passes} passes, {wall} wall, {cpu} CPU")
    for remark in found.remarks:
        print(f"note: {remark}")


def _show_comparison(found: CrossValidation) -> None:
    measure = found.measure
    methods = rich.table.Table("method", measure, "95 %", "seeds", f"official test {measure}", "passes", "wall", "CPU",
                               "tuning CPU", box=None)  # fmt: skip
    for method, result in zip(found.given, found.methods):
        methods.add_row(
            result.name, percent(result.rate), interval(result.low, result.high), _each(result.seeds),
            _each(result.official), *_cost(result.cost), duration(method.tuning and method.tuning.cpu_seconds),
        )  # fmt: skip
    _print(methods)
    print(f"{found.words:,} words (or images) of {found.units} speakers (or blocks), {found.folds} folds")
    for pair in found.as_json()["comparisons"]:
        print(verdict(pair))
    if len(found.seeds) == 1:
        print(f"note: {ONE_SEED}")


def _cost(cost: Cost) -> tuple[str, str, str]:
    passes = number(round(cost.forward_passes + cost.backward_passes, 1))
    return passes, duration(cost.wall_seconds), duration(cost.cpu_seconds)


def _each(rates: dict[int, float]) -> str:
    return ", ".join(percent(rate) for rate in rates.values())
