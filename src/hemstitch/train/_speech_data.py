"""The parts of a corpus in memory: features, training graphs, and the alignment that is being learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from hemstitch.errors import DataError
from hemstitch.graphs import Graph
from hemstitch.sampling import FrameWindows
from hemstitch.speech import (
    Alignment,
    BrokenUtterance,
    Corpus,
    FeatureSet,
    Lexicon,
    Topology,
    Utterance,
    align,
    equal_alignment,
    resolve_unknown,
    training_graph,
)
from hemstitch.speech._broken import enforce_tolerance
from hemstitch.speech._unknown_words import UNKNOWN
from hemstitch.train._options import Hmm, SpeechData

Result = TypeVar("Result")


@dataclass
class Part:
    """One part of the corpus.

    Attributes:
        utterances: in the order of ``offsets``.
        frames: (frame, feature) float32.
        offsets: (utterance + 1,) first frame of each utterance, and the end.
        graphs: the training graph of each utterance; empty for a part that is only recognised.
        targets: (frame,) int64 pdf of each frame; empty for a part that is only recognised.
        windows: the frames with the context that the model wants.
    """

    utterances: list[Utterance]
    frames: np.ndarray
    offsets: np.ndarray
    graphs: list[Graph]
    targets: Tensor
    windows: FrameWindows | None = None

    def cut(self, index: int) -> slice:
        """The frames of one utterance."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))


def recognised_part(corpus: Corpus, features: FeatureSet) -> Part:
    """A part without supervision."""
    utterances = [u for u in corpus if u.id in features.position]
    frames, offsets = _gather(utterances, features)
    return Part(utterances, frames, offsets, [], torch.empty(0, dtype=torch.int64))


def supervised_part(
    corpus: Corpus, features: FeatureSet, lexicon: Lexicon, topology: Topology, hmm: Hmm, data: SpeechData
) -> tuple[Part, list[str]]:
    """A part with training graphs and the equal alignment of the flat start, and notices of what was left out.

    An utterance with a word outside the lexicon, where that is not allowed, or with fewer frames than its transcript
    has states, is broken.

    Raises:
        DataError: more are broken than accepted; lists the first few with file and line. Or nothing is left.
    """
    usable, graphs, targets, broken, skipped = [], [], [], [], []
    for utterance in corpus:
        if utterance.id not in features.position:
            continue
        try:
            words = resolve_unknown(utterance.text.split(), lexicon, data.unknown_words)
            if words is None:
                skipped.append(utterance.id)
                continue
            alignment = equal_alignment(words, len(features[utterance.id]), lexicon, topology)
            graph = training_graph(words, lexicon, topology, hmm.silence_probability)
        except DataError as error:
            broken.append(BrokenUtterance(utterance.id, corpus.where(utterance), str(error)))
            continue
        usable.append(utterance)
        graphs.append(graph)
        targets.append(alignment.pdfs)
    enforce_tolerance(broken, len(usable) + len(broken), data.tolerance)
    if not usable:
        raise DataError(f"corpus {corpus.name}, {' and '.join(corpus.splits)}: no utterance is left to train on")
    notices = [str(entry) for entry in broken]
    if skipped:
        notices.append(f"{len(skipped)} utterances with words outside the lexicon, such as {skipped[0]}, are left out")
    frames, offsets = _gather(usable, features)
    return Part(usable, frames, offsets, graphs, torch.from_numpy(np.concatenate(targets))), notices


def words_of(utterance: Utterance, lexicon: Lexicon) -> list[str]:
    """The transcript, "<unk>" for words that are not in a lexicon which has it."""
    words = utterance.text.split()
    return [word if word in lexicon else UNKNOWN for word in words] if UNKNOWN in lexicon else words


def best_alignments(
    part: Part, loglikes: Callable[[slice], np.ndarray | Tensor], lexicon: Lexicon, topology: Topology
) -> list[Alignment]:
    """The best path through the training graph of each utterance.

    Args:
        part: a supervised part.
        loglikes: from the place of an utterance's frames in the part to their (frame, pdf) log-likelihoods.
        lexicon, topology: what the graphs were made from.
    """

    def best(index: int) -> Alignment:
        words, graph = part.utterances[index].text.split(), part.graphs[index]
        return align(loglikes(part.cut(index)), words, lexicon, topology, graph=graph)

    return in_threads(best, range(len(part.graphs)))


def take_targets(part: Part, alignments: Sequence[Alignment]) -> float:
    """Let a part learn these alignments; returns the share of frames whose target changed."""
    targets = torch.from_numpy(np.concatenate([alignment.pdfs for alignment in alignments]))
    changed = float((targets != part.targets).double().mean())
    part.targets = targets
    return changed


def in_threads(function: Callable[[int], Result], items: Sequence[int]) -> list[Result]:
    """``function`` of every item, on as many threads as torch uses; for functions that release the interpreter."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(function, items))


def _gather(utterances: list[Utterance], features: FeatureSet) -> tuple[np.ndarray, np.ndarray]:
    pieces = [features[u.id] for u in utterances]
    offsets = np.concatenate([[0], np.cumsum([len(p) for p in pieces])]).astype(np.int64)
    return np.concatenate(pieces), offsets
