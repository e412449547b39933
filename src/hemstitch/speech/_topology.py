"""Hidden Markov models of phones: which network output accounts for which frame of a phone.

A phone is a chain of states, left to right. The frame that enters a state is accounted to the pdf at the state's
position ``enter``, the frames that stay to the one at ``loop``:

    classic 3 states   (0, 0) (1, 1) (2, 2)     at least 3 frames, 3 pdfs a phone
    "chain"            (0, 1)                   at least 1 frame, 2 pdfs a phone

With p the probability of staying, a state of d frames costs -(d - 1) log p - log(1 - p). The second term is paid when
the state is entered, not when it is left: complete paths cost the same, and a phone's cost does not depend on what
follows.

References: L. R. Rabiner, "A tutorial on hidden Markov models", Proc. IEEE 77 (1989); the chain topology: D. Povey et
al., "Purely sequence-trained neural networks for ASR based on lattice-free MMI", Interspeech 2016, section 2.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hemstitch.errors import DataError, MisuseError

if TYPE_CHECKING:
    from hemstitch.speech._align import Alignment


class HmmState(NamedTuple):
    """A state: positions (in the phone) of the pdfs of its first frame and of its others, probability of staying."""

    enter: int
    loop: int
    stay: float = 0.5


class HmmTable(NamedTuple):
    """The states of many phones, one after the other; those of phone i are ``offsets[i]:offsets[i + 1]``.

    ``enter_pdf`` and ``enter_cost`` belong to a state's first frame, ``loop_pdf`` and ``loop_cost`` to its others.
    """

    offsets: np.ndarray
    enter_pdf: np.ndarray
    enter_cost: np.ndarray
    loop_pdf: np.ndarray
    loop_cost: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The HMM of each phone, and the numbering of pdfs, without regard to neighbouring phones.

    A topology with tied, context-dependent pdfs (:class:`~hemstitch.speech.TiedTopology`) overrides :meth:`pdf`,
    :meth:`pdfs`, ``num_pdfs``, ``pdf_positions`` and ``context_width``.

    Attributes:
        phones: all phones, silence first; the number of ``phones[i]`` is i + 1.
        hmms: the states of each phone.
        transition_scale: weight of the costs of staying and leaving beside the other costs of a graph. Where estimated
            probabilities are searched with scaled log-likelihoods, the acoustic scale is the weight that fits. (Staying
            with p = 1/2 everywhere costs the same on all paths.)
    """

    phones: tuple[str, ...]
    hmms: tuple[tuple[HmmState, ...], ...]
    transition_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.transition_scale < math.inf:
            raise MisuseError(f"topology: expected transition_scale >= 0, got {self.transition_scale}")
        if len(self.phones) != len(self.hmms) or not all(self.hmms):
            raise MisuseError("topology: expected at least one state for each phone, "
                              f"got {len(self.phones)} phones and {len(self.hmms)} lists of states")
        for phone, states in zip(self.phones, self.hmms):
            if not all(0 < state.stay < 1 for state in states):
                raise MisuseError(f"topology: phone {phone}: expected probabilities of staying between 0 and 1")

    @classmethod
    def left_to_right(
        cls, phones: Sequence[str], num_states: int = 3, num_silence_states: int | None = None, stay: float = 0.5
    ) -> Topology:
        """Chains of states with one pdf each.

        Args:
            phones: all phones, silence first, as ``Lexicon.phones``.
            num_states: states per phone, usually 1 to 3; also its least number of frames.
            num_silence_states: states of silence; ``None``: as many.
            stay: probability of staying in a state, 0 < p < 1.

        Raises:
            MisuseError: a number of states below 1, or ``stay`` is not a probability.
        """
        silence = num_states if num_silence_states is None else num_silence_states
        if min(num_states, silence) < 1:
            raise MisuseError(f"topology: expected states per phone >= 1, got {num_states} and {silence} for silence")
        counts = [silence, *[num_states] * (len(phones) - 1)]
        return cls(phones=tuple(phones), hmms=tuple(tuple(HmmState(i, i, stay) for i in range(n)) for n in counts))

    @classmethod
    def chain(cls, phones: Sequence[str], stay: float = 0.5) -> Topology:
        """One state a phone, whose first frame has a pdf of its own: made for one frame in three.

        Args:
            phones: all phones, silence first, as ``Lexicon.phones``.
            stay: probability of staying in the state, 0 < p < 1.

        Raises:
            MisuseError: ``stay`` is no such probability.
        """
        return cls(phones=tuple(phones), hmms=((HmmState(0, 1, stay),),) * len(phones))

    @property
    def context_width(self) -> tuple[int, int]:
        """How many phones to the left and to the right a pdf depends on."""
        return 0, 0

    @cached_property
    def num_pdfs(self) -> int:
        """Number of network outputs."""
        return int(self._first_pdf[-1])

    @cached_property
    def digest(self) -> str:
        """Of the phones and the pdfs of their states: networks made for one topology fit others with its digest."""
        pdfs = [[(self.pdfs(phone, state.enter), self.pdfs(phone, state.loop)) for state in states]
                for phone, states in enumerate(self.hmms, start=1)]
        return hashlib.sha256(json.dumps([self.phones, pdfs, self._ties()]).encode()).hexdigest()

    def _ties(self) -> Any:
        """What tells one context from another, in types that JSON knows."""
        return None

    @cached_property
    def phone_ids(self) -> dict[str, int]:
        """The number of each phone, from 1."""
        return {phone: i for i, phone in enumerate(self.phones, start=1)}

    @property
    def silence(self) -> int:
        """The number of the silence phone."""
        return 1

    @cached_property
    def num_positions(self) -> tuple[int, ...]:
        """Number of positions of each phone."""
        return tuple(1 + max(max(state.enter, state.loop) for state in states) for states in self.hmms)

    @cached_property
    def pdf_positions(self) -> np.ndarray:
        """(pdf,) int64: the position, in its phone, that each pdf stands for."""
        return np.arange(self.num_pdfs) - np.repeat(self._first_pdf[:-1], self.num_positions)

    def pdf(self, phone: int, position: int, context: Sequence[int] = ()) -> int:
        """The network output for a position of a phone between the phones (left, right) of ``context``.

        The context is without effect here. A neighbour left out counts as silence, and so does the outside of a
        sentence.
        """
        return int(self._first_pdf[phone - 1]) + position

    def pdfs(self, phone: int, position: int) -> tuple[int, ...]:
        """The network outputs for a position of a phone in any context."""
        return (self.pdf(phone, position),)

    def table(self, units: Iterable[tuple[int, Sequence[int]]]) -> HmmTable:
        """The states of phones in context.

        Args:
            units: (phone, context) pairs; repeats are welcome.
        """
        offsets, rows = [0], []
        for phone, context in units:
            for state in self.hmms[phone - 1]:
                rows.append((self.pdf(phone, state.enter, context), -self.transition_scale * math.log1p(-state.stay),
                             self.pdf(phone, state.loop, context), -self.transition_scale * math.log(state.stay)))
            offsets.append(len(rows))
        enter_pdf, enter_cost, loop_pdf, loop_cost = np.array(rows).reshape(-1, 4).T
        return HmmTable(np.array(offsets), enter_pdf.astype(np.int64), enter_cost, loop_pdf.astype(np.int64), loop_cost)

    @cached_property
    def phone_table(self) -> HmmTable:
        """The states of every phone without context; phone p is row p - 1."""
        return self.table((phone, ()) for phone in range(1, len(self.phones) + 1))

    def with_transitions(self, alignments: Iterable[Alignment], smoothing: float = 1.0) -> Topology:
        """The same topology with probabilities of staying estimated from alignments.

        A state that was visited n times for f frames stays with p = (f - n + s) / (f + 2 s).

        Args:
            alignments: frames with their pdfs, and the phones they belong to.
            smoothing: s > 0, counts added to staying and to leaving; a state never seen gets 1/2.
        """
        visits: Counter[int] = Counter()
        frames: Counter[tuple[int, int]] = Counter()
        for alignment in alignments:
            for phone in alignment.phones:
                number = self.phone_ids[phone.label]
                visits[number] += 1
                for pdf in alignment.pdfs[phone.start:phone.end].tolist():
                    frames[number, pdf] += 1
        return replace(self, hmms=tuple(
            tuple(self._estimate(number, state, visits[number], frames, smoothing) for state in states)
            for number, states in enumerate(self.hmms, start=1)))

    def _estimate(self, phone: int, state: HmmState, visits: int, frames: Mapping, smoothing: float) -> HmmState:
        pdfs = {*self.pdfs(phone, state.enter), *self.pdfs(phone, state.loop)}
        seen = sum(frames[phone, pdf] for pdf in pdfs)
        return state._replace(stay=(seen - visits + smoothing) / (seen + 2 * smoothing))

    @cached_property
    def _first_pdf(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.num_positions)])


def with_neighbours(phones: Sequence[int]) -> list[tuple[int, tuple[int, int]]]:
    """Each phone of a sentence with its (left, right) neighbours; silence (1) is at both ends."""
    around = [1, *phones, 1]
    return [(phone, (around[i], around[i + 2])) for i, phone in enumerate(phones)]


def phone_numbers(topology: Topology, phones: Iterable[str]) -> list[int]:
    """The numbers of phones.

    Raises:
        DataError: a phone has no HMM.
    """
    phones = list(phones)
    if unknown := [phone for phone in dict.fromkeys(phones) if phone not in topology.phone_ids]:
        raise DataError(f"no HMM for the phones {unknown}: the topology was made from another lexicon; "
                        "rebuild it from this one's `phones`")
    return [topology.phone_ids[phone] for phone in phones]
