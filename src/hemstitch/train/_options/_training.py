"""How long, on what, and how carefully: [train]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hemstitch.train._options._checks import require


@dataclass(frozen=True, kw_only=True)
class Training:
    """The loop: how long, how often to look, what to do when something breaks.

    Attributes:
        epochs: passes over the training data.
        batch_size: examples per step: frames, chunks of frames, whole utterances, images...
        evaluate_every: epochs between two looks at the dev part.
        log_every: steps that one logged training value averages over.
        checkpoint_every: steps between checkpoints; 0: at each look.
        keep: newest checkpoints kept; the one with the best dev loss is kept besides.
        clip: largest gradient norm; 0: no clipping.
        non_finite: what to do about a loss or gradient that is not finite: stop, leave the step out, or go back to the
            last checkpoint with half the learning rate.
        max_non_finite: steps left out or rolled back before the run stops all the same.
        device: where to compute; auto takes a GPU if there is one.
        precision: of the forward pass; parameters stay float32.
        threads: processor threads; 0: what torch chooses.
    """

    epochs: int = 10
    batch_size: int = 256
    evaluate_every: int = 1
    log_every: int = 50
    checkpoint_every: int = 0
    keep: int = 2
    clip: float = 0.0
    non_finite: Literal["raise", "skip", "roll-back"] = "raise"
    max_non_finite: int = 20
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bf16"] = "float32"
    threads: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluate_every", "log_every", "keep"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("checkpoint_every", "clip", "max_non_finite", "threads"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        require(self.threads <= 1024, f"threads must be at most 1024, got {self.threads}")
