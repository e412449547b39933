"""The order of the updates: [order]."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ForwardOrder:
    """Batches are applied in the order in which they come: ordinary training."""
