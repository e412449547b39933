"""Graphs for networks that stay silent most of the time: connectionist temporal classification (CTC).

Such a network says each phone in a frame or a few, and a blank in all others. In a graph whose phones have one state
each, every state s gets a companion: blanks lead from s to it, keep it, and it can be left like s; so does the start.

    s --blank--> s' --blank--> s',    s' --x--> t  wherever  s --x--> t

CTC asks for a blank between two equal phones, to tell them from one long phone. Here it may be left out, so that the
graph stays small; what that adds are paths on which one long phone is heard as two.

Reference: A. Graves, S. Fernandez, F. Gomez, J. Schmidhuber, "Connectionist temporal classification", ICML 2006,
section 3; graphs for it: Y. Miao, M. Gowayyed, F. Metze, "EESEN", ASRU 2015, section 3.
"""

from __future__ import annotations

import torch

from hemstitch.errors import MisuseError
from hemstitch.graphs import Graph


def with_blanks(graph: Graph, blank: int) -> Graph:
    """The graph with any number of blanks at the start and after each phone.

    Args:
        graph: its phones have one state each, with a self-loop; it may have epsilons and labels, not blanks.
        blank: the pdf of the blank.

    Raises:
        MisuseError: the graph has blanks already.
    """
    if bool((graph.pdf == blank).any()):
        raise MisuseError(f"with_blanks: pdf {blank} is on arcs of the graph already")
    loops = graph.src == graph.dst
    hosts = torch.cat([torch.tensor([graph.start]), graph.src[loops]]).unique()
    companion = torch.full((graph.num_states,), -1)
    companion[hosts] = graph.num_states + torch.arange(len(hosts))
    copied = ((companion[graph.src] >= 0) & ~loops).nonzero()[:, 0]
    silent = companion[hosts]
    blanks = torch.full((2 * len(hosts),), blank)
    zeros = torch.zeros_like(blanks)

    def joined(column: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return torch.cat([column, column[copied], new])

    return Graph.from_arcs(
        torch.cat([graph.src, companion[graph.src[copied]], hosts, silent]),
        joined(graph.dst, torch.cat([silent, silent])),
        joined(graph.pdf, blanks),
        joined(graph.cost, zeros.double()),
        start=graph.start,
        final=torch.cat([graph.final, graph.final[hosts]]),
        label=None if graph.label is None else joined(graph.label, zeros),
        phone=None if graph.phone is None else joined(graph.phone, zeros),
    )
