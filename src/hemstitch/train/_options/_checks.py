"""What the options of a section may be."""

from __future__ import annotations


def require(condition: bool, message: str) -> None:
    """Refuse an option's value."""
    if not condition:
        raise ValueError(message)


def at_least(bound: float, options: object, *names: str) -> None:
    """Refuse options below ``bound``."""
    for name in names:
        values = getattr(options, name)
        for value in values if isinstance(values, tuple) else (values,):
            require(value >= bound, f"{name} must be at least {bound:g}, got {value:g}")


def at_most(bound: int, options: object, *names: str) -> None:
    """Refuse options above ``bound``."""
    for name in names:
        value = getattr(options, name)
        require(value <= bound, f"{name} must be at most {bound}, got {value}")


def above(bound: float, options: object, *names: str) -> None:
    """Refuse options that are not above ``bound``."""
    for name in names:
        values = getattr(options, name)
        for value in values if isinstance(values, tuple) else (values,):
            require(value > bound, f"{name} must be above {bound:g}, got {value:g}")


def share(options: object, *names: str) -> None:
    """Refuse options that do not lie in [0, 1)."""
    for name in names:
        value = getattr(options, name)
        require(0 <= value < 1, f"{name} must lie in [0, 1), got {value:g}")


def require_fold(fold: int, folds: int) -> None:
    """Refuse a fold that there is not."""
    require(folds >= 2, f"folds must be at least 2, got {folds}")
    require(0 <= fold <= folds, f"fold must be 0 (the parts as they are) to {folds}, got {fold}")
