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
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hemstitch.curvature._fisher_rows import AffineRows, DenseRows, Rows, Scalar, norm, number, ratio, root
from hemstitch.curvature._subspace_update import Estimate, Moments, default_estimate, updated
from hemstitch.errors import ConfigError, MisuseError

STATE_VERSION = 1
_NUM_ALWAYS = 10
"""Updates made at the start whatever the update period."""


@dataclass(frozen=True)
class FisherReport:
    """What an estimate looks like now.

    Attributes:
        effective_rank: tr(F)^2 / tr(F^2): D if all eigenvalues are equal, 1 if one dominates.
        condition: largest / smallest eigenvalue of F.
        num_updates: updates so far; like the next two it is part of the state that is saved.
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
        self._estimate: Estimate | None = None
        self._calls = self._skipped = 0
        self._num_updates = self._num_refused = self._num_recovered = 0

    def freeze(self, on: bool = True) -> None:
        """Stop (or resume) learning from the rows; preconditioning goes on."""
        self.frozen = bool(on)

    @property
    def factor(self) -> Tensor | None:
        """W, (rank, D), in the type of the rows; ``None`` before the first minibatch."""
        return None if self._estimate is None else self._estimate.factor

    @property
    def eigenvalues(self) -> Tensor | None:
        """d, (rank,) in float64."""
        return None if self._estimate is None else torch.from_numpy(self._estimate.eigenvalues)

    @property
    def residual(self) -> float:
        """Rho."""
        return 0.0 if self._estimate is None else self._estimate.residual

    @torch.no_grad()
    def precondition(self, x: Tensor, *, gain: float = 1.0, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
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
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self.precondition(x, gain=gain, out=out)
        y, scale = self.precondition_rows(x, gain=gain)
        return (y if out is None else out.copy_(y)), torch.as_tensor(scale, dtype=x.dtype, device=x.device)

    def precondition_rows(self, x: Tensor, *, gain: float = 1.0) -> tuple[Tensor, Scalar]:
        """As `precondition` without its checks, where autograd is off already; the scale is a float on the CPU."""
        rows = DenseRows(x)
        if not self._is_ready(rows, gain):
            return x, 1.0
        scores, y, norm_after = rows.precondition(self._estimate.factor)
        self._learn(rows, scores, gain)
        return y, ratio(rows.norm, norm_after)

    def precondition_affine(self, x: Tensor) -> tuple[Tensor, Tensor, Scalar]:
        """As `precondition_rows` for the rows [x, 1] of an affine map with a bias.

        Returns:
            The preconditioned rows (N, D), what became of the appended ones (N,), and the scale.
        """
        rows, ones = AffineRows(x), x.new_ones(len(x))
        if not self._is_ready(rows, 1.0):
            return x, ones, 1.0
        factor = self._estimate.factor
        scores, y, norm_after = rows.precondition(factor)
        ones.addmv_(scores, factor[:, -1], alpha=-1)
        self._learn(rows, scores, 1.0)
        norm_ones = norm(ones)
        return y, ones, ratio(rows.norm, root(norm_after * norm_after + norm_ones * norm_ones))

    def projection(self, rows: Rows, *, gain: float = 1.0) -> tuple[Tensor | None, Scalar]:
        """As `precondition_rows`, for rows that are not a matrix: what to multiply their sums by.

        A sum over rows G = sum_n y_n x_n' becomes scale (G - (G W')W). The norm of the preconditioned rows comes from
        |X - HW|^2 = |X|^2 - 2 tr L + tr(L W W'), which cancels where nearly all of X lies in the known directions; an
        error of the scale by a percent is then possible in single precision.

        Returns:
            W, or ``None`` for rows to be left as they are, and the scale.
        """
        if not self._is_ready(rows, gain):
            return None, 1.0
        factor = self._estimate.factor
        scores = rows.scores(factor)
        self._learn(rows, scores, gain)
        scatter = rows.scatter(scores).double()
        explained = number(2 * scatter.trace() - (scatter * (factor @ factor.T)).sum())
        return factor, ratio(rows.norm, root(rows.norm * rows.norm - explained))

    def _is_ready(self, rows: Rows, gain: float) -> bool:
        """Initialise from the first minibatch that is finite; whether there is an estimate for rows like these."""
        if rows.shape[0] == 0 or rows.shape[1] < 2:
            return False
        if self._estimate is None:
            if not math.isfinite(float(rows.norm)):
                self._num_refused += 1
                return False
            self._initialise(rows, gain)
        factor = self._estimate.factor
        if factor.shape[1] != rows.shape[1]:
            raise MisuseError(f"this estimate is for rows of {factor.shape[1]} columns, got {rows.shape[1]}: "
                              "use one OnlineNaturalGradient per kind of row")
        if factor.dtype != rows.like.dtype or factor.device != rows.like.device:
            self._estimate = replace(self._estimate, factor=factor.to(rows.like))
        return True

    def _initialise(self, rows: Rows, gain: float) -> None:
        """In double: the start is nearly singular, single precision would fill it with rounding noise."""
        (num_rows, dim), rows = rows.shape, rows.double()
        rank = min(self.rank, dim - 1)
        start = default_estimate(rank, dim, self.alpha, self.epsilon)
        self._estimate = replace(start, factor=start.factor.to(rows.like))
        for _ in range(3 if num_rows > rank else 1):
            self._update(rows, rows.scores(self._estimate.factor), gain)

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

    def _learn(self, rows: Rows, scores: Tensor, gain: float) -> None:
        """Update from the rows and their scores under the estimate so far, if an update is due."""
        if self._is_due():
            self._update(rows, scores, gain)

    def _update(self, rows: Rows, scores: Tensor, gain: float) -> None:
        """Learn from the rows, unless something is not finite."""
        moments = Moments(rows.cross(scores), rows.scatter(scores), float(rows.norm * rows.norm), rows.shape[0], gain)
        estimate, is_exact = updated(self._estimate, moments, self.forgetting(moments.num_rows),
                                     self.alpha, self.epsilon, self.delta)
        self._num_recovered += is_exact
        if estimate is None:
            self._num_refused += 1
            return
        self._estimate = estimate
        self._num_updates += 1

    def report(self) -> FisherReport | None:
        """Shape of the estimate; ``None`` before the first minibatch."""
        if self._estimate is None:
            return None
        d, rho, dim = self._estimate.eigenvalues, self.residual, self.factor.shape[1]
        trace, square = d.sum() + dim * rho, ((d + rho) ** 2).sum() + (dim - len(d)) * rho**2
        return FisherReport(float(trace**2 / square), float(d.max() + rho) / rho,
                            self._num_updates, self._num_refused, self._num_recovered)

    def state_dict(self) -> dict[str, Any]:
        """The estimate and its counters; tensors and plain numbers only."""
        state: dict[str, Any] = {"version": STATE_VERSION, "calls": self._calls, "skipped": self._skipped,
                                 "counts": [self._num_updates, self._num_refused, self._num_recovered]}
        if self._estimate is not None:
            state |= {"factor": self.factor.clone(memory_format=torch.contiguous_format),
                      "eigenvalues": self.eigenvalues.clone(), "residual": self.residual}
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
        self._estimate = None if factor is None else Estimate(
            factor.clone(), state["eigenvalues"].double().cpu().numpy().copy(), float(state["residual"]))
        self._calls, self._skipped = int(state["calls"]), int(state["skipped"])
        self._num_updates, self._num_refused, self._num_recovered = map(int, state.get("counts", (0, 0, 0)))

    def __repr__(self) -> str:
        return (f"OnlineNaturalGradient(rank={self.rank}, update_period={self.update_period}, alpha={self.alpha}, "
                f"schedule={self.schedule!r}{', frozen' if self.frozen else ''})")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
