"""From phones to phones in context: every arc of a graph learns which phones come before and after it.

A state s becomes states (s, l, r), one for each phone l that may have brought us here and each phone r that may come
next. An arc that says p from s to d becomes arcs

    (s, l, p) -> (d, p, r)    with the HMM of p between l and r, for every l and r,

so a path promises each phone one step before it says it, and all paths are as many, and as dear, as before. Epsilons
lead from (s, l, r) to (d, l, r). A sentence is silence on the outside. HMMs with the same phone and pdfs are one.

Reference: M. Mohri, F. Pereira, M. Riley, "Weighted finite-state transducers in speech recognition", Computer Speech &
Language 16 (2002), section 3.3 (the context-dependency transducer, which the above composes with).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hemstitch.speech._topology import HmmTable, Topology


class PhoneGraph(NamedTuple):
    """A graph whose arcs consume whole phones.

    ``phone`` is as in :class:`~hemstitch.graphs.Graph`: negative where a word begins; 0: an epsilon. While a decoding
    graph is built, numbers above those of phones are symbols, which are passed like epsilons.
    """

    src: np.ndarray
    dst: np.ndarray
    phone: np.ndarray
    label: np.ndarray
    cost: np.ndarray
    final: np.ndarray
    start: int = 0


class Units(NamedTuple):
    """HMMs with their pdfs: row i of ``table`` belongs to phone ``phone[i]``."""

    table: HmmTable
    phone: np.ndarray


class UnitGraph(NamedTuple):
    """A graph over phones with the HMM of each of its arcs: ``unit`` is a row of ``units``, -1 where no phone is."""

    phones: PhoneGraph
    unit: np.ndarray
    units: Units


def in_context(phones: PhoneGraph, topology: Topology) -> UnitGraph:
    """Split states until the neighbours of each phone are known, as far as the topology looks.

    Args:
        phones: the graph over phones.
        topology: the HMMs. If its pdfs do not depend on neighbours, the graph stays as it is.

    Cost: an arc becomes as many as phones precede and follow it.
    """
    looks_left, looks_right = (width > 0 for width in topology.context_width)
    num_phones = len(topology.phones)
    spoken = (phones.phone != 0) & (np.abs(phones.phone) <= num_phones)
    number = np.where(spoken, np.abs(phones.phone), 0)
    if not (looks_left or looks_right):
        return UnitGraph(phones, number - 1, Units(topology.phone_table, np.arange(1, num_phones + 1)))

    # What may be known in a state, as pairs state * base + phone: phone 0 where the topology does not look.
    base, end = num_phones + 2, (num_phones + 1) * looks_right
    heard, promised = number * looks_left, number * looks_right
    src, dst, silent = phones.src, phones.dst, ~spoken
    begin = phones.start * base + topology.silence * looks_left
    ends = np.flatnonzero(np.isfinite(phones.final)) * base + end
    lefts = _closure(np.append((dst * base + heard)[spoken], begin), src[silent], dst[silent], base)
    rights = _closure(np.append((src * base + promised)[spoken], ends), dst[silent], src[silent], base)

    arc, pair = join(lefts // base, src)
    left = lefts[pair] % base
    again, pair = join(rights // base, dst[arc])
    arc, left, right = arc[again], left[again], rights[pair] % base
    said = spoken[arc]
    source = (src[arc] * base + left) * base + np.where(said, promised[arc], right)
    target = (dst[arc] * base + np.where(said, heard[arc], left)) * base + right
    follows = np.where(right % (num_phones + 1), right, topology.silence)
    unit, units = _units(np.stack([number[arc], left, follows]), topology)
    phone, label, cost = (column[arc] for column in (phones.phone, phones.label, phones.cost))

    starts = begin * base + rights[rights // base == phones.start] % base
    names, states = np.unique(np.concatenate([source, target, starts]), return_inverse=True)
    final = np.where(names % base == end, phones.final[names // base**2], np.inf)
    split = PhoneGraph(states[:len(arc)], states[len(arc):2 * len(arc)], phone, label, cost, final)
    return UnitGraph(*_one_start(split, unit, states[2 * len(arc):]), units)


def join(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All (i, j) with ``wanted[i] == keys[j]``; the keys are sorted."""
    begin = np.searchsorted(keys, wanted, "left")
    counts = np.searchsorted(keys, wanted, "right") - begin
    i = np.repeat(np.arange(len(wanted)), counts)
    return i, np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts - begin, counts)


def _closure(pairs: np.ndarray, src: np.ndarray, dst: np.ndarray, base: int) -> np.ndarray:
    """Pairs state * base + value, sorted, with all that follow by carrying values from src to dst."""
    found = np.unique(pairs)
    while True:
        arc, pair = join(found // base, src)
        grown = np.union1d(found, dst[arc] * base + found[pair] % base)
        if len(grown) == len(found):
            return found
        found = grown


def _units(triples: np.ndarray, topology: Topology) -> tuple[np.ndarray, Units]:
    """The unit of each column (phone, left, right), -1 where the phone is 0; and the units, in order of appearance."""
    base = len(topology.phones) + 1
    codes, of_arc = np.unique((triples[0] * base + triples[1]) * base + triples[2], return_inverse=True)
    found: dict[tuple[int, ...], int] = {}
    members: list[tuple[int, tuple[int, int]]] = []
    unit = np.full(len(codes), -1)
    for i, code in enumerate(codes.tolist()):
        (phone, left), right = divmod(code // base, base), code % base
        if phone:
            pdfs = (topology.pdf(phone, k, (left, right)) for k in range(topology.num_positions[phone - 1]))
            unit[i] = found.setdefault((phone, *pdfs), len(found))
            if unit[i] == len(members):
                members.append((phone, (left, right)))
    return unit[of_arc], Units(topology.table(members), np.array([phone for phone, _ in members], dtype=np.int64))


def _one_start(split: PhoneGraph, unit: np.ndarray, starts: np.ndarray) -> tuple[PhoneGraph, np.ndarray]:
    """The graph with one start state instead of several: a new one with copies of all that leaves them."""
    if len(starts) == 1:
        return split._replace(start=int(starts[0])), unit
    copied = np.flatnonzero(np.isin(split.src, starts))
    arcs = np.concatenate([np.arange(len(unit)), copied])
    new = len(split.final)
    columns = {name: getattr(split, name)[arcs] for name in ("dst", "phone", "label", "cost")}
    src = np.concatenate([split.src, np.full(len(copied), new)])
    final = np.append(split.final, split.final[starts].min(initial=np.inf))
    return PhoneGraph(src=src, final=final, start=new, **columns), unit[arcs]
