"""Compiled walks over the shape of graphs: reachability and composition."""

from __future__ import annotations

import numpy as np

from hemstitch.graphs._graph import Graph
from hemstitch.graphs._jit import kernel, numba, run  # says what to install where there is no Numba

NEVER = np.int64(1 << 60)
"""The number of arcs to a state that cannot be reached."""


def on_paths(graph: Graph) -> np.ndarray:
    """(state,) whether a state lies on a path from the start to a final state."""
    src, dst = graph.src.numpy(), graph.dst.numpy()
    start = np.full(graph.num_states, -np.inf)
    start[graph.start] = 0.0
    return (run(fewest_arcs, src, dst, start) < NEVER) & (run(fewest_arcs, dst, src, -graph.final.numpy()) < NEVER)


def matching_arcs(first: Graph, second: Graph) -> tuple[np.ndarray, ...]:
    """The arcs of the composition of two acceptors without epsilons.

    Returns:
        src, dst (arc,): states of the composition, its start being 0; the arcs of ``first`` and of ``second`` that
        meet; and the pair of states (state, 2) that each state stands for.
    """
    arcs, pairs = run(
        _match, first.arc_offsets().numpy(), first.dst.numpy(), first.pdf.numpy(), second.arc_offsets().numpy(),
        second.dst.numpy(), second.pdf.numpy(), first.start, second.start, second.num_states,
    )
    return *arcs.T, pairs


@kernel
def _match(first_offsets, first_dst, first_pdf, second_offsets, second_dst, second_pdf, first_start, second_start,
           second_states):
    number = numba.typed.Dict.empty(numba.types.int64, numba.types.int64)
    number[first_start * second_states + second_start] = 0
    pairs, arcs = [(first_start, second_start)], [(0, 0, 0, 0) for _ in range(0)]
    here = 0
    while here < len(pairs):
        i, j = pairs[here]
        for a in range(first_offsets[i], first_offsets[i + 1]):
            for b in range(second_offsets[j], second_offsets[j + 1]):
                if first_pdf[a] != second_pdf[b]:
                    continue
                key = first_dst[a] * second_states + second_dst[b]
                if key not in number:
                    number[key] = len(pairs)
                    pairs.append((first_dst[a], second_dst[b]))
                arcs.append((here, number[key], a, b))
        here += 1
    found = np.empty((len(arcs), 4), np.int64)
    for k in range(len(arcs)):
        found[k, 0], found[k, 1], found[k, 2], found[k, 3] = arcs[k]
    states = np.empty((len(pairs), 2), np.int64)
    for k in range(len(pairs)):
        states[k, 0], states[k, 1] = pairs[k]
    return found, states


@kernel
def by_destination(dst, num_states):
    """Arcs sorted by destination, and where the arcs into each state begin."""
    into = np.zeros(num_states + 1, np.int64)
    for j in dst:
        into[j + 1] += 1
    into = np.cumsum(into)
    order, place = np.empty(len(dst), np.int64), into[:-1].copy()
    for a in range(len(dst)):
        order[place[dst[a]]] = a
        place[dst[a]] += 1
    return order, into


@kernel
def fewest_arcs(src, dst, logweight):
    """Number of arcs of the shortest way to each state from those with a log weight above -inf."""
    order, out = by_destination(src, len(logweight))
    hops = np.full(len(logweight), NEVER)
    queue, size = np.empty(len(logweight), np.int64), 0
    for s in range(len(logweight)):
        if logweight[s] > -np.inf:
            hops[s], queue[size], size = 0, s, size + 1
    head = 0
    while head < size:
        s = queue[head]
        head += 1
        for k in range(out[s], out[s + 1]):
            d = dst[order[k]]
            if hops[d] == NEVER:
                hops[d], queue[size], size = hops[s] + 1, d, size + 1
    return hops
