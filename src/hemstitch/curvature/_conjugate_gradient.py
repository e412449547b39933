"""Conjugate gradients for (A + damping) x = b, standard and flexible, that say why they stopped.

They minimise q(x) = x'Bx / 2 - b'x with B = A + D, D the damping, and read A only through products. With the
residual r = b - B x and z = M r for a preconditioner M ~ B^-1:

    x <- x + alpha p,     r <- r - alpha B p,     alpha = r'z / p'Bp
    p <- z + beta p,      beta = r_new'z_new / r'z                      standard (Fletcher-Reeves)
                          beta = (r_new - r)'z_new / r'z                flexible (Polak-Ribiere)

Standard conjugate gradients assume one fixed M: with a preconditioner that changes within the run the directions lose
their conjugacy and progress stalls. The flexible form keeps each direction conjugate to the one before, whatever M did
between them (Notay 2000; paper 3, section 3.1.2); with a fixed M both give the same iterates. The difference of the
residuals is -alpha B p, so it costs one inner product and no memory. The value of q is known for nothing: an exact
line search lowers it by alpha r'z / 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from hemstitch.curvature._lbfgs import PairStore
from hemstitch.curvature._parameters import Vector
from hemstitch.errors import MisuseError

StopReason = Literal["residual", "progress", "negative_curvature", "breakdown", "max_iterations", "non_finite"]


class SupportsProducts(Protocol):
    """A matrix known by its products: a tensor or a :class:`LinearOperator`."""

    def __matmul__(self, v: Tensor) -> Tensor:
        """A @ v."""
        ...


Preconditioner = Callable[[Tensor], Tensor] | SupportsProducts
"""M, applied as ``M(r)`` or ``M @ r``; symmetric and positive definite."""


@dataclass(frozen=True, kw_only=True)
class ProgressTest:
    """Stop when the quadratic hardly falls any more, relative to its value (Martens 2010, section 4.4).

    True after i iterations if i > k, q_i < 0 and (q_i - q_(i-k)) / q_i < k tolerance, with
    k = max(window, floor(share i)).

    Attributes:
        tolerance: relative fall per iteration, epsilon.
        window: iterations over which the fall is measured at least.
        share: of the iterations so far over which it is measured.
    """

    tolerance: float = 5e-4
    window: int = 10
    share: float = 0.1

    def __call__(self, values: list[float]) -> bool:
        """Whether to stop; ``values`` are q_0 ... q_i."""
        i = len(values) - 1
        k = max(self.window, math.floor(self.share * i))
        return i > k and values[i] < 0 and (values[i] - values[i - k]) / values[i] < k * self.tolerance


@dataclass(frozen=True, kw_only=True)
class CGResult:
    """What conjugate gradients found.

    Attributes:
        x: (param,) the last iterate; steps of which the curvature or slope is not finite are not taken.
        iterations: products spent on directions.
        reason: why it stopped: ``residual`` (tolerance met), ``progress`` (:class:`ProgressTest`),
            ``negative_curvature`` (p'Bp <= 0), ``breakdown`` (r'M r <= 0: the preconditioner is not positive
            definite), ``max_iterations``, ``non_finite``.
        values: q at the start and after each iteration; never rises.
        residual_norm: |b - B x| by the recurrence.
        iterates: (iteration, x) at growing distances and at the end, if asked for; else empty.
    """

    x: Vector
    iterations: int
    reason: StopReason
    values: list[float]
    residual_norm: float
    iterates: list[tuple[int, Vector]]


def conjugate_gradient(
    A: SupportsProducts,
    b: Vector,
    *,
    damping: float | Vector = 0.0,
    x0: Vector | None = None,
    preconditioner: Preconditioner | None = None,
    flexible: bool = False,
    tol: float = 1e-8,
    max_iter: int | None = None,
    progress: ProgressTest | None = None,
    iterate_growth: float | None = None,
    pairs: PairStore | None = None,
) -> CGResult:
    """Solve (A + damping) x = b by conjugate gradients (equations in the module's docstring).

    Args:
        A: symmetric, positive semi-definite, read through ``A @ v`` only.
        b: (param,) right-hand side; minus the gradient for a Newton step.
        damping: lambda >= 0 added to the diagonal, one number or one per parameter.
        x0: where to start; default 0. A start costs one product.
        preconditioner: M ~ (A + damping)^-1, positive definite. May change from call to call if ``flexible``.
        flexible: Polak-Ribiere instead of Fletcher-Reeves.
        tol: stop when |r| <= tol |b|; 0 never.
        max_iter: iterations at most; default 10 n.
        progress: a further stopping rule on the values of q.
        iterate_growth: keep the iterates number ceil(growth^j), j = 0, 1, ... (Martens: 1.3).
        pairs: collects (x_(i+1) - x_i, B (x_(i+1) - x_i)) of each iteration, as its policy says. A preconditioner
            that reads the same store changes within the run and needs ``flexible``.

    Returns:
        The last iterate, how many iterations were made and why no more.

    Cost of an iteration: one product, 3 inner products, 4 updates of vectors and a norm; 5 vectors of memory.

    Examples:
        >>> import torch
        >>> result = conjugate_gradient(torch.diag(torch.tensor([1.0, 3.0])), torch.ones(2), damping=1.0, tol=1e-5)
        >>> result.x, result.iterations, result.reason
        (tensor([0.5000, 0.2500]), 2, 'residual')

    Reference: Hestenes and Stiefel 1952; paper 3, section 3.1.2.
    """
    if b.ndim != 1:
        raise MisuseError(f"b must be one vector, got shape {tuple(b.shape)}")
    max_iter = 10 * b.numel() if max_iter is None else max_iter
    x = torch.zeros_like(b) if x0 is None else x0.clone()
    r = b.clone() if x0 is None else b - _damped_product(A, x, damping)
    values = [0.0 if x0 is None else -0.5 * (_dot(x, r) + _dot(x, b))]
    residual, target = r.norm().item(), tol * b.norm().item()
    z = _apply(preconditioner, r)
    rz, p = _dot(r, z), z.clone()
    kept = _Iterates(iterate_growth)
    i, reason = 0, _reason_to_stop(residual, target, rz)
    while reason is None:
        if i >= max_iter:
            reason = "max_iterations"
            break
        Bp = _damped_product(A, p, damping)
        curvature = _dot(p, Bp)
        if not math.isfinite(curvature) or curvature <= 0:
            reason = "negative_curvature" if curvature <= 0 else "non_finite"
            break
        alpha = rz / curvature
        x.add_(p, alpha=alpha)
        r.sub_(Bp, alpha=alpha)
        i += 1
        values.append(values[-1] - 0.5 * alpha * rz)
        if pairs is not None:
            pairs.add(p, Bp, scale=alpha, curvature=curvature)
        kept.offer(i, x)
        residual = r.norm().item()
        z = _apply(preconditioner, r)
        rz_old, rz = rz, _dot(r, z)
        reason = _reason_to_stop(residual, target, rz)
        if reason is None and progress is not None and progress(values):
            reason = "progress"
        torch.add(z, p, alpha=(-alpha * _dot(Bp, z) if flexible else rz) / rz_old, out=p)
    return CGResult(x=x, iterations=i, reason=reason, values=values, residual_norm=residual, iterates=kept.close(i, x))


def _reason_to_stop(residual: float, target: float, rz: float) -> StopReason | None:
    if not (math.isfinite(residual) and math.isfinite(rz)):
        return "non_finite"
    if residual <= target:
        return "residual"
    return None if rz > 0 else "breakdown"


class _Iterates:
    """Copies of the iterates number ceil(growth^j), and of the last."""

    def __init__(self, growth: float | None) -> None:
        if growth is not None and growth <= 1:
            raise MisuseError(f"iterate_growth must be above 1, got {growth}")
        self._growth, self._next = growth, 1.0
        self._kept: list[tuple[int, Vector]] = []

    def offer(self, i: int, x: Vector) -> None:
        if self._growth is None or i < math.ceil(self._next):
            return
        self._kept.append((i, x.clone()))
        while math.ceil(self._next) <= i:
            self._next *= self._growth

    def close(self, i: int, x: Vector) -> list[tuple[int, Vector]]:
        if self._growth is not None and (not self._kept or self._kept[-1][0] != i):
            self._kept.append((i, x))
        return self._kept


def _damped_product(A: SupportsProducts, v: Tensor, damping: float | Tensor) -> Tensor:
    product = A @ v
    if product.data_ptr() == v.data_ptr():                          # an operator that hands back its argument
        product = product.clone()
    return product.addcmul_(damping, v) if isinstance(damping, Tensor) else product.add_(v, alpha=damping)


def _apply(preconditioner: Preconditioner | None, r: Tensor) -> Tensor:
    if preconditioner is None:
        return r
    return preconditioner(r) if callable(preconditioner) else preconditioner @ r


def _dot(a: Tensor, b: Tensor) -> float:
    return torch.dot(a, b).item()
