"""Weighted graphs as plain tensors, and what runs on them: forward-backward, Viterbi, beam search, lattices."""

from hemstitch.graphs._beam import beam_search
from hemstitch.graphs._graph import Graph
from hemstitch.graphs._viterbi import NoPathError, Path, shortest_length, viterbi

__all__ = ["Graph", "NoPathError", "Path", "beam_search", "shortest_length", "viterbi"]
