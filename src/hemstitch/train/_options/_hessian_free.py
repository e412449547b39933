"""Hessian-free optimisation: [update] with kind = "hessian-free"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hemstitch.train._options._checks import above, at_least, require, share


@dataclass(frozen=True, kw_only=True)
class HessianFree:
    """Hessian-free optimisation (paper 3): an epoch is one step, train.batch_size only bounds the memory of a pass.

    Attributes:
        damping: lambda of the first step; it then follows the reduction ratio. Look at `rho` in the report: far above
            1 step after step means start lower.
        weight_decay: L2 penalty, half of it times the squared parameters is added to the loss.
        max_cg: conjugate gradient iterations of a step at most.
        cg_tolerance: they stop when the quadratic falls by less than this share of its value per iteration.
        carry: share of the last direction from which the next run starts.
        preconditioner: of conjugate gradients; lbfgs is the paper's.
        num_pairs: pairs of vectors that lbfgs keeps (16, 32 and 64 in the paper); costs 4 vectors each.
        keep_pairs: which pairs of a run: evenly spread over it (the paper), its first or its last ones.
        rebuild: lbfgs from the pairs of the step before, or renewed within the run of conjugate gradients.
        sampling: sizes of the samples from step to step: fixed at their caps; growing geometrically; growing as the
            variance of the gradient demands; or geometrically first and by the variance from switch_share on.
        sample_by: what is drawn: whole utterances or single frames (images). auto: frames where the criterion is one
            of frames, else utterances.
        gradient_cap, curvature_cap: largest samples, as shares of the training data.
        gradient_start, curvature_start: first samples of growing kinds, as shares of the caps.
        gradient_factor, curvature_factor: geometric growth per step.
        theta: relative error of the gradient that the variance test allows.
        switch_share: share of the cap from which geometric-then-variance trusts the variance.
        nested: each sample contains the one before it, so that the pairs of the last step fit; else drawn anew.
        held_out: share of the training data (whole utterances) that is not trained on and accepts or rejects steps;
            neither train nor dev.
        shards: parts, a power of two, in which every sum is formed in a fixed order: up to so many workers compute
            the same bits as one.
        keep_graphs: keep the graphs of the curvature sample between products; else half the speed, little memory.
    """

    damping: float = 0.1
    weight_decay: float = 0.0
    max_cg: int = 250
    cg_tolerance: float = 5e-4
    carry: float = 0.95
    preconditioner: Literal["none", "jacobi", "fisher", "lbfgs"] = "none"
    num_pairs: int = 16
    keep_pairs: Literal["even", "first", "last"] = "first"
    rebuild: Literal["between", "within"] = "between"
    sampling: Literal["fixed", "geometric", "variance", "geometric-then-variance"] = "fixed"
    sample_by: Literal["auto", "utterance", "frame"] = "auto"
    gradient_cap: float = 1.0
    curvature_cap: float = 0.1
    gradient_start: float = 0.04
    curvature_start: float = 0.04
    gradient_factor: float = 1.2
    curvature_factor: float = 1.3
    theta: float = 0.25
    switch_share: float = 0.25
    nested: bool = True
    held_out: float = 0.1
    shards: int = 4
    keep_graphs: bool = True

    def __post_init__(self) -> None:
        above(0, self, "damping")
        at_least(0, self, "weight_decay", "cg_tolerance")
        at_least(1, self, "max_cg", "num_pairs", "gradient_factor", "curvature_factor")
        share(self, "carry")
        require(0 < self.theta < 1, f"theta must lie between 0 and 1, got {self.theta:g}")
        require(0 <= self.switch_share <= 1, f"switch_share must lie in [0, 1], got {self.switch_share:g}")
        for name in ("gradient_cap", "curvature_cap", "gradient_start", "curvature_start"):
            require(0 < getattr(self, name) <= 1, f"{name} must be in (0, 1], got {getattr(self, name)}")
        require(0 < self.held_out < 1, f"held_out must lie between 0 and 1, got {self.held_out}")
        require(self.shards >= 1 and self.shards & (self.shards - 1) == 0,
                f"shards must be a power of two, got {self.shards}")  # fmt: skip
        require(self.rebuild == "between" or self.preconditioner == "lbfgs",
                "rebuild = 'within' renews the pairs of preconditioner = 'lbfgs'; "
                f"preconditioner is {self.preconditioner!r}")  # fmt: skip
