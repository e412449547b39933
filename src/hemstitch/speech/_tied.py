"""Hidden Markov models of phones in context: pdfs shared by the contexts that a decision tree does not tell apart.

A phone sounds different between different neighbours, but most triples of phones are rare or never heard. So each
position of each phone has a binary tree whose inner nodes ask "is the left (right) neighbour one of these phones?"; a
leaf is a pdf. Every context ends in a leaf, heard or not.

Reference: S. J. Young, J. J. Odell, P. C. Woodland, "Tree-based state tying for high accuracy acoustic modelling",
ARPA Human Language Technology Workshop (1994), section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from hemstitch.errors import DataError, MisuseError
from hemstitch.speech._topology import HmmState, Topology

FORMAT = 1
"""Version of the dictionaries that :meth:`TiedTopology.to_dict` makes."""

Context = Literal["left", "both"]
"""The neighbours a pdf may depend on: the phone before it (a biphone), or those on both sides (a triphone)."""

ASKED = ("left", "phone", "right")


class Split(NamedTuple):
    """A question: is the asked one of (left, phone, right), by its number 0, 1 or 2, among these phones?"""

    asked: int
    phones: frozenset[int]
    yes: Tree
    no: Tree


Tree = Split | int


class Root(NamedTuple):
    """The tree for a position of one phone, or of several phones that share it."""

    phones: tuple[int, ...]
    position: int
    tree: Tree


@dataclass(frozen=True, kw_only=True)
class TiedTopology(Topology):
    """The HMM of each phone, with pdfs that depend on its neighbours.

    Attributes:
        roots: one for every position of every phone; their leaves number the pdfs.
        context: the neighbours that pdfs depend on.
    """

    roots: tuple[Root, ...]
    context: Context = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context not in ("left", "both"):
            raise MisuseError(f"tied topology: expected the context 'left' or 'both', got '{self.context}'")
        covered = sorted((phone, root.position) for root in self.roots for phone in root.phones)
        if covered != [(i, k) for i, n in enumerate(self.num_positions, start=1) for k in range(n)]:
            raise MisuseError("tied topology: expected each position of each phone under exactly one root")
        leaves = [pdf for root in self.roots for pdf in _leaves(root.tree)]
        if sorted(leaves) != list(range(len(leaves))):
            raise MisuseError("tied topology: expected leaves numbered from 0, each number once")

    @property
    def context_width(self) -> tuple[int, int]:
        """How many phones to the left and to the right a pdf depends on."""
        return 1, int(self.context == "both")

    @cached_property
    def num_pdfs(self) -> int:
        """Number of network outputs: the leaves of all trees."""
        return len(self.pdf_positions)

    @cached_property
    def pdf_positions(self) -> np.ndarray:
        """(pdf,) int64: the position, in its phone, that each pdf stands for."""
        found = {pdf: root.position for root in self.roots for pdf in _leaves(root.tree)}
        return np.array([found[pdf] for pdf in range(len(found))])

    def pdf(self, phone: int, position: int, context: Sequence[int] = ()) -> int:
        """The network output for a position of a phone between the phones (left, right) of ``context``.

        A neighbour left out counts as silence, and so does the outside of a sentence.
        """
        left, right = (*context, self.silence, self.silence)[:2]
        key = phone, position, left, right
        if key not in self._known:
            tree, heard = self._trees[phone, position], (left, phone, right)
            while isinstance(tree, Split):
                tree = tree.yes if heard[tree.asked] in tree.phones else tree.no
            self._known[key] = tree
        return self._known[key]

    def pdfs(self, phone: int, position: int) -> tuple[int, ...]:
        """The network outputs for a position of a phone in any context."""
        return tuple(_leaves(self._trees[phone, position]))

    def _ties(self) -> Any:
        """What tells one context from another: the trees."""
        content = self.to_dict()
        return [content["context"], content["roots"]]

    def to_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON knows; phones by name."""
        return {
            "version": FORMAT, "phones": list(self.phones), "hmms": [[list(state) for state in h] for h in self.hmms],
            "transition_scale": self.transition_scale, "context": self.context,
            "roots": [{"phones": self._names(root.phones), "position": root.position, "tree": self._plain(root.tree)}
                      for root in self.roots],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TiedTopology:
        """The topology that :meth:`to_dict` described.

        Raises:
            DataError: something is missing, or was written by a later version.
        """
        if content.get("version") != FORMAT:
            raise DataError(f"tied topology: expected version {FORMAT}, got {content.get('version')!r}; read it with "
                            "the program that wrote it, or grow the trees anew")
        try:
            ids = {phone: i for i, phone in enumerate(content["phones"], start=1)}
            roots = (Root(tuple(ids[phone] for phone in root["phones"]), root["position"], _tree(root["tree"], ids))
                     for root in content["roots"])
            return cls(
                phones=tuple(content["phones"]), roots=tuple(roots), context=content["context"],
                hmms=tuple(tuple(HmmState(*state) for state in states) for states in content["hmms"]),
                transition_scale=content["transition_scale"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"tied topology: damaged ({type(error).__name__}: {error}); grow the trees anew") from error

    @cached_property
    def _trees(self) -> dict[tuple[int, int], Tree]:
        return {(phone, root.position): root.tree for root in self.roots for phone in root.phones}

    @cached_property
    def _known(self) -> dict[tuple[int, int, int, int], int]:
        return {}

    def _names(self, phones: Sequence[int] | frozenset[int]) -> list[str]:
        return [self.phones[phone - 1] for phone in sorted(phones)]

    def _plain(self, tree: Tree) -> Any:
        if isinstance(tree, Split):
            return {"ask": ASKED[tree.asked], "phones": self._names(tree.phones),
                    "yes": self._plain(tree.yes), "no": self._plain(tree.no)}
        return tree


def _tree(plain: Any, ids: Mapping[str, int]) -> Tree:
    if isinstance(plain, int):
        return plain
    phones = frozenset(ids[phone] for phone in plain["phones"])
    return Split(ASKED.index(plain["ask"]), phones, _tree(plain["yes"], ids), _tree(plain["no"], ids))


def _leaves(tree: Tree) -> Iterator[int]:
    if isinstance(tree, Split):
        yield from _leaves(tree.yes)
        yield from _leaves(tree.no)
    else:
        yield tree
