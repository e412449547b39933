"""The CPU kernel of the denominator.

What :func:`hemstitch.graphs._denominator.scaled_forward_backward` does, for 8 to 32 sequences at a time, side by side
in SIMD lanes, so that an arc and its weight are read once for all of them.

Only the alphas of all frames are kept. The pair sums u_q are computed again in the backward pass, which is cheaper than
to write and read them back.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hemstitch.graphs._denominator import PairedArcs
from hemstitch.graphs._denominator_lanes import (
    at,
    everywhere,
    exp,
    finite_or_zero,
    flush_denormals,
    inverse,
    lanes,
    larger,
    load,
    restore,
    store,
    weighted_sum,
)
from hemstitch.graphs._jit import kernel, run
from hemstitch.graphs._threads import share_out, workspace

_WIDTHS = (8, 16, 32)


def forward_backward(
    arcs: PairedArcs, outputs: Tensor, lengths: Tensor, leak: float, occupancies: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """See :func:`hemstitch.graphs._denominator.scaled_forward_backward`."""
    scores, frames = outputs.contiguous().numpy(), lengths.numpy()
    logprob, mass_error = np.empty(len(frames)), np.zeros(len(frames))
    shares = np.empty_like(scores) if occupancies else np.empty((0, 0, 0), scores.dtype)
    share = -(-len(frames) // torch.get_num_threads())
    width = next((n for n in _WIDTHS if n >= share), _WIDTHS[-1])

    def part(first: int, last: int) -> None:
        for block in range(first, last, width):
            n = next((n for n in _WIDTHS if n >= last - block), width)
            with workspace() as space:
                _block(arcs, scores[block:block + n], frames[block:block + n], leak, lanes(scores.dtype, n), space,
                       logprob[block:block + n], shares[block:block + n], mass_error[block:block + n])

    share_out(part, len(frames), width)
    return torch.from_numpy(logprob), torch.from_numpy(shares) if occupancies else None, torch.from_numpy(mass_error)


def _block(arcs, outputs, lengths, leak, kind, space, logprob, shares, mass_error):
    """As many sequences as there are lanes, or fewer; results are written to the last three arguments."""
    num_frames, num_states, num_pdfs = lengths.max(), len(arcs.initial), outputs.shape[2]
    x, alpha = space.empty((num_frames, num_pdfs), kind), space.empty((num_frames + 1, num_states), kind)
    totals, highest = space.empty((num_frames + 1,), kind), space.empty((num_frames,), kind)
    _floats(alpha)[0], _floats(totals)[0] = arcs.initial[:, None], 1.0
    leak = outputs.dtype.type(leak)
    run(_forward, arcs, outputs, lengths, leak, x, _floats(x), alpha, totals, highest)

    ends = lengths, np.arange(len(lengths))
    total = _floats(totals)[:, :len(lengths)].astype(np.float64)
    at_end = total[ends] * (1.0 + leak)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.zeros_like(total)
        np.cumsum(np.log(total[:-1]) + _floats(highest)[:, :len(lengths)], 0, out=logs[1:])  # in order, unlike sum
        logprob[:] = np.log(at_end) + logs[ends]
        start = np.where(at_end > 0, 1.0 / at_end, 0.0).astype(outputs.dtype)
    if shares.size:
        beta, passed_on, share = (space.empty((n,), kind) for n in (num_states, len(arcs.pair_dst), num_pdfs))
        run(_backward, arcs, lengths, leak, x, alpha, totals, start, beta, _floats(beta), passed_on, share,
            _floats(share), shares, mass_error)
        shares[:, num_frames:] = 0.0


def _floats(array: np.ndarray) -> np.ndarray:
    """An array of lanes as one of numbers, with one axis more."""
    return array["lane"]


@kernel
def _forward(arcs, outputs, lengths, leak, x, x_floats, alpha, totals, highest):
    setting = flush_denormals()
    for t in range(len(highest)):
        _read_frame(outputs, lengths, t, x_floats[t])
        store(highest, t, _exponentiate(x[t]))
        _forward_frame(arcs, leak, x[t], alpha[t], alpha[t + 1], totals, t)
    restore(setting)


@kernel
def _read_frame(outputs, lengths, t, x):
    """x[pdf, lane] = outputs[lane, t, pdf]; -inf in lanes that have no such frame."""
    for first in range(0, x.shape[0], 16):  # a few cache lines at a time
        for lane in range(x.shape[1]):
            runs = lane < len(lengths) and t < lengths[lane]
            for pdf in range(first, min(first + 16, x.shape[0])):
                x[pdf, lane] = outputs[lane, t, pdf] if runs else -np.inf


@kernel
def _exponentiate(x):
    """x = exp(x - highest); returns the highest, 0 where there is none above -inf."""
    highest = everywhere(x, -np.inf)
    for pdf in range(len(x)):
        highest = larger(load(x, pdf), highest)
    highest = finite_or_zero(highest)
    for pdf in range(len(x)):
        store(x, pdf, exp(load(x, pdf) - highest))
    return highest


@kernel
def _forward_frame(arcs, leak, x, before, after, totals, t):
    """alpha_t and its total -> alpha_{t+1} and its total."""
    scale, jump = inverse(load(totals, t)), load(totals, t) * leak
    total = everywhere(totals, 0.0)
    for state in range(len(arcs.initial)):
        arriving = everywhere(totals, 0.0)
        for pair in range(at(arcs.dst_first, state), at(arcs.dst_first, state + 1)):
            first, end = at(arcs.pair_first, pair), at(arcs.pair_first, pair + 1)
            brought = jump * at(arcs.pair_initial, pair) + weighted_sum(before, arcs.src, arcs.weight, first, end)
            arriving = arriving + brought * load(x, at(arcs.pair_pdf, pair))
        arriving = arriving * scale
        store(after, state, arriving)
        total = total + arriving
    store(totals, t + 1, total)


@kernel
def _backward(arcs, lengths, leak, x, alpha, totals, start, beta, beta_floats, passed_on, share, share_floats, shares,
              mass_error):
    setting = flush_denormals()
    for state in range(len(beta)):
        store(beta, state, everywhere(beta, 0.0))
    for t in range(len(x) - 1, -1, -1):
        for lane in range(len(lengths)):
            if lengths[lane] == t + 1:
                beta_floats[:, lane] = start[lane]
        _backward_frame(arcs, leak, x[t], alpha[t], totals, t, beta, passed_on, share)
        _write_frame(share_floats, lengths, t, shares, mass_error)
    restore(setting)


@kernel
def _backward_frame(arcs, leak, x, alpha, totals, t, beta, passed_on, share):
    """beta'_{t+1} -> beta'_t in place, and the occupancies of frame t."""
    scale, jump = inverse(load(totals, t)), load(totals, t) * leak
    landed = everywhere(beta, 0.0)
    for state in range(len(beta)):
        landed = landed + load(beta, state) * at(arcs.initial, state)
    landed = landed * leak
    for pdf in range(len(share)):
        store(share, pdf, everywhere(share, 0.0))
    for pair in range(len(arcs.pair_dst)):
        pdf = at(arcs.pair_pdf, pair)
        handed = (load(beta, at(arcs.pair_dst, pair)) + landed) * load(x, pdf) * scale
        store(passed_on, pair, handed)
        first, end = at(arcs.pair_first, pair), at(arcs.pair_first, pair + 1)
        brought = jump * at(arcs.pair_initial, pair) + weighted_sum(alpha, arcs.src, arcs.weight, first, end)
        store(share, pdf, load(share, pdf) + brought * handed)
    for state in range(len(beta)):
        first, end = at(arcs.out_first, state), at(arcs.out_first, state + 1)
        store(beta, state, weighted_sum(passed_on, arcs.out_pair, arcs.out_weight, first, end))


@kernel
def _write_frame(share, lengths, t, shares, mass_error):
    """shares[lane, t, pdf] = share[pdf, lane], and how far they are from a sum of 1."""
    mass = np.zeros(len(lengths), share.dtype)
    for first in range(0, share.shape[0], 16):
        for lane in range(len(lengths)):
            for pdf in range(first, min(first + 16, share.shape[0])):
                shares[lane, t, pdf] = share[pdf, lane]
                mass[lane] += share[pdf, lane]
    for lane in range(len(lengths)):
        if t < lengths[lane] and not abs(mass[lane] - 1.0) <= mass_error[lane]:
            mass_error[lane] = abs(mass[lane] - 1.0)
