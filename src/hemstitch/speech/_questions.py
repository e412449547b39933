"""Sets of phones that decision trees ask for, found rather than written.

Phones are merged, two by two, where a common Gaussian costs least; every set met on the way is a question, and so is
every single phone.

Reference: R. Singh, B. Raj, R. M. Stern, "Automatic clustering and generation of contextual questions for tied states
in hidden Markov models", ICASSP 1999.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from hemstitch.speech._positions import BEGIN, END, INSIDE, SINGLE
from hemstitch.speech._topology import Topology
from hemstitch.speech._tree_statistics import TreeStatistics, gaussian_score


def phone_questions(statistics: TreeStatistics) -> tuple[frozenset[int], ...]:
    """Sets of phones worth asking for, by their numbers, each once.

    Single phones; where phones are marked by their place in the word (see :func:`position_dependent`) the variants of a
    phone and the phones of each place; and the sets met while phones are merged, nearest first.

    Cost: phones^2 x positions x dim, a second for a hundred phones.
    """
    topology, phone, position = statistics.topology, statistics.keys[:, 0], statistics.keys[:, 1]
    heard = [group for group in variants(topology).values() if topology.silence not in group
             and np.isin(phone, group).any()]
    rows = [[np.isin(phone, group) & (position == k) for k in range(max(topology.num_positions))] for group in heard]
    sums = np.array([[statistics.sums[row].sum(0) for row in positions] for positions in rows])
    marked = defaultdict(list)
    for number, name in enumerate(topology.phones, start=1):
        marked[_place(name)[1]].append(number)
    sets = [[number] for number in topology.phone_ids.values()]
    sets += [*variants(topology).values(), *marked.values()]
    sets += [[number for i in cluster for number in heard[i]] for cluster in _clusters(sums, statistics.floor)]
    return tuple(dict.fromkeys(frozenset(found) for found in sets if len(found) < len(topology.phones)))


def _clusters(sums: np.ndarray, floor: np.ndarray) -> list[list[int]]:
    """The sets met while items are merged two by two, the cheapest pair first, down to two; sums: (item, k, ...)."""
    sums, num_items = sums.copy(), len(sums)
    members, alive = [[i] for i in range(num_items)], list(range(num_items))
    score = gaussian_score(sums, floor).sum(-1)
    cost = np.full((num_items, num_items), np.inf)

    def weigh(i: int, others: list[int]) -> None:
        merged = gaussian_score(sums[i] + sums[others], floor).sum(-1)
        cost[np.minimum(i, others), np.maximum(i, others)] = score[i] + score[others] - merged

    for i in range(num_items - 1):
        weigh(i, list(range(i + 1, num_items)))
    found = []
    while len(alive) > 2:
        i, j = divmod(int(cost.argmin()), num_items)
        members[i] += members[j]
        sums[i] += sums[j]
        score[i] = gaussian_score(sums[i], floor).sum()
        cost[j], cost[:, j] = np.inf, np.inf
        alive.remove(j)
        weigh(i, [other for other in alive if other != i])
        found.append(members[i].copy())
    return found


def _place(phone: str) -> tuple[str, str]:
    """A phone's name without its mark, and the mark, "" if it has none."""
    for mark in (BEGIN, INSIDE, END, SINGLE):
        if phone.endswith(mark) and phone != mark:
            return phone.removesuffix(mark), mark
    return phone, ""


def variants(topology: Topology) -> dict[str, tuple[int, ...]]:
    """Numbers of the phones that differ only in their mark, by the name without it."""
    found: defaultdict[str, tuple[int, ...]] = defaultdict(tuple)
    for number, name in enumerate(topology.phones, start=1):
        found[_place(name)[0]] += (number,)
    return dict(found)
