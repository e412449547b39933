"""Forward-backward of a different graph per sequence, in the log domain and in float64.

Numerators are long and thin: in probability space their mass at the end of an utterance is so small beside that of the
paths that lag behind that it underflows within a second of speech. They are also cheap, so they are always computed in
the log domain, and only where a state can be on a path at all: state s at frame t if the start reaches s in at most t
arcs and s reaches a final state in at most T - t.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hemstitch.errors import MisuseError
from hemstitch.graphs._forward_backward import PackedGraphs, Posteriors, check_outputs, log_forward_backward
from hemstitch.graphs._graph import Graph

_NO_PATH = Graph.from_arcs([], [], [], [], final=[torch.inf])


def numerator_posteriors(
    graphs: Sequence[Graph | None], outputs: Tensor, lengths: Tensor, occupancies: bool = True
) -> Posteriors:
    """Log of the summed weights of all paths from start to end, and the occupancies of the outputs.

    Args:
        graphs: one per sequence, acyclic or cyclic, without epsilons; ``None``: the sequence has no path.
        outputs: (batch, time, pdf) log-likelihoods in nats; -inf: impossible.
        lengths: (batch,) frames of each sequence; later ones are never read.
        occupancies: whether to run backward too.

    Cost: O(T arcs) per sequence, 8 T (states + arcs) bytes for one sequence per thread.

    Raises:
        MisuseError: shapes, the number of graphs, or a graph with epsilons.
        DataError: a graph speaks of more pdfs than there are outputs.
    """
    dtype = torch.promote_types(outputs.dtype, torch.float32)
    shares = torch.zeros_like(outputs, dtype=dtype) if occupancies else None
    logprob = add_numerator_occupancies(graphs, outputs, lengths, shares, torch.ones(outputs.shape[:2]))
    return Posteriors(logprob=logprob, occupancies=shares)


def add_numerator_occupancies(
    graphs: Sequence[Graph | None], outputs: Tensor, lengths: Tensor, into: Tensor | None, factor: Tensor
) -> Tensor:
    """Add ``factor`` (batch, time) times the occupancies to ``into``; return the log-probabilities.

    Few outputs of a frame are in a numerator, so adding them in place costs far less than an array of their own.
    """
    given = [_NO_PATH if g is None else g for g in graphs]
    lengths = check_outputs(outputs, lengths, max((g.num_pdfs for g in given), default=0))
    if len(given) != len(lengths):
        raise MisuseError(f"numerator: expected one graph per sequence ({len(lengths)}), got {len(given)}")
    if any(g.has_epsilons for g in given):
        raise MisuseError("numerator: a graph has epsilon arcs; remove the epsilons first")
    packed = PackedGraphs.of(given, [_start(g) for g in given], [-g.final for g in given])
    outputs = outputs.detach().to(torch.promote_types(outputs.dtype, torch.float32))
    logprob = _implementation(outputs)(packed, outputs, lengths, into, factor)
    logprob[logprob == torch.inf] = torch.nan
    return logprob


def log_domain_twin(
    packed: PackedGraphs, outputs: Tensor, lengths: Tensor, into: Tensor | None, factor: Tensor
) -> Tensor:
    """What the kernel does, on any device."""
    found = log_forward_backward(packed, outputs, lengths, occupancies=into is not None)
    if into is not None:
        into.addcmul_(found.occupancies, factor[..., None].to(into))
    return found.logprob


def _start(graph: Graph) -> Tensor:
    logweight = torch.full((graph.num_states,), -torch.inf, dtype=torch.float64)
    logweight[graph.start] = 0.0
    return logweight


def _implementation(outputs: Tensor) -> Callable[..., Tensor]:
    if outputs.device.type != "cpu" or importlib.util.find_spec("numba") is None:
        return log_domain_twin
    from hemstitch.graphs._numerator_numba import forward_backward

    return forward_backward
