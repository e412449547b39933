"""N-best lists, and another language model's opinion of them.

A recurrent language model has too many histories for a graph, so it is asked about the best sentences of the search
only. With cost(h) of a sentence h in the search, in which the graph's n-gram counts with weight 1, the choice is

    argmin_h  cost(h) + weight (log P_ngram(h) - log P_new(h))

weight 0: the search's own best; 1: the new model in the place of the n-gram; between: their log-linear mixture.

Reference: T. Mikolov et al., "Recurrent neural network based language model", Interspeech 2010, section 4 (1000-best
lists rescored, the models mixed).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hemstitch.errors import MisuseError
from hemstitch.graphs import LatticeGraph, nbest
from hemstitch.speech._compile import DecodingGraph
from hemstitch.speech._decode import DecodeOptions, penalised
from hemstitch.speech._language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A sentence of an n-best list.

    Attributes:
        words: what it says; may be empty.
        cost: of its best path, in nats, after scaling.
        log_probability: by the language model in the graph, in nats.
    """

    words: tuple[str, ...]
    cost: float
    log_probability: float


class BestLists:
    """Finds the best sentences of an utterance; make one for many utterances.

    Args:
        graph: from :func:`decoding_graph`.
        language_model: the one that the graph was made with.
        count: sentences in a list, at most.
        options: how to search; ``None``: the defaults.
        lattice_beam: largest cost of a sentence above the best, in nats after scaling.

    Raises:
        MisuseError: ``count`` is below 1.
    """

    def __init__(
        self, graph: DecodingGraph, language_model: LanguageModel, count: int,
        options: DecodeOptions | None = None, lattice_beam: float = 8.0,
    ) -> None:
        if count < 1:
            raise MisuseError(f"an n-best list needs at least one sentence, got count = {count}")
        self.words, self.language_model, self.count = graph.words, language_model, count
        self.options, self.lattice_beam = options or DecodeOptions(), lattice_beam
        self.lattices = LatticeGraph(penalised(graph.graph, self.options.word_penalty))

    def __call__(self, loglikes: np.ndarray | Tensor) -> list[Candidate]:
        """The best sentences, the best first.

        Args:
            loglikes: (frames, pdfs) log-likelihoods in nats, see :func:`scaled_loglikelihoods`.
        """
        options = self.options
        lattice = self.lattices.search(loglikes, options.beam, self.lattice_beam, options.max_active,
                                       options.acoustic_scale)
        sentences = [(tuple(self.words[label - 1] for label in labels), cost)
                     for labels, cost in nbest(lattice, self.count)]
        return [Candidate(words=words, cost=cost,
                          log_probability=self.language_model.sentence_log_probability(words))
                for words, cost in sentences]


def rescore(candidates: Sequence[Candidate], log_probabilities: Sequence[float], weight: float) -> Candidate:
    """The best sentence of a list by the formula above.

    Args:
        candidates: of one utterance, the best first, at least one.
        log_probabilities: log P_new of each, in nats.
        weight: in [0, 1].

    Raises:
        MisuseError: an empty list, or as many probabilities as there are not candidates.
    """
    if not candidates or len(candidates) != len(log_probabilities):
        raise MisuseError(f"rescore: expected a log-probability for each of at least one candidate, got "
                          f"{len(log_probabilities)} for {len(candidates)}")
    costs = [c.cost + weight * (c.log_probability - new) for c, new in zip(candidates, log_probabilities)]
    return candidates[min(range(len(costs)), key=costs.__getitem__)]
