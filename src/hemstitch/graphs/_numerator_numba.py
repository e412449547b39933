"""The CPU kernel of the numerators.

What :func:`hemstitch.graphs._forward_backward.log_forward_backward` does without leak, one sequence after the other,
and only over states that can be on a path. The shares by which mass is handed back are kept from the forward pass.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hemstitch.graphs._forward_backward import PackedGraphs
from hemstitch.graphs._graph_kernels import by_destination, fewest_arcs
from hemstitch.graphs._jit import kernel, run
from hemstitch.graphs._threads import share_out


def forward_backward(
    packed: PackedGraphs, outputs: Tensor, lengths: Tensor, into: Tensor | None, factor: Tensor
) -> Tensor:
    """See :func:`hemstitch.graphs._numerator.add_numerator_occupancies`."""
    batch, logprob = len(lengths), np.empty(len(lengths))
    bounds = np.arange(batch + 1)
    firsts = [np.searchsorted(x.numpy(), bounds) for x in (packed.state_sequence, packed.arc_sequence)]
    names = ("src", "dst", "pdf", "logweight", "initial", "final")
    graph = [getattr(packed, name).numpy() for name in names]
    scores = outputs.contiguous().numpy()
    shares = np.empty((0, 0, 0), scores.dtype) if into is None else into.numpy()
    scales = factor.to(torch.float64).contiguous().numpy()

    def part(first: int, last: int) -> None:
        run(_sequences, first, last, *graph, *firsts, scores, lengths.numpy(), logprob, shares, scales)

    share_out(part, batch)
    return torch.from_numpy(logprob)


@kernel
def _sequences(first, last, src, dst, pdf, logweight, initial, final, state_first, arc_first, outputs, lengths,
               logprob, shares, scales):
    for b in range(first, last):
        arcs, states = slice(arc_first[b], arc_first[b + 1]), slice(state_first[b], state_first[b + 1])
        src_b, dst_b = src[arcs] - state_first[b], dst[arcs] - state_first[b]
        alpha = np.full((lengths[b] + 1, state_first[b + 1] - state_first[b]), -np.inf)
        came_by = np.empty((lengths[b], len(src_b)))
        order, into = by_destination(dst_b, alpha.shape[1])
        soonest = fewest_arcs(src_b, dst_b, initial[states])
        left = fewest_arcs(dst_b, src_b, final[states])
        _forward(alpha, came_by, order, into, src_b, pdf[arcs], logweight[arcs], initial[states], soonest, left,
                 outputs[b])
        mass = alpha[-1] + final[states]
        logprob[b] = _normalise(mass)
        if shares.size and np.isfinite(logprob[b]):
            _backward(came_by, order, into, src_b, pdf[arcs], mass, shares[b], scales[b])


@kernel
def _forward(alpha, came_by, order, into, src, pdf, logweight, initial, soonest, left, outputs):
    """Fill alpha (frame + 1, state) and came_by (frame, arc in order), an arc's share in what its end received."""
    num_frames = alpha.shape[0] - 1
    for s in range(alpha.shape[1]):
        if left[s] <= num_frames:
            alpha[0, s] = initial[s]
    for t in range(num_frames):
        for j in range(alpha.shape[1]):
            if soonest[j] <= t + 1 and left[j] <= num_frames - t - 1:
                arcs = came_by[t, into[j]:into[j + 1]]
                for k in range(len(arcs)):
                    a = order[into[j] + k]
                    arcs[k] = alpha[t, src[a]] + logweight[a] + outputs[t, pdf[a]]
                alpha[t + 1, j] = _normalise(arcs)


@kernel
def _normalise(logs):
    """logs -> their shares in the sum of their exponentials, in place; returns the log of that sum."""
    best, highest = -1, -np.inf
    for k in range(len(logs)):
        if highest == highest and not logs[k] <= highest:  # a NaN wins and stays
            best, highest = k, logs[k]
    if not np.isfinite(highest):
        return highest
    total = 1.0  # exp is what takes the time: none for the best, none at all for a single arc
    for k in range(len(logs)):
        logs[k] = 1.0 if k == best else np.exp(logs[k] - highest)
        total += 0.0 if k == best else logs[k]
    if total == 1.0:
        return highest
    for k in range(len(logs)):
        logs[k] /= total
    return highest + np.log(total)


@kernel
def _backward(came_by, order, into, src, pdf, mass, shares, scales):
    for t in range(came_by.shape[0] - 1, -1, -1):
        handed_back = np.zeros_like(mass)
        for j in range(len(mass)):
            if mass[j] > 0.0:
                for k in range(into[j], into[j + 1]):
                    a, share = order[k], mass[j] * came_by[t, k]
                    handed_back[src[a]] += share
                    shares[t, pdf[a]] += scales[t] * share
        mass = handed_back
