"""What lattice criteria take and give: options, and outer gradients of utterances and of batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hemstitch.errors import MisuseError


@dataclass(frozen=True, kw_only=True)
class LatticeOptions:
    """How lattices are made and what is done with frames.

    Attributes:
        acoustic_scale: kappa > 0, weight of the acoustic scores beside the language model.
        beam: of the search, in nats after scaling.
        lattice_beam: largest cost above the best path, in nats after scaling.
        max_active: states alive in a frame.
        smoothing: h of the H-criterion, (1 - h) loss + h cross-entropy; 0: none.
        min_occupancy: MMI: a frame whose reference has less denominator occupancy has no gradient; 0: none is rejected.
        tolerance: a frame whose occupancies change by no more than this counts as cancelled.
        fixed_pdfs: outputs that get no gradient (the silence model).
        numerator: the reference: the alignment, or all ways to say its words that the lattice has, in proportion to
            their weights; other boundaries of the right words then are no errors.
    """

    acoustic_scale: float = 0.1
    beam: float = 12.0
    lattice_beam: float = 6.0
    max_active: int = 4000
    smoothing: float = 0.0
    min_occupancy: float = 1e-3
    tolerance: float = 1e-3
    fixed_pdfs: tuple[int, ...] = ()
    numerator: Literal["alignment", "words"] = "alignment"

    def __post_init__(self) -> None:
        for name in ("acoustic_scale", "beam", "lattice_beam", "max_active"):
            if not getattr(self, name) > 0:
                raise MisuseError(f"lattice criterion: {name} must be above 0, got {getattr(self, name)}")
        for name in ("smoothing", "min_occupancy", "tolerance"):
            if not 0 <= getattr(self, name) <= 1:
                raise MisuseError(f"lattice criterion: {name} must lie in 0..1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class UtteranceGradient:
    """The outer gradient of one utterance.

    Attributes:
        derivative: (frame, pdf) of ``loss`` by the outputs.
        occupancy: (frame, pdf) gamma_den.
        loss: to be minimised, in nats (MMI) or frames (MBR), smoothing included.
        cancelled: (frame,) whether the derivative is zero within the tolerance.
        rejected: number of frames whose derivative was set to zero.
        added: whether the reference had fallen out of the lattice.
        density: arcs per frame of the lattice.
        reason: why the utterance was left out, "" if it was not; then there is no gradient.
    """

    derivative: np.ndarray
    occupancy: np.ndarray
    loss: float = 0.0
    cancelled: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    rejected: int = 0
    added: bool = False
    density: float = 0.0
    reason: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class LatticeOuterGradient:
    """The criterion and its derivative by the outputs on a batch, without autograd.

    Attributes:
        derivative: (batch, time, pdf) derivative of ``loss`` by the outputs.
        occupancy: (batch, time, pdf) denominator occupancies; zero where a sequence was left out.
        loss: sum over the sequences that counted, a float64 scalar.
        weight: frames of the sequences that counted.
        cancelled: (batch, time) frames without a gradient; past the end of a sequence too.
        extra: shares of frames rejected and cancelled, of references added, arcs per frame.
        reasons: why a sequence was left out, by its index in the batch.
    """

    derivative: Tensor
    occupancy: Tensor
    loss: Tensor
    weight: float
    cancelled: Tensor
    extra: dict[str, float]
    reasons: dict[int, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class LatticeObjective:
    """Value of a lattice criterion on a batch.

    Attributes:
        loss: float64 scalar, a sum to be minimised; carries the gradient. Finite whatever the inputs.
        weight: frames of the sequences that counted.
        extra: see :class:`LatticeOuterGradient`.
        reasons: why a sequence was left out, by its index in the batch.
    """

    loss: Tensor
    weight: float
    extra: dict[str, float]
    reasons: dict[int, str]

    @property
    def skipped(self) -> int:
        """Number of sequences left out; they have zero gradient."""
        return len(self.reasons)


def gathered(found: list[UtteranceGradient], outputs: Tensor, counts: list[int]) -> LatticeOuterGradient:
    """Those of the sequences of a batch, as one; ``counts``: frames of each."""
    derivative, occupancy = torch.zeros_like(outputs), torch.zeros_like(outputs)
    cancelled = torch.ones(outputs.shape[:2], dtype=torch.bool)
    for b, (each, count) in enumerate(zip(found, counts)):
        derivative[b, :count] = torch.from_numpy(each.derivative)
        occupancy[b, :count] = torch.from_numpy(each.occupancy)
        cancelled[b, :count] = torch.from_numpy(each.cancelled)
    counted = [(each, count) for each, count in zip(found, counts) if not each.reason]
    frames, utterances = max(sum(count for _, count in counted), 1), max(len(counted), 1)
    extra = {
        "cancelled_frames": sum(int(each.cancelled.sum()) for each, _ in counted) / frames,
        "rejected_frames": sum(each.rejected for each, _ in counted) / frames,
        "references_added": sum(each.added for each, _ in counted) / utterances,
        "arcs_per_frame": sum(each.density * count for each, count in counted) / frames,
        "utterances_left_out": (len(found) - len(counted)) / max(len(found), 1),
    }
    return LatticeOuterGradient(
        derivative=derivative, occupancy=occupancy, cancelled=cancelled, extra=extra,
        loss=torch.tensor(sum(each.loss for each, _ in counted), dtype=torch.float64, device=outputs.device),
        weight=float(sum(count for _, count in counted)),
        reasons={b: each.reason for b, each in enumerate(found) if each.reason})
