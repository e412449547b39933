"""Natural gradient from one minibatch, without memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hemstitch.errors import ConfigError, MisuseError


@torch.no_grad()
def simple_natural_gradient(x: Tensor, alpha: float = 4.0) -> Tensor:
    """Precondition rows by the inverse of the smoothed scatter of the OTHER rows of the same minibatch.

        lambda = alpha tr(X'X)/(N D)        Q = X (lambda I + X'X/(N-1))^-1        g_n = x_n . q_n
        p_n = q_n (1 + g_n/(N-1-g_n)), then all rows scaled to the norm of X

    The factor in p_n takes row n out of its own Fisher matrix (Sherman-Morrison), which `OnlineNaturalGradient`
    achieves by using earlier minibatches. No memory, no rank; the result does not depend on the scale of x.

    Args:
        x: (N, D) rows; with fewer than 32 bits they are computed with in float32.
        alpha: smoothing, > 0.

    Returns:
        (N, D) rows with the norm of x; x itself if it has one row, is zero or not finite.

    Raises:
        ConfigError: alpha is not positive.
        MisuseError: x is not a matrix.

    Cost: min(N, D)^2 max(N, D) operations and one Cholesky factorisation of the smaller side.

    Reference: Povey, Zhang, Khudanpur, ICLR workshop 2015, the simple method.
    """
    if not 0 < alpha < math.inf:
        raise ConfigError(f"alpha must be positive, got {alpha}")
    if x.dim() != 2:
        raise MisuseError(f"expected (rows, columns), got shape {tuple(x.shape)}: flatten batch and time first")
    if x.dtype not in (torch.float32, torch.float64):
        return simple_natural_gradient(x.float(), alpha).to(x.dtype)
    num_rows, dim = x.shape
    if num_rows < 2 or dim == 0:
        return x
    with torch.autocast(x.device.type, enabled=False):
        norm = torch.linalg.vector_norm(x)
        unit = x / norm  # keeps the squares in range
        gram = (unit.T @ unit if dim <= num_rows else unit @ unit.T) / (num_rows - 1)
        gram.diagonal().add_(alpha / (num_rows * dim))
        lower, failed = torch.linalg.cholesky_ex(gram)
        if failed:
            return x
        rows = torch.cholesky_solve(unit.T, lower).T if dim <= num_rows else torch.cholesky_solve(unit, lower)
        own = (unit * rows).sum(1, keepdim=True)
        rows = rows * (1.0 + own / (num_rows - 1 - own))
        return rows * (norm / torch.linalg.vector_norm(rows))
