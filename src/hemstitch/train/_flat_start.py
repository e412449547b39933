"""Where alignments come from before there is a network, and the states that they are tied to.

Equal alignment -> Viterbi with one Gaussian per state, a few rounds -> decision trees grown on what came out -> the
same alignment in tied states -> a few more rounds, each tied state having a Gaussian of its own now.

Reference: S. J. Young, J. J. Odell, P. C. Woodland, "Tree-based state tying for high accuracy acoustic modelling", ARPA
Human Language Technology Workshop (1994), section 3: monophones first, then their states in context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from hemstitch.speech import (
    Alignment,
    Gaussians,
    Lexicon,
    TiedTopology,
    Topology,
    TreeStatistics,
    convert_alignment,
    tie_states,
)
from hemstitch.train._options import Hmm
from hemstitch.train._speech_data import Part, best_alignments, take_targets

Alignments = dict[str, list[Alignment]]
"""Part -> the alignment of each utterance."""


def gaussian_rounds(parts: Mapping[str, Part], lexicon: Lexicon, topology: Topology, rounds: int) -> Alignments:
    """Renew the targets of train and dev with one Gaussian per pdf, estimated on the training part.

    Returns:
        The last alignments; empty after no rounds.
    """
    train, found = parts["train"], {}
    for _ in range(rounds):
        gaussians = Gaussians.estimate(train.frames, train.targets.numpy(), topology.num_pdfs)
        for name in ("train", "dev"):
            found[name] = best_alignments(parts[name], gaussian_scores(gaussians, parts[name]), lexicon, topology)
            take_targets(parts[name], found[name])
    return found


def gaussian_scores(gaussians: Gaussians, part: Part) -> Callable[[slice], np.ndarray]:
    """From the place of frames in a part to their log-likelihoods (all at once would need much memory)."""
    return lambda cut: gaussians.loglikelihoods(part.frames[cut])


def tied_topology(part: Part, alignments: list[Alignment], topology: Topology, hmm: Hmm) -> TiedTopology:
    """States tied by trees that are grown on the training part.

    Raises:
        MisuseError: there are fewer leaves than states of phones.
    """
    assert hmm.context != "none"
    frames = (part.frames[part.cut(index)] for index in range(len(alignments)))
    statistics = TreeStatistics.collect(frames, alignments, topology)
    return tie_states(statistics, hmm.leaves, context=hmm.context, min_count=hmm.leaf_frames)


def convert_targets(parts: Mapping[str, Part], alignments: Alignments, source: Topology, target: Topology) -> None:
    """The same alignments in the pdfs of another topology."""
    for name, found in alignments.items():
        take_targets(parts[name], [convert_alignment(alignment, source, target) for alignment in found])
