"""Numba kernels over one lattice: sums over all paths, and the best word sequences."""

from __future__ import annotations

import numpy as np

from hemstitch.graphs._jit import kernel


@kernel
def path_sums(src, dst, weight, final, value):
    """Posteriors of arcs, and what each arc contributes to the derivative of the expected value of a path.

    Args:
        src, dst: (arc,) states; arcs by destination, sources before destinations.
        weight: (arc,) log weight; -inf: closed.
        final: (state,) cost of ending.
        value: (arc,) what an arc adds to the value of its paths.

    Returns:
        log of the summed weights, expected value, (arc,) posteriors, (arc,) posterior x (mean value of the paths
        through the arc - expected value).
    """
    num_states, num_arcs = final.shape[0], src.shape[0]
    alpha, reached_value = np.full(num_states, -np.inf), np.zeros(num_states)
    share = np.zeros(num_arcs)  # of an arc among those that lead to its destination
    if num_states:
        alpha[0] = 0.0
    first = 0
    while first < num_arcs:
        state, last, highest = dst[first], first, -np.inf
        while last < num_arcs and dst[last] == state:
            share[last] = alpha[src[last]] + weight[last]
            highest = max(highest, share[last])
            last += 1
        if highest == -np.inf:
            share[first:last] = 0.0
        else:
            total = 0.0
            for arc in range(first, last):
                share[arc] = np.exp(share[arc] - highest)
                total += share[arc]
            alpha[state] = highest + np.log(total)
            for arc in range(first, last):
                share[arc] /= total
                reached_value[state] += share[arc] * (reached_value[src[arc]] + value[arc])
        first = last
    ends = alpha - final
    highest = ends.max() if num_states else -np.inf
    if highest == -np.inf:
        return highest, 0.0, np.zeros(num_arcs), np.zeros(num_arcs)
    mass = np.exp(ends - highest)
    logprob = highest + np.log(mass.sum())
    mass /= mass.sum()
    mean = (mass * reached_value).sum()
    posterior, contrast = share, np.zeros(num_arcs)
    to_come = np.zeros(num_states)  # posterior x mean value from a state to the end
    for arc in range(num_arcs - 1, -1, -1):
        here = posterior[arc] * mass[dst[arc]]
        rest = here * value[arc]
        if here > 0.0:
            rest += here * to_come[dst[arc]] / mass[dst[arc]]
        posterior[arc] = here
        contrast[arc] = here * (reached_value[src[arc]] - mean) + rest
        mass[src[arc]] += here
        to_come[src[arc]] += rest
    return logprob, mean, posterior, contrast


@kernel
def labelled_path_sums(src, dst, weight, final, label, wanted):
    """Posteriors of arcs over the paths whose labels are the wanted ones.

    A cell is a state with the number of labels so far; only those that some such path reaches are touched.

    Returns:
        log of the summed weights, -inf if there is no such path; (arc,) posteriors.
    """
    num_states, num_arcs, size = final.shape[0], src.shape[0], wanted.shape[0]
    alpha = np.full((num_states, size + 1), -np.inf)
    fewest, most = np.full(num_states, size + 1), np.full(num_states, -1)
    if num_states:
        alpha[0, 0], fewest[0], most[0] = 0.0, 0, 0
    for arc in range(num_arcs):
        here, there, step = src[arc], dst[arc], int(label[arc] > 0)
        for i in range(fewest[here], min(most[here], size - step) + 1):
            new = alpha[here, i] + weight[arc]
            if new == -np.inf or (step and wanted[i] != label[arc]):
                continue
            old = alpha[there, i + step]
            high = max(old, new)
            alpha[there, i + step] = high + np.log1p(np.exp(min(old, new) - high))
            fewest[there], most[there] = min(fewest[there], i + step), max(most[there], i + step)
    posterior = np.zeros(num_arcs)
    ends = alpha[:, size] - final
    highest = ends.max() if num_states else -np.inf
    if highest == -np.inf:
        return highest, posterior
    mass = np.zeros((num_states, size + 1))
    mass[:, size] = np.exp(ends - highest)
    logprob = highest + np.log(mass[:, size].sum())
    mass[:, size] /= mass[:, size].sum()
    for arc in range(num_arcs - 1, -1, -1):
        here, there, step = src[arc], dst[arc], int(label[arc] > 0)
        for i in range(fewest[here], min(most[here], size - step) + 1):
            if mass[there, i + step] == 0.0 or (step and wanted[i] != label[arc]):
                continue
            share = mass[there, i + step] * np.exp(alpha[here, i] + weight[arc] - alpha[there, i + step])
            posterior[arc] += share
            mass[here, i] += share
    return logprob, posterior


@kernel
def _extended(first_child, sibling, labels, histories, history, label):
    """The history with one more word; histories are a trie, and `histories[0]` of its nodes are in use."""
    child = first_child[history]
    while child >= 0 and labels[child] != label:
        child = sibling[child]
    if child < 0:
        child = histories[0]
        labels[child], sibling[child], first_child[child] = label, first_child[history], -1
        first_child[history] = child
        histories[0] += 1
    return child


@kernel
def best_histories(src, dst, cost, label, final, num_best):
    """The cheapest paths that differ in their labels.

    Every state keeps its ``num_best`` best histories of labels, one path for each: what comes later adds the same to
    all of them, so that no better one is lost.

    Returns:
        (path,) costs, (path,) histories, and the trie: (history,) parent, (history,) label.
    """
    num_states, num_arcs = final.shape[0], src.shape[0]
    room = 1 + num_best * ((label > 0).sum() + 1)
    parent, labels = np.full(room, -1, np.int32), np.zeros(room, np.int32)
    first_child, sibling = np.full(room, -1, np.int32), np.full(room, -1, np.int32)
    histories = np.ones(1, np.int64)
    costs = np.full((num_states + 1, num_best), np.inf)
    known = np.full((num_states + 1, num_best), -1, np.int32)
    costs[0, 0], known[0, 0] = 0.0, 0
    for arc in range(num_arcs + num_states):
        if arc < num_arcs:
            here, there, step, word = src[arc], dst[arc], cost[arc], label[arc]
        else:  # the end is one more state
            here, there, step, word = arc - num_arcs, num_states, final[arc - num_arcs], 0
        for i in range(num_best):
            new = costs[here, i] + step
            if not new < costs[there, num_best - 1]:
                break
            history = known[here, i]
            if word > 0:
                child = _extended(first_child, sibling, labels, histories, history, word)
                parent[child] = history
                history = child
            place = num_best - 1  # where it stands already, or else the last place
            for j in range(num_best):
                if known[there, j] == history:
                    place = j
                    break
            if new < costs[there, place]:
                while place > 0 and costs[there, place - 1] > new:
                    costs[there, place], known[there, place] = costs[there, place - 1], known[there, place - 1]
                    place -= 1
                costs[there, place], known[there, place] = new, history
    return costs[num_states], known[num_states], parent, labels
