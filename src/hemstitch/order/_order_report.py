"""What a run in backward order has spent and holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class OrderReport:
    """What a run in backward order has spent and holds.

    Attributes:
        num_steps: batches observed.
        phase: "forward" or "backward".
        origin_step: step of the trajectory's starting point, ``None`` in a forward phase.
        num_stored: batches (or what makes them) kept.
        stored_bytes: memory of the tensors among them.
        num_resets: how often the origin was moved.
        forward_passes, backward_passes: passes over one batch, looks and re-estimated statistics included.
        engine: what computed the last iterate, and why nothing faster could.
    """

    num_steps: int
    phase: str
    origin_step: int | None
    num_stored: int
    stored_bytes: int
    num_resets: int
    forward_passes: int
    backward_passes: int
    engine: str


def num_bytes(item: Any) -> int:
    """Memory of the tensors in nested tuples, lists and dictionaries."""
    if isinstance(item, Tensor):
        return item.nbytes
    parts = item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple) else ()
    return sum(num_bytes(part) for part in parts)
