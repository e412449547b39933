"""Slow, readable twins: every path of a graph or of a lattice, one by one."""

import numpy as np


def graph_paths(graph, loglikes, scale=1.0):
    """[(cost, ((frame, arc), ...))] of every path of a graph over all frames that ends in a final state."""
    found, final = [], graph.final.numpy()

    def walk(state, t, cost, steps):
        if t == len(loglikes) and np.isfinite(final[state]):
            found.append((cost + final[state], steps))
        for arc in np.flatnonzero(graph.src.numpy() == state).tolist():
            pdf, step = int(graph.pdf[arc]), float(graph.cost[arc])
            if pdf < 0:
                walk(int(graph.dst[arc]), t, cost + step, (*steps, (t, arc)))
            elif t < len(loglikes):
                score = scale * float(np.float32(loglikes[t, pdf]))
                walk(int(graph.dst[arc]), t + 1, cost + step - score, (*steps, (t, arc)))

    walk(graph.start, 0, 0.0, ())
    return found


def lattice_paths(lattice):
    """[(list of arcs, cost of ending)] of every path of a lattice."""
    found = []

    def walk(state, arcs):
        if np.isfinite(lattice.final[state]):
            found.append((arcs, lattice.final[state]))
        for arc in np.flatnonzero(lattice.src == state).tolist():
            walk(int(lattice.dst[arc]), [*arcs, arc])

    if lattice.num_states:
        walk(0, [])
    return found


def path_weights(lattice, weights):
    """(path,) log weights of :func:`lattice_paths`, and the paths' arcs."""
    paths = lattice_paths(lattice)
    return np.array([weights[arcs].sum() - end for arcs, end in paths]), [arcs for arcs, _ in paths]
