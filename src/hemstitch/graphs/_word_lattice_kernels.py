"""Numba kernel for word lattices: cheapest ways from one labelled arc to the next."""

from __future__ import annotations

import numpy as np

from hemstitch.graphs._jit import kernel


@kernel
def links(src, dst, cost, acoustic, label, final, begins):
    """All links between states after labels, some of them several times.

    Args:
        src, dst: (arc,) states; arcs by destination, sources before destinations.
        cost, acoustic: (arc,) whole cost, and what is acoustic of it, not scaled.
        label: (arc,) 0 for none.
        final: (state,) cost of ending.
        begins: (begin,) states after labels and the start, ascending.

    Returns:
        (link,) source, destination (the end is len(begins)), label, cost, acoustic cost.
    """
    num_states, num_arcs = final.shape[0], src.shape[0]
    place = np.full(num_states, -1, np.int32)
    for i in range(begins.shape[0]):
        place[begins[i]] = i
    furthest = np.full(num_states, -1, np.int32)  # where arcs from a state end
    for arc in range(num_arcs):
        furthest[src[arc]] = max(furthest[src[arc]], dst[arc])
    first_arc = np.searchsorted(dst, begins, side="right")
    room = 1024
    found, costs, size = np.empty((3, room), np.int32), np.empty((2, room)), 0
    best, heard = np.full(num_states, np.inf), np.zeros(num_states)
    for i in range(begins.shape[0]):
        here = begins[i]
        best[here], heard[here] = 0.0, 0.0
        reach, arc, last = furthest[here], first_arc[i], here
        ending, ending_heard = final[here], 0.0
        while arc < num_arcs and dst[arc] <= reach:
            start, end = src[arc], dst[arc]
            if start >= here and best[start] < np.inf:
                total, spoken = best[start] + cost[arc], heard[start] + acoustic[arc]
                if label[arc] > 0:
                    if size == room:
                        room *= 2
                        more, more_costs = np.empty((3, room), np.int32), np.empty((2, room))
                        more[:, :size], more_costs[:, :size] = found, costs
                        found, costs = more, more_costs
                    found[0, size], found[1, size], found[2, size] = i, place[end], label[arc]
                    costs[0, size], costs[1, size] = total, spoken
                    size += 1
                elif total < best[end]:
                    best[end], heard[end], last = total, spoken, max(last, end)
                    reach = max(reach, furthest[end])
            arc += 1
        for state in range(here, last + 1):
            if best[state] + final[state] < ending:
                ending, ending_heard = best[state] + final[state], heard[state]
            best[state] = np.inf
        if ending < np.inf:
            if size == room:
                room *= 2
                more, more_costs = np.empty((3, room), np.int32), np.empty((2, room))
                more[:, :size], more_costs[:, :size] = found, costs
                found, costs = more, more_costs
            found[0, size], found[1, size], found[2, size] = i, begins.shape[0], 0
            costs[0, size], costs[1, size] = ending, ending_heard
            size += 1
    return found[0, :size], found[1, :size], found[2, :size], costs[0, :size], costs[1, :size]
