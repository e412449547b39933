"""What an entry is: one table or figure of a paper, its resumable parts, and what is concluded from them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Scale = Literal["smoke", "laptop", "paper"]
"""smoke: seconds, to see that it runs; laptop: at most 30 minutes on two cores; paper: the sizes of the paper."""

Verdict = Literal["reproduced", "partly", "not reproduced", "not run"]

Part = Callable[[Path], dict[str, Any]]
"""Does a piece of the work with a folder of its own (empty, or as an interrupted call left it); returns JSON."""

PAPERS: dict[int, str] = {
    0: "All methods side by side",
    1: "Wang et al., Backstitch, 2017",
    2: "Heigold et al., Asynchronous stochastic optimization for sequence training, 2014",
    3: "Sainath et al., Accelerating Hessian-free optimization, 2013",
    4: "Povey et al., Parallel training with natural gradient and parameter averaging, 2015",
    5: "Dherin et al., Backward SGD, 2025",
}
"""What entries belong to: 0 is none of the papers alone."""


def group(paper: int) -> str:
    """What entries of a paper have in common on the command line and as folder: paper-1 to paper-5, or together."""
    return f"paper-{paper}" if paper else "together"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One quantity, the paper's value beside ours.

    Attributes:
        quantity: what is measured, with its unit.
        paper: the paper's value as it stands there; "" where it gives none.
        ours: the value here, mean over seeds.
        low, high: 95 % interval, or the extremes over seeds: say which in the outcome's summary.
        seeds: how many runs from different seeds.
        percent: whether ``ours``, ``low`` and ``high`` are fractions to be shown as percent.
    """

    quantity: str
    ours: float
    paper: str = ""
    low: float | None = None
    high: float | None = None
    seeds: int = 1
    percent: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve.

    Attributes:
        label: for the legend; lines of one label share it.
        x, y: of equal length.
        band: lower and upper edge around it.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A picture of curves.

    Attributes:
        title: caption, with what is on the y-axis.
        lines: curves; those of one label have one colour.
        x_label: below the axis.
        log_y: logarithmic heights; ``None``: where they span decades.
        percent: heights are fractions.
    """

    title: str
    lines: Sequence[Line]
    x_label: str = ""
    log_y: bool | None = None
    percent: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came out.

    Attributes:
        verdict: plain.
        summary: one or two sentences: what was measured, at what size, and how it compares with the paper.
        rows: the table.
        plots: the pictures.
    """

    verdict: Verdict
    summary: str
    rows: Sequence[Row] = ()
    plots: Sequence[Plot] = ()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One table or figure.

    Attributes:
        name: such as "figure-5" or "table-2".
        paper: see ``PAPERS``.
        title: what it shows.
        paper_says: the paper's finding in a sentence.
        minutes: CPU minutes at laptop scale, measured or estimated.
        parts: scale -> name -> part. A part whose result is there is not run again.
        conclude: results of the parts by name -> outcome. Called again at no cost when the text of it changes.
        unavailable: why it cannot be had here; then there are no parts.
    """

    name: str
    paper: int
    title: str
    paper_says: str
    minutes: float = 0.0
    parts: Callable[[Scale], Mapping[str, Part]] | None = None
    conclude: Callable[[Mapping[str, dict[str, Any]]], Outcome] | None = None
    unavailable: str = ""

    @property
    def key(self) -> str:
        """Its name on the command line."""
        return f"{group(self.paper)}/{self.name}"

    @property
    def shows(self) -> tuple[str, ...]:
        """The tables and figures that its title names: paper-3/figure-3 and figure-4 for "Figures 3 and 4: ..."."""
        named = re.findall(r"(Table|Figure)s? ((?:\d+(?:, | and )?)+)", self.title)
        return tuple(f"{group(self.paper)}/{kind.lower()}-{number}" for kind, numbers in named
                     for number in re.findall(r"\d+", numbers))


def choose(scale: Scale, *, smoke: Any, laptop: Any, paper: Any) -> Any:
    """The value for a scale."""
    return {"smoke": smoke, "laptop": laptop, "paper": paper}[scale]


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean and its 95 % interval (Student's t); no interval for a single value."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, None, None
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = _student_97_5(n - 1) * deviation
    return mean, mean - half, mean + half


def _student_97_5(freedom: int) -> float:
    """97.5 % point of Student's t, from the table up to 10, by the expansion in 1/freedom beyond (error < 1e-3)."""
    table = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
    if freedom <= len(table):
        return table[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
