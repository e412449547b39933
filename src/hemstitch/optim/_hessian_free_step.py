"""The course of one Hessian-free step, put together from the parts of :mod:`hemstitch.curvature`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from hemstitch.curvature import (
    CGResult,
    DiagonalPreconditioner,
    FlatParameters,
    LBFGSPreconditioner,
    PairStore,
    Preconditioner,
    armijo,
    backtrack,
    conjugate_gradient,
    jacobi_diagonal,
)
from hemstitch.optim._hessian_free_passes import ROLES, Gradient, MeanCurvature, RolePasses
from hemstitch.optim._hessian_free_report import HessianFreeReport
from hemstitch.optim._passes import kept_statistics
from hemstitch.sampling import generator

if TYPE_CHECKING:
    from hemstitch.optim._hessian_free import HessianFree

ITERATE_GROWTH = 1.3
PreconditionerName = Literal["lbfgs", "lbfgs_within", "jacobi", "fisher"]
PRECONDITIONERS: tuple[str, ...] = get_args(PreconditionerName)


class HessianFreeStep:
    """Decides and moves; the optimizer takes over what it found.

    Attributes:
        origin: (param,) theta.
        result: of conjugate gradients, once they ran.
    """

    def __init__(self, optimizer: HessianFree, layout: FlatParameters, passes: RolePasses) -> None:
        self.optimizer, self.layout, self.passes = optimizer, layout, passes
        self.origin = layout.read()
        self.lr, self.factor, self.decay = map(self._per_parameter, ("lr", "damping_factor", "weight_decay"))
        self.damping = optimizer.damping * self.factor + self.decay
        self.result: CGResult | None = None
        self.seconds, self.cpu_seconds = dict.fromkeys(ROLES, 0.0), dict.fromkeys(ROLES, 0.0)

    def _per_parameter(self, name: str) -> float | Tensor:
        """An option of the groups: one number if all agree, else one per parameter; frozen parameters do not decay."""
        values = {id(p): float(group[name]) if p.requires_grad or name != "weight_decay" else 0.0
                  for group in self.optimizer.param_groups for p in group["params"]}
        if len(set(values.values())) == 1:
            return next(iter(values.values()))
        return torch.cat([self.origin.new_full((p.numel(),), values[id(p)]) for p in self.layout.params])

    @contextmanager
    def _timed(self, role: str) -> Iterator[None]:
        start, cpu_start = time.perf_counter(), time.process_time()
        yield
        self.seconds[role] += time.perf_counter() - start
        self.cpu_seconds[role] += time.process_time() - cpu_start

    def run(self) -> HessianFreeReport:
        """Decide and move."""
        before = self._loss_at(None)
        if not math.isfinite(before):
            return self._report("non-finite loss", before)
        with self._timed("gradient"):
            gradient = self.passes.gradient(want_squares=self.optimizer.preconditioner == "fisher")
            slope = gradient.flat + self.decay * self.origin
        norm = slope.norm().item()
        known = dict(gradient_norm=norm, gradient_loss=gradient.loss, noise=gradient.noise)
        if not math.isfinite(norm):
            return self._report("non-finite gradient", before, **known)
        with self._timed("curvature"), kept_statistics(self.optimizer.model):
            A = self.passes.curvature(self.optimizer.keep_graphs)
            self.result = self._solve(A, slope, gradient)
            predicted = self._predicted(A, slope)
            del A                                           # the graphs are not needed any more, their memory is
        if not self.result.iterations:
            return self._report("no direction", before, fail=True, **known)
        return self._search(slope, before, predicted, known)

    def _solve(self, A: MeanCurvature, slope: Tensor, gradient: Gradient) -> CGResult:
        optimizer, start = self.optimizer, self.optimizer.direction
        return conjugate_gradient(
            A, -slope, damping=self.damping, x0=start if start is not None and start.shape == slope.shape else None,
            preconditioner=self._preconditioner(A, gradient), flexible=optimizer.preconditioner == "lbfgs_within",
            tol=1e-10, max_iter=optimizer.max_cg, progress=optimizer.progress, iterate_growth=ITERATE_GROWTH,
            pairs=self._fresh_pairs())

    def _fresh_pairs(self) -> PairStore | None:
        """Where the pairs of this run go."""
        if self.optimizer.preconditioner not in ("lbfgs", "lbfgs_within"):
            return None
        self.optimizer.spare_pairs.clear()
        return self.optimizer.spare_pairs

    def _preconditioner(self, A: MeanCurvature, gradient: Gradient) -> Preconditioner | None:
        """M of this run."""
        optimizer, kind = self.optimizer, self.optimizer.preconditioner
        if kind == "jacobi":
            probes = generator(optimizer.seed, optimizer.num_steps)
            return DiagonalPreconditioner(jacobi_diagonal(A, num_probes=4, generator=probes), self.damping)
        if kind == "fisher":
            return DiagonalPreconditioner(gradient.squares, self.damping, exponent=0.75)
        if kind is None:
            return None
        if kind == "lbfgs_within":
            return LBFGSPreconditioner(optimizer.spare_pairs)
        if not len(optimizer.pairs) or optimizer.pairs.rows.shape[1] != self.layout.numel:
            return None
        return LBFGSPreconditioner(optimizer.pairs)

    def _predicted(self, A: MeanCurvature, slope: Tensor) -> float:
        """q at the whole step lr * d_N; without its damping term if so asked."""
        d, value = self.result.x, self.result.values[-1]
        if not (isinstance(self.lr, float) and self.lr == 1.0):
            d = self.lr * d
            value = (torch.dot(slope, d) + 0.5 * torch.dot(d, (A @ d) + self.damping * d)).item()
        if not self.optimizer.rho_with_damping:
            value -= 0.5 * self.optimizer.damping * torch.dot(d, self.factor * d).item()
        return value

    def _search(self, slope: Tensor, before: float, predicted: float, known: dict[str, float]) -> HessianFreeReport:
        iterates = self.result.iterates
        back = backtrack(self._loss_at, [d for _, d in iterates], before)
        if not back.loss <= before:
            return self._report("no improvement", before, fail=True, **known)
        number, d = iterates[back.index]
        line = armijo(lambda alpha: self._loss_at(alpha * d), before, torch.dot(slope, self.lr * d).item(),
                      start_loss=back.loss)
        if line.step == 0:
            return self._report("no sufficient step", before, fail=True, **known)
        rho = (back.last_loss - before) / predicted if predicted < 0 else math.nan
        self.layout.write_(self.origin + self.lr * (line.step * d))
        return self._report("accepted", before, after=line.loss, rho=rho, step_length=line.step, iterate=number,
                            **known)

    def _loss_at(self, d: Tensor | None) -> float:
        """L(theta + lr d) with weight decay; leaves the parameters at theta."""
        with self._timed("evaluate"):
            if d is None:
                return self.passes.loss() + self._decay_loss(self.origin)
            theta = self.origin + self.lr * d
            if not bool(torch.isfinite(theta).all()):
                return math.inf
            self.layout.write_(theta)
            loss = self.passes.loss() + self._decay_loss(theta)
            self.layout.write_(self.origin)
            return loss

    def _decay_loss(self, theta: Tensor) -> float:
        return 0.5 * torch.dot(theta, self.decay * theta).item()

    def _report(
        self, outcome: str, before: float, *, after: float | None = None, fail: bool = False, rho: float = math.nan,
        step_length: float = 0.0, iterate: int = 0, gradient_norm: float = math.nan, gradient_loss: float = math.nan,
        noise: float = math.inf,
    ) -> HessianFreeReport:
        optimizer, result = self.optimizer, self.result
        damping, accepted = optimizer.damping, outcome == "accepted"
        if accepted or fail:
            damping = optimizer.damping_rule.adjust(damping, rho if accepted else -math.inf)
        return HessianFreeReport(
            step=optimizer.num_steps, accepted=accepted, outcome=outcome, loss_before=before,
            loss_after=before if after is None else after, gradient_norm=gradient_norm, gradient_loss=gradient_loss,
            cg_iterations=0 if result is None else result.iterations, cg_reason="" if result is None else result.reason,
            iterate=iterate, damping=optimizer.damping, next_damping=damping, rho=rho, step_length=step_length,
            weights=dict(self.passes.weights), passes=dict(self.passes.counts), seconds=self.seconds,
            cpu_seconds=self.cpu_seconds, noise=noise)
