"""The L-BFGS preconditioner of paper 3: an inverse of the curvature matrix from the steps of conjugate gradients.

Each iteration of conjugate gradients takes a step s = x_(i+1) - x_i and changes the gradient by y = r_(i+1) - r_i,
which is B s, so that s'y > 0 wherever B is positive definite. From m such pairs the L-BFGS recursion (paper 3,
algorithm 2) defines a positive definite H ~ B^-1. In the compact form of Byrd, Nocedal and Schnabel (1994, equation
2.6), with S and Y the pairs as columns, oldest first, R the upper triangle of S'Y, D its diagonal and H_0 = gamma I,

    H = gamma I + [S  gamma Y] | R^-T (D + gamma Y'Y) R^-1   -R^-T | [ S'       ]
                               | -R^-1                         0   | [ gamma Y' ]

which reads the pairs twice (two matrix-vector products) instead of 4 m times one vector after another.
gamma = s'y / y'y of the newest pair. H satisfies the secant equation H y = s for the newest pair.

Which pairs to keep is a policy: ``even`` spreads them over the run (paper 3, after Morales and Nocedal 2000), ``first``
keeps the first m, ``last`` the newest m (as L-BFGS the optimiser does).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hemstitch.curvature._parameters import Vector
from hemstitch.errors import MisuseError

PairPolicy = Literal["even", "first", "last"]


class PairStore:
    """Up to ``capacity`` pairs (s, y) out of a run of conjugate gradients.

    ``even`` stores every l-th pair, l = 1 at first; when the store is full it drops every second pair and doubles l.
    A pair is skipped unless s'y > floor |y|^2: rounding or negative curvature would make H indefinite or huge.

    Args:
        capacity: m; 2 m vectors of memory, allocated with the first pair.
        keep: the policy: ``even``, ``first`` or ``last``.
        floor: smallest s'y / y'y, an inverse curvature, that is trusted.

    Attributes:
        offered: pairs seen so far.
        version: changes whenever the content does.
    """

    def __init__(self, capacity: int, keep: PairPolicy = "even", floor: float = 1e-10) -> None:
        if capacity < 1 or keep not in ("even", "first", "last"):
            raise MisuseError(f"need capacity >= 1 and keep 'even', 'first' or 'last', got {capacity} and {keep!r}")
        self.capacity, self.keep, self.floor = capacity, keep, floor
        self._rows: Tensor | None = None                            # (capacity, 2, n): s and y side by side
        self.version = 0
        self.clear()

    def clear(self) -> None:
        """Forget all pairs; the memory is kept for the next ones."""
        self._slots: list[int] = []                                 # rows in use, oldest pair first
        self._stride = 1
        self.offered = 0
        self.version += 1

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def rows(self) -> Float[Tensor, "rows param"]:
        """(2 len, param): s and y of each pair in turn, in the order in which they lie in memory."""
        if not self._slots:
            raise MisuseError("the store holds no pairs yet")
        return self._rows[: len(self)].flatten(0, 1)

    @property
    def order(self) -> list[int]:
        """Where each pair lies, oldest first."""
        return list(self._slots)

    def pairs(self) -> tuple[Float[Tensor, "pair param"], Float[Tensor, "pair param"]]:
        """Copies of S and Y, one pair a row, oldest first."""
        rows = self.rows.unflatten(0, (-1, 2))[self._slots]
        return rows[:, 0], rows[:, 1]

    def add(self, s: Vector, y: Vector, scale: float = 1.0, curvature: float | None = None) -> bool:
        """Offer the pair (scale s, scale y), with ``curvature`` = s'y if known; returns whether it was stored."""
        number, self.offered = self.offered, self.offered + 1
        if not self._wanted(number):
            return False
        curvature = torch.dot(s, y).item() if curvature is None else curvature
        if not curvature > self.floor * torch.dot(y, y).item():
            return False
        shape = (self.capacity, 2, s.numel())
        if self._rows is None or (not self._slots and (self._rows.shape, self._rows.dtype) != (shape, s.dtype)):
            self._rows = s.new_empty(shape)
        slot = self._free_slot()
        torch.mul(s, scale, out=self._rows[slot, 0])
        torch.mul(y, scale, out=self._rows[slot, 1])
        self._slots.append(slot)
        self.version += 1
        return True

    def _wanted(self, number: int) -> bool:
        if self.keep == "even":
            if len(self) == self.capacity and number % self._stride == 0:
                self._thin()
            return number % self._stride == 0
        return self.keep == "last" or len(self) < self.capacity

    def _free_slot(self) -> int:
        return len(self) if len(self) < self.capacity else self._slots.pop(0)

    def _thin(self) -> None:
        """Keep every second pair, the oldest among them, packed at the front."""
        kept = self._slots[::2]                                     # ascending, each at or behind its new place
        for slot, old in enumerate(kept):
            self._rows[slot].copy_(self._rows[old])
        self._slots = list(range(len(kept)))
        self._stride *= 2
        self.version += 1

    def state_dict(self) -> dict[str, Any]:
        """The pairs and where the policy stands."""
        rows = self._rows[: len(self)].clone() if self._slots else None
        return {"rows": rows, "slots": list(self._slots), "stride": self._stride, "offered": self.offered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over pairs saved from a store of the same capacity and policy."""
        self.clear()
        rows = state["rows"]
        if rows is not None:
            if len(rows) > self.capacity:
                raise MisuseError(f"{len(rows)} saved pairs do not fit a store of capacity {self.capacity}")
            self._rows = rows.new_empty((self.capacity, *rows.shape[1:]))
            self._rows[: len(rows)] = rows
        self._slots, self._stride, self.offered = list(state["slots"]), state["stride"], state["offered"]


class LBFGSPreconditioner:
    """H ~ B^-1 from the pairs of a store, applied in compact form; the identity while there are none.

    H follows its store: pairs added since the last application are taken in first. To precondition a run with the
    pairs of the run before, give this the old store and let conjugate gradients fill a new one; to improve H within the
    run (paper 3's option), give both the same store and run flexible conjugate gradients.

    Args:
        pairs: where the pairs are.

    Cost of an application: 8 m n multiplications and additions; of a rebuild: (2 m)^2 n.

    Reference: Byrd, Nocedal and Schnabel 1994, equation 2.6; paper 3, section 3.1.
    """

    def __init__(self, pairs: PairStore) -> None:
        self.pairs = pairs
        self._built = -1

    def __call__(self, r: Vector) -> Vector:
        """H r, shape (param,)."""
        if not len(self.pairs):
            return r.clone()
        if self._built != self.pairs.version:
            self._rebuild()
        rows = self.pairs.rows
        small = self._middle @ (rows @ r).to(torch.float64)
        return torch.addmv(r, rows.T, small.to(r.dtype), beta=self._gamma)

    def _rebuild(self) -> None:
        """gamma and the (2 m, 2 m) matrix between the pairs, in the order in which the pairs lie in memory."""
        rows = self.pairs.rows
        gram = (rows @ rows.T).to(torch.float64)
        s_at = 2 * torch.tensor(self.pairs.order, device=rows.device)
        y_at = s_at + 1
        sy, yy = gram[s_at][:, y_at], gram[y_at][:, y_at]
        self._gamma = (sy[-1, -1] / yy[-1, -1]).item()
        identity = torch.eye(len(sy), dtype=sy.dtype, device=sy.device)
        inverse = torch.linalg.solve_triangular(sy.triu(), identity, upper=True)                    # R^-1
        middle = torch.zeros_like(gram)
        middle[s_at[:, None], s_at] = inverse.T @ (sy.diag().diag() + self._gamma * yy) @ inverse
        middle[s_at[:, None], y_at] = -self._gamma * inverse.T
        middle[y_at[:, None], s_at] = -self._gamma * inverse
        self._middle = middle
        self._built = self.pairs.version
