"""The weighted graph: arcs as flat tensors.

One arc goes from state ``src`` to state ``dst``, consumes one frame with the score of ``pdf`` and costs ``cost``
(minus log weight). An arc with ``pdf = EPSILON`` consumes no frame; only decoding graphs have such arcs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hemstitch.errors import DataError

Integers = Tensor | np.ndarray | Sequence[int]
Reals = Tensor | np.ndarray | Sequence[float]

EPSILON = -1
"""The ``pdf`` of an arc that consumes no frame."""
NO_LABEL = 0
"""The ``label`` of an arc that outputs nothing."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A weighted finite-state acceptor (or, with ``label``, transducer), arcs sorted by source state.

    Attributes:
        src: (arc,) int64 source state of each arc, non-decreasing.
        dst: (arc,) int64 destination state.
        pdf: (arc,) int64 index of the network output that the arc consumes, or ``EPSILON``.
        cost: (arc,) float64 minus log weight.
        final: (state,) float64 cost of ending here; inf: not final.
        start: the start state.
        label: (arc,) int64 output label (a word), 0 for none; ``None`` for an acceptor.
        phone: (arc,) int64 phone (from 1) that begins on this arc, negative where a word begins with it, 0 where none
            begins; ``None`` where phones mean nothing. Phone and word times are read off a path by it, also where
            determinisation has moved the labels.
    """

    src: Tensor
    dst: Tensor
    pdf: Tensor
    cost: Tensor
    final: Tensor
    start: int = 0
    label: Tensor | None = None
    phone: Tensor | None = None

    @classmethod
    def from_arcs(
        cls,
        src: Integers,
        dst: Integers,
        pdf: Integers,
        cost: Reals,
        start: int = 0,
        final: Reals | None = None,
        label: Integers | None = None,
        phone: Integers | None = None,
    ) -> Graph:
        """Build a graph from arc lists in any order.

        Args:
            src, dst, pdf: (arc,) integers; states count from 0.
            cost: (arc,) minus log weights.
            start: the start state.
            final: (state,) costs, inf for "not final"; ``None``: every state is final at no cost, and there are as
                many states as the arcs mention.
            label: (arc,) output labels, 0 for none.
            phone: (arc,) phones that begin, negative at the beginning of a word, 0 for none.

        Raises:
            DataError: lengths differ, a state is out of range, or a cost is NaN.
        """
        ints = {name: torch.as_tensor(value, dtype=torch.int64).reshape(-1).cpu()
                for name, value in (("src", src), ("dst", dst), ("pdf", pdf))}
        costs = torch.as_tensor(cost, dtype=torch.float64).reshape(-1).cpu()
        if final is None:
            highest = max([start, *(int(ints[k].max()) for k in ("src", "dst") if ints[k].numel())])
            finals = torch.zeros(highest + 1, dtype=torch.float64)
        else:
            finals = torch.as_tensor(final, dtype=torch.float64).reshape(-1).cpu()
        marks = {name: torch.as_tensor(value, dtype=torch.int64).reshape(-1).cpu()
                 for name, value in (("label", label), ("phone", phone)) if value is not None}
        _check(ints, costs, finals, start, marks)
        by_src = torch.argsort(ints["src"], stable=True)
        return cls(
            src=ints["src"][by_src], dst=ints["dst"][by_src], pdf=ints["pdf"][by_src], cost=costs[by_src],
            final=finals, start=int(start), **{name: value[by_src] for name, value in marks.items()},
        )

    @property
    def num_states(self) -> int:
        """Number of states."""
        return self.final.numel()

    @property
    def num_arcs(self) -> int:
        """Number of arcs."""
        return self.src.numel()

    @property
    def num_pdfs(self) -> int:
        """One more than the highest pdf on an arc."""
        return int(self.pdf.max()) + 1 if self.num_arcs else 0

    @property
    def has_epsilons(self) -> bool:
        """Whether some arc consumes no frame."""
        return bool((self.pdf == EPSILON).any())

    def arc_offsets(self) -> Tensor:
        """(state + 1,) int64: the arcs of state s are ``offsets[s]:offsets[s + 1]``."""
        counts = torch.bincount(self.src, minlength=self.num_states)
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def __repr__(self) -> str:
        return f"Graph({self.num_states} states, {self.num_arcs} arcs, {self.num_pdfs} pdfs, start {self.start})"


def _check(ints: dict[str, Tensor], cost: Tensor, final: Tensor, start: int, marks: dict[str, Tensor]) -> None:
    lengths = {name: value.numel() for name, value in (ints | {"cost": cost} | marks).items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"graph: src, dst, pdf and cost need one entry per arc, got lengths {lengths}")
    num_states = final.numel()
    for name in ("src", "dst"):
        bad = (ints[name] < 0) | (ints[name] >= num_states)
        if bad.any():
            arc = int(bad.nonzero()[0])
            raise DataError(f"graph: arc {arc} has {name} {int(ints[name][arc])}, expected 0..{num_states - 1} "
                            f"(`final` has {num_states} entries, one per state)")
    if (ints["pdf"] < EPSILON).any():
        raise DataError(f"graph: pdf {int(ints['pdf'].min())} is below {EPSILON} (= epsilon)")
    if not 0 <= start < num_states:
        raise DataError(f"graph: start state {start} is not one of the {num_states} states")
    if torch.isnan(cost).any() or torch.isnan(final).any():
        raise DataError("graph: a cost is NaN; use inf for a weight of zero")
