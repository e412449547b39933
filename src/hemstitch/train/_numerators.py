"""Numerators of training items: which pdf sequences are the transcript, with the weights of the denominator.

End to end, all ways to say the transcript count, in as many frames as the utterance has. From an alignment, its phones
count, with borders that may move by a tolerance; such a graph knows the time and can be cut into chunks.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hemstitch.graphs import Graph, alignment_graph, compose, shortest_length, slice_frames
from hemstitch.speech import Alignment, Lexicon, Topology, training_graph

PhonePdfs = Callable[[int | None, int], tuple[int, int]]
Numerators = Callable[[int, int, int, int], Graph | None]
"""(utterance, first frame, output frames, shift) -> its graph; ``None``: no path of so many frames in common."""


class PhoneAlignment(NamedTuple):
    """The phones of an utterance, from 0, and the frames of each."""

    phones: list[int]
    frames: list[int]

    @classmethod
    def of(cls, alignment: Alignment, topology: Topology) -> PhoneAlignment:
        """From an alignment of frames."""
        segments = alignment.phones
        return cls([topology.phone_ids[s.label] - 1 for s in segments], [s.end - s.start for s in segments])


def phone_pdfs(topology: Topology) -> PhonePdfs:
    """(left phone or ``None``, phone), from 0 -> the pdfs of its first and of its further frames."""

    def pdfs(left: int | None, phone: int) -> tuple[int, int]:
        context = () if left is None else (left + 1,)
        return topology.pdf(phone + 1, 0, context), topology.pdf(phone + 1, 1, context)

    return pdfs


def end_to_end_numerators(
    transcripts: Sequence[Sequence[str]], lexicon: Lexicon, topology: Topology, silence_probability: float,
    normalisation: Graph,
) -> Numerators:
    """All ways to say each transcript, whatever the number of frames as long as there is one for each phone."""
    unweighted = dataclasses.replace(topology, transition_scale=0.0)
    graphs, needed = [], []
    for words in transcripts:
        said = training_graph(words, lexicon, unweighted, silence_probability)
        plain = Graph.from_arcs(said.src, said.dst, said.pdf, said.cost, said.start, said.final)
        graphs.append(_or_none(compose(plain, normalisation)))
        needed.append(shortest_length(plain))
    return lambda utterance, first, outputs, shift: graphs[utterance] if needed[utterance] <= outputs else None


def aligned_numerators(
    alignments: Sequence[PhoneAlignment], pdfs: PhonePdfs, tolerance: int, subsampling: int, normalisation: Graph
) -> Numerators:
    """What an alignment says of a stretch; past the end of the utterance its last phone goes on.

    Graphs are made when they are first asked for, about 3 ms each, and kept.
    """
    kept: dict[tuple[int, int, int, int], Graph | None] = {}

    def numerator(utterance: int, first: int, outputs: int, shift: int) -> Graph | None:
        key = utterance, first, outputs, shift
        if key not in kept:
            phones, frames = alignments[utterance]
            beyond = max(0, first + outputs * subsampling - sum(frames))
            whole = alignment_graph(
                phones, [*frames[:-1], frames[-1] + beyond], pdfs, tolerance, subsampling, shift
            )
            piece = slice_frames(whole, first // subsampling, outputs) if whole.num_arcs else whole
            kept[key] = _or_none(compose(piece, normalisation))
        return kept[key]

    return numerator


def drawn_phones(
    transcripts: Sequence[Sequence[str]], lexicon: Lexicon, topology: Topology, silence_probability: float
) -> list[list[int]]:
    """Phones (from 0) of transcripts; pronunciations and silences are drawn at random (fixed seed)."""
    random = np.random.default_rng(0)
    sequences = []
    for words in transcripts:
        phones = [0]
        for entry in lexicon.pronunciations(words):
            phones += [topology.phone_ids[p] - 1 for p in entry[random.integers(len(entry))].phones]
            phones += [0] if random.random() < silence_probability else []
        sequences.append(phones if phones[-1] == 0 else [*phones, 0])
    return sequences


def shuffled_words(transcripts: Sequence[Sequence[str]], copies: int) -> list[list[str]]:
    """Transcripts as long as those given, with all their words dealt out anew (fixed seed), for each copy."""
    random, ends = np.random.default_rng(0), np.cumsum([0, *map(len, transcripts)])
    words, dealt = [word for transcript in transcripts for word in transcript], []
    for _ in range(copies):
        order = random.permutation(len(words))
        dealt += [[words[i] for i in order[first:end]] for first, end in itertools.pairwise(ends)]
    return dealt


def _or_none(graph: Graph) -> Graph | None:
    return graph if graph.num_arcs else None
