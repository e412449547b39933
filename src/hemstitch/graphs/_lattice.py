r"""Lattices: every way through a graph that is nearly as good as the best one, for one utterance.

With the best path's cost C, a lattice holds each (frame, arc) that lies on a path of cost at most C + lattice_beam, as
far as the search beam let it live. A state of it is a pair (frames consumed, state of the graph).

Two sweeps make it. Forward, the cost alpha of the best way to each state within the beam, without back pointers; where
many states are alive all arcs are pulled to their destinations, which needs no branches, else arcs are pushed from the
states alive. Backward, from the surviving states only, the cost beta of the best way to the end: an arc survives if

    alpha(src) + cost(arc) - kappa l(t, pdf(arc)) + beta(dst) <= C + lattice_beam.

Reference: S. Ortmanns, H. Ney, X. Aubert, "A word graph algorithm for large vocabulary continuous speech recognition",
Computer Speech & Language 11 (1997); pruning: D. Povey et al., "Generating exact lattices in the WFST framework",
ICASSP 2012, section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from hemstitch.errors import MisuseError
from hemstitch.graphs._beam import beam_search
from hemstitch.graphs._graph import EPSILON, Graph
from hemstitch.graphs._viterbi import NoPathError, Path, arrays, as_scores

_ROUNDING = 1e-6
"""Added to the bound, in nats, lest rounding cuts the best path off."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lattice:
    """An acyclic graph over the frames of one utterance; states in topological order, which is that of time.

    Attributes:
        src: (arc,) int32 source state.
        dst: (arc,) int32 destination state, > ``src``, non-decreasing along the arcs.
        time: (arc,) int32 frame that the arc consumes; for an epsilon the frame that comes next.
        pdf: (arc,) int32 output that accounts for the frame, ``EPSILON`` for none.
        graph_cost: (arc,) float64 cost in the graph: language model, pronunciation, transitions.
        acoustic_cost: (arc,) float64 minus the log-likelihood, not scaled; 0 for an epsilon.
        label: (arc,) int32 word, 0 for none.
        phone: (arc,) int32 phone that begins, see :class:`Graph`.
        state_time: (state,) int32 frames consumed.
        final: (state,) float64 cost of ending here; inf: not final.
        num_frames: T.
        acoustic_scale: kappa with which it was pruned; paths weigh graph_cost + kappa acoustic_cost.
        reached_final: whether its paths are whole sentences. If not, all states of the last live frame end at no cost.
    """

    src: np.ndarray
    dst: np.ndarray
    time: np.ndarray
    pdf: np.ndarray
    graph_cost: np.ndarray
    acoustic_cost: np.ndarray
    label: np.ndarray
    phone: np.ndarray
    state_time: np.ndarray
    final: np.ndarray
    num_frames: int
    acoustic_scale: float
    reached_final: bool

    @property
    def num_states(self) -> int:
        """Number of states; 0 and T of none at all: empty."""
        return len(self.final)

    @property
    def num_arcs(self) -> int:
        """Number of arcs."""
        return len(self.src)

    @property
    def density(self) -> float:
        """Arcs that consume a frame, per frame."""
        return float((self.pdf != EPSILON).sum()) / max(self.num_frames, 1)

    def with_path(self, path: Path, loglikes: np.ndarray) -> Lattice:
        """The lattice with one more path beside the others, sharing with them only the start state.

        Args:
            path: of as many frames, from a search of the same graph.
            loglikes: (frame, pdf) those of the lattice.

        Raises:
            MisuseError: the path has another number of frames.
        """
        if len(path.pdfs) != self.num_frames:
            raise MisuseError(f"lattice: the path has {len(path.pdfs)} frames, the lattice {self.num_frames}")
        graph, size = path.graph, len(path.arcs)
        consumed = np.cumsum(graph.pdf.numpy()[path.arcs] != EPSILON)
        chain = np.concatenate([[0], self.num_states + np.arange(size)])
        ends = np.full(size, np.inf)
        ends[-1] = float(graph.final[graph.dst[path.arcs[-1]]]) if path.reached_final else 0.0
        columns = _columns(graph, path.arcs, path.frames, loglikes)
        joined = {name: np.concatenate([getattr(self, name), column]) for name, column in columns.items()}
        return _sorted(
            np.concatenate([self.src, chain[:-1]]), np.concatenate([self.dst, chain[1:]]), joined,
            np.concatenate([self.state_time, consumed]), np.concatenate([self.final, ends]), self)

    def __repr__(self) -> str:
        return f"Lattice({self.num_frames} frames, {self.num_states} states, {self.num_arcs} arcs)"


class LatticeGraph:
    """A graph with its arcs laid out for lattice generation; make one for many utterances.

    Args:
        graph: epsilon arcs are allowed, cycles of them are not.

    Raises:
        MisuseError: epsilon arcs form a cycle.

    Cost: 60 bytes an arc; a sort of the arcs by destination.
    """

    def __init__(self, graph: Graph) -> None:
        from hemstitch.graphs import _lattice_kernels as kernels
        from hemstitch.graphs._jit import run

        self.graph = graph
        src, dst, pdf, cost = arrays(graph)
        by_dst = np.argsort(dst, kind="stable")
        emitting = np.flatnonzero(pdf != EPSILON)
        emitting_in, epsilon_in = by_dst[pdf[by_dst] != EPSILON], by_dst[pdf[by_dst] == EPSILON]
        depth = run(kernels.epsilon_depths, src[epsilon_in], dst[epsilon_in], graph.num_states)
        if (depth == kernels.CYCLE).any():
            raise MisuseError("lattice: epsilon arcs of the graph form a cycle; remove epsilons first")
        self.order = np.argsort(depth, kind="stable").astype(np.uint32)
        states = np.arange(graph.num_states + 1)
        small = [column.astype(np.uint32) for column in (src, dst, pdf)]
        self.outgoing = (np.searchsorted(src[emitting], states), small[1][emitting], small[2][emitting], cost[emitting])
        self.incoming = (np.searchsorted(dst[emitting_in], states), small[0][emitting_in], small[2][emitting_in],
                         cost[emitting_in], emitting_in.astype(np.uint32))
        self.epsilons_in = (np.searchsorted(dst[epsilon_in], states), small[0][epsilon_in], cost[epsilon_in],
                            epsilon_in.astype(np.uint32))
        shallow_first = epsilon_in[np.argsort(depth[src[epsilon_in]], kind="stable")]
        self.epsilons = (small[0][shallow_first], small[1][shallow_first], cost[shallow_first])

    def search(
        self,
        loglikes: np.ndarray | Tensor,
        beam: float = 16.0,
        lattice_beam: float = 8.0,
        max_active: int = 10_000,
        acoustic_scale: float = 1.0,
    ) -> Lattice:
        """The lattice of one utterance; arguments, errors and cost as of :func:`lattice_search`."""
        if not beam > 0 or not lattice_beam >= 0 or max_active < 1 or not 0 < acoustic_scale < math.inf:
            raise MisuseError(f"lattice: expected beam > 0, lattice_beam >= 0, max_active >= 1 and acoustic_scale > 0, "
                              f"got {beam}, {lattice_beam}, {max_active} and {acoustic_scale}")
        from hemstitch.graphs import _lattice_kernels as kernels
        from hemstitch.graphs._jit import run

        graph, plain = self.graph, as_scores(self.graph, loglikes)
        scores = plain * np.float32(acoustic_scale) if acoustic_scale != 1.0 else plain
        states, costs, offsets = run(kernels.forward_costs, self.outgoing, self.incoming[:4], self.epsilons, self.order,
                                     graph.start, scores, float(beam), max_active)
        last = slice(offsets[-2], offsets[-1])
        ends = graph.final.numpy()[states[last]]
        reached = len(offsets) == len(scores) + 2 and bool(np.isfinite(ends).any())
        ends = ends if reached else np.zeros(len(ends))
        bound = float((costs[last] + ends).min()) + lattice_beam + _ROUNDING
        src, dst, arcs, times, state_times, kept = run(kernels.backward_arcs, states, costs, offsets, ends, bound,
                                                       self.incoming, self.epsilons_in, scores)
        final, at_end = np.full(len(kept), np.inf), kept >= offsets[-2]
        final[at_end] = ends[kept[at_end] - offsets[-2]]
        return Lattice(src=src, dst=dst, **_columns(graph, arcs, times, plain), state_time=state_times, final=final,
                       num_frames=len(scores), acoustic_scale=acoustic_scale, reached_final=reached)


def lattice_search(
    graph: Graph,
    loglikes: np.ndarray | Tensor,
    beam: float = 16.0,
    lattice_beam: float = 8.0,
    max_active: int = 10_000,
    acoustic_scale: float = 1.0,
) -> Lattice:
    """All paths within ``lattice_beam`` of the best, as far as the search beam lets them live.

    Exact for ``beam=inf`` and a ``max_active`` of all states. Compiled by Numba, without the interpreter's lock. For
    many utterances make one :class:`LatticeGraph`.

    Args:
        graph: epsilon arcs are allowed, cycles of them are not.
        loglikes: (T frames, P pdfs) log-likelihoods in nats; -inf: impossible. Used in float32.
        beam: > 0, largest cost above the best state of a frame, in nats after scaling.
        lattice_beam: >= 0, largest cost of a path above the best path, in nats after scaling.
        max_active: >= 1, most states alive in a frame, up to the width of a histogram's bin (beam / 1024).
        acoustic_scale: kappa > 0, the weight of a log-likelihood beside the costs of the graph.

    Raises:
        DataError: the graph speaks of more pdfs than there are columns.
        NonFiniteError: a log-likelihood is NaN or +inf.
        MisuseError: epsilon arcs form a cycle, or an option is out of range.

    Cost: O(T min(arcs, states alive x arcs per state)) time, 12 bytes per live state and frame, 48 bytes per arc of the
    lattice.
    """
    return LatticeGraph(graph).search(loglikes, beam, lattice_beam, max_active, acoustic_scale)


def path_of_pdfs(graph: Graph, pdfs: np.ndarray, loglikes: np.ndarray, acoustic_scale: float = 1.0) -> Path:
    """The cheapest path of a graph that accounts every frame to the given pdf.

    Args:
        graph: epsilon arcs are allowed, cycles of them with a negative cost are not.
        pdfs: (frame,) the pdf of each frame.
        loglikes: (frame, pdf) log-likelihoods.
        acoustic_scale: kappa.

    Raises:
        NoPathError: the graph has no such path (a word that its language model lacks).
    """
    frames = np.arange(len(pdfs))
    only = np.full((len(pdfs), max(graph.num_pdfs, loglikes.shape[1])), -np.inf, np.float32)
    only[frames, pdfs] = loglikes[frames, pdfs]
    path = beam_search(graph, only, beam=math.inf, max_active=graph.num_states, acoustic_scale=acoustic_scale)
    if not path.reached_final:
        raise NoPathError("the graph has no path with these pdfs: the transcript has a word or a pronunciation that "
                          "its language model or lexicon lacks")
    return path


def _columns(graph: Graph, arcs: np.ndarray, times: np.ndarray, loglikes: np.ndarray) -> dict[str, np.ndarray]:
    """What a lattice keeps of the graph's arcs."""
    pdf = graph.pdf.numpy()[arcs].astype(np.int32)
    spoken = pdf != EPSILON
    acoustic = np.zeros(len(arcs))
    acoustic[spoken] = -loglikes[times[spoken], pdf[spoken]]
    marks = {name: np.zeros(len(arcs), np.int32) if column is None else column.numpy()[arcs].astype(np.int32)
             for name, column in (("label", graph.label), ("phone", graph.phone))}
    return {"time": np.asarray(times, np.int32), "pdf": pdf, "graph_cost": graph.cost.numpy()[arcs],
            "acoustic_cost": acoustic, **marks}


def _sorted(
    src: np.ndarray, dst: np.ndarray, columns: dict[str, np.ndarray], times: np.ndarray, final: np.ndarray,
    like: Lattice,
) -> Lattice:
    """A lattice with its states ordered by time again (stable: epsilons keep their order), its arcs by destination."""
    order = np.argsort(times, kind="stable")
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    by_dst = np.argsort(place[dst], kind="stable")
    return replace(like, src=place[src][by_dst], dst=place[dst][by_dst], state_time=times[order].astype(np.int32),
                   final=final[order], **{name: column[by_dst] for name, column in columns.items()})
