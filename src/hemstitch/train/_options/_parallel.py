"""Many workers: [parallel]."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LocalParallel:
    """One worker, this process."""
