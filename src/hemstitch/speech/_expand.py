"""From phones on arcs to frames on arcs: every phone becomes the states of its HMM.

A state of the result stands for "the last frame was accounted to state k of phone p, and the phone leads to t". Phone
arcs that agree in (p, t) share their HMM; they differ in the arc that enters it. Entry arcs run from the last HMM state
of what precedes to the first of what follows; they carry the word label, the mark of the beginning phone and the cost
of the phone arc. No epsilons are needed, but where n phones meet and m phones leave, n m entry arcs are more than the
n + m arcs to and from a state in between: decoding graphs get such states.
"""

from __future__ import annotations

import numpy as np

from hemstitch.errors import MisuseError
from hemstitch.graphs import Graph
from hemstitch.graphs._graph import EPSILON
from hemstitch.speech._context import PhoneGraph, UnitGraph, Units, in_context, join
from hemstitch.speech._topology import Topology

Column = np.ndarray | float


def expand(phones: PhoneGraph, topology: Topology, *, with_epsilons: bool) -> Graph:
    """Replace each phone by its HMM between its neighbours.

    Args:
        phones: the graph over phones.
        topology: the HMMs.
        with_epsilons: add states between phones where that saves arcs; needed if ``phones`` has epsilons.

    Raises:
        MisuseError: ``phones`` has epsilons and the result may not.
    """
    return expand_units(in_context(phones, topology), with_epsilons=with_epsilons)


def expand_units(graph: UnitGraph, *, with_epsilons: bool) -> Graph:
    """Replace each phone by the HMM that was chosen for it (arguments and errors: see :func:`expand`)."""
    phones, unit, units = graph
    spoken = unit >= 0
    if not with_epsilons and not spoken.all():
        raise MisuseError("expand: the graph over phones has epsilons, so with_epsilons must be true")
    hmms = _Hmms(phones.dst[spoken], unit[spoken], units)
    hub = _hubs(phones, spoken, hmms, with_epsilons)
    num_hubs = int((hub >= 0).sum())
    first, last = hmms.first + num_hubs, hmms.first + num_hubs + hmms.count - 1

    # How each phone-level state can be left: from its hub, or else from the ends of the phones that lead to it.
    direct = hub[hmms.dst] < 0
    exits = np.concatenate([np.flatnonzero(hub >= 0), hmms.dst[direct]])
    exit_states = np.concatenate([hub[hub >= 0], last[direct]])
    order = np.argsort(exits, kind="stable")
    arc, exit_ = join(exits[order], phones.src)
    source = exit_states[order][exit_]

    is_entry, entry, skip = spoken[arc], arc[spoken[arc]], arc[~spoken[arc]]
    hmm, row, states = hmms.of_arc[np.cumsum(spoken)[entry] - 1], hmms.row, num_hubs + np.arange(len(hmms.row))
    into, table = row[hmms.first[hmm]], units.table
    inner = np.setdiff1d(np.arange(len(row)), hmms.first)
    src, dst, pdf, cost, label, phone = (np.concatenate(column) for column in zip(
        _arcs(source[is_entry], first[hmm], table.enter_pdf[into], phones.cost[entry] + table.enter_cost[into],
              phones.label[entry], phones.phone[entry]),
        _arcs(states[inner] - 1, states[inner], table.enter_pdf[row[inner]], table.enter_cost[row[inner]]),
        _arcs(states, states, table.loop_pdf[row], table.loop_cost[row]),
        _arcs(source[~is_entry], hub[phones.dst[skip]], EPSILON, phones.cost[skip], phones.label[skip]),
        _arcs(last[~direct], hub[hmms.dst[~direct]], EPSILON, 0.0),
    ))
    final = np.full(num_hubs + len(hmms.row), np.inf)
    final[exit_states] = phones.final[exits]
    return Graph.from_arcs(src, dst, pdf, cost, start=int(hub[phones.start]), final=final, label=label, phone=phone)


class _Hmms:
    """One HMM for each pair (unit, state it leads to).

    ``dst``: that state; ``count``: number of HMM states; ``first``: place of the first of them among all; ``row``: of
    every HMM state, its row in the table of units; ``of_arc``: the HMM of every arc with a unit.
    """

    def __init__(self, dst: np.ndarray, unit: np.ndarray, units: Units):
        base = len(units.phone) + 1
        keys, self.of_arc = np.unique(dst * base + unit, return_inverse=True)
        self.dst, of_hmm = np.divmod(keys, base)
        offsets = units.table.offsets
        self.count = np.diff(offsets)[of_hmm]
        self.first = np.cumsum(self.count) - self.count
        self.row = np.arange(self.count.sum()) + np.repeat(offsets[of_hmm] - self.first, self.count)


def _arcs(src: np.ndarray, dst: np.ndarray, pdf: Column, cost: Column, label: Column = 0, phone: Column = 0) -> list:
    """Columns of equal length; one number stands for all arcs."""
    return [np.broadcast_to(column, src.shape) for column in (src, dst, pdf, cost, label, phone)]


def _hubs(phones: PhoneGraph, spoken: np.ndarray, hmms: _Hmms, with_epsilons: bool) -> np.ndarray:
    """(state,) the number of the graph state that stands for a phone-level state itself, -1 where none is needed."""
    num_states = len(phones.final)
    needed = np.zeros(num_states, bool)
    needed[phones.start] = True
    if with_epsilons:
        entering, leaving = np.bincount(hmms.dst, minlength=num_states), np.bincount(phones.src, minlength=num_states)
        needed |= entering * leaving > 2 * (entering + leaving)
        needed[phones.dst[~spoken]] = True
    return np.where(needed, np.cumsum(needed) - 1, -1)
