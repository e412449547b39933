"""Runs of recipes as parts of entries about methods: curves, the loss on training data, errors on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hemstitch.comm import LocalReducer
from hemstitch.report import read_run
from hemstitch.reproduce._entry import Line, Part, Row, Scale, choose, mean_and_interval
from hemstitch.reproduce._training import Trained, recipe, trained
from hemstitch.train import Console, Recipe, load_trained
from hemstitch.train._build import Run, build_run
from hemstitch.train._run import _go
from hemstitch.train._run_folder import RESULT, RunFolder, read_json

Settings = Mapping[str, Any]
Change = Callable[[Run], Run]
QUIET = Console(quiet=True)

AN4: Settings = {"hmm.realign": [], "decode.prior_scale": [0.7], "decode.acoustic_scale": [0.1],
                 "decode.word_penalty": [0.0], "train.log_every": 200}  # fmt: skip
"""One alignment for all methods, so that losses compare."""
AN4_SIZES: Mapping[str, Settings] = {
    "smoke": {"model.hidden": [8], "features.deltas": 0, "hmm.flat_start": 2, "hmm.position_dependent": False},
    "laptop": {"model.hidden": [256, 256, 256], "model.left_context": 8, "model.right_context": 4},
    "paper": {"model.hidden": [1536, 1536, 1536, 1536]},
}
"""At scale "paper" four hidden layers and ten million parameters."""

SGD: Settings = {"gradient.kind": "plain", "update.kind": "max-change-sgd"}
NATURAL: Settings = {"gradient.kind": "natural", "update.kind": "max-change-sgd"}
MOMENTUM: Settings = {"gradient.kind": "plain", "update.kind": "sgd", "update.momentum": 0.9}

LOST = 100.0
"""A dev cross-entropy from which on a run has diverged: guessing among a thousand classes has 7."""


def frame_part(scale: Scale, settings: Settings, change: Change | None = None) -> Part:
    """A run of the small AN4 recipe: frame cross-entropy on one fixed alignment."""
    return run_part(scale, "an4-small", {**AN4, **AN4_SIZES[scale], **settings}, change)


def image_part(scale: Scale, settings: Settings, change: Change | None = None) -> Part:
    """A run of the Fashion-MNIST recipe."""
    return run_part(scale, "fashion-mnist", settings, change)


def run_part(scale: Scale, name: str, settings: Settings, change: Change | None = None) -> Part:
    """A run of a recipe with settings, and with what no recipe can say done by ``change`` before it starts."""

    def part(folder: Path) -> dict[str, Any]:
        wanted = recipe(scale, name, folder, settings)
        if change is not None:
            return facts(changed(wanted, folder / "run", change))
        done = trained(wanted, folder)
        return facts(done) | {"train_loss": training_loss(done)}

    return part


def changed(wanted: Recipe, path: Path, change: Change) -> Trained:
    """A run with something in it replaced, made or continued."""
    if not (path / RESULT).is_file():
        folder = RunFolder.open(path) if path.exists() else RunFolder.create(path, wanted.with_origins())
        run = change(build_run(wanted, QUIET, folder.kept() if path.exists() and folder.kept() else None))
        found = folder.load_newest()
        loop = run.begin(folder) if found is None else run.loop(folder)
        folder.rewind(None if found is None else found[0])
        if found is not None:
            loop.load_state_dict(found[0])
        _go(run, folder, loop, None, LocalReducer())
    return Trained(read_json(path / RESULT), read_run(path))


def facts(done: Trained) -> dict[str, Any]:
    """What entries keep of a run."""
    dev, words = done.curve("dev", "loss"), done.result.get("wer", {})
    errors = sum(w["rate"] * w["words"] for w in words.values()) / max(1, sum(w["words"] for w in words.values()))
    return {
        "dev": dev,
        "train": done.curve("train", "loss"),
        "cpu_seconds": done.curve("dev", "loss", "cpu_seconds")["x"],
        "best": min((y for y in dev["y"] if y is not None and y == y), default=None),
        "test": done.result.get("perplexity", {}).get("test", done.test_rate),
        "held_out_wer": errors if words else None,
    }


def training_loss(done: Trained) -> float | None:
    """The loss of a run's best network on its training data, without dropout; ``None`` if it did not finish."""
    if done.result.get("status") != "finished":
        return None
    run, _ = load_trained(done.run.folder, QUIET)
    task = run.task
    if hasattr(task, "topology"):
        scores, _ = task.scores(run.model, task.parts["train"])
        return float(torch.nn.functional.nll_loss(scores, task.parts["train"].targets))
    return float(task.evaluate(run.model, "train")["loss"])


def dev_line(label: str, result: Mapping[str, Any], axis: str = "passes") -> Line:
    """Dev loss against passes or CPU seconds."""
    x = result["dev"]["x"] if axis == "passes" else result["cpu_seconds"]
    return Line(label=label, x=x, y=result["dev"]["y"])


def grid(scale: Scale, values: Iterable[Any]) -> list[Any]:
    """All values, or at scale "smoke" the first."""
    values = list(values)
    return choose(scale, smoke=values[:1], laptop=values, paper=values)


def by_method(results: Mapping[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Parts named "METHOD, seed N" -> their results by method."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, result in results.items():
        found.setdefault(name.rpartition(", seed ")[0], []).append(result)
    return found


def mean_of(results: Sequence[Mapping[str, Any]], key: str) -> float:
    """Mean over seeds; infinite if one diverged."""
    values = [r[key] for r in results]
    return float("inf") if any(v is None for v in values) else sum(values) / len(values)


def mean_row(quantity: str, results: Sequence[Mapping[str, Any]], key: str, **options: Any) -> Row | None:
    """A row of mean and interval over seeds; ``None`` if one diverged."""
    values = [r[key] for r in results]
    if any(v is None for v in values):
        return None
    mean, low, high = mean_and_interval(values)
    return Row(quantity=quantity, ours=mean, low=low, high=high, seeds=len(values), **options)


def relative_reduction(ours: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], key: str) -> float:
    """By what fraction the mean is lower than that of ``base``; 0 where that is 0 already."""
    before = mean_of(base, key)
    return 1 - mean_of(ours, key) / before if before else 0.0
