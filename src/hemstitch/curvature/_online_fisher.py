"""A low-rank estimate of the Fisher matrix, kept up to date minibatch by minibatch, and its inverse applied to rows.

The rows x_1 .. x_N of a minibatch (D columns: the inputs, or the output derivatives, of one layer) have the scatter
S = X'X / N. Natural gradient multiplies each row by the inverse of a smoothed running average of S.

**Model.** F = R' diag(d) R + rho I, with the R rows of R (rank x D) orthonormal: `rank` directions with eigenvalues
d_i + rho and one value rho for all others. Smoothed towards a multiple of the identity,

    G = F + alpha tr(F)/D I = R' diag(d) R + beta I,      beta = rho (1 + alpha) + alpha/D sum(d)
    beta G^-1 = I - R' diag(e) R = I - W'W,               e_i = 1/(beta/d_i + 1),   W = diag(e)^(1/2) R

so preconditioning is X - (X W') W: two thin products, 4 N D rank operations where the layer itself needs 6 N D D'.
The result is brought back to the norm of X, as only its direction should change, by one scale for all rows.

**Update.** T = eta S + (1 - eta) F has a better top subspace than F; one step of subspace iteration finds it: Y = R
T, eigenvalues of Y Y' = U diag(c) U', R' = c^(-1/2) U' Y. Everything of size D is in J = H'X with H = X W', so that
with L = H'H, K = JJ' (all rank x rank), q = e^(-1/2), m = d + rho, A = eta/N,

    Y Y' = diag(q) [A^2 K + A (1-eta) (L diag(m) + diag(m) L)] diag(q) + (1-eta)^2 diag(m)^2
    rho' = (tr T - sum sqrt(c)) / (D - rank),             d' = sqrt(c) - rho'
    W'   = diag(sqrt(e'/c)) U' diag(q) [A J + (1-eta) diag(m) W]

A minibatch is preconditioned by the estimate from EARLIER minibatches only: with its own scatter in F every row would
be shrunk most along itself, a bias.

**Numerically safe form.** K and everything rank x rank is in double: with single precision in K the new rows lose
orthogonality in proportion to c_1/c_rank, with double in proportion to its square root only. Eigenvalues are floored,
and where they span too much the rows are checked and re-orthonormalised by Cholesky. Where even that is hopeless (few
rows, the very first minibatch, a jump of scale), Y itself is decomposed. NaN, inf and overflow never enter the state;
such updates are refused and counted.

======== ================= ==========================================================
symbol   here              meaning
======== ================= ==========================================================
W        ``factor``        (rank, D) = diag(e)^(1/2) R
d        ``eigenvalues``   (rank,) excess over rho
rho      ``residual``      eigenvalue of all other directions
eta      `forgetting`      weight of the newest minibatch
alpha    ``alpha``         smoothing towards the identity
epsilon  ``epsilon``       least rho and d
delta    ``delta``         least rho and d, relative to the largest eigenvalue of T
======== ================= ==========================================================

Reference: Povey, Zhang, Khudanpur, "Parallel training of DNNs with natural gradient and parameter averaging", ICLR
workshop 2015. Departures: the update schedule of 2017 by default (see `OnlineNaturalGradient`); no random numbers;
bad input refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hemstitch.errors import ConfigError, MisuseError

STATE_VERSION = 1
_NUM_ALWAYS = 10
"""Updates made at the start whatever the update period."""
_HOPELESS = 1e-12
"""Ratio of eigenvalues below which the smaller one is rounding noise in double."""


@dataclass(frozen=True)
class FisherReport:
    """What an estimate looks like now.

    Attributes:
        effective_rank: tr(F)^2 / tr(F^2): D if all eigenvalues are equal, 1 if one dominates.
        condition: largest / smallest eigenvalue of F.
        num_updates: updates since construction or loading.
        num_refused: updates not made because numbers were not finite.
        num_recovered: updates whose quick factorisation failed or was too inaccurate, and was replaced by an exact
            one.
    """

    effective_rank: float
    condition: float
    num_updates: int
    num_refused: int
    num_recovered: int


class OnlineNaturalGradient:
    """Multiply rows by the inverse of a low-rank Fisher matrix estimated online from earlier rows.

    x_hat = x - (x W')W, to be multiplied by scale = |x| / |x_hat|; then W learns from x. See the module for the
    derivation.

    The first call initialises the estimate from its own minibatch (also when frozen): three updates from a fixed
    sparse start, one if there are no more rows than `rank`.

    Args:
        rank: number of directions, >= 1; D - 1 where that is less.
        update_period: calls per update after the first ten, >= 1.
        num_samples_history: rows over which older minibatches fade: eta = 1 - exp(-N / history), at most 0.9.
        num_minibatches_history: if not 0, eta = 1 / this, whatever N; > 1.
        alpha: smoothing, > 0; large: plain gradient.
        epsilon: least eigenvalue, > 0, in the units of the squared rows. Feed derivatives of SUMMED losses: those of
            mean losses are so small that they drown in it.
        delta: least eigenvalue relative to the largest, > 0.
        schedule: ``"2017"`` counts updates, and unfrozen calls since the last one; ``"2025"`` counts all calls, and
            so starves when every other call is frozen (kept for comparison with runs that used it).

    Cost: 4 N D rank operations a call, and 2 N D rank more in an update; an eigen-decomposition of rank x rank.
    On a GPU only updates synchronise.

    Raises:
        ConfigError: an option out of range.

    >>> fisher = OnlineNaturalGradient(rank=2)
    >>> rows, scale = fisher.precondition(torch.eye(4))
    >>> rows.shape
    torch.Size([4, 4])

    Reference: Povey et al. 2015; for freezing, Wang et al., "Backstitch", Interspeech 2017, section 4.3.
    """

    def __init__(
        self,
        rank: int = 40,
        update_period: int = 1,
        num_samples_history: float = 2000.0,
        num_minibatches_history: float = 0.0,
        alpha: float = 4.0,
        epsilon: float = 1e-10,
        delta: float = 5e-4,
        schedule: str = "2017",
    ) -> None:
        _check(rank >= 1, f"rank must be at least 1, got {rank}")
        _check(update_period >= 1, f"update_period must be at least 1 call, got {update_period}")
        _check(num_samples_history > 0, f"num_samples_history must be positive, got {num_samples_history}")
        _check(num_minibatches_history == 0 or num_minibatches_history > 1,
               f"num_minibatches_history must be 0 (off) or greater than 1, got {num_minibatches_history}")
        for name, value in (("alpha", alpha), ("epsilon", epsilon), ("delta", delta)):
            _check(0 < value < math.inf, f"{name} must be positive, got {value}")
        _check(schedule in ("2017", "2025"), f'schedule must be "2017" or "2025", got {schedule!r}')
        self.rank, self.update_period, self.schedule = int(rank), int(update_period), schedule
        self.num_samples_history, self.num_minibatches_history = num_samples_history, num_minibatches_history
        self.alpha, self.epsilon, self.delta = alpha, epsilon, delta
        self.frozen = False
        self.factor: Tensor | None = None
        self.eigenvalues: Tensor | None = None
        self.residual = 0.0
        self._calls = self._skipped = 0
        self._num_updates = self._num_refused = self._num_recovered = 0

    def freeze(self, on: bool = True) -> None:
        """Stop (or resume) learning from the rows; preconditioning goes on."""
        self.frozen = bool(on)

    @torch.no_grad()
    def precondition(
        self, x: Tensor, *, gain: float | Tensor = 1.0, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Precondition a minibatch by the estimate so far, then learn from it if an update is due.

        Args:
            x: (N, D) rows; with fewer than 32 bits they are computed with in float32.
            gain: what the rows must be multiplied by to be derivatives of a summed, unscaled loss. Enters only the
                estimate.
            out: where to put the result; may be ``x`` itself.

        Returns:
            The preconditioned rows, NOT multiplied by the scale, and the scale (0-d tensor).

        Raises:
            MisuseError: x is not a matrix, or not as wide as before.
        """
        if x.dim() != 2:
            raise MisuseError(f"expected (rows, columns), got shape {tuple(x.shape)}: flatten batch and time first")
        if x.dtype not in (torch.float32, torch.float64):
            rows, scale = self.precondition(x.float(), gain=gain)
            return (rows.to(x.dtype) if out is None else out.copy_(rows)), scale
        if x.shape[1] < 2 or x.shape[0] == 0:
            return (x if out is None or out is x else out.copy_(x)), x.new_ones(())
        with torch.autocast(x.device.type, enabled=False):
            return self._precondition(x, gain, out)

    def _precondition(self, x: Tensor, gain: float | Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
        norm = torch.linalg.vector_norm(x)
        if not self._is_ready(x, norm, gain):
            return (x if out is None or out is x else out.copy_(x)), torch.ones_like(norm)
        factor = self.factor
        scores = x @ factor.T
        if self._is_due():
            self._update(x, scores, norm, gain)
        rows = torch.addmm(x, scores, factor, alpha=-1, out=out)
        new_norm = torch.linalg.vector_norm(rows)
        return rows, torch.where((norm > 0) & (new_norm > 0), norm / new_norm, 1.0)

    def _is_ready(self, x: Tensor, norm: Tensor, gain: float | Tensor) -> bool:
        """Initialise from the first minibatch that is finite; whether there is an estimate for rows like x."""
        if self.factor is None:
            if not torch.isfinite(norm):
                self._num_refused += 1
                return False
            self._set_default(x)
            wide = x.double()  # the start is nearly singular: single precision would fill it with rounding noise
            for _ in range(3 if len(x) > len(self.factor) else 1):
                self._update(wide, wide @ self.factor.T, torch.linalg.vector_norm(wide), gain)
        if self.factor.shape[1] != x.shape[1]:
            raise MisuseError(f"this estimate is for rows of {self.factor.shape[1]} columns, got {x.shape[1]}: "
                              "use one OnlineNaturalGradient per kind of row")
        if self.factor.dtype != x.dtype or self.factor.device != x.device:
            self.factor = self.factor.to(x)
        return True

    def _set_default(self, x: Tensor) -> None:
        """The start: row r is nonzero at columns r, r + rank, r + 2 rank, ..., a little larger at the first."""
        dim = x.shape[1]
        rank = min(self.rank, dim - 1)
        column = torch.arange(dim, device=x.device)
        rows = (column % rank == column[:rank, None]).double()
        rows.fill_diagonal_(1.1)
        rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        self.factor = rows * math.sqrt(1.0 / (2.0 + (dim + rank) * self.alpha / dim))
        self.eigenvalues = torch.full((rank,), self.epsilon, dtype=torch.float64)
        self.residual = self.epsilon

    def _is_due(self) -> bool:
        """Whether this call updates the estimate; counts the call."""
        if self.schedule == "2025":
            due = self._calls <= _NUM_ALWAYS or (self._calls - _NUM_ALWAYS) % self.update_period == 0
            self._calls += 1
            return due and not self.frozen
        if self.frozen:
            return False
        due = self._calls < _NUM_ALWAYS or self._skipped >= self.update_period - 1
        self._calls += due
        self._skipped = 0 if due else self._skipped + 1
        return due

    def forgetting(self, num_rows: int) -> float:
        """Eta: the weight of a minibatch of ``num_rows`` in the running average."""
        if self.num_minibatches_history > 0:
            return 1.0 / self.num_minibatches_history
        return min(0.9, -math.expm1(-num_rows / self.num_samples_history))

    def _smoothed(self, eigenvalues: Tensor, residual: float, dim: int) -> Tensor:
        """(rank,) e_i = 1 / (beta / d_i + 1)."""
        beta = residual * (1 + self.alpha) + self.alpha / dim * float(eigenvalues.sum())
        return 1.0 / (beta / eigenvalues + 1.0)

    def _update(self, x: Tensor, scores: Tensor, norm: Tensor, gain: float | Tensor) -> None:
        """One step of subspace iteration towards the top eigenvectors of T = eta S + (1 - eta) F."""
        cross = scores.T @ x
        wide, gain_2 = cross.double(), float(gain) ** 2
        k_matrix, l_matrix = (wide @ wide.T).cpu() * gain_2**2, (scores.T @ scores).double().cpu() * gain_2
        power = float(norm) ** 2 * gain_2
        if not math.isfinite(power + float(k_matrix.sum() + l_matrix.sum())):
            self._num_refused += 1
            return
        (num_rows, dim), rank = x.shape, len(cross)
        eta = self.forgetting(num_rows)
        keep, weight = 1.0 - eta, eta / num_rows
        d, rho = self.eigenvalues, self.residual
        q, m = self._smoothed(d, rho, dim).rsqrt(), d + rho
        z = weight * (weight * k_matrix + keep * l_matrix * (m + m[:, None])) * (q * q[:, None])
        c, u = _eigenvalues_descending(z + (keep * m).square().diag())
        by_rows, by_old = weight * gain_2 * q, keep * m * q  # Y = diag(by_rows) J + diag(by_old) W
        exact = None
        if c[-1] < _HOPELESS * c[0]:
            root, exact = self._exact_directions(by_rows, cross, by_old)
        else:
            root = c.clamp(min=(rho * keep) ** 2).sqrt()
        new_rho = (weight * power + keep * (dim * rho + float(d.sum())) - float(root.sum())) / (dim - rank)
        least = max(self.epsilon, self.delta * float(root[0]))
        new_d, new_rho = (root - new_rho).clamp(min=least), max(new_rho, least)
        e = self._smoothed(new_d, new_rho, dim)
        if exact is None:
            mix = (e.sqrt() / root)[:, None] * u.T
            factor = torch.addmm((mix * by_old).to(x) @ self.factor, (mix * by_rows).to(x), cross)
            if c[0] > 1e6 * c[-1] or c[-1] < (rho * keep) ** 2:
                factor = _orthonormalised(factor, e.sqrt())
            if factor is None:
                _, exact = self._exact_directions(by_rows, cross, by_old)
        if exact is not None:
            factor = (e.sqrt()[:, None] * exact).to(x)
            self._num_recovered += 1
        if not torch.isfinite(factor).all():
            self._num_refused += 1
            return
        self.factor, self.eigenvalues, self.residual = factor, new_d, new_rho
        self._num_updates += 1

    def _exact_directions(self, by_rows: Tensor, cross: Tensor, by_old: Tensor) -> tuple[Tensor, Tensor]:
        """Singular values and right singular vectors of Y: slow, but accurate where the eigenvalues of YY' are not."""
        y = by_rows[:, None] * cross.double().cpu() + by_old[:, None] * self.factor.double().cpu()
        _, root, directions = torch.linalg.svd(y, full_matrices=False)
        return root, directions

    def report(self) -> FisherReport | None:
        """Shape of the estimate; ``None`` before the first minibatch."""
        if self.factor is None:
            return None
        d, rho, dim = self.eigenvalues, self.residual, self.factor.shape[1]
        trace, square = float(d.sum()) + dim * rho, float(((d + rho) ** 2).sum()) + (dim - len(d)) * rho**2
        return FisherReport(trace**2 / square, (float(d.max()) + rho) / rho,
                            self._num_updates, self._num_refused, self._num_recovered)

    def state_dict(self) -> dict[str, Any]:
        """The estimate and its counters; tensors and plain numbers only."""
        state: dict[str, Any] = {"version": STATE_VERSION, "calls": self._calls, "skipped": self._skipped}
        if self.factor is not None:
            state |= {"factor": self.factor.clone(), "eigenvalues": self.eigenvalues.clone(), "residual": self.residual}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved estimate, in the precision it was saved in.

        Raises:
            ConfigError: saved by a newer version, or with another rank.
        """
        _check(state.get("version", 0) <= STATE_VERSION, f"this state has version {state.get('version')}, "
               f"this program reads up to {STATE_VERSION}: upgrade hemstitch")
        factor = state.get("factor")
        if factor is not None:
            rank, dim = factor.shape
            _check(rank == min(self.rank, dim - 1),
                   f"the saved estimate has rank {rank}, this one is set to {self.rank}: use the same rank")
            factor = factor.clone()
        self.factor, self.residual = factor, float(state.get("residual", 0.0))
        self.eigenvalues = None if factor is None else state["eigenvalues"].to("cpu", torch.float64, copy=True)
        self._calls, self._skipped = int(state["calls"]), int(state["skipped"])

    def __repr__(self) -> str:
        return (f"OnlineNaturalGradient(rank={self.rank}, update_period={self.update_period}, alpha={self.alpha}, "
                f"schedule={self.schedule!r}{', frozen' if self.frozen else ''})")


@torch.no_grad()
def simple_natural_gradient(x: Tensor, alpha: float = 4.0) -> Tensor:
    """Precondition rows by the inverse of the smoothed scatter of the OTHER rows of the same minibatch.

    lambda = alpha tr(X'X)/(N D);  Q = X (lambda I + X'X/(N-1))^-1;  g_n = x_n . q_n;  p_n = q_n (1 + g_n/(N-1-g_n));
    |P| = |X|

    The factor in p_n takes row n out of its own Fisher matrix (Sherman-Morrison), which `OnlineNaturalGradient`
    achieves by using earlier minibatches. No memory, no rank; the result does not depend on the scale of x.

    Args:
        x: (N, D) rows; with fewer than 32 bits they are computed with in float32.
        alpha: smoothing, > 0.

    Returns:
        (N, D) rows with the norm of x; x itself if it has one row, is zero or not finite.

    Cost: min(N, D)^2 max(N, D) operations and one Cholesky factorisation of the smaller side.

    Reference: Povey et al. 2015, the simple method.
    """
    _check(0 < alpha < math.inf, f"alpha must be positive, got {alpha}")
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


def _eigenvalues_descending(z: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a symmetric matrix by falling magnitude, and its eigenvectors as columns."""
    size = max(1.0, float(z.diagonal().sum()))
    c, u = torch.linalg.eigh(z / size)
    order = c.abs().argsort(descending=True)
    return c[order] * size, u[:, order]


def _orthonormalised(factor: Tensor, root_e: Tensor) -> Tensor | None:
    """W with W W' = diag(e) again if it has drifted by more than a thousandth; ``None``: beyond repair by Cholesky."""
    wide = factor.double()
    overlap = (wide @ wide.T).cpu() / (root_e * root_e[:, None])
    identity = torch.eye(len(overlap), dtype=torch.float64)
    if (overlap - identity).abs().max() <= 1e-3:
        return factor
    lower, failed = torch.linalg.cholesky_ex(overlap)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    if failed or not inverse.abs().max() < 100:
        return None
    return (root_e[:, None] * inverse / root_e).to(factor) @ factor


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
