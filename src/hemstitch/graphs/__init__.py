"""Weighted graphs as plain tensors, and what runs on them: forward-backward, Viterbi, beam search, lattices."""

from hemstitch.graphs._beam import beam_search
from hemstitch.graphs._denominator import denominator_posteriors, initial_probabilities
from hemstitch.graphs._forward_backward import Posteriors
from hemstitch.graphs._graph import Graph
from hemstitch.graphs._lattice import Lattice, LatticeGraph, lattice_search, path_of_pdfs
from hemstitch.graphs._lattice_sums import (
    LatticeSums,
    Sentence,
    arc_weights,
    frame_sums,
    labelled_sums,
    lattice_sums,
    nbest,
    restricted_to,
)
from hemstitch.graphs._numerator import add_numerator_occupancies, numerator_posteriors
from hemstitch.graphs._numerator_graph import (
    alignment_graph,
    compose,
    normalisation_graph,
    phone_sequence_graph,
    slice_frames,
    trimmed,
)
from hemstitch.graphs._phone_graphs import denominator_graph, expand_phones, minimise
from hemstitch.graphs._phone_lm import estimate_phone_lm
from hemstitch.graphs._viterbi import NoPathError, Path, shortest_length, viterbi
from hemstitch.graphs._word_lattice import WordLattice, word_lattice

__all__ = [
    "Graph",
    "Lattice",
    "LatticeGraph",
    "LatticeSums",
    "NoPathError",
    "Path",
    "Posteriors",
    "Sentence",
    "WordLattice",
    "add_numerator_occupancies",
    "alignment_graph",
    "arc_weights",
    "beam_search",
    "compose",
    "denominator_graph",
    "denominator_posteriors",
    "estimate_phone_lm",
    "expand_phones",
    "frame_sums",
    "initial_probabilities",
    "labelled_sums",
    "lattice_search",
    "lattice_sums",
    "minimise",
    "nbest",
    "normalisation_graph",
    "numerator_posteriors",
    "path_of_pdfs",
    "phone_sequence_graph",
    "restricted_to",
    "shortest_length",
    "slice_frames",
    "trimmed",
    "viterbi",
    "word_lattice",
]
