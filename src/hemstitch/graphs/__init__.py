"""Weighted graphs as plain tensors, and what runs on them: forward-backward, Viterbi, beam search, lattices."""

from hemstitch.graphs._beam import beam_search
from hemstitch.graphs._denominator import denominator_posteriors, initial_probabilities
from hemstitch.graphs._forward_backward import Posteriors
from hemstitch.graphs._graph import Graph
from hemstitch.graphs._numerator import numerator_posteriors
from hemstitch.graphs._viterbi import NoPathError, Path, shortest_length, viterbi

__all__ = [
    "Graph",
    "NoPathError",
    "Path",
    "Posteriors",
    "beam_search",
    "denominator_posteriors",
    "initial_probabilities",
    "numerator_posteriors",
    "shortest_length",
    "viterbi",
]
