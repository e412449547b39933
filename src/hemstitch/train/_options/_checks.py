"""What the options of a section may be."""

from __future__ import annotations


def require(condition: bool, message: str) -> None:
    """Refuse an option's value."""
    if not condition:
        raise ValueError(message)


def require_fold(fold: int, folds: int) -> None:
    """Refuse a fold that there is not."""
    require(folds >= 2, f"folds must be at least 2, got {folds}")
    require(0 <= fold <= folds, f"fold must be 0 (the parts as they are) to {folds}, got {fold}")
