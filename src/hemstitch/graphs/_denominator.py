"""Forward-backward of one graph shared by a whole batch, in probability space with a scale per frame.

With x_t = exp(output_t - max), arc weights p, leak l, initial probabilities pi, and every state final with weight 1:

    alpha_0 = pi,   A_t = sum alpha_t,   alpha'_t = alpha_t + l A_t pi
    alpha_{t+1}(j) = sum_{i -> j} alpha'_t(i) p x_t(pdf) / A_t
    log Z = log A_T (1 + l) + sum_{t < T} (log A_t + max_t)
    beta'_T = 1 / (A_T (1 + l)),   beta_t = beta'_t + l sum pi beta'_t
    beta'_t(i) = sum_{i -> j} p x_t(pdf) beta_{t+1}(j) / A_t
    occupancy_t(n) = sum_{i -> j, pdf = n} alpha'_t(i) p x_t(n) beta_{t+1}(j) / A_t.

Arcs are grouped into pairs q of (destination, pdf): the sums u_q = sum alpha'_t(i) p and the factor x_t beta_{t+1} /
A_t are needed once per pair, and chain-like graphs have few pairs (two per state). The reference clips outputs at +-30
to keep exp finite; subtracting the maximum of the frame does that exactly.

A sequence whose result is not finite, or whose occupancies do not sum to 1 in every frame (mass fell below the smallest
number on the way), is computed again in float64, and if that fails too in the log domain.

Reference: D. Povey et al., "Purely sequence-trained neural networks for ASR based on lattice-free MMI", Interspeech
2016, sections 2.4-2.7.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from hemstitch.errors import MisuseError
from hemstitch.graphs._forward_backward import PackedGraphs, Posteriors, check_outputs, log_forward_backward
from hemstitch.graphs._graph import Graph

_INITIAL_STEPS = 100
_MASS_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


class PairedArcs(NamedTuple):
    """The arcs of a graph in the order in which the recursions need them; indexes int32, weights floating.

    Attributes:
        initial: (state,) pi.
        src, weight: (arc,) sorted by (destination, pdf).
        pair_first: (pair + 1,) the arcs of pair q are ``pair_first[q]:pair_first[q + 1]``.
        pair_dst, pair_pdf: (pair,)
        pair_initial: (pair,) sum of weight x initial[src], what the leak brings.
        dst_first: (state + 1,) the pairs into state j are ``dst_first[j]:dst_first[j + 1]``.
        out_first: (state + 1,) the arcs out of state i, in ``out_pair`` and ``out_weight``.
        out_pair, out_weight: (arc,) sorted by source.
    """

    initial: np.ndarray
    src: np.ndarray
    weight: np.ndarray
    pair_first: np.ndarray
    pair_dst: np.ndarray
    pair_pdf: np.ndarray
    pair_initial: np.ndarray
    dst_first: np.ndarray
    out_first: np.ndarray
    out_pair: np.ndarray
    out_weight: np.ndarray

    @classmethod
    def of(cls, graph: Graph) -> PairedArcs:
        """Sort and group the arcs of a graph."""
        order = np.lexsort((graph.src.numpy(), graph.pdf.numpy(), graph.dst.numpy()))
        src, dst, pdf = (x.numpy()[order] for x in (graph.src, graph.dst, graph.pdf))
        weight = np.exp(-graph.cost.numpy()[order])
        opens = np.diff(dst, prepend=-1).astype(bool) | np.diff(pdf, prepend=-1).astype(bool)
        pair, first = opens.cumsum() - 1, opens.nonzero()[0]
        by_src = np.argsort(src, kind="stable")
        initial = initial_probabilities(graph).numpy()
        states = np.arange(graph.num_states + 1)
        paired = cls(
            initial=initial, src=src, weight=weight, pair_first=np.append(first, len(src)),
            pair_dst=dst[first], pair_pdf=pdf[first],
            pair_initial=np.bincount(pair, weight * initial[src], len(first)),
            dst_first=np.searchsorted(dst[first], states), out_first=np.searchsorted(src[by_src], states),
            out_pair=pair[by_src], out_weight=weight[by_src],
        )
        return cls(*(x if x.dtype.kind == "f" else x.astype(np.int32) for x in paired))

    def astype(self, dtype: np.dtype) -> PairedArcs:
        """The same with weights of another floating type."""
        return PairedArcs(*(x.astype(dtype) if x.dtype.kind == "f" else x for x in self))


def initial_probabilities(graph: Graph) -> Tensor:
    """(state,) float64 distribution over states at the start of a chunk that may lie anywhere in an utterance.

    All mass on the start state; propagate with the arc weights normalised per state by (sum of arcs + final weight),
    renormalise each step, and average the first 100 distributions, the start included.
    """
    src, dst = graph.src.numpy(), graph.dst.numpy()
    weight = np.exp(-graph.cost.numpy())
    total = np.bincount(src, weight, graph.num_states) + np.exp(-graph.final.numpy())
    share = weight / np.maximum(total, np.finfo(float).tiny)[src]
    now = np.zeros(graph.num_states)
    now[graph.start] = 1.0
    mean = np.zeros_like(now)
    for _ in range(_INITIAL_STEPS):
        mean += now / _INITIAL_STEPS
        now = np.bincount(dst, now[src] * share, graph.num_states)
        if not now.any():  # an acyclic graph ends
            break
        now /= now.sum()
    return torch.from_numpy(mean / mean.sum())


def denominator_posteriors(
    graph: Graph, outputs: Tensor, lengths: Tensor, leak: float = 1e-5, occupancies: bool = True
) -> Posteriors:
    """Log-probability of each sequence under the graph, every state being final, and the occupancies of the outputs.

    float64 outputs are computed in float64, others in float32 with the log-probabilities summed in float64. On the CPU
    the sequences are shared out over ``torch.get_num_threads()`` threads; the result does not depend on their number.

    Args:
        graph: without epsilon arcs; ``final`` enters only the initial probabilities.
        outputs: (batch, time, pdf) log-likelihoods in nats; -inf: impossible.
        lengths: (batch,) frames of each sequence; later ones are never read.
        leak: l >= 0, weight of a jump to the initial distribution. 1e-5 keeps sparse graphs connected, 0.1 is common.
        occupancies: whether to run backward too.

    Cost: about 6 T (arcs + pdfs) batch floating-point operations, 4 T (states + 2 pdfs) batch bytes.

    Raises:
        MisuseError: shapes, epsilon arcs or leak out of range.
        DataError: the graph speaks of more pdfs than there are outputs.
    """
    lengths = check_outputs(outputs, lengths, graph.num_pdfs)
    if graph.has_epsilons or graph.num_arcs == 0:
        raise MisuseError(f"denominator: expected arcs and no epsilons, got {graph}; remove the epsilons first")
    if not 0.0 <= leak < torch.inf:
        raise MisuseError(f"denominator: leak {leak} is not a weight; expected 0 or a small positive number")
    outputs = outputs.detach()
    if not occupancies:  # without them lost mass goes unnoticed, so lose none
        outputs = outputs.double()
    elif outputs.dtype not in _MASS_TOLERANCE:
        outputs = outputs.float()
    logprob, shares, sound = _in_probability_space(graph, outputs, lengths, leak, occupancies)
    if not sound.all():
        numbers = torch.stack([(scores[:n] < torch.inf).all() for scores, n in zip(outputs, lengths)])
        for again in (_in_probability_space, _in_log_domain):
            redo = (numbers & ~sound).nonzero()[:, 0]
            if redo.numel():
                found = again(graph, outputs[redo].double(), lengths[redo.cpu()], leak, occupancies)
                logprob[redo], sound[redo] = found[0], found[2]
                if shares is not None:
                    shares[redo] = found[1].to(shares.dtype)
        logprob[~numbers] = torch.nan
        if shares is not None:
            shares[~numbers] = 0.0
    return Posteriors(logprob=logprob, occupancies=shares)


_paired: WeakKeyDictionary[Graph, dict[torch.dtype, PairedArcs]] = WeakKeyDictionary()


def _paired_arcs(graph: Graph, dtype: torch.dtype) -> PairedArcs:
    """The arcs of a graph in the order of the recursions, computed once per graph."""
    if graph not in _paired:
        arcs = PairedArcs.of(graph)
        _paired[graph] = {torch.float64: arcs, torch.float32: arcs.astype(np.float32)}
    return _paired[graph][dtype]


def scaled_forward_backward(
    arcs: PairedArcs, outputs: Tensor, lengths: Tensor, leak: float, occupancies: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The readable twin of the kernel, on any device: sparse matrix products over the pairs.

    Returns:
        logprob (batch,) float64; occupancies (batch, time, pdf) or ``None``; and the largest |sum of occupancies - 1|
        over the frames of each sequence (batch,).
    """
    like = dict(dtype=outputs.dtype, device=outputs.device)
    batch, num_frames, _ = outputs.shape
    num_states, num_pairs = len(arcs.initial), len(arcs.pair_dst)
    pair_of_arc = np.repeat(np.arange(num_pairs), np.diff(arcs.pair_first))
    to_pair = _sparse(pair_of_arc, arcs.src, arcs.weight, (num_pairs, num_states), like)
    to_src = _sparse(arcs.src, pair_of_arc, arcs.weight, (num_states, num_pairs), like)
    to_dst = _sparse(arcs.pair_dst, np.arange(num_pairs), np.ones(num_pairs), (num_states, num_pairs), like)
    initial = torch.as_tensor(arcs.initial, **like)[:, None]
    pdf, dst = (torch.as_tensor(x, device=outputs.device, dtype=torch.int64) for x in (arcs.pair_pdf, arcs.pair_dst))
    lengths = lengths.to(outputs.device)
    runs = torch.arange(num_frames, device=outputs.device)[:, None] < lengths

    highest = outputs.amax(2).where(runs.T, 0.0)
    highest = highest.where(highest != -torch.inf, 0.0)
    x = (outputs - highest[..., None]).exp().where(runs.T[..., None], 0.0).permute(1, 2, 0)  # (time, pdf, batch)
    alphas, totals = [initial.expand(-1, batch)], [torch.ones(batch, **like)]
    for t in range(num_frames):
        leaked = alphas[t] + leak * totals[t] * initial
        alphas.append(to_dst @ (x[t][pdf] * (to_pair @ leaked)) * _inverse(totals[t]))
        totals.append(alphas[-1].sum(0))
    at_end = torch.stack(totals).gather(0, lengths[None])[0] * (1 + leak)
    logs = torch.stack(totals[:-1]).double().log() if num_frames else outputs.new_zeros(0, batch).double()
    logprob = at_end.double().log() + (logs + highest.T.double()).where(runs, 0.0).sum(0)
    if not occupancies:
        return logprob, None, torch.zeros_like(logprob)

    shares = torch.zeros_like(x)
    beta = torch.zeros_like(initial.expand(-1, batch))
    for t in reversed(range(num_frames)):
        beta = torch.where(lengths == t + 1, _inverse(at_end), beta)
        beta = beta + leak * (initial * beta).sum(0)
        passed_on = x[t][pdf] * beta[dst] * _inverse(totals[t])
        shares[t].index_add_(0, pdf, passed_on * (to_pair @ (alphas[t] + leak * totals[t] * initial)))
        beta = to_src @ passed_on
    mass_error = (shares.sum(1) - 1).abs().where(runs, 0.0)
    worst = mass_error.amax(0) if num_frames else torch.zeros_like(logprob)
    return logprob, shares.permute(2, 0, 1).contiguous(), worst


def _sparse(row: np.ndarray, column: np.ndarray, value: np.ndarray, shape: tuple[int, int], like: dict) -> Tensor:
    index = torch.as_tensor(np.stack([row, column]), device=like["device"])
    return torch.sparse_coo_tensor(index, torch.as_tensor(value, **like), shape, check_invariants=False).coalesce()


def _inverse(total: Tensor) -> Tensor:
    """1 / total, and 0 for a sequence that has ended or died."""
    return (1 / total).where(total > 0, 0.0)


def _in_probability_space(
    graph: Graph, outputs: Tensor, lengths: Tensor, leak: float, occupancies: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Log-probabilities, occupancies, and whether no mass was lost, for each sequence."""
    arcs = _paired_arcs(graph, outputs.dtype)
    with torch.autocast(outputs.device.type, enabled=False):
        logprob, shares, mass_error = _implementation(outputs)(arcs, outputs, lengths, leak, occupancies)
    tolerance = _MASS_TOLERANCE[outputs.dtype] + outputs.shape[1] * torch.finfo(outputs.dtype).eps
    return logprob, shares, logprob.isfinite() & (mass_error < tolerance)


def _in_log_domain(
    graph: Graph, outputs: Tensor, lengths: Tensor, leak: float, occupancies: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The same, safe from underflow and slow."""
    initial, final = initial_probabilities(graph).log(), torch.zeros(graph.num_states, dtype=torch.float64)
    packed = PackedGraphs.of(*([x] * len(lengths) for x in (graph, initial, final)))
    found = log_forward_backward(packed, outputs, lengths, leak, occupancies)
    return found.logprob, found.occupancies, found.logprob.isfinite()


def _implementation(outputs: Tensor) -> Callable[..., tuple[Tensor, Tensor | None, Tensor]]:
    if outputs.device.type != "cpu" or importlib.util.find_spec("numba") is None:
        return scaled_forward_backward
    from hemstitch.graphs._denominator_numba import forward_backward

    return forward_backward
