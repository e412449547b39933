"""Numerator graphs: from alignments with tolerance, from phone sequences, cut into chunks, weighted by the denominator.

A numerator says which pdf sequences are the transcript; it has no weights of its own. Composed with the normalisation
graph it gets those of the denominator, so that each of its paths weighs the same in both and the objective compares
like with like.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hemstitch.errors import DataError, MisuseError
from hemstitch.graphs._denominator import initial_probabilities
from hemstitch.graphs._graph import Graph
from hemstitch.graphs._phone_graphs import PhonePdfs, expand_phones


def phone_sequence_graph(phones: Sequence[int], pdfs: PhonePdfs) -> Graph:
    """All alignments of a phone sequence: the end-to-end numerator, without weights.

    Args:
        phones: of the utterance, in order.
        pdfs: see :func:`hemstitch.graphs.expand_phones`, which also takes graphs of alternative pronunciations.
    """
    count = len(phones)
    line = Graph.from_arcs(range(count), range(1, count + 1), phones, [0.0] * count, final=[torch.inf] * count + [0.0])
    return expand_phones(line, pdfs, transition_probability=1.0)


def alignment_graph(
    phones: Sequence[int],
    durations: Sequence[int],
    pdfs: PhonePdfs,
    tolerance: int | tuple[int, int] = 5,
    subsampling: int = 3,
    shift: int = 0,
    left: int | None = None,
) -> Graph:
    """The alignments that differ from a given one by a few frames, without weights.

    Output t stands for frame ``t * subsampling + shift``; phone i may emit it if that frame is not earlier than the
    phone's first frame less the tolerance, and earlier than its end plus the tolerance. The graph is acyclic: its
    states are (outputs so far, phone), so that it can be cut into chunks by :func:`slice_frames`.

    Args:
        phones: the phones of the alignment, in order.
        durations: of each, in frames before subsampling, at least 1.
        pdfs: a table by phone or a function of (left phone, phone).
        tolerance: frames before subsampling by which a phone may begin earlier and end later.
        subsampling: frames per output.
        shift: the frame of output 0, below ``subsampling``; training on all shifts uses every frame.
        left: the phone before the first one.

    Returns:
        A graph of ceil((frames - shift) / subsampling) outputs. Where more phones fall on a stretch than it has outputs
        there is no path, and the graph has no arcs.

    Raises:
        DataError: phones and durations do not match, or a duration is below 1.
        MisuseError: the shift is not within the subsampling.
    """
    if len(phones) != len(durations) or not len(phones) or min(durations) < 1:
        raise DataError(f"alignment: expected one duration of at least 1 frame per phone, got {len(phones)} phones and "
                        f"durations {list(durations)[:8]}")
    if not 0 <= shift < subsampling:
        raise MisuseError(f"alignment: shift {shift} is not one of 0..{subsampling - 1}, the frames of an output")
    early, late = (tolerance, tolerance) if isinstance(tolerance, int) else tolerance
    of = pdfs if callable(pdfs) else lambda _, phone: pdfs[phone]
    emitting = [of(before, phone) for before, phone in zip([left, *phones], phones)]
    end = np.cumsum(durations)
    frame = np.arange(shift, end[-1], subsampling)[:, None]
    allowed = (frame >= end - durations - early) & (frame < end + late)
    arcs = []  # (output, phone before, phone, pdf)
    for t, i in zip(*allowed.nonzero()):
        forward, self_loop = emitting[i]
        arcs += [(t, i, i, self_loop)] if t else []
        arcs += [(t, i - 1, i, forward)] if (t > 0 and i > 0) or t == i == 0 else []
    return _layered(np.array(arcs, np.int64).reshape(-1, 4), len(frame), len(phones))


def _layered(arcs: np.ndarray, num_outputs: int, num_phones: int) -> Graph:
    """Arcs (output, phone before, phone, pdf) -> the part between the start, state 0, and the end of the last phone."""
    t, before, after, pdf = arcs.T
    src, dst = t * num_phones + before + 1, (t + 1) * num_phones + after + 1
    src[t == 0] = 0
    final = np.full(num_outputs * num_phones + num_phones + 1, np.inf)
    final[-1] = 0.0
    return trimmed(Graph.from_arcs(src, dst, pdf, np.zeros(len(arcs)), final=final))


def slice_frames(graph: Graph, first: int, num_frames: int) -> Graph:
    """The part of a graph that emits frames ``first`` to ``first + num_frames - 1``: the numerator of a chunk.

    Args:
        graph: one in which every path to a state has the same number of arcs, as :func:`alignment_graph` makes.
        first: the first output frame.
        num_frames: how many; the graph may end earlier.

    Raises:
        MisuseError: paths of different length lead to a state.
    """
    time = _depths(graph)
    inside = (time[graph.src] >= first) & (time[graph.src] < first + num_frames)
    src, dst, pdf, cost = (x[inside] for x in (graph.src, graph.dst, graph.pdf, graph.cost))
    start = graph.num_states
    src = torch.where(time[src] == first, start, src)
    last = min(first + num_frames, int(time.max()))
    final = torch.cat([torch.where(time == last, 0.0, graph.final), torch.tensor([torch.inf])])
    return trimmed(Graph.from_arcs(src, dst, pdf, cost, start=start, final=final))


def _depths(graph: Graph) -> torch.Tensor:
    """(state,) number of arcs from the start to each state; -1: not reached."""
    offsets, dst = graph.arc_offsets().tolist(), graph.dst.tolist()
    depth, todo = [-1] * graph.num_states, [graph.start]
    depth[graph.start] = 0
    for state in todo:
        for after in dst[offsets[state]:offsets[state + 1]]:
            if depth[after] == -1:
                depth[after] = depth[state] + 1
                todo.append(after)
            elif depth[after] != depth[state] + 1:
                raise MisuseError(f"slice_frames: paths of {depth[after]} and {depth[state] + 1} arcs lead to state "
                                  f"{after}; expected a graph whose states know the time, as alignment_graph makes")
    return torch.tensor(depth)


def normalisation_graph(denominator: Graph, merge: str = "sum") -> Graph:
    """The denominator with its initial probabilities as arcs from a new start, and every state final.

    The new start has the arcs of every state s at the cost of - log initial(s). Those that agree in destination and pdf
    are added up, so that a numerator composed with the graph never weighs more than the denominator.

    Args:
        denominator: an acceptor without epsilons.
        merge: "sum", or "max" as in the reference, which keeps the heaviest.
    """
    if merge not in ("sum", "max"):
        raise MisuseError(f'normalisation_graph: merge {merge!r} is unknown; expected "sum" or "max"')
    initial = initial_probabilities(denominator)[denominator.src]
    enters = initial > 0
    ends = torch.stack([denominator.dst[enters], denominator.pdf[enters]], 1)
    ends, kind = ends.unique(dim=0, return_inverse=True)
    weight = initial[enters] * (-denominator.cost[enters]).exp()
    merged = weight.new_zeros(len(ends)).scatter_reduce_(0, kind, weight, {"sum": "sum", "max": "amax"}[merge])
    start = torch.full((len(ends),), denominator.num_states)
    return Graph.from_arcs(
        torch.cat([denominator.src, start]), torch.cat([denominator.dst, ends[:, 0]]),
        torch.cat([denominator.pdf, ends[:, 1]]), torch.cat([denominator.cost, -merged.log()]),
        start=denominator.num_states, final=torch.zeros(denominator.num_states + 1),
    )


def compose(first: Graph, second: Graph) -> Graph:
    """The paths that two acceptors share, their costs added up: a numerator with the weights of a normalisation graph.

    Args:
        first, second: without epsilons.

    Returns:
        A graph of the pairs of states on a path from start to end; one state and no arcs if there is none.

    Cost: O(arcs of the result).
    """
    if first.has_epsilons or second.has_epsilons:
        raise MisuseError("compose: a graph has epsilon arcs; remove them first")
    from hemstitch.graphs._graph_kernels import matching_arcs

    src, dst, arc, other, pairs = (torch.as_tensor(x) for x in matching_arcs(first, second))
    final = first.final[pairs[:, 0]] + second.final[pairs[:, 1]]
    return trimmed(Graph.from_arcs(src, dst, first.pdf[arc], first.cost[arc] + second.cost[other], final=final))


def trimmed(graph: Graph) -> Graph:
    """The part of an acceptor on paths from the start to a final state; one state and no arcs if there is none."""
    from hemstitch.graphs._graph_kernels import on_paths

    keep = torch.from_numpy(on_paths(graph))
    if not keep[graph.start]:
        return Graph.from_arcs([], [], [], [], final=[torch.inf])
    number, arcs = keep.cumsum(0) - 1, keep[graph.src] & keep[graph.dst]
    return Graph.from_arcs(
        number[graph.src[arcs]], number[graph.dst[arcs]], graph.pdf[arcs], graph.cost[arcs],
        start=int(number[graph.start]), final=graph.final[keep],
    )
