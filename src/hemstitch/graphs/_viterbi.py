"""The best path through an epsilon-free graph, exactly: one relaxation per arc and frame.

The cost of a path pi = (a_1 ... a_T) against log-likelihoods l is

    sum_t [cost(a_t) - kappa l(t, pdf(a_t))] + final(end of a_T),    kappa: the acoustic scale.

Reference: G. D. Forney, "The Viterbi algorithm", Proc. IEEE 61 (1973).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hemstitch.errors import DataError, MisuseError, NonFiniteError
from hemstitch.graphs._graph import EPSILON, NO_LABEL, Graph


class NoPathError(DataError):
    """A graph has no path of the length asked for: an utterance is too short for its transcript."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Path:
    """A path through a graph.

    Attributes:
        graph: the graph that ``arcs`` index.
        arcs: (step,) the arcs, first to last.
        frames: (step,) the frame that each arc consumes; for an epsilon the frame that comes next.
        cost: sum of arc costs and scaled negative log-likelihoods, with the final cost if ``reached_final``.
        reached_final: whether the path ends in a final state after the last frame.
    """

    graph: Graph
    arcs: np.ndarray
    frames: np.ndarray
    cost: float
    reached_final: bool = True

    @property
    def pdfs(self) -> np.ndarray:
        """(frame,) the pdf that each frame is accounted to."""
        pdfs = self.graph.pdf.numpy()[self.arcs]
        return pdfs[pdfs != EPSILON]

    @property
    def labels(self) -> np.ndarray:
        """The labels along the path."""
        if self.graph.label is None:
            raise MisuseError("path: the graph has no labels; build it with Graph.from_arcs(..., label=...)")
        labels = self.graph.label.numpy()[self.arcs]
        return labels[labels != NO_LABEL]

    @property
    def phone_marks(self) -> np.ndarray:
        """(step,) the phone that begins at each step, negative where a word does, 0 where none begins."""
        if self.graph.phone is None:
            raise MisuseError("path: the graph has no phones; build it with Graph.from_arcs(..., phone=...)")
        return self.graph.phone.numpy()[self.arcs]


def viterbi(graph: Graph, loglikes: np.ndarray | Tensor, acoustic_scale: float = 1.0) -> Path:
    """The cheapest path of exactly T arcs from the start to a final state.

    Ties go to the arc that comes first. Compiled by Numba, without the interpreter's lock.

    Args:
        graph: without epsilon arcs.
        loglikes: (T frames, P pdfs) log-likelihoods in nats; -inf: impossible. Used in float32.
        acoustic_scale: kappa > 0, the weight of a log-likelihood beside the costs of the graph.

    Raises:
        NoPathError: no path has T arcs; the message says how many frames the shortest one needs.
        DataError: the graph speaks of more pdfs than there are columns.
        NonFiniteError: a log-likelihood is NaN or +inf.
        MisuseError: the graph has epsilon arcs.

    Cost: O(T arcs) time, 4 T states bytes.
    """
    if graph.has_epsilons:
        raise MisuseError("viterbi: the graph has epsilon arcs; use beam_search (with beam=inf it is exact)")
    scores = as_scores(graph, loglikes)
    from hemstitch.graphs import _search_kernels as kernels
    from hemstitch.graphs._jit import run

    arcs, cost = run(kernels.best_alignment, *arrays(graph), graph.final.numpy(), graph.start, scores, acoustic_scale)
    if not np.isfinite(cost):
        raise NoPathError(_why_no_path(graph, len(scores)))
    return Path(graph=graph, arcs=arcs, frames=np.arange(len(arcs)), cost=cost)


def shortest_length(graph: Graph) -> float:
    """Number of frames of the shortest path from the start to a final state; inf if there is none.

    Cost: O(arcs) for each state of the longest loop-free path.
    """
    src, dst, pdf, cost = arrays(graph)
    open_arcs = np.isfinite(cost)
    src, dst, frames = src[open_arcs], dst[open_arcs], (pdf[open_arcs] != EPSILON).astype(float)
    needed = np.full(graph.num_states, np.inf)
    needed[graph.start] = 0.0
    for _ in range(graph.num_states):
        before = needed.copy()
        np.minimum.at(needed, dst, needed[src] + frames)
        if np.array_equal(needed, before):
            break
    return float(needed[np.isfinite(graph.final.numpy())].min(initial=np.inf))


def arrays(graph: Graph) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(src, dst, pdf, cost) of the arcs, sharing memory with the graph."""
    return graph.src.numpy(), graph.dst.numpy(), graph.pdf.numpy(), graph.cost.numpy()


def as_scores(graph: Graph, loglikes: np.ndarray | Tensor) -> np.ndarray:
    """Log-likelihoods as the kernels want them: (frame, pdf) float32, contiguous, at least the graph's pdfs."""
    values = loglikes.detach().cpu().to(torch.float32).numpy() if isinstance(loglikes, Tensor) else loglikes
    scores = np.ascontiguousarray(values, dtype=np.float32)
    if scores.ndim != 2 or scores.shape[1] < graph.num_pdfs:
        raise DataError(f"log-likelihoods have shape {scores.shape}, expected (frames, pdfs) with at least "
                        f"{graph.num_pdfs} pdfs: the graph was built for another model or topology")
    if np.isnan(scores).any() or np.isposinf(scores).any():
        frame = int(np.nonzero(np.isnan(scores) | np.isposinf(scores))[0][0])
        raise NonFiniteError(f"log-likelihoods: NaN or +inf in frame {frame}; look at the model's output there")
    return scores


def _why_no_path(graph: Graph, num_frames: int) -> str:
    needed = shortest_length(graph)
    if needed == np.inf:
        return "the graph has no path from its start to a final state"
    if needed > num_frames:
        return (f"too few frames: the graph needs {needed:.0f} (one per state of its shortest path), there are "
                f"{num_frames}; leave the utterance out, correct its transcript, or take fewer states per phone")
    return (f"no path of {num_frames} frames (the shortest has {needed:.0f}): either every such path has a "
            "log-likelihood of -inf, or the graph has no loops")
