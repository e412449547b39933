"""Learning rates over time: [schedule]."""

from __future__ import annotations

from dataclasses import dataclass

from hemstitch.train._options._checks import at_least, require


@dataclass(frozen=True, kw_only=True)
class ConstantRate:
    """The learning rate stays where it is.

    Attributes:
        warmup: epochs of linear rise from zero.
    """

    warmup: float = 0.0

    def __post_init__(self) -> None:
        at_least(0, self, "warmup")


@dataclass(frozen=True, kw_only=True)
class ExponentialRate:
    """The learning rate falls by the same factor in each step (the usual choice in Kaldi).

    Attributes:
        warmup: epochs of linear rise from zero.
        final: what is left of the learning rate at the end.
    """

    warmup: float = 0.0
    final: float = 0.1

    def __post_init__(self) -> None:
        at_least(0, self, "warmup")
        require(0 < self.final <= 1, f"final must be in (0, 1], got {self.final}")


@dataclass(frozen=True, kw_only=True)
class CosineRate:
    """The learning rate falls along half a cosine.

    Attributes:
        warmup: epochs of linear rise from zero.
        final: what is left of the learning rate at the end.
    """

    warmup: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        at_least(0, self, "warmup")
        require(0 <= self.final <= 1, f"final must be in [0, 1], got {self.final}")


@dataclass(frozen=True, kw_only=True)
class PlateauRate:
    """The learning rate is multiplied by a factor when the dev loss no longer falls (paper 2: 0.1 when flat).

    Attributes:
        warmup: epochs of linear rise from zero.
        factor: multiplies the learning rate on a plateau.
        patience: looks without improvement that are waited for.
        threshold: relative improvement of the dev loss that counts as one.
    """

    warmup: float = 0.0
    factor: float = 0.1
    patience: int = 1
    threshold: float = 1e-3

    def __post_init__(self) -> None:
        at_least(0, self, "warmup", "patience", "threshold")
        require(0 < self.factor < 1, f"factor must lie between 0 and 1, got {self.factor}")
