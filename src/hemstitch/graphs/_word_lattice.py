r"""Word lattices: what is left of a lattice when only its labels are of interest.

A state of it is a state of the lattice that a labelled arc leads to (and the start); a link from s to d with label w
stands for the cheapest way from s over arcs without labels, then over an arc with label w to d. So every sequence of
labels has the same cheapest cost in both.

Reference: S. Ortmanns, H. Ney, X. Aubert, "A word graph algorithm for large vocabulary continuous speech recognition",
Computer Speech & Language 11 (1997), section 2 (without its word pair approximation: links depend on all that is before
them, as far as the graph's states tell it apart).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hemstitch.errors import MisuseError
from hemstitch.graphs._lattice import Lattice
from hemstitch.graphs._lattice_sums import arc_weights

_ROUNDING = 1e-6
"""Added to the bound, in nats, lest rounding cuts the best path off."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WordLattice:
    """An acyclic graph of labels; state 0 is the start, the last state the end.

    Attributes:
        src: (link,) int32 source state.
        dst: (link,) int32 destination, > ``src``.
        label: (link,) int32 label, 0 on links to the end.
        graph_cost: (link,) float64 costs of the graph on the link's path.
        acoustic_cost: (link,) float64 minus its log-likelihoods, not scaled.
        time: (state,) int32 frames consumed where the label came: at or after the first frame of what it stands for.
        acoustic_scale: kappa; a path costs graph_cost + kappa acoustic_cost.
    """

    src: np.ndarray
    dst: np.ndarray
    label: np.ndarray
    graph_cost: np.ndarray
    acoustic_cost: np.ndarray
    time: np.ndarray
    acoustic_scale: float

    @property
    def num_states(self) -> int:
        """Number of states."""
        return len(self.time)

    @property
    def num_links(self) -> int:
        """Number of links."""
        return len(self.src)


def word_lattice(lattice: Lattice, beam: float = np.inf) -> WordLattice:
    """The word lattice of a lattice.

    Args:
        lattice: of the utterance.
        beam: >= 0, links on no path of a cost within it above the best one are left out, in nats after scaling.

    Raises:
        MisuseError: the lattice is empty.

    Cost: arcs of the lattice within the reach of each labelled arc; about 10 ns each.
    """
    if not lattice.num_states:
        raise MisuseError("word_lattice: the lattice has no states")
    from hemstitch.graphs import _word_lattice_kernels as kernels
    from hemstitch.graphs._jit import run

    begins = np.unique(np.append(lattice.dst[lattice.label > 0], 0)).astype(np.int32)
    links = run(kernels.links, lattice.src, lattice.dst, -arc_weights(lattice), lattice.acoustic_cost, lattice.label,
                lattice.final, begins)  # fmt: skip
    src, dst, label, total, acoustic = _within(beam, len(begins) + 1, *links)
    time = np.append(lattice.state_time[begins], lattice.num_frames).astype(np.int32)
    graph_cost = total - lattice.acoustic_scale * acoustic
    return _connected(WordLattice(src=src, dst=dst, label=label, graph_cost=graph_cost, acoustic_cost=acoustic,
                                  time=time, acoustic_scale=lattice.acoustic_scale))  # fmt: skip


def _within(beam: float, num_states: int, *links: np.ndarray) -> list[np.ndarray]:
    """Of links that agree in states and label the cheapest, if a path through it is within the beam."""
    src, dst, label, total, _ = links
    order = np.lexsort((total, label, dst, src))
    keys = np.stack([src, dst, label])[:, order]
    cheapest = order[np.append(True, (keys[:, 1:] != keys[:, :-1]).any(0))] if len(order) else order
    src, dst, label, total, acoustic = (column[cheapest] for column in links)
    before, after = np.full(num_states, np.inf), np.full(num_states, np.inf)
    before[0], after[-1] = 0.0, 0.0
    for s, d, cost in zip(src.tolist(), dst.tolist(), total.tolist()):  # sources ascend
        before[d] = min(before[d], before[s] + cost)
    for s, d, cost in zip(src[::-1].tolist(), dst[::-1].tolist(), total[::-1].tolist()):
        after[s] = min(after[s], after[d] + cost)
    kept = before[src] + total + after[dst] <= before[-1] + beam + _ROUNDING
    return [column[kept] for column in (src, dst, label, total, acoustic)]


def _connected(lattice: WordLattice) -> WordLattice:
    """Without the states that no link touches; start and end stay."""
    used = np.unique(np.concatenate([lattice.src, lattice.dst, [0, lattice.num_states - 1]]))
    place = np.zeros(lattice.num_states, np.int32)
    place[used] = np.arange(len(used))
    return replace(lattice, src=place[lattice.src], dst=place[lattice.dst], time=lattice.time[used])
