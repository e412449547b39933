"""Forward-backward in the log domain, readable and exact: the oracle of the kernels and the way out where they fail.

With arc scores w_a = -cost_a + output(t, pdf_a), alpha_0 = log initial and leak l from every state to the initial
distribution,

    alpha'_t = log(exp alpha_t + l exp(A_t) initial),       A_t = log sum_s exp alpha_t(s)
    alpha_{t+1}(j) = log sum_{a: i -> j} exp(alpha'_t(i) + w_a),      log Z = log sum_s exp(alpha'_T(s) - final(s)).

There is no beta. The posterior mass gamma of a state is handed back over the arcs that lead to it in proportion to
what they brought, gamma_a = gamma_{t+1}(j) exp(alpha'_t(i) + w_a - alpha_{t+1}(j)). All factors are at most 1, so
nothing overflows, and the occupancies of a frame sum to 1 by construction.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hemstitch.errors import DataError, MisuseError
from hemstitch.graphs._graph import Graph


@dataclass(frozen=True, kw_only=True, eq=False)
class Posteriors:
    """What forward-backward returns.

    Attributes:
        logprob: (batch,) float64 log of the summed path weights; -inf: no path; NaN: the outputs are not numbers.
        occupancies: (batch, time, pdf) posterior of each output, the derivative of ``logprob`` by the outputs; zero
            past the length of a sequence and where ``logprob`` is not finite. ``None`` if not asked for.
    """

    logprob: Tensor
    occupancies: Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedGraphs:
    """One graph per sequence, laid side by side as one graph with several components.

    Attributes:
        src, dst: (arc,) states, counted over all graphs.
        pdf: (arc,) index of the network output.
        logweight: (arc,) minus the cost.
        arc_sequence: (arc,) the sequence an arc belongs to.
        initial: (state,) log weight of starting here.
        final: (state,) log weight of ending here.
        state_sequence: (state,) the sequence a state belongs to.
    """

    src: Tensor
    dst: Tensor
    pdf: Tensor
    logweight: Tensor
    arc_sequence: Tensor
    initial: Tensor
    final: Tensor
    state_sequence: Tensor

    @classmethod
    def of(cls, graphs: Sequence[Graph], initial: Sequence[Tensor], final: Sequence[Tensor]) -> PackedGraphs:
        """Pack graphs with their log initial and log final weights, each (state,)."""
        states, arcs = [g.num_states for g in graphs], torch.tensor([g.num_arcs for g in graphs])
        offsets = [0, *itertools.accumulate(states)]
        sequence = torch.arange(len(graphs))
        return cls(
            src=torch.cat([g.src + first for g, first in zip(graphs, offsets)]),
            dst=torch.cat([g.dst + first for g, first in zip(graphs, offsets)]),
            pdf=torch.cat([g.pdf for g in graphs]),
            logweight=torch.cat([-g.cost for g in graphs]),
            arc_sequence=sequence.repeat_interleave(arcs),
            initial=torch.cat(list(initial)),
            final=torch.cat(list(final)),
            state_sequence=sequence.repeat_interleave(torch.tensor(states)),
        )

    def to(self, device: torch.device) -> PackedGraphs:
        """The same on another device."""
        return PackedGraphs(**{name: value.to(device) for name, value in vars(self).items()})


def log_forward_backward(
    packed: PackedGraphs, outputs: Tensor, lengths: Tensor, leak: float = 0.0, occupancies: bool = True
) -> Posteriors:
    """Sum over all paths of ``lengths[b]`` arcs through graph b, and the share of each output in the sum.

    Args:
        packed: the graphs.
        outputs: (batch, time, pdf) log-likelihoods or scores in nats; computed in float64.
        lengths: (batch,) number of frames; later ones are never read.
        leak: weight l of a jump from any state to the initial distribution before each frame and after the last.
        occupancies: whether to compute them.

    Cost: O(T arcs) time, 8 T states bytes.
    """
    packed, lengths = packed.to(outputs.device), lengths.to(outputs.device)
    num_frames = int(lengths.max()) if lengths.numel() else 0
    log_leak = torch.tensor(leak, dtype=torch.float64, device=outputs.device).log()
    jump = (log_leak + packed.initial, packed.state_sequence, lengths.numel())
    before, after = [packed.initial], []  # alpha_t and alpha'_t
    for t in range(num_frames):
        after.append(_leaked(before[t], *jump))
        arriving = _logsumexp(after[t][packed.src] + _arc_scores(packed, outputs, t), packed.dst, before[t].numel())
        before.append(torch.where((t < lengths)[packed.state_sequence], arriving, before[t]))
    after.append(_leaked(before[num_frames], *jump))
    logprob = _logsumexp(after[num_frames] + packed.final, packed.state_sequence, lengths.numel())
    if not occupancies:
        return Posteriors(logprob=logprob, occupancies=None)

    found = logprob.isfinite()[packed.state_sequence]
    mass = (after[num_frames] + packed.final - logprob[packed.state_sequence]).exp().where(found, 0.0)
    shares = torch.zeros_like(outputs)
    for t in reversed(range(num_frames)):
        runs = t < lengths
        running = runs[packed.state_sequence]
        mass = torch.where(running, _unleaked(mass, before[t + 1], after[t + 1], packed, lengths.numel()), mass)
        brought = after[t][packed.src] + _arc_scores(packed, outputs, t) - before[t + 1][packed.dst]
        counts = runs[packed.arc_sequence] & (mass[packed.dst] > 0)
        share = (mass[packed.dst] * brought.exp()).where(counts, 0.0)
        shares[:, t].index_put_((packed.arc_sequence, packed.pdf), share.to(shares.dtype), accumulate=True)
        mass = torch.where(running, torch.zeros_like(mass).index_add_(0, packed.src, share), mass)
    return Posteriors(logprob=logprob, occupancies=shares)


def check_outputs(outputs: Tensor, lengths: Tensor, num_pdfs: int) -> Tensor:
    """Lengths as (batch,) int64 on the CPU, after checks that these shapes and these graphs go together.

    Raises:
        MisuseError: outputs are not (batch, time, pdf), or lengths not (batch,) integers within the time axis.
        DataError: a graph speaks of more pdfs than there are outputs.
    """
    if outputs.dim() != 3 or not outputs.is_floating_point():
        raise MisuseError(f"expected outputs (batch, time, pdf) of a floating type, got {tuple(outputs.shape)} "
                          f"of {outputs.dtype}")
    lengths = torch.as_tensor(lengths).cpu()
    if lengths.shape != outputs.shape[:1] or lengths.is_floating_point():
        raise MisuseError(f"expected one integer length per sequence of outputs {tuple(outputs.shape)}, got lengths "
                          f"{tuple(lengths.shape)} of {lengths.dtype}")
    if lengths.numel() and not 0 <= int(lengths.min()) <= int(lengths.max()) <= outputs.shape[1]:
        raise MisuseError(f"lengths run from {int(lengths.min())} to {int(lengths.max())}, but outputs have "
                          f"{outputs.shape[1]} frames")
    if num_pdfs > outputs.shape[2]:
        raise DataError(f"the graph speaks of pdf {num_pdfs - 1}, but there are {outputs.shape[2]} outputs per frame: "
                        "graph and network were built for different trees")
    return lengths.to(torch.int64)


def _arc_scores(packed: PackedGraphs, outputs: Tensor, t: int) -> Tensor:
    return packed.logweight + outputs[packed.arc_sequence, t, packed.pdf].double()


def _logsumexp(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Log of the summed exponentials of the values that share an index; -inf where there is none."""
    highest = values.new_full((size,), -torch.inf).scatter_reduce_(0, index, values, "amax")
    base = highest.where(highest.isfinite(), 0.0)
    return base + torch.zeros_like(base).index_add_(0, index, (values - base[index]).exp()).log()


def _leaked(before: Tensor, log_jump: Tensor, state_sequence: Tensor, num_sequences: int) -> Tensor:
    total = _logsumexp(before, state_sequence, num_sequences)
    return torch.logaddexp(before, log_jump + total[state_sequence])


def _unleaked(mass: Tensor, before: Tensor, after: Tensor, packed: PackedGraphs, num_sequences: int) -> Tensor:
    """Mass after the leak -> mass before it: what jumped goes back to the states in proportion to their weight."""
    total = _logsumexp(before, packed.state_sequence, num_sequences)
    stayed = mass * (before - after).exp().where(mass > 0, 0.0)
    jumped = mass.new_zeros(num_sequences).index_add_(0, packed.state_sequence, mass - stayed)
    spread = (before - total[packed.state_sequence]).exp().where(jumped[packed.state_sequence] > 0, 0.0)
    return stayed + jumped[packed.state_sequence] * spread
