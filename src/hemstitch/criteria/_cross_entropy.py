"""Cross-entropy over frames or examples (paper 2, equation 1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from hemstitch.criteria._output_curvature import OutputCurvature
from hemstitch.curvature import occupancy_product

IGNORED = -100
"""The target of a frame that does not count (torch's convention)."""


@dataclass(frozen=True)
class FrameObjective:
    """Value of a frame criterion on a batch.

    Attributes:
        loss: sum over the frames, to be minimised; carries the gradient.
        weight: number of frames that counted.
        errors: number of them whose best output is not the target.
    """

    loss: Tensor
    weight: float
    errors: float


class CrossEntropy:
    """``loss = - sum_t log softmax(outputs_t)[target_t]``.

    Targets of ``IGNORED`` do not count. The loss is a sum and not a mean, so that batches of different sizes,
    accumulation and reduction over workers stay exact; divide by ``weight`` for the mean.
    """

    def __call__(self, outputs: Tensor, targets: Tensor) -> FrameObjective:
        """Outputs (..., pdf) logits, targets (...) int64 -> the objective. Computed in float32 at least."""
        logits = outputs.reshape(-1, outputs.shape[-1])
        logits = logits if logits.dtype.itemsize >= 4 else logits.float()
        flat = targets.reshape(-1)
        loss = functional.cross_entropy(logits, flat, reduction="sum", ignore_index=IGNORED)
        counted = flat != IGNORED
        errors = ((logits.detach().argmax(-1) != flat) & counted).sum()
        return FrameObjective(loss, float(counted.sum()), float(errors))

    def curvature(self, outputs: Tensor, targets: Tensor) -> OutputCurvature:
        """diag(p) - p p' of each frame that counts, p the softmax: the Hessian of the summed loss."""
        counted = (targets != IGNORED).unsqueeze(-1)
        occupancy = outputs.detach().softmax(-1) * counted
        return OutputCurvature(product=lambda v: occupancy_product(occupancy, v), weight=float(counted.sum()))
