"""Alignments re-labelled without realigning: for other pdfs, and for fewer frames.

Only the numbers of the pdfs change from a context-independent system to one whose states are tied by context; the
borders of phones and states stay. Where the network gives one output for every third frame, the borders are rounded
and pushed apart until every state has a frame.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hemstitch.errors import DataError, MisuseError
from hemstitch.graphs import NoPathError
from hemstitch.speech._align import Alignment, Segment, state_pdfs
from hemstitch.speech._topology import Topology, phone_numbers


def convert_alignment(alignment: Alignment, source: Topology, target: Topology) -> Alignment:
    """The same phones in the same frames, with the pdfs of another topology.

    Args:
        alignment: made with ``source``.
        source: the topology it was made with.
        target: the topology it is wanted for, with the same phones. Each phone has as many states as in ``source``,
            whose borders stay, or one state.

    Returns:
        The alignment, its cost 0: that was about other pdfs.

    Raises:
        MisuseError: a phone has another number of states, not 1; align anew.
        DataError: the alignment was not made with ``source``, or a phone is not in ``target``.
    """
    phones = phone_numbers(target, (phone.label for phone in alignment.phones))
    edges = []
    for number, phone, begins in zip(phones, alignment.phones, _state_begins(alignment, source)):
        num_states = len(target.hmms[number - 1])
        if num_states not in (1, len(begins)):
            raise MisuseError(f"convert_alignment: phone {phone.label} has {len(begins)} states, but {num_states} in "
                              "the target; align anew, or take a target with as many states or one")
        edges += begins[:num_states]
    pdfs = state_pdfs(phones, np.array([*edges, len(alignment.pdfs)]), target)
    return replace(alignment, pdfs=pdfs, cost=0.0)


def subsample_alignment(alignment: Alignment, topology: Topology, factor: int, shift: int = 0) -> Alignment:
    """The alignment of frames shift, shift + factor, shift + 2 factor ...

    A border at frame b comes before the first kept frame from b on. Where states would be left without frames, borders
    are pushed later, at the end of the utterance earlier.

    Args:
        alignment: made with ``topology``.
        topology: best with one state per phone, as :meth:`Topology.chain`.
        factor: one frame in so many is kept, >= 1.
        shift: the first one kept, 0 <= shift < factor.

    Returns:
        The alignment, in kept frames, its cost 0.

    Raises:
        NoPathError: there are more states than kept frames.
        MisuseError: ``factor`` or ``shift`` is out of range.
        DataError: the alignment was not made with ``topology``.
    """
    if not 0 <= shift < factor:
        raise MisuseError(f"subsample_alignment: expected 0 <= shift < factor, got shift {shift}, factor {factor}")
    begins = _state_begins(alignment, topology)
    edges = np.array([*(begin for states in begins for begin in states), len(alignment.pdfs)])
    kept = _spaced(np.maximum(0, -((shift - edges) // factor)))
    moved = dict(zip(edges.tolist(), kept.tolist()))

    def move(segment: Segment) -> Segment:
        return segment._replace(start=moved[segment.start], end=moved[segment.end])

    numbers = phone_numbers(topology, (phone.label for phone in alignment.phones))
    return Alignment(pdfs=state_pdfs(numbers, kept, topology), phones=tuple(map(move, alignment.phones)),
                     words=tuple(map(move, alignment.words)))


def _state_begins(alignment: Alignment, topology: Topology) -> list[list[int]]:
    """The first frame of every state of every phone."""
    found = []
    for phone, number in zip(alignment.phones, phone_numbers(topology, (phone.label for phone in alignment.phones))):
        hmm, pdfs = topology.hmms[number - 1], alignment.pdfs[phone.start:phone.end]
        owner = {position: i for i, state in enumerate(hmm) for position in (state.enter, state.loop)}
        states = [owner.get(position) for position in topology.pdf_positions[pdfs].tolist()]
        begins = [phone.start + t for t in range(len(states)) if t == 0 or states[t] != states[t - 1]]
        if len(begins) != len(hmm):
            raise DataError(f"the alignment goes through {len(begins)} states of phone {phone.label} in frames "
                            f"{phone.start} to {phone.end}, its HMM has {len(hmm)}: it was made with another topology")
        found.append(begins)
    return found


def _spaced(edges: np.ndarray) -> np.ndarray:
    """Edges moved apart by at least 1, each as little and as late as the last one, which stays, allows."""
    number = np.arange(len(edges))
    spaced = np.minimum(np.maximum.accumulate(edges - number), edges[-1] - number[-1]) + number
    if spaced[0] < 0:
        raise NoPathError(f"too few frames: {len(edges) - 1} states in {edges[-1]} kept frames; leave the utterance "
                          "out, keep more frames, or take fewer states per phone")
    return spaced
