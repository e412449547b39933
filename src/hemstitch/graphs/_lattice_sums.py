r"""Sums over all paths of a lattice, and its best word sequences.

With the weight w(pi) = exp(-sum_a cost(a)) of a path and an additive value A(pi) = sum_a A(a),

    log Z = log sum_pi w(pi),     gamma_a = sum_{pi through a} w(pi) / Z,     c = sum_pi A(pi) w(pi) / Z,
    dc / d log w_a = gamma_a (c_a - c),      c_a: the mean value of the paths through a.

One forward pass, one backward pass. There is no beta: the posterior mass of a state is handed back over its incoming
arcs in proportion to what they brought, which needs one exponential per arc and cannot overflow.

References: D. Povey, P. C. Woodland, "Minimum phone error and I-smoothing for improved discriminative training", ICASSP
2002 (c_a - c); S. Ortmanns, H. Ney, X. Aubert, Computer Speech & Language 11 (1997), n-best lists from word graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hemstitch.errors import MisuseError
from hemstitch.graphs._graph import EPSILON
from hemstitch.graphs._lattice import Lattice


class LatticeSums(NamedTuple):
    """What :func:`lattice_sums` returns.

    Attributes:
        logprob: log Z; -inf: no path.
        mean: expected value c of a path.
        posteriors: (arc,) gamma_a, the derivative of ``logprob`` by an arc's log weight.
        contrasts: (arc,) gamma_a (c_a - c), the derivative of ``mean``.
    """

    logprob: float
    mean: float
    posteriors: np.ndarray
    contrasts: np.ndarray


class Sentence(NamedTuple):
    """One word sequence of a lattice: its labels, and the cost of its best path."""

    labels: tuple[int, ...]
    cost: float


def arc_weights(lattice: Lattice, loglikes: np.ndarray | None = None, acoustic_scale: float | None = None
                ) -> np.ndarray:
    """(arc,) float64 log weights, -(graph cost) + kappa (log-likelihood).

    Args:
        lattice: of the utterance.
        loglikes: (frame, pdf) log-likelihoods instead of those it was made with.
        acoustic_scale: kappa instead of the one it was made with.
    """
    scale = lattice.acoustic_scale if acoustic_scale is None else acoustic_scale
    if loglikes is None:
        return -lattice.graph_cost - scale * lattice.acoustic_cost
    spoken = lattice.pdf != EPSILON
    scores = loglikes[np.where(spoken, lattice.time, 0), lattice.pdf]
    return -lattice.graph_cost + scale * np.where(spoken, scores, 0.0)


def lattice_sums(lattice: Lattice, weights: np.ndarray | None = None, values: np.ndarray | None = None) -> LatticeSums:
    """Sums over all paths; without the interpreter's lock.

    Args:
        lattice: of the utterance.
        weights: (arc,) log weights, -inf for arcs to leave out; ``None``: :func:`arc_weights`.
        values: (arc,) additive values; ``None``: 0.

    Cost: about 20 ns an arc.
    """
    from hemstitch.graphs import _lattice_sums_kernels as kernels
    from hemstitch.graphs._jit import run

    weights = arc_weights(lattice) if weights is None else weights
    values = np.zeros(lattice.num_arcs) if values is None else np.asarray(values, np.float64)
    return LatticeSums(*run(kernels.path_sums, lattice.src, lattice.dst, weights, lattice.final, values))


def labelled_sums(lattice: Lattice, labels: Sequence[int], weights: np.ndarray | None = None
                  ) -> tuple[float, np.ndarray]:
    """Sums over all paths with these labels, whenever they say them: (log Z; -inf: no path, (arc,) posteriors).

    Args:
        lattice: of the utterance.
        labels: a word sequence.
        weights: (arc,) log weights, -inf for arcs to leave out; ``None``: :func:`arc_weights`.

    Cost: two visits of each arc for each number of the labels that may have been said before it.
    """
    from hemstitch.graphs import _lattice_sums_kernels as kernels
    from hemstitch.graphs._jit import run

    weights = arc_weights(lattice) if weights is None else weights
    return run(kernels.labelled_path_sums, lattice.src, lattice.dst, weights, lattice.final, lattice.label,
               np.asarray(labels, np.int32))  # fmt: skip


def frame_sums(lattice: Lattice, arc_values: np.ndarray, num_pdfs: int) -> np.ndarray:
    """(frame, pdf) float64: values of arcs added up where they agree in frame and pdf; of posteriors: occupancies."""
    spoken = lattice.pdf != EPSILON
    cells = lattice.time[spoken].astype(np.int64) * num_pdfs + lattice.pdf[spoken]
    sums = np.bincount(cells, arc_values[spoken], minlength=lattice.num_frames * num_pdfs)
    return sums.reshape(lattice.num_frames, num_pdfs)


def restricted_to(lattice: Lattice, pdfs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(arc,) the weights, -inf for arcs that account their frame to another pdf than the given (frame,) ones."""
    agrees = (lattice.pdf == EPSILON) | (lattice.pdf == pdfs[np.minimum(lattice.time, lattice.num_frames - 1)])
    return np.where(agrees, weights, -np.inf)


def nbest(lattice: Lattice, n: int, weights: np.ndarray | None = None) -> list[Sentence]:
    """The best word sequences of a lattice, each with the cost of its best path; exact.

    Args:
        lattice: of the utterance.
        n: >= 1, how many at most.
        weights: (arc,) log weights; ``None``: :func:`arc_weights`.

    Raises:
        MisuseError: ``n`` is below 1.

    Cost: O(arcs n) to O(arcs n^2) time, 12 n bytes per state.
    """
    if n < 1:
        raise MisuseError(f"nbest: expected n >= 1, got {n}")
    from hemstitch.graphs import _lattice_sums_kernels as kernels
    from hemstitch.graphs._jit import run

    weights = arc_weights(lattice) if weights is None else weights
    costs, histories, parent, labels = run(kernels.best_histories, lattice.src, lattice.dst, -weights, lattice.label,
                                           lattice.final, n)
    return [Sentence(_spelled(history, parent, labels), float(cost))
            for cost, history in zip(costs, histories) if np.isfinite(cost)]


def _spelled(history: int, parent: np.ndarray, labels: np.ndarray) -> tuple[int, ...]:
    words = []
    while history > 0:
        words.append(int(labels[history]))
        history = parent[history]
    return tuple(reversed(words))
