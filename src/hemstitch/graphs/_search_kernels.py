"""Numba kernels of the best-path searches. Arcs come sorted by source state; costs are minus log weights."""

from __future__ import annotations

import numpy as np

from hemstitch.graphs._jit import kernel

TOKEN = np.dtype([("cost", np.float64), ("state", np.int32), ("arc", np.int32), ("previous", np.int32)], align=True)
"""A token: cost of its history, the state it is in, the arc that led here and the token it came from (-1 at the start).

That token is of the frame before, or of the same frame where the arc is an epsilon."""
_NUM_BINS = 1024
_TINY = 1e-300
NEGATIVE_CYCLE = -1
"""In place of a number of frames: the epsilon arcs form a cycle of negative cost."""


@kernel
def best_alignment(src, dst, pdf, cost, final, start, loglikes, scale):
    """Viterbi over every arc and frame: (arc of each frame, cost); the cost is inf where no path has T frames."""
    num_frames, num_states = loglikes.shape[0], final.shape[0]
    here = np.full(num_states, np.inf)
    here[start] = 0.0
    back = np.empty((num_frames, num_states), np.int32)
    for t in range(num_frames):
        there = np.full(num_states, np.inf)
        for arc in range(src.shape[0]):
            new = here[src[arc]] + cost[arc] - scale * loglikes[t, pdf[arc]]
            if new < there[dst[arc]]:
                there[dst[arc]] = new
                back[t, dst[arc]] = arc
        here = there
    end = np.argmin(here + final)
    arcs = np.empty(num_frames, np.int64)
    total = here[end] + final[end]
    if total < np.inf:
        state = end
        for t in range(num_frames - 1, -1, -1):
            arcs[t] = back[t, state]
            state = src[arcs[t]]
    return arcs, total


@kernel
def _cutoff(costs, beam, max_active):
    """Cost above which a token is not expanded: the beam, narrowed by a histogram where too many are within it."""
    best = costs.min()
    cutoff = best + beam
    if costs.shape[0] <= max_active:
        return cutoff
    width = min(beam, costs.max() - best)
    counts = np.zeros(_NUM_BINS + 1, np.int64)
    for c in costs:
        if c <= cutoff:
            counts[int(_NUM_BINS * (c - best) / max(width, _TINY))] += 1
    total = 0
    for i in range(_NUM_BINS):
        total += counts[i]
        if total >= max_active:
            return best + width * (i + 1) / _NUM_BINS
    return cutoff


@kernel
def _improve(tokens, cheapest, slot, size, state, cost, arc, previous):
    """Give `state` its first token of this frame, or its token a better history; return the number of tokens."""
    if cheapest[state] == np.inf:
        slot[state] = size
        tokens[size].state = state
        size += 1
    cheapest[state] = cost
    token = slot[state]
    tokens[token].cost = cost
    tokens[token].arc = arc
    tokens[token].previous = previous
    return size


@kernel
def _follow_epsilons(tokens, cheapest, slot, begin, size, dst, cost, offsets, arcs, bound):
    """Spread the tokens of one frame over epsilon arcs until none gets better; NEGATIVE_CYCLE if that never ends."""
    for _ in range(slot.shape[0] + 1):
        improved = False
        token = begin
        while token < size:
            state = tokens[token].state
            for i in range(offsets[state], offsets[state + 1]):
                arc = arcs[i]
                new = tokens[token].cost + cost[arc]
                if new < bound and new < cheapest[dst[arc]]:
                    size = _improve(tokens, cheapest, slot, size, dst[arc], new, arc, token)
                    improved = True
            token += 1
        if not improved:
            return size
    return NEGATIVE_CYCLE


@kernel
def _follow_frame(tokens, cheapest, slot, begin, end, dst, pdf, cost, offsets, scores, scale, beam, max_active):
    """Expand the tokens [begin, end) over the arcs of one frame; return the number of tokens and the pruning bound."""
    costs = tokens[begin:end]["cost"].copy()
    best = begin + np.argmin(costs)
    cutoff = _cutoff(costs, beam, max_active)
    for token in range(begin, end):
        cheapest[tokens[token].state] = np.inf
    size, bound = end, np.inf
    for i in range(begin - 1, end):
        token = best if i < begin else i  # the best token goes first: it gives a bound that spares most of the rest
        here = tokens[token].cost
        if here > cutoff or i == best:
            continue
        state = tokens[token].state
        for arc in range(offsets[state], offsets[state + 1]):
            if pdf[arc] >= 0:
                new = here + cost[arc] - scale * scores[pdf[arc]]
                if new < bound and new < cheapest[dst[arc]]:
                    size = _improve(tokens, cheapest, slot, size, dst[arc], new, arc, token)
                    bound = min(bound, new + beam)
    return size, bound


@kernel
def pass_tokens(tokens, dst, pdf, cost, offsets, epsilons, epsilon_offsets, start, loglikes, scale, beam, max_active):
    """Beam search: every token of every frame, and where each frame's tokens begin.

    Args:
        tokens: an empty TOKEN array with room for every state; it grows.
        offsets: the arcs of state s are ``offsets[s]:offsets[s + 1]``.
        epsilons: the epsilon arcs; those of state s are ``epsilons[epsilon_offsets[s]:epsilon_offsets[s + 1]]``.

    Returns:
        The tokens, and where each frame's begin: those after t frames are ``frames[t]:frames[t + 1]``. Fewer than
        T + 2 entries: no token survived. A last entry of NEGATIVE_CYCLE: misuse.
    """
    num_states = offsets.shape[0] - 1
    cheapest, slot = np.full(num_states, np.inf), np.empty(num_states, np.int32)
    frames = np.zeros(loglikes.shape[0] + 2, np.int64)
    begin, size, bound = 0, _improve(tokens, cheapest, slot, 0, start, 0.0, -1, -1), np.inf
    for t in range(loglikes.shape[0] + 1):
        size = _follow_epsilons(tokens, cheapest, slot, begin, size, dst, cost, epsilon_offsets, epsilons, bound)
        frames[t + 1] = size
        if size == begin or size < 0:
            return tokens, frames[:t + 2] if size < 0 else frames[:t + 1]
        if t < loglikes.shape[0]:
            if size + num_states > tokens.shape[0]:
                larger = np.empty(2 * size + num_states, tokens.dtype)
                for i in range(size):
                    larger[i] = tokens[i]
                tokens = larger
            end = size
            size, bound = _follow_frame(tokens, cheapest, slot, begin, end, dst, pdf, cost, offsets, loglikes[t],
                                        scale, beam, max_active)
            begin = end
    return tokens, frames


@kernel
def trace_back(tokens, token):
    """The arcs that lead to a token, first to last."""
    length, walk = 0, token
    while tokens[walk].previous >= 0:
        length += 1
        walk = tokens[walk].previous
    arcs = np.empty(length, np.int64)
    for i in range(length - 1, -1, -1):
        arcs[i] = tokens[token].arc
        token = tokens[token].previous
    return arcs
