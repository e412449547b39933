"""Decision trees of a tied topology, grown from statistics of aligned features.

Asking a question splits the contexts of a leaf in two and gains L(yes) + L(no) - L(leaf) >= 0, with the log-likelihood
L of ``_tree_statistics``. All trees grow together: the split with the largest gain anywhere comes next, until there are
enough leaves.

Reference: S. J. Young, J. J. Odell, P. C. Woodland (1994), see ``_tied``, section 3.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from hemstitch.errors import MisuseError
from hemstitch.speech._questions import phone_questions, variants
from hemstitch.speech._tied import Context, Root, Split, TiedTopology, Tree
from hemstitch.speech._topology import phone_numbers
from hemstitch.speech._tree_statistics import TreeStatistics, gaussian_score


def tie_states(
    statistics: TreeStatistics,
    num_leaves: int,
    *,
    context: Context = "both",
    min_count: float = 50.0,
    min_gain: float = 0.0,
    shared_roots: bool = True,
    questions: Iterable[Iterable[str]] | None = None,
) -> TiedTopology:
    """Grow trees until they have so many leaves: one leaf, one pdf.

    Every position of every phone begins with one leaf; that of silence stays one. The result is a function of the
    arguments alone; of equal gains the first found wins.

    Args:
        statistics: of the training data.
        num_leaves: where to stop; fewer come out if ``min_count`` or ``min_gain`` stops before.
        context: "left": ask about the phone before only (biphones); "both": also about the one after (triphones).
        min_count: frames that a leaf must have to be split off, > 0.
        min_gain: of the log-likelihood of all frames that a split must have, in nats.
        shared_roots: whether variants of a phone that differ in their place in the word (see
            :func:`position_dependent`) begin in one leaf, and trees may ask about the place of the phone itself.
        questions: sets of phones to ask for; ``None``: :func:`phone_questions`.

    Raises:
        MisuseError: ``num_leaves`` is below the number of trees, or a limit is out of range.
        DataError: a question names a phone that does not exist.

    Cost: num_leaves x questions x contexts x dim multiplications.
    """
    topology = statistics.topology
    if not (min_count > 0 and min_gain >= 0):
        raise MisuseError(f"tie_states: expected min_count > 0 and min_gain >= 0, got {min_count} and {min_gain}")
    sets = (phone_questions(statistics) if questions is None
            else [frozenset(phone_numbers(topology, question)) for question in questions])
    groups = list(variants(topology).values()) if shared_roots else [(p,) for p in topology.phone_ids.values()]
    places = [(group, position) for group in groups for position in range(topology.num_positions[group[0] - 1])]
    if num_leaves < len(places):
        raise MisuseError(f"tie_states: {len(places)} trees (one for each position of each phone) cannot have only "
                          f"{num_leaves} leaves; ask for more, or take fewer states per phone or shared roots")
    asked = [0, *([1] if any(len(group) > 1 for group in groups) else []), *([2] if context == "both" else [])]
    grower = _Grower(statistics, sets, asked, min_count)
    nodes = [grower.root(group, position) for group, position in places]
    grower.grow([n for n, (group, _) in zip(nodes, places) if topology.silence not in group], num_leaves - len(nodes),
                min_gain)
    numbers = count()
    roots = tuple(Root(group, position, node.tree(sets, numbers)) for node, (group, position) in zip(nodes, places))
    return TiedTopology(phones=topology.phones, hmms=topology.hmms, transition_scale=topology.transition_scale,
                        roots=roots, context=context)


@dataclass(eq=False)
class _Node:
    """A set of rows of the statistics; the best question about it; its children, if that was asked."""

    rows: np.ndarray
    gain: float
    asked: int
    question: int
    children: tuple[_Node, _Node] | None = None

    def tree(self, questions: Sequence[frozenset[int]], numbers: Iterator[int]) -> Tree:
        """The tree below, its leaves numbered in order."""
        if self.children is None:
            return next(numbers)
        yes, no = (child.tree(questions, numbers) for child in self.children)
        return Split(self.asked, questions[self.question], yes, no)


class _Grower:
    """Splits nodes. ``asked``: which columns of (left, phone, right) may be asked for."""

    def __init__(self, statistics: TreeStatistics, questions: Sequence[frozenset[int]], asked: Sequence[int],
                 min_count: float):
        self.keys, self.sums, self.floor = statistics.keys, statistics.sums, statistics.floor
        self.heard = self.keys[:, [2, 0, 3]]
        self.asked, self.min_count = asked, min_count
        self.member = np.zeros((len(questions), len(statistics.topology.phones) + 1))
        for row, phones in zip(self.member, questions):
            row[list(phones)] = 1.0

    def root(self, phones: Sequence[int], position: int) -> _Node:
        return self.node(np.flatnonzero(np.isin(self.keys[:, 0], phones) & (self.keys[:, 1] == position)))

    def node(self, rows: np.ndarray) -> _Node:
        sums = self.sums[rows]
        total = sums.sum(0)
        yes = np.stack([self.member[:, self.heard[rows, asked]] @ sums for asked in self.asked])
        no = total - yes
        gain = (gaussian_score(yes, self.floor) + gaussian_score(no, self.floor)
                - gaussian_score(total, self.floor))
        gain[np.minimum(yes[..., 0], no[..., 0]) < self.min_count] = -np.inf
        which, question = np.unravel_index(np.argmax(gain), gain.shape) if gain.size else (0, 0)
        return _Node(rows, float(gain.max(initial=-np.inf)), self.asked[int(which)], int(question))

    def grow(self, nodes: Iterable[_Node], splits: int, min_gain: float) -> None:
        """Split the node that gains most, so many times."""
        order = count()
        waiting = [(-node.gain, next(order), node) for node in nodes]
        heapq.heapify(waiting)
        for _ in range(splits):
            if not waiting or -waiting[0][0] <= min_gain:
                break
            node = heapq.heappop(waiting)[2]
            said_yes = self.member[node.question, self.heard[node.rows, node.asked]] > 0
            node.children = self.node(node.rows[said_yes]), self.node(node.rows[~said_yes])
            for child in node.children:
                heapq.heappush(waiting, (-child.gain, next(order), child))
