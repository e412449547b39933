"""Frame cross-entropy on AN4 as parts of entries: one fixed alignment for all methods, so that dev losses compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from hemstitch.report import read_run
from hemstitch.reproduce._entry import Line, Part, Scale, choose
from hemstitch.reproduce._training import Trained, recipe, trained
from hemstitch.train import Console
from hemstitch.train._build import build_run
from hemstitch.train._run_folder import RunFolder
from hemstitch.train._strategies import SinglePass

Settings = Mapping[str, Any]
FIXED: Settings = {"hmm.realign": [], "decode.prior_scale": [0.7], "decode.acoustic_scale": [0.1],
                   "decode.word_penalty": [0.0], "train.log_every": 200}  # fmt: skip
SIZES: Mapping[str, Settings] = {
    "smoke": {"model.hidden": [8], "features.deltas": 0, "hmm.flat_start": 2, "hmm.position_dependent": False},
    "laptop": {"model.hidden": [256, 256, 256], "model.left_context": 8, "model.right_context": 4},
    "paper": {"model.hidden": [1536, 1536, 1536, 1536]},
}
"""The paper's network has four hidden layers and ten million parameters."""

SGD: Settings = {"gradient.kind": "plain", "update.kind": "max-change-sgd"}
NATURAL: Settings = {"gradient.kind": "natural", "update.kind": "max-change-sgd"}
MOMENTUM: Settings = {"gradient.kind": "plain", "update.kind": "sgd", "update.momentum": 0.9}


def frame_part(scale: Scale, settings: Settings) -> Part:
    """A run of the small AN4 recipe with ``settings``; its curves and results as JSON."""

    def part(folder: Path) -> dict[str, Any]:
        return curves(trained(recipe(scale, "an4-small", folder, {**FIXED, **SIZES[scale], **settings}), folder))

    return part


def optimizer_part(
    scale: Scale, settings: Settings, make: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
) -> Part:
    """The same with an optimizer of another library, which recipes do not know."""

    def part(folder: Path) -> dict[str, Any]:
        wanted = recipe(scale, "an4-small", folder, {**FIXED, **SIZES[scale], "gradient.kind": "plain", **settings})
        torch.manual_seed(wanted.seed)
        run = build_run(wanted, Console(quiet=True))
        optimizer = make(run.model.parameters())
        run = dataclasses.replace(run, optimizer=optimizer, strategy=SinglePass(run.strategy.gradient, optimizer))
        path = folder / "run"
        made = RunFolder.create(path, wanted.with_origins()) if not path.exists() else RunFolder.open(path)
        loop = run.loop(made)
        if (found := made.load_newest()) is not None:
            made.rewind(found[0])
            loop.load_state_dict(found[0])
        loop.run()
        made.write_result({"status": "finished", "summary": {"best_dev_loss": loop.progress.best_loss}})
        return curves(Trained({"summary": {"best_dev_loss": loop.progress.best_loss}}, read_run(path)))

    return part


def curves(done: Trained) -> dict[str, Any]:
    """What entries keep of a run: dev and training loss against passes, CPU seconds, the best dev loss, test errors."""
    dev = done.curve("dev", "loss")
    return {
        "dev": dev,
        "train": done.curve("train", "loss"),
        "cpu_seconds": done.curve("dev", "loss", "cpu_seconds")["x"],
        "best": min((y for y in dev["y"] if y is not None and y == y), default=None),
        "test": done.test_rate,
    }


def best_of(results: Mapping[str, Mapping[str, Any]], prefix: str) -> tuple[str, Mapping[str, Any]]:
    """Of the parts whose name begins so the one with the lowest dev loss."""
    found = {name: r for name, r in results.items() if name.startswith(prefix) and r["best"] is not None}
    name = min(found, key=lambda n: found[n]["best"])
    return name, found[name]


def dev_line(label: str, result: Mapping[str, Any], axis: str = "passes") -> Line:
    """Dev loss against passes or CPU seconds."""
    x = result["dev"]["x"] if axis == "passes" else result["cpu_seconds"]
    return Line(label=label, x=x, y=result["dev"]["y"])


def grid(scale: Scale, rates: Iterable[float]) -> list[float]:
    """All rates, or at scale "smoke" the first."""
    rates = list(rates)
    return choose(scale, smoke=rates[:1], laptop=rates, paper=rates)


