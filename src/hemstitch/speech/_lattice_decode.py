r"""What else may have been said: lattices, n-best lists, and how sure each word is.

The confidence of the k-th word of the best sentence is the share of the other good sentences that have it there too:

    c_k = sum of p(W) over the sentences W whose alignment with the best one keeps its k-th word,
    p(W) = exp(-C(W)) / sum exp(-C(W')),

over the best sentences W of the lattice, at most 50, C(W) being the cost of the cheapest path that says W. Sentences
are aligned with the fewest errors. What is not among them does not count, so words are made too sure where the lattice
is narrow; and they are too sure where the acoustic scale is near 1, since neighbouring frames resemble each other.

References: F. Wessel, R. Schlueter, K. Macherey, H. Ney, "Confidence measures for large vocabulary continuous speech
recognition", IEEE TSAP 9 (2001), section III.D, posteriors on n-best lists (those on word graphs need the time of each
word on each path, and labels of a minimised graph come with changing delay). Lattice files: HTK's standard lattice
format, S. Young et al., "The HTK Book" (2006), chapter 20.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from hemstitch.graphs import Lattice, LatticeGraph, Sentence, WordLattice, beam_search, nbest, word_lattice
from hemstitch.graphs._viterbi import as_scores
from hemstitch.speech._compile import DecodingGraph
from hemstitch.speech._decode import DecodeOptions, Hypothesis, hypothesis, penalised
from hemstitch.speech._files import new_file
from hemstitch.speech._media import require

MOST_SENTENCES = 50
"""Best sentences that confidences are taken from."""


@dataclass(frozen=True)
class Alternative:
    """One of the best word sequences.

    Attributes:
        words: what may have been said.
        cost: of its best path, in nats, after scaling; the less the better.
    """

    words: tuple[str, ...]
    cost: float

    @property
    def text(self) -> str:
        """The words, separated by blanks."""
        return " ".join(self.words)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recognised:
    """The best sentence and what else may have been said.

    Attributes:
        best: what :func:`decode` finds.
        confidences: (word,) 0..1 of each word of ``best``.
        lattice: over frames; labels are numbers of words, from 1.
        names: the word of each label, from label 1.
    """

    best: Hypothesis
    confidences: tuple[float, ...]
    lattice: Lattice
    names: tuple[str, ...]

    def alternatives(self, n: int) -> list[Alternative]:
        """The ``n`` best word sequences of the lattice, fewer if it has fewer; exact.

        Raises:
            MisuseError: ``n`` is below 1.
        """
        return [Alternative(tuple(self.names[label - 1] for label in sentence.labels), sentence.cost)
                for sentence in nbest(self.lattice, n)]  # fmt: skip

    def word_lattice(self, beam: float = np.inf) -> WordLattice:
        """The lattice over words, within ``beam`` nats of the best path."""
        return word_lattice(self.lattice, beam)


class LatticeDecoder:
    """Beam search that keeps everything near the best path; make one for many utterances.

    Args:
        graph: from :func:`decoding_graph`.
        options: how to search; ``None``: the defaults.
        lattice_beam: largest cost of a path above the best one, in nats after scaling.

    Raises:
        MisuseError: an option is out of range.

    Cost: about that of two searches by :func:`decode`, and up to 50 best sentences.
    """

    def __init__(self, graph: DecodingGraph, options: DecodeOptions | None = None, lattice_beam: float = 8.0) -> None:
        self.graph, self.options, self.lattice_beam = graph, options or DecodeOptions(), lattice_beam
        self.search = LatticeGraph(penalised(graph.graph, self.options.word_penalty))

    def __call__(self, loglikes: np.ndarray | Tensor) -> Recognised:
        """Recognise an utterance (arguments and errors: see :func:`decode`)."""
        o, graph = self.options, self.search.graph
        path = beam_search(graph, loglikes, o.beam, o.max_active, o.acoustic_scale)
        lattice = self.search.search(loglikes, o.beam, self.lattice_beam, o.max_active, o.acoustic_scale)
        labels = path.labels
        sentences = nbest(lattice, MOST_SENTENCES)
        if not sentences or sentences[0].labels != tuple(labels.tolist()):  # ties, or pruned otherwise
            lattice = lattice.with_path(path, as_scores(graph, loglikes))
            sentences = nbest(lattice, MOST_SENTENCES)
        return Recognised(best=hypothesis(path, self.graph), confidences=confidences(labels.tolist(), sentences),
                          lattice=lattice, names=self.graph.words)  # fmt: skip


def confidences(labels: Sequence[int], sentences: Sequence[Sentence]) -> tuple[float, ...]:
    """How sure each word of a sentence is, see the module.

    Args:
        labels: its words.
        sentences: the best ones, with their costs.
    """
    kaldialign = require("kaldialign")
    costs = np.array([sentence.cost for sentence in sentences])
    weights = np.exp(costs.min() - costs)
    kept = np.zeros(len(labels))
    for weight, sentence in zip(weights / weights.sum(), sentences):
        pairs = kaldialign.align(list(labels), list(sentence.labels), -1)
        kept += weight * np.array([a == b for a, b in pairs if a != -1], dtype=bool)
    return tuple(np.minimum(1.0, kept).tolist())


def write_slf(
    path: Path | str, lattice: WordLattice, words: Sequence[str], utterance: str, frame_shift: float, start: float = 0.0
) -> None:
    """Write a word lattice in HTK's standard lattice format.

    Nodes have times in seconds: where the label of a word came, at or after its first frame. ``a`` is the acoustic log
    score of a link, not scaled, ``l`` minus the cost of the graph (language model, pronunciation, transitions, word
    penalty); a path's score is l + acscale a. Links to the end have the word ``!NULL``.

    Args:
        path: the file.
        lattice: of the utterance.
        words: the word of each label, from label 1.
        utterance: its id.
        frame_shift: seconds from one frame to the next.
        start: seconds at which the first frame begins.
    """
    names = ("!NULL", *words)
    lines = [f"VERSION=1.0\nUTTERANCE={utterance}\nacscale={lattice.acoustic_scale:g}\nlmscale=1\nstart=0 "
             f"end={lattice.num_states - 1}\nN={lattice.num_states} L={lattice.num_links}"]  # fmt: skip
    lines += [f"I={i} t={start + time * frame_shift:.3f}" for i, time in enumerate(lattice.time.tolist())]
    columns = (lattice.src, lattice.dst, lattice.label, lattice.acoustic_cost, lattice.graph_cost)
    lines += [f"J={j} S={s} E={e} W={names[w]} a={-a:.4f} l={-g:.4f}"
              for j, (s, e, w, a, g) in enumerate(zip(*(column.tolist() for column in columns)))]  # fmt: skip
    with new_file(Path(path)) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
