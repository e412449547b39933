"""From graphs over phones to graphs over pdfs: the chain topology, and the minimised denominator graph.

A phone is one emitting state: its first frame is scored by the forward pdf, each further one by the self-loop pdf.

A graph is minimised by merging states with the same future (for each pdf and merged destination the same total weight)
and, in the reversed graph, states with the same past. Pushing the weights first, w(i -> j) v_j / v_i with v_i the total
weight of all paths from i to the end, makes states that differ by a factor equal. The sum over all paths with given
outputs is unchanged up to one factor for the whole graph.

References: M. Mohri, "Weighted automata algorithms", 2009, sections 6 and 7; P. Buchholz, "Bisimulation relations for
weighted automata", Theoretical Computer Science 393 (2008).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hemstitch.errors import DataError, MisuseError
from hemstitch.graphs._graph import Graph

PhonePdfs = Sequence[tuple[int, int]] | Callable[[int | None, int], tuple[int, int]]
"""(forward pdf, self-loop pdf) by phone, or a function of (left phone or ``None`` at the start, phone)."""

_SAME = 1e-6
"""Costs closer than this, in nats, are the same to minimisation."""


def expand_phones(phones: Graph, pdfs: PhonePdfs, transition_probability: float = 0.5) -> Graph:
    """Replace each phone of an acceptor by its hidden Markov state.

    Args:
        phones: an acceptor without epsilons; the ``pdf`` of an arc is its phone.
        pdfs: what emits: a table by phone, or a function of (left phone, phone) for left biphones.
        transition_probability: weight of each self-loop and each arc into a phone. 0.5 for a denominator; 1 for a
            numerator that gets its weights from the normalisation graph.

    Raises:
        DataError: a phone has no pdfs.
    """
    of = pdfs if callable(pdfs) else lambda left, phone: _look_up(pdfs, phone)
    offsets, per_frame = phones.arc_offsets().tolist(), -math.log(transition_probability)
    dst, phone, cost = phones.dst.tolist(), phones.pdf.tolist(), phones.cost.tolist()
    node = (phones.start, None, None)  # state of the phone graph, phone that leads there, its self-loop
    number, todo, arcs = {node: 0}, [node], []
    while todo:
        node = todo.pop()
        state, left, self_loop = node
        if self_loop is not None:
            arcs.append((number[node], number[node], self_loop, per_frame))
        for a in range(offsets[state], offsets[state + 1]):
            forward, loop = of(left, phone[a])
            after = (dst[a], phone[a], loop)
            if after not in number:
                number[after] = len(number)
                todo.append(after)
            arcs.append((number[node], number[after], forward, cost[a] + per_frame))
    final = phones.final[[state for state, _, _ in number]]
    return Graph.from_arcs(*(zip(*arcs) if arcs else ([], [], [], [])), start=0, final=final)


def denominator_graph(phone_lm: Graph, pdfs: PhonePdfs) -> Graph:
    """The minimised, epsilon-free graph of all phone sequences that a phone language model allows.

    Args:
        phone_lm: from :func:`hemstitch.graphs.estimate_phone_lm`.
        pdfs: see :func:`expand_phones`.

    Example:
        >>> from hemstitch.graphs import estimate_phone_lm
        >>> denominator_graph(estimate_phone_lm([[0, 1, 0], [0, 1]]), pdfs=[(0, 1), (2, 3)])
        Graph(4 states, 6 arcs, 4 pdfs, start 0)
    """
    return minimise(expand_phones(phone_lm, pdfs))


def minimise(graph: Graph, rounds: int = 3) -> Graph:
    """An equivalent graph with fewer states, weights pushed so that arcs and final weight of each state sum to 1.

    Args:
        graph: an acceptor without epsilons in which the sum over all paths is finite.
        rounds: how often states with the same past and states with the same future are merged; stops when none are.

    Raises:
        DataError: no path leads to the end, or the sum over all paths does not converge.

    Cost: a few hundred sweeps over the arcs per round.
    """
    if graph.has_epsilons:
        raise MisuseError("minimise: the graph has epsilon arcs; remove them first")
    automaton = _Automaton.of(graph).trimmed()
    for _ in range(rounds):
        size = len(automaton.initial)
        automaton = automaton.reversed().pushed().merged().reversed().pushed().merged()
        if len(automaton.initial) == size:
            break
    return automaton.pushed().graph()


@dataclass(frozen=True, eq=False)
class _Automaton:
    """Weights of beginning and ending in each state, so that reversing needs no extra state."""

    src: np.ndarray
    dst: np.ndarray
    pdf: np.ndarray
    weight: np.ndarray
    initial: np.ndarray
    final: np.ndarray

    @classmethod
    def of(cls, graph: Graph) -> _Automaton:
        arrays = [x.numpy() for x in (graph.src, graph.dst, graph.pdf)]
        initial = np.eye(graph.num_states)[graph.start]
        return cls(*arrays, np.exp(-graph.cost.numpy()), initial, np.exp(-graph.final.numpy()))

    def graph(self) -> Graph:
        """As a graph; its start is state 0."""
        start = int(self.initial.argmax())
        rank = np.argsort(np.argsort(np.arange(len(self.initial)) != start, kind="stable"), kind="stable")
        final = np.empty_like(self.final)
        with np.errstate(divide="ignore"):
            final[rank] = -np.log(self.final)
            return Graph.from_arcs(rank[self.src], rank[self.dst], self.pdf, -np.log(self.weight), final=final)

    def reversed(self) -> _Automaton:
        return _Automaton(self.dst, self.src, self.pdf, self.weight, self.final, self.initial)

    def trimmed(self) -> _Automaton:
        """Only states on a path from beginning to end."""
        keep = _reached(self.src, self.dst, self.initial > 0) & _reached(self.dst, self.src, self.final > 0)
        if not keep.any():
            raise DataError("minimise: no path leads from the start to a final state")
        number, arcs = keep.cumsum() - 1, keep[self.src] & keep[self.dst] & (self.weight > 0)
        return _Automaton(number[self.src[arcs]], number[self.dst[arcs]], self.pdf[arcs], self.weight[arcs],
                          self.initial[keep], self.final[keep])

    def pushed(self) -> _Automaton:
        """Weights that sum to 1 over the arcs and the end of each state; the initial ones are scaled to at most 1."""
        value = self._weight_to_the_end()
        initial = self.initial * value
        return _Automaton(self.src, self.dst, self.pdf, self.weight * value[self.dst] / value[self.src],
                          initial / initial.max(), self.final / value)

    def _weight_to_the_end(self) -> np.ndarray:
        """v = M v + final by iteration; the error shrinks per step by the share of the weight that ends there."""
        value, num_states = self.final.copy(), len(self.final)
        for _ in range(100_000):
            following = np.bincount(self.src, self.weight * value[self.dst], num_states) + self.final
            if np.abs(following - value).max() <= 1e-14 * following.max():
                return following
            if following.max() > 1e50:
                break
            value = following
        raise DataError("minimise: the sum over all paths does not converge; too few sequences end")

    def merged(self) -> _Automaton:
        """States with the same future become one (partition refinement to the coarsest bisimulation)."""
        kind, num_kinds = np.zeros(len(self.final), np.int64), 0
        while True:
            outgoing = self._totals(kind)
            first = np.searchsorted(outgoing.src, np.arange(len(self.final) + 1))
            rows = np.stack([outgoing.pdf, outgoing.dst, _rounded(outgoing.weight)], 1)
            ends = _rounded(self.final)
            seen: dict[tuple, int] = {}
            kind = np.array([seen.setdefault((kind[s], ends[s], rows[first[s]:first[s + 1]].tobytes()), len(seen))
                             for s in range(len(self.final))])
            if len(seen) == num_kinds:
                break
            num_kinds = len(seen)
        _, member = np.unique(kind, return_index=True)
        chosen = self._totals(kind)
        arcs = np.isin(chosen.src, member)
        return _Automaton(kind[chosen.src[arcs]], chosen.dst[arcs], chosen.pdf[arcs], chosen.weight[arcs],
                          np.bincount(kind, self.initial), self.final[member])

    def _totals(self, kind: np.ndarray) -> _Automaton:
        """Arcs to kinds of states, in order, those that agree in all but weight added up."""
        to = kind[self.dst]
        order = np.lexsort((to, self.pdf, self.src))
        src, pdf, to = self.src[order], self.pdf[order], to[order]
        first = np.flatnonzero(np.diff(src, prepend=-1) | np.diff(pdf, prepend=-1) | np.diff(to, prepend=-1))
        weight = np.add.reduceat(self.weight[order], first) if len(first) else self.weight
        return _Automaton(src[first], to[first], pdf[first], weight, self.initial, self.final)


def _look_up(pdfs: Sequence[tuple[int, int]], phone: int) -> tuple[int, int]:
    if not 0 <= phone < len(pdfs):
        raise DataError(f"phone {phone} has no pdfs: the table has {len(pdfs)} phones, counted from 0")
    return pdfs[phone]


def _reached(src: np.ndarray, dst: np.ndarray, states: np.ndarray) -> np.ndarray:
    while True:
        grown = states.copy()
        grown[dst[states[src]]] = True
        if (grown == states).all():
            return grown
        states = grown


def _rounded(weight: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.round(np.log(weight) / _SAME)
