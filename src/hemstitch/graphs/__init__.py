"""Weighted graphs as plain tensors, and what runs on them: forward-backward, Viterbi, beam search, lattices."""

from hemstitch.graphs._graph import Graph

__all__ = ["Graph"]
