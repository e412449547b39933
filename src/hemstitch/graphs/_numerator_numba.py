"""The CPU kernel of the numerators: :func:`hemstitch.graphs._forward_backward.log_forward_backward` without leak, one
sequence after the other, only over states that can be on a path."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hemstitch.graphs._forward_backward import PackedGraphs, Posteriors
from hemstitch.graphs._graph_kernels import by_destination, fewest_arcs
from hemstitch.graphs._jit import kernel, run
from hemstitch.graphs._threads import share_out


def forward_backward(packed: PackedGraphs, outputs: Tensor, lengths: Tensor, occupancies: bool = True) -> Posteriors:
    """See :func:`hemstitch.graphs._numerator.numerator_posteriors`."""
    outputs = outputs.contiguous()
    batch = len(lengths)
    logprob = torch.empty(batch, dtype=torch.float64)
    shares = torch.zeros_like(outputs) if occupancies else outputs.new_zeros(0, 0, 0)
    sequence = torch.arange(batch + 1)
    state_first, arc_first = (torch.searchsorted(x.contiguous(), sequence)
                              for x in (packed.state_sequence, packed.arc_sequence))
    graph = [x.numpy() for x in (packed.src, packed.dst, packed.pdf, packed.logweight, packed.initial, packed.final,
                                 state_first, arc_first)]

    def part(first: int, last: int) -> None:
        run(_sequences, first, last, *graph, outputs.numpy(), lengths.numpy(), logprob.numpy(), shares.numpy())

    share_out(part, batch)
    return Posteriors(logprob=logprob, occupancies=shares if occupancies else None)


@kernel
def _sequences(first, last, src, dst, pdf, logweight, initial, final, state_first, arc_first, outputs, lengths,
               logprob, shares):
    for b in range(first, last):
        arcs, states = slice(arc_first[b], arc_first[b + 1]), slice(state_first[b], state_first[b + 1])
        src_b, dst_b = src[arcs] - state_first[b], dst[arcs] - state_first[b]
        alpha = np.full((lengths[b] + 1, state_first[b + 1] - state_first[b]), -np.inf)
        order, into = by_destination(dst_b, alpha.shape[1])
        soonest = fewest_arcs(src_b, dst_b, initial[states])
        left = fewest_arcs(dst_b, src_b, final[states])
        _forward(alpha, order, into, src_b, pdf[arcs], logweight[arcs], initial[states], soonest, left, outputs[b])
        logprob[b] = _logsumexp(alpha[-1] + final[states])
        if shares.size and np.isfinite(logprob[b]):
            mass = np.exp(alpha[-1] + final[states] - logprob[b])
            _backward(alpha, order, into, src_b, pdf[arcs], logweight[arcs], mass, outputs[b], shares[b])


@kernel
def _forward(alpha, order, into, src, pdf, logweight, initial, soonest, left, outputs):
    num_frames = alpha.shape[0] - 1
    for s in range(alpha.shape[1]):
        if left[s] <= num_frames:
            alpha[0, s] = initial[s]
    for t in range(num_frames):
        for j in range(alpha.shape[1]):
            if soonest[j] > t + 1 or left[j] > num_frames - t - 1:
                continue
            highest = -np.inf
            for k in range(into[j], into[j + 1]):
                a = order[k]
                score = alpha[t, src[a]] + logweight[a] + outputs[t, pdf[a]]
                if highest == highest and not score <= highest:  # a NaN wins and stays
                    highest = score
            if not np.isfinite(highest):
                alpha[t + 1, j] = highest
                continue
            total = 0.0
            for k in range(into[j], into[j + 1]):
                a = order[k]
                total += np.exp(alpha[t, src[a]] + logweight[a] + outputs[t, pdf[a]] - highest)
            alpha[t + 1, j] = highest + np.log(total)


@kernel
def _backward(alpha, order, into, src, pdf, logweight, mass, outputs, shares):
    for t in range(alpha.shape[0] - 2, -1, -1):
        handed_back = np.zeros_like(mass)
        for j in range(len(mass)):
            if mass[j] > 0.0:
                for k in range(into[j], into[j + 1]):
                    a = order[k]
                    brought = alpha[t, src[a]] + logweight[a] + outputs[t, pdf[a]] - alpha[t + 1, j]
                    share = mass[j] * np.exp(brought)
                    handed_back[src[a]] += share
                    shares[t, pdf[a]] += share
        mass = handed_back


@kernel
def _logsumexp(values):
    highest = -np.inf
    for value in values:
        if highest == highest and not value <= highest:
            highest = value
    if not np.isfinite(highest):
        return highest
    return highest + np.log(np.sum(np.exp(values - highest)))
