"""Beam search: frame-synchronous token passing over a graph that may have epsilon arcs.

A token is the best known history of one state after t frames. In each frame the tokens within ``beam`` of the best,
and at most ``max_active`` of them, are followed over all their arcs; then epsilon arcs are followed. All tokens are
kept until the end, so that the best path can be traced back; the tokens of two neighbouring frames and the arcs of the
graph between them also hold every surviving alternative, from which a lattice can be read.

Reference: V. Steinbiss, B.-H. Tran, H. Ney, "Improvements in beam search", ICSLP 1994 (beam and histogram pruning).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

from hemstitch.errors import MisuseError
from hemstitch.graphs._graph import EPSILON, Graph
from hemstitch.graphs._viterbi import Path, arrays, as_scores


class Tokens(NamedTuple):
    """Every token of a search.

    Attributes:
        tokens: (token,) records with fields ``cost``, ``state``, ``arc`` and ``previous``.
        offsets: the tokens after t frames are ``offsets[t]:offsets[t + 1]``; T + 2 entries, fewer where all tokens
            died.
    """

    tokens: np.ndarray
    offsets: np.ndarray


def beam_search(
    graph: Graph,
    loglikes: np.ndarray | Tensor,
    beam: float = 16.0,
    max_active: int = 10_000,
    acoustic_scale: float = 1.0,
) -> Path:
    """The best path that survives pruning; exact for ``beam=inf`` and a ``max_active`` of all states.

    Where no final state survives, the best token at the end is taken, and where all tokens die early, the best one of
    the last live frame: ``reached_final`` is then False. Compiled by Numba, without the interpreter's lock.

    Args:
        graph: epsilon arcs are allowed, cycles of them with a negative cost are not.
        loglikes: (T frames, P pdfs) log-likelihoods in nats; -inf: impossible. Used in float32.
        beam: > 0, largest cost above the best token, in nats after scaling.
        max_active: >= 1, most tokens followed in a frame, up to the width of a histogram's bin (beam / 1024).
        acoustic_scale: kappa > 0, the weight of a log-likelihood beside the costs of the graph.

    Raises:
        DataError: the graph speaks of more pdfs than there are columns.
        NonFiniteError: a log-likelihood is NaN or +inf.
        MisuseError: epsilon arcs form a cycle of negative cost, or an option is out of range.

    Cost: O(T tokens arcs-per-state) time, 20 bytes per token and frame.
    """
    scores = as_scores(graph, loglikes)
    tokens, offsets = pass_tokens(graph, scores, beam, max_active, acoustic_scale)
    from hemstitch.graphs import _search_kernels as kernels
    from hemstitch.graphs._jit import run

    alive = len(offsets) - 2  # frames
    last = tokens[offsets[alive]:offsets[alive + 1]]
    finals = last["cost"] + graph.final.numpy()[last["state"]]
    reached = alive == len(scores) and bool(np.isfinite(finals).any())
    costs = finals if reached else last["cost"]
    best = int(np.argmin(costs))
    arcs = run(kernels.trace_back, tokens, offsets[alive] + best)
    consumes = graph.pdf.numpy()[arcs] != EPSILON
    return Path(graph=graph, arcs=arcs, frames=np.cumsum(consumes) - consumes, cost=float(costs[best]),
                reached_final=reached)


def pass_tokens(graph: Graph, scores: np.ndarray, beam: float, max_active: int, acoustic_scale: float) -> Tokens:
    """All tokens of a beam search; arguments as for :func:`beam_search`, ``scores`` contiguous float32."""
    if not beam > 0 or max_active < 1 or not 0 < acoustic_scale < math.inf:
        raise MisuseError(f"beam search: expected beam > 0, max_active >= 1 and acoustic_scale > 0, "
                          f"got {beam}, {max_active} and {acoustic_scale}")
    from hemstitch.graphs import _search_kernels as kernels
    from hemstitch.graphs._jit import run

    src, dst, pdf, cost = arrays(graph)
    epsilons, states = np.flatnonzero(pdf == EPSILON), np.arange(graph.num_states + 1)
    tokens, offsets = run(kernels.pass_tokens, np.empty(graph.num_states, kernels.TOKEN), dst, pdf, cost,
                          np.searchsorted(src, states), epsilons, np.searchsorted(src[epsilons], states), graph.start,
                          scores, float(acoustic_scale), float(beam), max_active)
    if offsets[-1] == kernels.NEGATIVE_CYCLE:
        raise MisuseError("beam search: epsilon arcs of the graph form a cycle of negative cost")
    return Tokens(tokens[:offsets[-1]], offsets)
