"""Alignments: which frame belongs to which pdf, phone and word; by force, or shared out evenly for a flat start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from hemstitch.graphs import Graph, NoPathError, Path, viterbi
from hemstitch.speech._compile import training_graph
from hemstitch.speech._lexicon import Lexicon
from hemstitch.speech._topology import Topology, phone_numbers, with_neighbours

_SILENCE = 1


class Segment(NamedTuple):
    """A phone or word from frame ``start`` up to, not including, frame ``end``."""

    label: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Alignment:
    """What every frame of an utterance is accounted to.

    Attributes:
        pdfs: (frame,) int64.
        phones: the phones, silence among them, without gaps.
        words: the words; silence lies between them.
        cost: of the path, in nats; 0 where frames were only shared out.
    """

    pdfs: np.ndarray
    phones: tuple[Segment, ...]
    words: tuple[Segment, ...]
    cost: float = 0.0


def align(
    loglikes: np.ndarray | Tensor,
    words: Sequence[str],
    lexicon: Lexicon,
    topology: Topology,
    *,
    graph: Graph | None = None,
    silence_probability: float = 0.5,
    acoustic_scale: float = 1.0,
) -> Alignment:
    """The best path of an utterance through its transcript (exact Viterbi).

    Args:
        loglikes: (frames, pdfs) log-likelihoods in nats.
        words: the transcript.
        lexicon: pronunciations.
        topology: the HMMs.
        graph: the :func:`training_graph` of all that, if it is at hand.
        silence_probability: of silence between words and at the ends; without effect if ``graph`` is given.
        acoustic_scale: weight of the log-likelihoods beside transition, pronunciation and silence probabilities.

    Raises:
        NoPathError: the utterance is too short for its transcript, or scores of -inf close every path.
        DataError: a word is not in the lexicon, or the log-likelihoods have too few columns.
        NonFiniteError: a log-likelihood is NaN or +inf.
    """
    if graph is None:
        graph = training_graph(words, lexicon, topology, silence_probability)
    try:
        path = viterbi(graph, loglikes, acoustic_scale)
    except NoPathError as error:
        raise NoPathError(f"cannot align '{' '.join(words)}': {error}") from None
    phone_segments, word_segments = segments(path, topology.phones, lexicon.words)
    return Alignment(pdfs=path.pdfs, phones=phone_segments, words=word_segments, cost=path.cost)


def equal_alignment(words: Sequence[str], num_frames: int, lexicon: Lexicon, topology: Topology) -> Alignment:
    """Share frames out evenly over the HMM states of the first pronunciations, silence at both ends.

    The silences are left out where there are too few frames for them.

    Args:
        words: the transcript.
        num_frames: number of frames.
        lexicon: pronunciations.
        topology: the HMMs.

    Raises:
        NoPathError: there are fewer frames than states.
        DataError: a word is not in the lexicon, or a phone not in the topology.
    """
    phones = [[-number if i == 0 else number for i, number in enumerate(phone_numbers(topology, entry[0].phones))]
              for entry in lexicon.pronunciations(words)]
    spoken = [phone for word in phones for phone in word]
    units = [topology.silence, *spoken, topology.silence]
    if _num_states(units, topology) > num_frames:
        units = spoken
    needed = _num_states(units, topology)
    if needed > num_frames or not units:
        raise NoPathError(f"too few frames for '{' '.join(words)}': it needs {needed} (one per state), there are "
                          f"{num_frames}; leave it out, correct its transcript, or take fewer states per phone")
    edges = np.round(np.linspace(0, num_frames, needed + 1)).astype(int)
    offsets = np.cumsum([0, *(_num_states([unit], topology) for unit in units)])
    pdfs = state_pdfs([abs(phone) for phone in units], edges, topology)
    phone_segments, word_segments = _segments(units, edges[offsets], list(words), topology.phones)
    return Alignment(pdfs=pdfs, phones=phone_segments, words=word_segments)


def state_pdfs(phones: Sequence[int], edges: np.ndarray, topology: Topology) -> np.ndarray:
    """(frame,) pdfs of a sentence of phones whose HMM states lie between the edges, one more than states."""
    table = topology.table(with_neighbours(phones))
    pdfs = np.repeat(table.loop_pdf, np.diff(edges))
    pdfs[edges[:-1]] = table.enter_pdf
    return pdfs


def segments(
    path: Path, phones: Sequence[str], words: Sequence[str]
) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """Phones and words of a path, with their frames.

    The k-th label names the k-th word, wherever on the path it is. A word whose label never came, because the path was
    cut off, is left out. A word ends where silence or the next word begins.

    Args:
        path: through a graph with phone marks.
        phones: name of each phone, from phone 1.
        words: name of each label, from label 1.
    """
    marks = path.phone_marks
    begins = np.flatnonzero(marks)
    edges = np.append(path.frames[begins], len(path.pdfs))
    return _segments(marks[begins].tolist(), edges, [words[int(label) - 1] for label in path.labels], phones)


def _segments(
    marks: Sequence[int], edges: np.ndarray, words: Sequence[str], phones: Sequence[str]
) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """Segments from phone marks (negative: a word begins) and their edges, one more than marks."""
    bounds = edges.tolist()
    phone_segments = tuple(Segment(phones[abs(mark) - 1], *bounds[i:i + 2]) for i, mark in enumerate(marks))
    closes = [i for i, mark in enumerate(marks) if mark < 0 or mark == _SILENCE]
    ends = dict(zip(closes, [*closes[1:], len(marks)]))
    starts = [i for i in closes if marks[i] < 0]
    return phone_segments, tuple(Segment(word, bounds[i], bounds[ends[i]]) for word, i in zip(words, starts))


def _num_states(marks: Sequence[int], topology: Topology) -> int:
    return sum(len(topology.hmms[abs(mark) - 1]) for mark in marks)
