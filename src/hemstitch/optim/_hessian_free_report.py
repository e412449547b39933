"""What one Hessian-free step did, for curves, tables and reports. No optimizer state."""

from __future__ import annotations

from dataclasses import dataclass

COST = {"gradient": 1.0, "curvature": 4 / 3, "evaluate": 1 / 3}
"""Cost of one pass of each role, in gradients of the same sample (forward 1/3, backward 2/3, product 4/3)."""


@dataclass(frozen=True, kw_only=True)
class HessianFreeReport:
    """One step.

    Attributes:
        step: its number, from 0.
        accepted: whether the parameters moved.
        outcome: ``accepted``, or why not: ``no improvement`` (no iterate lowered the held-out loss), ``no sufficient
            step`` (Armijo's rule failed), ``no direction`` (conjugate gradients made no iteration),
            ``non-finite loss``, ``non-finite gradient``.
        loss_before, loss_after: held-out loss L(theta) with weight decay, at both ends of the step.
        gradient_loss: loss on the gradient sample before the step, without weight decay; NaN where it was not reached.
        gradient_norm: |g| on the gradient sample.
        cg_iterations, cg_reason: of conjugate gradients, see :class:`hemstitch.curvature.CGResult`.
        iterate: number of iterations after which the chosen direction was taken; 0 if none.
        damping, next_damping: lambda of this and of the next step.
        rho: reduction ratio, NaN where there was none.
        step_length: alpha of the line search; 0 if rejected.
        weights: samples (frames, utterances) of one pass of each role.
        passes: over them: gradients, curvature products, evaluations of the loss.
        seconds: wall time of each role, with the vector work of conjugate gradients under ``curvature``.
        cpu_seconds: processor time of each role, all threads of this process together.
        noise: squared relative error of the gradient, :func:`hemstitch.sampling.gradient_noise`.
    """

    step: int
    accepted: bool
    outcome: str
    loss_before: float
    loss_after: float
    gradient_loss: float
    gradient_norm: float
    cg_iterations: int
    cg_reason: str
    iterate: int
    damping: float
    next_damping: float
    rho: float
    step_length: float
    weights: dict[str, float]
    passes: dict[str, int]
    seconds: dict[str, float]
    cpu_seconds: dict[str, float]
    noise: float

    @property
    def cost(self) -> float:
        """The whole step in gradients of one sample: what to compare with other methods at equal passes."""
        return sum(COST[role] * count * self.weights.get(role, 0.0) for role, count in self.passes.items())
