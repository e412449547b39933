"""Comparisons in which each method has its own learning rate: tuned with the first seed, repeated with others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hemstitch.reproduce._entry import Part, Row, Scale, choose, mean_and_interval
from hemstitch.reproduce._method_runs import Change, Settings, grid

Results = Mapping[str, dict[str, Any]]
Make = Callable[[Scale, Settings, Change | None], Part]
"""(scale, settings, change) -> a run of some recipe."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A method in a comparison.

    Attributes:
        settings: what makes it, on top of the recipe.
        rates: learning rates tried with seed 1.
        tuned: the one of them that won at scale laptop, repeated with further seeds.
        change: learning rate -> what no recipe can say.
    """

    settings: Settings
    rates: Sequence[float]
    tuned: float
    change: Callable[[float], Change] | None = None


def contender_parts(scale: Scale, make: Make, contenders: Mapping[str, Contender], num_seeds: int) -> dict[str, Part]:
    """All runs: every rate with seed 1, the tuned ones with seeds 2 ... ``num_seeds``."""
    last = choose(scale, smoke=1, laptop=num_seeds, paper=num_seeds)
    plan = [(kind, c, lr, 1) for kind, c in contenders.items() for lr in grid(scale, c.rates)]
    plan += [(kind, c, c.tuned, seed) for kind, c in contenders.items() for seed in range(2, last + 1)]
    return {
        f"{kind}, rate {lr:g}" + (f", seed {seed}" if seed > 1 else ""):
            make(scale, {**c.settings, "update.lr": lr, "seed": seed}, None if c.change is None else c.change(lr))
        for kind, c, lr, seed in plan
    }  # fmt: skip


def tuned_runs(results: Results, kind: str) -> tuple[float, list[dict[str, Any]]]:
    """The learning rate with the lowest dev loss of seed 1, and its runs with all seeds."""
    found = {name: r for name, r in results.items() if name.startswith(f"{kind}, rate ") and r["best"] is not None}
    firsts = {name: r["best"] for name, r in found.items() if ", seed " not in name}
    best = min(firsts, key=firsts.__getitem__)
    return float(best.rpartition(" ")[2]), [r for name, r in found.items() if name.split(", seed ")[0] == best]


def is_at_edge(results: Results, kind: str) -> bool:
    """Whether the best rate is the smallest or the largest tried, so that one beyond may be better."""
    tried = [float(name.rpartition(" ")[2]) for name in results
             if name.startswith(f"{kind}, rate ") and ", seed " not in name]  # fmt: skip
    return tuned_runs(results, kind)[0] in (min(tried), max(tried))


def mean_best(results: Results, kind: str) -> float:
    """Dev loss at the best rate, mean over seeds."""
    runs = tuned_runs(results, kind)[1]
    return sum(r["best"] for r in runs) / len(runs)


def tuned_row(results: Results, kind: str, what: str) -> Row:
    """Dev loss of a method at its best rate, with the interval over seeds."""
    rate, runs = tuned_runs(results, kind)
    mean, low, high = mean_and_interval([r["best"] for r in runs])
    return Row(quantity=f"{what} of {kind}, rate {rate:g}", ours=mean, low=low, high=high, seeds=len(runs))


def tuning_note(results: Results, kinds: Sequence[str]) -> str:
    """What the reader must know of the learning rates."""
    edges = [kind for kind in kinds if is_at_edge(results, kind)]
    note = "each at the best of its learning rates, chosen with seed 1"
    return note + (f" (for {' and '.join(edges)} the last one tried)" if edges else "")
