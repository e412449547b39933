"""Which criterion x update x order x parallel strategy combinations run: each tried on a tiny speech problem.

A combination either trains to the end, or is refused before training with the reason. Anything else is a defect.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hemstitch.errors import ConfigError
from hemstitch.reproduce._training import recipe
from hemstitch.train import SECTIONS, Console, Recipe, train
from hemstitch.train._experiments._runs import vary

Settings = Mapping[str, Any]

BASE: Settings = {"model.hidden": [8], "train.epochs": 1, "train.log_every": 1, "features.deltas": 0,
                  "hmm.flat_start": 2, "hmm.realign": [], "hmm.position_dependent": False,
                  "decode.beam": 8.0}  # fmt: skip

PLAIN: Settings = {"gradient.kind": "plain"}

UPDATES: Mapping[str, Settings] = {
    "momentum SGD": {**PLAIN, "update.kind": "sgd", "update.lr": 0.05, "update.momentum": 0.5},
    "AdamW": {**PLAIN, "update.kind": "adamw", "update.lr": 0.003},
    "natural gradient": {"gradient.kind": "natural", "update.kind": "max-change-sgd", "update.lr": 0.05},
    "backstitch": {"gradient.kind": "natural", "update.kind": "max-change-sgd", "update.lr": 0.05,
                   "backstitch.scale": 0.3},
    "Hessian-free": {**PLAIN, "update.kind": "hessian-free", "schedule.kind": "constant"},
}  # fmt: skip

CRITERIA: Mapping[str, Settings] = {
    "cross-entropy": {"criterion.kind": "cross-entropy"},
    "lattice-free MMI": {"criterion.kind": "lattice-free-mmi", "hmm.topology": "chain", "train.batch_size": 8},
    "CTC": {"criterion.kind": "ctc", "train.batch_size": 8},
    "MMI": {"criterion.kind": "mmi", "train.batch_size": 8},
    "boosted MMI": {"criterion.kind": "boosted-mmi", "train.batch_size": 8},
    "MPE": {"criterion.kind": "mpe", "train.batch_size": 8},
    "sMBR": {"criterion.kind": "smbr", "train.batch_size": 8},
}

ORDERS: Mapping[str, Settings] = {
    "forward": {"order.kind": "forward"},
    "backward": {"order.kind": "backward"},
    "order average": {"order.kind": "order-average"},
}

PARALLEL: Mapping[str, Settings] = {
    "one worker": {"parallel.kind": "local"},
    "virtual averaging": {"parallel.kind": "virtual-averaging"},
    "simulated asynchronous": {"parallel.kind": "simulated-async"},
}
"""Strategies of one process; those of several use the same algorithm code and refuse the same things."""

AXES: Mapping[str, Mapping[str, Settings]] = {
    "criterion": CRITERIA,
    "update": UPDATES,
    "order": ORDERS,
    "parallel": PARALLEL,
}


@dataclass(frozen=True)
class Combination:
    """One choice on every axis.

    Attributes:
        names: of the choices, in the order of ``AXES``.
        settings: what they set in a recipe.
    """

    names: tuple[str, ...]
    settings: Settings


def available(choices: Mapping[str, Settings]) -> dict[str, Settings]:
    """The choices whose kinds the tool has."""

    def known(settings: Settings) -> bool:
        kinds = ((key.removesuffix(".kind"), value) for key, value in settings.items() if key.endswith(".kind"))
        return all(value in SECTIONS[section] for section, value in kinds)  # type: ignore[operator]

    return {name: settings for name, settings in choices.items() if known(settings)}


def combinations() -> Iterator[Combination]:
    """All combinations."""
    for chosen in itertools.product(*(available(choices).items() for choices in AXES.values())):
        settings = {key: value for _, part in chosen for key, value in part.items()}
        yield Combination(tuple(name for name, _ in chosen), settings)


def attempt(combination: Combination, folder: Path) -> str:
    """Train the combination on a tiny corpus; "" if it ran, else why it was refused.

    Raises:
        Exception: whatever goes wrong in any other way than being refused as a configuration.
    """
    try:
        wanted = recipe("smoke", "an4-small", folder / "part", {**BASE, **combination.settings})
        wanted = _keep_sizes(wanted, combination.settings)
        train(wanted, folder / "run", Console(quiet=True))
    except ConfigError as refusal:
        return str(refusal)
    finally:
        shutil.rmtree(folder / "run", ignore_errors=True)
    return ""


def _keep_sizes(wanted: Recipe, settings: Settings) -> Recipe:
    sizes = {key: value for key, value in settings.items() if key.startswith("train.")}
    return vary(wanted, {**sizes, "train.epochs": 1}, "combinations")


def matrix(folder: Path, report: Callable[[str], None] = lambda line: None) -> dict[tuple[str, ...], str]:
    """Try all combinations; names -> "" or the reason of the refusal."""
    outcomes = {}
    for combination in combinations():
        outcomes[combination.names] = attempt(combination, folder)
        report(f"{', '.join(combination.names)}: {outcomes[combination.names] or 'runs'}")
    return outcomes


def matrix_markdown(outcomes: Mapping[tuple[str, ...], str]) -> str:
    """The matrix as docs/combinations.md holds it: a table per criterion, refusals numbered."""
    reasons = list(dict.fromkeys(reason for reason in outcomes.values() if reason))
    names = [list(dict.fromkeys(key[axis] for key in outcomes)) for axis in range(4)]
    ran = sum(not reason for reason in outcomes.values())
    lines = [
        "# What can be combined",
        "",
        "Generated by `hemstitch reproduce --combinations docs/combinations.md`.",
        f"{len(outcomes)} combinations were tried on a tiny speech problem: {ran} train to the end (✓),",
        f"{len(outcomes) - ran} are refused before training, with the reason of that number below.",
    ]
    for criterion in names[0]:
        title = criterion if criterion[1:2].isupper() else criterion[0].upper() + criterion[1:]
        lines += ["", f"## {title}", "", f"| | {' | '.join(names[1])} |", "|---" * (len(names[1]) + 1) + "|"]
        for parallel, order in itertools.product(names[3], names[2]):
            cells = [outcomes[criterion, update, order, parallel] for update in names[1]]
            shown = [str(reasons.index(cell) + 1) if cell else "✓" for cell in cells]
            lines.append(f"| {parallel}, {order} | {' | '.join(shown)} |")
    lines += ["", "## Reasons", ""]
    lines += [f"{number}. {' '.join(reason.split())}" for number, reason in enumerate(reasons, start=1)]
    return "\n".join(lines) + "\n"
