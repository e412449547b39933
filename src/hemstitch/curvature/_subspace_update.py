"""One step of subspace iteration for a low-rank estimate of the Fisher matrix; derivation in `_online_fisher`.

Everything of size rank x rank is small and lives in double on the CPU, in NumPy; tensors of size D stay where the rows
are. Names follow the derivation: K, L, d, rho, q, m, Z = Y Y' and its eigenvalues c.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
HOPELESS = 1e-12
"""Ratio of eigenvalues of Y Y' below which the smaller one is rounding noise in double."""


@dataclass(frozen=True)
class Moments:
    """What the update needs of N rows X, with H = X W'.

    Attributes:
        cross: J = H'X, (rank, D).
        scatter: L = H'H, (rank, rank).
        power: tr(X X').
        num_rows: N.
        gain: factor on the rows that is not in them yet.
    """

    cross: Tensor
    scatter: Tensor
    power: float
    num_rows: int
    gain: float = 1.0


@dataclass(frozen=True)
class Estimate:
    """F = R' diag(d) R + rho I, as W = diag(e)^(1/2) R.

    Attributes:
        factor: W, (rank, D), stored by columns: the layout in which products with long rows are quickest.
        eigenvalues: d, (rank,).
        residual: rho.
    """

    factor: Tensor
    eigenvalues: Array
    residual: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", self.factor.T.contiguous().T)


def smoothing(eigenvalues: Array, residual: float, dim: int, alpha: float) -> Array:
    """(rank,) e_i = 1 / (beta / d_i + 1) with beta = rho (1 + alpha) + alpha/D sum(d)."""
    beta = residual * (1 + alpha) + alpha / dim * eigenvalues.sum()
    return 1.0 / (beta / eigenvalues + 1.0)


def default_estimate(rank: int, dim: int, alpha: float, epsilon: float) -> Estimate:
    """The start: row r is nonzero at columns r, r + rank, r + 2 rank, ..., a little larger at the first."""
    column = torch.arange(dim)
    rows = (column % rank == column[:rank, None]).double().fill_diagonal_(1.1)
    rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    factor = rows * math.sqrt(1.0 / (2.0 + (dim + rank) * alpha / dim))
    return Estimate(factor, np.full(rank, epsilon), epsilon)


def updated(
    old: Estimate, moments: Moments, forgetting: float, alpha: float, epsilon: float, delta: float
) -> tuple[Estimate | None, bool]:
    """The estimate after one minibatch.

    Returns:
        The new estimate, or ``None`` if it would not be finite; and whether the exact decomposition was needed.
    """
    cross, gain_2, (rank, dim) = moments.cross, moments.gain**2, moments.cross.shape
    k_matrix, l_matrix = _gram(cross) * gain_2**2, moments.scatter.double().cpu().numpy() * gain_2
    power = moments.power * gain_2
    if not math.isfinite(power + k_matrix.trace() + l_matrix.trace()):
        return None, False
    d, rho, keep, weight = old.eigenvalues, old.residual, 1.0 - forgetting, forgetting / moments.num_rows
    q, m = smoothing(d, rho, dim, alpha) ** -0.5, d + rho
    from_rows, from_old = weight * gain_2 * q, keep * m * q  # Y = diag(from_rows) J + diag(from_old) W

    z = (weight**2 * k_matrix + weight * keep * l_matrix * (m + m[:, None])) * (q * q[:, None])
    z.flat[:: rank + 1] += (keep * m) ** 2
    c, u = _eigenvalues_descending(z)
    floor, directions = (rho * keep) ** 2, None
    if c[-1] < HOPELESS * c[0]:
        root, directions = _exact_directions(from_rows, cross, from_old, old.factor)
    else:
        root = np.sqrt(np.maximum(c, floor))
    new_rho = (weight * power + keep * (dim * rho + d.sum()) - root.sum()) / (dim - rank)
    least = max(epsilon, delta * root[0])
    new_d, new_rho = np.maximum(root - new_rho, least), float(max(new_rho, least))
    root_e = np.sqrt(smoothing(new_d, new_rho, dim, alpha))

    factor = None
    if directions is None:
        mix = (root_e / root)[:, None] * u.T
        kept = old.factor.T @ _like(cross, (mix * from_old).T)
        factor = torch.addmm(kept, cross.T, _like(cross, (mix * from_rows).T)).T
        if c[0] > 1e6 * c[-1] or c[-1] < floor:
            factor = _orthonormalised(factor, root_e)
    is_exact = factor is None
    if is_exact:
        if directions is None:
            _, directions = _exact_directions(from_rows, cross, from_old, old.factor)
        factor = _like(cross, root_e[:, None] * directions)
    return (Estimate(factor, new_d, new_rho) if math.isfinite(factor.sum().item()) else None), is_exact


def _gram(rows: Tensor) -> Array:
    """Products of rows with each other, in double."""
    wide = rows.double()
    return (wide @ wide.T).cpu().numpy()


def _like(tensor: Tensor, array: Array) -> Tensor:
    return torch.from_numpy(array).to(tensor)


def _eigenvalues_descending(z: Array) -> tuple[Array, Array]:
    """Eigenvalues of a symmetric matrix by falling magnitude, and its eigenvectors as columns."""
    size = max(1.0, z.trace())
    c, u = (part.numpy() for part in torch.linalg.eigh(torch.from_numpy(z / size)))
    if c[0] >= 0:
        return c[::-1] * size, u[:, ::-1]
    order = np.argsort(-np.abs(c), kind="stable")
    return c[order] * size, u[:, order]


def _exact_directions(from_rows: Array, cross: Tensor, from_old: Array, factor: Tensor) -> tuple[Array, Array]:
    """Singular values and right singular vectors of Y: slow, but accurate where the eigenvalues of YY' are not."""
    y = from_rows[:, None] * cross.double().cpu().numpy() + from_old[:, None] * factor.double().cpu().numpy()
    _, root, directions = np.linalg.svd(y, full_matrices=False)
    return root, directions


def _orthonormalised(factor: Tensor, root_e: Array) -> Tensor | None:
    """W with W W' = diag(e) again if it drifted by more than a thousandth; ``None``: beyond repair by Cholesky."""
    overlap = torch.from_numpy(_gram(factor) / (root_e * root_e[:, None]))
    identity = torch.eye(len(overlap), dtype=torch.float64)
    if (overlap - identity).abs().max() <= 1e-3:
        return factor
    lower, failed = torch.linalg.cholesky_ex(overlap)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False).numpy()
    if failed or not np.abs(inverse).max() < 100:
        return None
    return _like(factor, root_e[:, None] * inverse / root_e) @ factor
