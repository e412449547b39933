"""The phone n-gram of lattice-free MMI: no smoothing, no back-off arcs, a limited number of states.

Every history h is a state with relative frequencies p(phone | h) = c(h, phone) / c(h). Histories shorter than
``unpruned_order`` phones are all kept. Of the longer ones only ``num_extra_states`` are: the others give their counts
to the history without its oldest phone, the cheapest first by the loss of log-likelihood on the training sequences,

    loss(h) = L(h) + L(parent) - L(h and parent merged),    L = sum_phone c log(c / sum c).

So each training sequence keeps a path, unseen sequences mostly have none, and there are no epsilons to remove.

Reference: D. Povey et al., "Purely sequence-trained neural networks for ASR based on lattice-free MMI", Interspeech
2016, section 2.2.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import torch

from hemstitch.errors import DataError, MisuseError
from hemstitch.graphs._graph import Graph

_END = -1
History = tuple[int, ...]


def estimate_phone_lm(
    sequences: Iterable[Sequence[int]], order: int = 4, unpruned_order: int = 3, num_extra_states: int = 2000
) -> Graph:
    """Estimate an n-gram over phones as an acceptor: the ``pdf`` of an arc is its phone.

    Args:
        sequences: phones (0 or more) of each utterance.
        order: n, the longest n-gram.
        unpruned_order: n-grams up to this order are all kept.
        num_extra_states: how many histories longer than that are kept.

    Returns:
        A deterministic graph. Arcs and final weight of each state sum to 1; all arcs into a state have the same phone
        if ``order`` > 1.

    Raises:
        DataError: there are no sequences, or a phone is negative.
        MisuseError: an order or a number of states is out of range.

    Cost: O(n-grams log n-grams).
    """
    if order < 1 or unpruned_order < 1 or num_extra_states < 0:
        raise MisuseError(f"phone LM: order {order}, unpruned_order {unpruned_order} and num_extra_states "
                          f"{num_extra_states} need to be at least 1, 1 and 0")
    counts = _count(sequences, order)
    _prune(counts, unpruned_order, num_extra_states)
    return _as_graph(counts, order)


def _count(sequences: Iterable[Sequence[int]], order: int) -> dict[History, Counter]:
    counts: dict[History, Counter] = defaultdict(Counter)
    for number, sequence in enumerate(sequences):
        phones = [int(p) for p in sequence]
        if phones and min(phones) < 0:
            raise DataError(f"phone LM: sequence {number} has the phone {min(phones)}; phones count from 0")
        for i, phone in enumerate([*phones, _END]):
            counts[tuple(phones[max(0, i - order + 1):i])][phone] += 1
    if not counts:
        raise DataError("phone LM: no sequences to count")
    return counts


def _prune(counts: dict[History, Counter], unpruned_order: int, num_extra_states: int) -> None:
    """Merge histories of ``unpruned_order`` phones or more into shorter ones until few enough are left.

    A history stays as long as one that is a phone longer begins or ends with it: else the longer one could no longer be
    reached, or counts that were handed on would not be found where a sequence looks for them.
    """
    extra = {h for h in counts if len(h) >= unpruned_order}
    needed_by = Counter(end for h in counts for end in {h[:-1], h[1:]})
    queue = [(_loss(counts, h), h) for h in extra if not needed_by[h]]
    heapq.heapify(queue)
    while len(extra) > num_extra_states:
        loss, history = heapq.heappop(queue)
        if history not in extra or needed_by[history]:  # merged before, or needed since; it comes back when free
            continue
        now = _loss(counts, history)  # its parent may have grown since
        if now > loss and queue and (now, history) > queue[0]:
            heapq.heappush(queue, (now, history))
            continue
        parent = history[1:]
        if parent not in counts:
            needed_by.update({parent[:-1], parent[1:]})
            extra |= {parent} if len(parent) >= unpruned_order else set()
        counts[parent].update(counts.pop(history))
        extra.remove(history)
        for end in {history[:-1], parent}:
            needed_by[end] -= 1
            if end in extra and not needed_by[end]:
                heapq.heappush(queue, (_loss(counts, end), end))


def _loss(counts: dict[History, Counter], history: History) -> float:
    child, parent = counts[history], counts.get(history[1:], Counter())
    return _loglike(child) + _loglike(parent) - _loglike(child + parent)


def _loglike(counts: Counter) -> float:
    return sum(c * math.log(c) for c in counts.values()) - (n * math.log(n) if (n := counts.total()) else 0.0)


def _as_graph(counts: dict[History, Counter], order: int) -> Graph:
    number = {history: s for s, history in enumerate(sorted(counts, key=lambda h: (len(h), h)))}
    arcs, final = [], torch.full((len(number),), torch.inf, dtype=torch.float64)
    for history, state in number.items():
        total = counts[history].total()
        for phone, count in sorted(counts[history].items()):
            cost = -math.log(count / total)
            if phone == _END:
                final[state] = cost
                continue
            after = (*history, phone)[-(order - 1):] if order > 1 else ()
            while after not in number:
                after = after[1:]
            arcs.append((state, number[after], phone, cost))
    return Graph.from_arcs(*(zip(*arcs) if arcs else ([], [], [], [])), start=number[()], final=final)
