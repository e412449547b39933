"""Numba kernels of lattice generation: a forward sweep that keeps costs only, a backward sweep that keeps arcs.

States, pdfs and arcs come as unsigned numbers: as indices they need no look whether they count from the end, which is a
third of the time of the forward sweep.
"""

from __future__ import annotations

import numpy as np

from hemstitch.graphs._jit import kernel
from hemstitch.graphs._search_kernels import _cutoff

CYCLE = -1
"""In place of a depth: epsilon arcs form a cycle."""
_LARGEST = np.finfo(np.float64).max
_ROOM = 1 << 20
"""Tokens for which there is room before arrays have to grow; memory that is not used is not touched."""


@kernel
def epsilon_depths(src, dst, num_states):
    """(state,) most epsilon arcs on a way to each state; all CYCLE if there is no end to it."""
    depth = np.zeros(num_states, np.int32)
    for _ in range(num_states + 1):
        changed = False
        for arc in range(src.shape[0]):
            if depth[dst[arc]] <= depth[src[arc]]:
                depth[dst[arc]] = depth[src[arc]] + 1
                changed = True
        if not changed:
            return depth
    depth[:] = CYCLE
    return depth


@kernel
def _pull(here, there, offsets, src, pdf, cost, scores, by_arc):
    """Cost of every state one frame on, over all arcs that lead to it.

    First that of all arcs, into ``by_arc``, which the processor's vector unit does; then the least for each state.
    """
    for arc in range(src.shape[0]):
        by_arc[arc] = here[src[arc]] + cost[arc] - scores[pdf[arc]]
    for state in range(there.shape[0]):
        best = np.inf
        for arc in range(offsets[state], offsets[state + 1]):
            best = by_arc[arc] if by_arc[arc] < best else best
        there[state] = best


@kernel
def _push(here, there, states, offsets, dst, pdf, cost, scores):
    """The same, over the arcs that leave the given states."""
    there[:] = np.inf
    for state in states:
        for arc in range(offsets[state], offsets[state + 1]):
            new = here[state] + cost[arc] - scores[pdf[arc]]
            if new < there[dst[arc]]:
                there[dst[arc]] = new


@kernel
def _grown(array, size):
    """A copy with room for twice ``size`` entries."""
    larger = np.empty(2 * size, array.dtype)
    larger[:array.shape[0]] = array
    return larger


@kernel
def forward_costs(outgoing, incoming, epsilons, order, start, scores, beam, max_active):
    """States within the beam after each frame, and the cost of the best way to each.

    Args:
        outgoing: (offsets by source, dst, pdf, cost) of the arcs that consume a frame.
        incoming: (offsets by destination, src, pdf, cost) of the same arcs.
        epsilons: (src, dst, cost) in an order in which one pass relaxes all.
        order: (state,) in which the states of a frame are listed.
        scores: (frame, pdf) scaled log-likelihoods.

    Returns:
        (token,) states, (token,) costs; those after t frames are ``offsets[t]:offsets[t + 1]``. Fewer than T + 2
        offsets: no token survived.
    """
    out_offsets, out_dst, out_pdf, out_cost = outgoing
    in_offsets, in_src, in_pdf, in_cost = incoming
    eps_src, eps_dst, eps_cost = epsilons
    num_states, num_arcs = order.shape[0], in_src.shape[0]
    here, there, by_arc = np.full(num_states, np.inf), np.full(num_states, np.inf), np.empty(num_arcs)
    room = min((scores.shape[0] + 1) * num_states, 16 * num_states + _ROOM)
    states, costs = np.empty(room, np.uint32), np.empty(room)
    offsets = np.zeros(scores.shape[0] + 2, np.int64)
    there[start] = 0.0
    size, num_leaving = 0, 0
    for t in range(scores.shape[0] + 1):
        if t > 0:
            if 4 * num_leaving > num_arcs:
                _pull(here, there, in_offsets, in_src, in_pdf, in_cost, scores[t - 1], by_arc)
            else:
                alive_states = states[offsets[t - 1]:size]
                _push(here, there, alive_states, out_offsets, out_dst, out_pdf, out_cost, scores[t - 1])
        for arc in range(eps_src.shape[0]):
            there[eps_dst[arc]] = min(there[eps_dst[arc]], there[eps_src[arc]] + eps_cost[arc])
        best = np.inf
        for state in range(num_states):
            best = min(best, there[state])
        if best == np.inf:
            return states[:size], costs[:size], offsets[:t + 1]
        cutoff = best + beam
        if num_states > max_active:
            cutoff = min(cutoff, _cutoff(there[there < np.inf], beam, max_active))
        cutoff = min(cutoff, _LARGEST)
        if size + num_states > states.shape[0]:
            states, costs = _grown(states, size + num_states), _grown(costs, size + num_states)
        num_leaving = 0
        for state in order:  # without branches: one more is written each time, and counted only if it is alive
            cost = there[state]
            alive = cost <= cutoff
            states[size], costs[size] = state, cost
            size += alive
            num_leaving += alive * (out_offsets[state + 1] - out_offsets[state])
            there[state] = cost if alive else np.inf
        offsets[t + 1] = size
        here, there = there, here
    return states[:size], costs[:size], offsets


@kernel
def backward_arcs(states, costs, offsets, ends, bound, incoming, epsilons_in, scores):
    """The arcs on paths that cost at most ``bound``, found from the last frame to the first.

    Args:
        states, costs, offsets: from :func:`forward_costs`; the tokens of a frame in topological order of epsilons.
        ends: (token of the last frame,) cost of ending there.
        incoming: (offsets by destination, src, pdf, cost, number) of the arcs that consume a frame.
        epsilons_in: (offsets by destination, src, cost, number) of those that do not.
        scores: (frame, pdf) scaled log-likelihoods.

    Returns:
        (arc,) sources, destinations, numbers in the graph and times, by destination; (state,) times and tokens.
    """
    in_offsets, in_src, in_pdf, in_cost, in_arc = incoming
    eps_offsets, eps_src, eps_cost, eps_arc = epsilons_in
    num_states, last = in_offsets.shape[0] - 1, offsets.shape[0] - 2
    bound = min(bound, _LARGEST)
    # by state, of the frame at hand and of the one before: its token, the cost so far (inf: not alive), the cost to go
    token_of, token_before = np.zeros(num_states, np.int32), np.zeros(num_states, np.int32)
    cost_of, cost_before = np.full(num_states, np.inf), np.full(num_states, np.inf)
    to_go, to_go_before = np.full(num_states, np.inf), np.full(num_states, np.inf)
    number, kept = np.empty(states.shape[0], np.int32), np.empty(states.shape[0], np.int32)
    state_times = np.empty(states.shape[0], np.int32)
    src, dst = np.empty(1024, np.int32), np.empty(1024, np.int32)
    arcs, times = np.empty(1024, np.int32), np.empty(1024, np.int32)
    size, count = 0, 0
    for token in range(offsets[last], offsets[last + 1]):
        state, end = states[token], ends[token - offsets[last]]
        token_of[state], cost_of[state] = token, costs[token]
        if costs[token] + end <= bound:
            to_go[state] = end
    for t in range(last, -1, -1):
        if t > 0:
            for token in range(offsets[t - 1], offsets[t]):
                token_before[states[token]], cost_before[states[token]] = token, costs[token]
        row = scores[max(t - 1, 0)]
        for token in range(offsets[t + 1] - 1, offsets[t] - 1, -1):
            state = states[token]
            cost_of[state], rest = np.inf, to_go[state]
            if rest == np.inf:
                continue
            to_go[state] = np.inf
            number[token], kept[count], state_times[count] = count, token, t
            count += 1
            most = eps_offsets[state + 1] - eps_offsets[state] + in_offsets[state + 1] - in_offsets[state]
            if size + most > src.shape[0]:
                src, dst = _grown(src, size + most), _grown(dst, size + most)
                arcs, times = _grown(arcs, size + most), _grown(times, size + most)
            if t > 0:
                for i in range(in_offsets[state], in_offsets[state + 1]):
                    new = rest + in_cost[i] - row[in_pdf[i]]
                    if cost_before[in_src[i]] + new <= bound:
                        src[size], dst[size], arcs[size], times[size] = token_before[in_src[i]], token, in_arc[i], t - 1
                        to_go_before[in_src[i]] = min(to_go_before[in_src[i]], new)
                        size += 1
            for i in range(eps_offsets[state], eps_offsets[state + 1]):
                new = rest + eps_cost[i]
                if cost_of[eps_src[i]] + new <= bound:
                    src[size], dst[size], arcs[size], times[size] = token_of[eps_src[i]], token, eps_arc[i], t
                    to_go[eps_src[i]] = min(to_go[eps_src[i]], new)
                    size += 1
        token_of, token_before = token_before, token_of
        cost_of, cost_before = cost_before, cost_of
        to_go, to_go_before = to_go_before, to_go
    for i in range(size):
        src[i], dst[i] = count - 1 - number[src[i]], count - 1 - number[dst[i]]
    return (src[:size][::-1].copy(), dst[:size][::-1].copy(), arcs[:size][::-1].copy(), times[:size][::-1].copy(),
            state_times[:count][::-1].copy(), kept[:count][::-1].copy())
