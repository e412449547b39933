"""Ordinary runs as parts of an entry: made from a recipe that comes with the package, continued where they were cut.

At the scale "smoke" the data are replaced by tiny ones and the run is cut to two epochs, so that a test can run it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hemstitch.report import Run, read_run
from hemstitch.reproduce._entry import Scale
from hemstitch.testing import write_tiny_corpus, write_tiny_images, write_tiny_text
from hemstitch.train import Console, Recipe
from hemstitch.train._experiments._runs import complete, vary
from hemstitch.train._recipe_files import read

SMOKE = {"train.epochs": 2, "train.batch_size": 32, "train.threads": 1}


def recipe(scale: Scale, name: str, folder: Path, settings: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe ``name`` with ``settings``; at scale "smoke" on tiny data in ``folder``.

    Speech recipes lose ``model.*`` sizes only through ``settings``: give small ones for smoke where it matters.
    """
    base = read(name, [])
    chosen = {"train.threads": 1, **(settings or {})}
    if scale == "smoke":
        chosen |= SMOKE | _tiny_data(base, folder.parent / "data")
    return vary(base, chosen, "hemstitch reproduce")


def _tiny_data(base: Recipe, folder: Path) -> dict[str, Any]:
    if base.kinds["data"] == "images":
        if not (folder / "images").is_dir():
            write_tiny_images(folder / "images")
        return {"data.source": str(folder / "images")}
    if base.kinds["data"] == "text":
        write_tiny_text(folder / "text")
        return {f"data.{part}": str(folder / "text" / f"{part}.txt") for part in ("train", "dev", "test")} | {
            "train.batch_size": 4, "data.chunk": 8}  # fmt: skip
    if not (folder / "corpus" / "lm.arpa").is_file():
        write_tiny_corpus(folder / "corpus")
    return {"data.corpus": str(folder / "corpus"), "data.importer": None, "data.source": None,
            "data.importer_options": [], "data.dev_share": 0.2, "features.kind": "given"}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        result: its result.json.
        run: its curves and the rest.
    """

    result: dict[str, Any]
    run: Run

    def curve(self, split: str, name: str, axis: str = "passes") -> dict[str, list[float]]:
        """A metric as JSON: {"x": [...], "y": [...]}; axis: step, passes, wall_seconds or cpu_seconds."""
        found = self.run.curves.get((split, name))
        if found is None:
            return {"x": [], "y": []}
        return {"x": getattr(found, axis).tolist(), "y": found.value.tolist()}

    @property
    def test_rate(self) -> float | None:
        """Word error rate on the test part, or the error rate of images; ``None`` if the run diverged."""
        rates = (1 - s.rate if s.kind == "accuracy" else s.rate for s in self.run.scores if s.split == "test")
        return next(rates, None)


def trained(wanted: Recipe, folder: Path, console: Console | None = None) -> Trained:
    """Train in ``folder``, or go on with what is there, or take it as it is; diverged runs count.

    Raises:
        Interrupted: stopped by a signal; call again to continue.
    """
    result = complete(wanted, folder / "run", console or Console(quiet=True))
    return Trained(result, read_run(folder / "run"))
