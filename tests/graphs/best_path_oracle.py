"""Slow, readable twins of the searches: every path tried, and random graphs to try them on."""

import numpy as np

from hemstitch.graphs import Graph


def cheapest_path(graph, loglikes, scale=1.0):
    """(cost, arcs) of the best path, by following every path there is; (inf, None) without one."""
    arcs_of = [[] for _ in range(graph.num_states)]
    for arc, src in enumerate(graph.src.tolist()):
        arcs_of[src].append(arc)

    def best(state, t):
        found = (float(graph.final[state]) if t == len(loglikes) else np.inf, [])
        for arc in arcs_of[state]:
            pdf = int(graph.pdf[arc])
            if pdf >= 0 and t == len(loglikes):
                continue
            step = float(graph.cost[arc]) - (scale * float(loglikes[t, pdf]) if pdf >= 0 else 0.0)
            cost, arcs = best(int(graph.dst[arc]), t + (pdf >= 0))
            found = min(found, (cost + step, [arc, *arcs]))
        return found

    cost, arcs = best(graph.start, 0)
    return (cost, arcs) if np.isfinite(cost) else (np.inf, None)


def random_graph(rng, num_states=6, num_arcs=14, num_pdfs=4, epsilons=0):
    """A random graph with self-loops; its epsilon arcs go from lower to higher states, some at a gain."""
    src = np.concatenate([np.arange(num_states), rng.integers(0, num_states, num_arcs)])
    dst = np.concatenate([np.arange(num_states), rng.integers(0, num_states, num_arcs)])
    pdf, cost = rng.integers(0, num_pdfs, len(src)), rng.exponential(1.0, len(src))
    low = rng.integers(0, num_states - 1, epsilons)
    src, dst = np.concatenate([src, low]), np.concatenate([dst, rng.integers(low + 1, num_states)])
    pdf, cost = np.concatenate([pdf, np.full(epsilons, -1)]), np.concatenate([cost, rng.normal(0.5, 1.0, epsilons)])
    final = np.where(rng.random(num_states) < 0.5, rng.exponential(1.0, num_states), np.inf)
    return Graph.from_arcs(src, dst, pdf, cost, final=final, label=rng.integers(0, 3, len(src)))


def path_cost(path, loglikes, scale=1.0):
    """Cost of a path, added up arc by arc; checks on the way that the arcs are a path over every frame."""
    graph, state, t, total = path.graph, path.graph.start, 0, 0.0
    for arc, frame in zip(path.arcs.tolist(), path.frames.tolist()):
        assert int(graph.src[arc]) == state and frame == t
        state, total = int(graph.dst[arc]), total + float(graph.cost[arc])
        if int(graph.pdf[arc]) >= 0:
            total -= scale * float(loglikes[t, int(graph.pdf[arc])])
            t += 1
    assert t == len(path.pdfs)
    return total + (float(graph.final[state]) if path.reached_final else 0.0)
