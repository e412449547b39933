"""Is A better than B, by how much, how sure: the same folds, the same seeds, every speaker tested once.

All data are pooled and cut into folds by speaker. Each fold in turn is the test part of an ordinary run, for every
method and seed; dev parts are cut from the rest, alike for all methods. The errors of all folds together are those of
a test set as large as the corpus (5,616 words instead of AN4's 773), and the methods are compared on it speaker by
speaker (see ``_paired_bootstrap``). The result on the official test part stands beside it.

What this does not see: the training sets of two folds overlap, so the networks are not independent; and the speakers
on which settings were chosen before (``hemstitch sweep``) are tested in other folds, for every method alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hemstitch.errors import ConfigError, RunError
from hemstitch.train._console import Console
from hemstitch.train._experiments._paired_bootstrap import Gain, PairedErrors
from hemstitch.train._experiments._pooling import pool, read_counts
from hemstitch.train._experiments._runs import Cost, chosen, complete, folder_name, outcome, vary
from hemstitch.train._experiments._sweep import test_rates
from hemstitch.train._recipe import Recipe
from hemstitch.train._run_folder import environment, write_json

CROSS_VALIDATION = "cross-validation.json"


@dataclass(frozen=True, kw_only=True)
class Method:
    """One of the methods that are compared.

    Attributes:
        name: what to call it.
        recipe: how it trains.
        tuning: what finding its settings cost.
        paper: the value that a paper reports, as text, for results pages.
    """

    name: str
    recipe: Recipe
    tuning: Cost | None = None
    paper: str | None = None


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """What a method reached.

    Attributes:
        name: of the method.
        rate, low, high: pooled error rate, mean over seeds, and its 95 % interval.
        seeds: seed -> pooled error rate.
        official: seed -> error rate on the official test part; empty where that was not run.
        errors: pooled errors, mean over seeds.
        cost: of the runs on folds, all together.
        settings: what the recipe sets, ``section.field`` -> value.
    """

    name: str
    rate: float
    low: float
    high: float
    seeds: dict[int, float]
    official: dict[int, float]
    errors: float
    cost: Cost
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Method ``a`` against method ``b``; gains are positive where ``a`` is better."""

    a: str
    b: str
    gain: Gain


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """Methods on the same folds.

    Attributes:
        methods: in the order in which they were given, as what they reached.
        comparisons: every pair, the one given first against the later one.
        given: the methods as they were given.
        folds, fold_seed, seeds: the design.
        units, words: how many speakers (or blocks of images), and reference words.
        measure: "WER", or "error rate" of images.
    """

    methods: tuple[MethodResult, ...]
    comparisons: tuple[Comparison, ...]
    given: tuple[Method, ...] = field(repr=False)
    folds: int
    fold_seed: int
    seeds: tuple[int, ...]
    units: int
    words: int
    measure: str

    def as_json(self) -> dict[str, Any]:
        """What cross-validation.json holds: all that a page of results needs; what is not known is null."""
        methods = [
            {**asdict(result), "tuning": method.tuning and asdict(method.tuning), "paper": method.paper}
            for method, result in zip(self.given, self.methods)
        ]
        pairs = [{"a": c.a, "b": c.b, **asdict(c.gain), "verdict": c.gain.verdict} for c in self.comparisons]
        design = {name: getattr(self, name) for name in ("folds", "fold_seed", "seeds", "units", "words", "measure")}
        content = {"kind": "cross-validation", "methods": methods, "comparisons": pairs, **design}
        return {**_without_nan(content), "environment": environment()}


def cross_validate(
    methods: Sequence[Method],
    *,
    folds: int = 5,
    seeds: Sequence[int] = (1, 2),
    fold_seed: int = 0,
    out: Path | None = None,
    official: bool = True,
    replications: int = 10_000,
    console: Console | None = None,
) -> CrossValidation:
    """Compare methods on the same folds of the pooled data; writes cross-validation.json.

    Args:
        methods: one or more, with different names, on the same data.
        folds: into how many the speakers (or images) are cut.
        seeds: each method is trained on each fold with each of them. Two or more tell what is due to chance in
            training.
        fold_seed: deals the speakers out.
        out: folder of the runs and of the result (default: ``runs/compare-NAME-NAME``); one that has runs is
            continued.
        official: also train on the official training part and test on the official test part.
        replications: bootstrap samples.
        console: where messages go; ``None``: standard error.

    Raises:
        ConfigError: two methods of one name, or on different data.
        RunError: a run diverged, or the folder holds other runs.
        Interrupted: stopped by a signal; call again to continue.

    Cost: methods x seeds x (folds + 1) runs.
    """
    _check(methods, seeds)
    out = out or Path("runs") / folder_name("-".join(["compare", *(method.name for method in methods)]))
    console = console or Console()
    total, done = len(methods) * len(seeds) * (folds + official), itertools.count(1)

    def run(method: Method, fold: int, seed: int) -> tuple[dict[str, Any], Path]:
        cut = {"data.fold": fold, "data.folds": folds, "data.fold_seed": fold_seed, "seed": seed}
        path = out / folder_name(method.name) / (f"fold={fold},seed={seed}" if fold else f"official,seed={seed}")
        result = complete(vary(method.recipe, cut, "cross-validation"), path, Console(quiet=True))
        where = f"fold {fold}" if fold else "official parts"
        console.say(f"{next(done)}/{total}  {method.name}, {where}, seed {seed}: {_headline(result)}")
        if outcome(result) != "finished":
            raise RunError(f"{path}: {result['error']} A method must not fail on any fold: tune it first.")
        return result, path

    runs = {
        (m, s, fold): run(method, fold, seed)
        for fold in [*range(1, folds + 1), *([0] if official else [])]
        for s, seed in enumerate(seeds)
        for m, method in enumerate(methods)
    }
    tested = {key: (result, read_counts(path)) for key, (result, path) in runs.items() if key[2]}
    errors = pool(lambda m, s, fold: tested[m, s, fold][1], len(methods), len(seeds), folds, replications)
    result = CrossValidation(
        methods=tuple(_method_result(method, m, errors, seeds, runs) for m, method in enumerate(methods)),
        comparisons=tuple(
            Comparison(a=methods[a].name, b=methods[b].name, gain=errors.gain(a, b))
            for a, b in itertools.combinations(range(len(methods)), 2)
        ),
        given=tuple(methods), folds=folds, fold_seed=fold_seed, seeds=tuple(seeds), units=len(errors.words),
        words=int(errors.words.sum()), measure="WER" if "decode" in methods[0].recipe.sections else "error rate",
    )  # fmt: skip
    write_json(out / CROSS_VALIDATION, result.as_json())
    return result


def _method_result(
    method: Method, m: int, errors: PairedErrors, seeds: Sequence[int], runs: Mapping[tuple[int, int, int], Any]
) -> MethodResult:
    low, high = errors.interval(m)
    mine = {key[1:]: result for key, (result, _) in runs.items() if key[0] == m}
    return MethodResult(
        name=method.name, rate=float(errors.rates[m].mean()), low=low, high=high,
        seeds={seed: float(errors.rates[m, s]) for s, seed in enumerate(seeds)},
        official={seed: _error_rate(mine[s, 0]) for s, seed in enumerate(seeds) if (s, 0) in mine},
        errors=float(errors.errors[m].sum() / len(seeds)),
        cost=sum((Cost.of(result) for (_, fold), result in mine.items() if fold), Cost()),
        settings={key: value for key, (value, _) in chosen(method.recipe).items()},
    )  # fmt: skip


def _error_rate(result: Mapping[str, Any]) -> float:
    rates = test_rates(result)
    return rates["wer"] if "wer" in rates else 1 - rates["accuracy"]


def _headline(result: Mapping[str, Any]) -> str:
    return f"test error {_error_rate(result):.2%}" if outcome(result) == "finished" else outcome(result)


def _check(methods: Sequence[Method], seeds: Sequence[int]) -> None:
    names = [method.name for method in methods]
    if not methods or len(set(names)) < len(names) or len(set(seeds)) < max(len(seeds), 1):
        raise ConfigError(f"need methods of different names and different seeds, got {names} and {list(seeds)}")
    cut = {"data.fold", "data.folds", "data.fold_seed"}
    data = [{k: v for k, v in m.recipe.flat().items() if k.startswith("data.") and k not in cut} for m in methods]
    for name, other in zip(names, data):
        if differing := [key for key in data[0] | other if data[0].get(key) != other.get(key)]:
            key = differing[0]
            raise ConfigError(
                f"{names[0]} and {name} are to be compared on the same data, but {key} is {data[0].get(key)!r} and "
                f"{other.get(key)!r}"
            )


def _without_nan(content: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
