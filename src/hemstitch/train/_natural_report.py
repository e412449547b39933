"""What natural gradient and bounded steps tell of themselves in metrics.jsonl, and so in the report of a run."""

from __future__ import annotations

import math
from typing import Any

from hemstitch.curvature import FisherReport
from hemstitch.optim import SGD, NaturalGradient


def fisher_values(natural: NaturalGradient | None) -> dict[str, float]:
    """State of the Fisher estimates over all layers: shape on either side, and updates that went wrong so far.

    The effective rank is the mean over layers, the condition their geometric mean.
    """
    sides = [side for layer in natural.report().values() for side in layer.items()] if natural else []
    values: dict[str, float] = {}
    for name in ("in", "out"):
        reports: list[FisherReport] = [report for side, report in sides if side == name]
        if reports:
            values[f"fisher_effective_rank_{name}"] = _mean([r.effective_rank for r in reports])
            values[f"fisher_condition_{name}"] = math.exp(_mean([math.log(r.condition) for r in reports]))
    if sides:
        values["fisher_updates_refused"] = float(sum(report.num_refused for _, report in sides))
        values["fisher_updates_mended"] = float(sum(report.num_recovered for _, report in sides))
    return values


def bounds_met(optimizer: Any) -> dict[str, float]:
    """Of the last step: the share of layers that their bound shortened, and whether the bound on all did."""
    inner = getattr(optimizer, "optimizer", optimizer)  # within backstitch
    if not isinstance(inner, SGD):
        return {}
    report = inner.report()
    shortened = len(report.last_shortened) / max(1, len(report.last_change))
    return {"layers_shortened": shortened, "steps_shortened": float(report.last_global)}


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
